"""The ONNX graph of a decoder with a cache of keys and values, built from its weights.

torch's exporter can't write a cache that is updated in place: the graph is built here from the
layers of `tasks.networks.transformer`, with ONNX Runtime's `GroupQueryAttention`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from onnx import ModelProto

OWN = "com.microsoft"
"""Domain of ONNX Runtime's own operators."""
BLOCK = 32
"""Weights that share a scale (block-wise quantisation)."""
INT8_SUMS = 4
"""The `accuracy_level` at which `MatMulNBits` also computes in 8-bit integers."""
Array = np.ndarray[Any, Any]


def quantised(weight: Array) -> tuple[Array, Array]:
    """Weights [N, K] as uint8 with zero point 128 [N, blocks, BLOCK], and a float32 scale for each
    block [N, blocks], as ONNX Runtime's `MatMulNBits` reads them.
    """
    parts = weight.reshape(len(weight), -1, BLOCK)
    scales = np.abs(parts).max(2) / 127
    scales[scales == 0] = 1
    whole = np.clip(np.round(parts / scales[:, :, None]), -128, 127) + 128
    return whole.astype(np.uint8), scales.astype(np.float32)


class GraphBuilder:
    """Collects the nodes and weights of a graph; with `int8` weights of products are quantised."""

    def __init__(self, *, int8: bool = False) -> None:
        self.int8 = int8
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def weight(self, name: str, value: Array) -> str:
        """Add a constant; returns its name."""
        from onnx import numpy_helper

        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def add(
        self,
        kind: str,
        inputs: list[str],
        name: str,
        *more: str,
        domain: str = "",
        **options: Any,
    ) -> str:
        """Add a node with the outputs `name` and `more`; returns `name`."""
        from onnx import helper

        self.nodes.append(
            helper.make_node(
                kind,
                inputs,
                [name, *more],
                name=f"{name}_node",
                domain=domain,
                **options,
            )
        )
        return name

    def linear(self, x: str, name: str, weight: Array, bias: Array | None) -> str:
        """Add a torch `Linear`; returns the name of its output."""
        product = self.product(x, f"{name}.weight", weight, f"{name}.product")
        if bias is None:
            return product
        return self.add(
            "Add", [product, self.weight(f"{name}.bias", bias)], f"{name}.sum"
        )

    def product(self, x: str, own: str, weight: Array, name: str) -> str:
        """Add x [.., K] times weights [N, K] named `own`; returns the output's name, `name`."""
        rows, columns = weight.shape
        if not self.int8 or columns % BLOCK:
            return self.add("MatMul", [x, self.weight(own, weight.T)], name)
        whole, scales = quantised(weight)
        parts = [x, self.weight(own, whole), self.weight(f"{own}.scales", scales)]
        options = {
            "K": columns,
            "N": rows,
            "bits": 8,
            "block_size": BLOCK,
            "accuracy_level": INT8_SUMS,
        }
        return self.add("MatMulNBits", parts, name, domain=OWN, **options)

    def norm(self, x: str, name: str, weights: Mapping[str, Array]) -> str:
        """Add a torch `LayerNorm`; returns the name of its output."""
        parts = [
            self.weight(f"{name}.{part}", weights[f"{name}.{part}"])
            for part in ("weight", "bias")
        ]
        return self.add(
            "LayerNormalization", [x, *parts], f"{name}.out", axis=-1, epsilon=1e-5
        )


def decoder(
    weights: Mapping[str, Array],
    *,
    layers: int,
    heads: int,
    positions: int,
    int8: bool = False,
) -> "ModelProto":
    """The graph of a `transformer.Decoder` with this state dict; `positions` is the length of its
    context.

    `engines.onnx_steps.Steps` describes inputs and outputs.
    """
    from onnx import TensorProto, helper

    graph = GraphBuilder(int8=int8)
    tokens, width = weights["embedding.weight"].shape
    size = width // heads
    angles = np.arange(positions)[:, None] * (
        10_000.0 ** (-np.arange(0, size, 2) / size)
    )
    graph.weight("cos", np.cos(angles).astype(np.float32))
    graph.weight("sin", np.sin(angles).astype(np.float32))
    x = graph.add(
        "Gather",
        [graph.weight("embedding", weights["embedding.weight"]), "ids"],
        "embedded",
    )
    for layer in range(layers):
        x = _block(graph, x, f"blocks.{layer}", layer, weights, heads)
    graph.add("Neg", ["keep"], "begin")
    graph.weight("axis", np.array([1], np.int64))
    graph.weight("far", np.array([2**31 - 1], np.int64))
    x = graph.norm(
        graph.add("Slice", [x, "begin", "far", "axis"], "final"), "last", weights
    )
    graph.product(x, "head", weights["embedding.weight"], "logits")
    cache = ["batch", heads, positions, size]
    value = helper.make_tensor_value_info
    names = [f"{kind}_{layer}" for layer in range(layers) for kind in ("key", "value")]
    body = helper.make_graph(
        graph.nodes,
        "decoder",
        [
            value("ids", TensorProto.INT64, ["batch", "length"]),
            value("seqlens", TensorProto.INT32, ["batch"]),
            value("total", TensorProto.INT32, []),
            value("keep", TensorProto.INT64, [1]),
            *(value(f"past_{name}", TensorProto.FLOAT, cache) for name in names),
        ],
        [
            value("logits", TensorProto.FLOAT, ["batch", "kept", tokens]),
            *(value(name, TensorProto.FLOAT, cache) for name in names),
        ],
        graph.weights,
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(OWN, 1)]
    return helper.make_model(body, opset_imports=opsets, ir_version=10)


def _block(
    graph: GraphBuilder,
    x: str,
    name: str,
    layer: int,
    weights: Mapping[str, Array],
    heads: int,
) -> str:
    normal = graph.norm(x, f"{name}.first", weights)
    attended = _attention(graph, normal, name, layer, weights, heads)
    x = graph.add("Add", [x, attended], f"{name}.middle")

    def linear(x: str, part: str) -> str:
        weight, bias = weights[f"{part}.weight"], weights[f"{part}.bias"]
        return graph.linear(x, part, weight, bias)

    wide = linear(graph.norm(x, f"{name}.second", weights), f"{name}.body.0")
    narrow = linear(graph.add("Gelu", [wide], f"{name}.gelu"), f"{name}.body.2")
    return graph.add("Add", [x, narrow], f"{name}.out")


def _attention(
    graph: GraphBuilder,
    x: str,
    name: str,
    layer: int,
    weights: Mapping[str, Array],
    heads: int,
) -> str:
    inside = f"{name}.attention.inside"
    parts = zip(
        ("query", "key", "value"),
        np.split(weights[f"{inside}.weight"], 3),
        np.split(weights[f"{inside}.bias"], 3),
        strict=True,
    )
    projected = [
        graph.linear(x, f"{inside}.{part}", weight, bias)
        for part, weight, bias in parts
    ]
    cache = [f"past_key_{layer}", f"past_value_{layer}"]
    attended = graph.add(
        "GroupQueryAttention",
        [*projected, *cache, "seqlens", "total", "cos", "sin"],
        f"{name}.seen",
        f"key_{layer}",
        f"value_{layer}",
        domain=OWN,
        num_heads=heads,
        kv_num_heads=heads,
        do_rotary=1,
        rotary_interleaved=0,
    )
    outside = f"{name}.attention.outside"
    weight, bias = weights[f"{outside}.weight"], weights[f"{outside}.bias"]
    return graph.linear(attended, outside, weight, bias)
