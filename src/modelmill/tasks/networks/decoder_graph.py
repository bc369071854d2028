"""The graph of a language model that answers step by step, made of the weights of its network.

torch's exporter knows nothing of keys and values that stay in place: the graph is put together
here, from the layers of `tasks.networks.transformer`, with ONNX Runtime's `GroupQueryAttention`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from onnx import ModelProto

OWN = "com.microsoft"
BLOCK = 32
"""Weights that share a scale."""
INT8_SUMS = 4
"""MatMulNBits' `accuracy_level` at which it multiplies whole numbers too, not only keeps them."""
Array = np.ndarray[Any, Any]


def packed(weight: Array) -> tuple[Array, Array]:
    """Weights [N, K] as whole numbers of 8 bits around 128 [N, blocks, BLOCK], and a scale for each
    block [N, blocks].

    As ONNX Runtime's `MatMulNBits` reads them.
    """
    parts = weight.reshape(len(weight), -1, BLOCK)
    scales = np.abs(parts).max(2) / 127
    scales[scales == 0] = 1
    whole = np.clip(np.round(parts / scales[:, :, None]), -128, 127) + 128
    return whole.astype(np.uint8), scales.astype(np.float32)


class Graph:
    """Nodes and weights as they are added; `int8` packs the weights of products."""

    def __init__(self, *, int8: bool = False) -> None:
        self.int8 = int8
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def weight(self, name: str, value: Array) -> str:
        """A constant of the graph."""
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
        """A node; the name of its first output is `name`."""
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
        """A torch Linear."""
        found = self.product(x, f"{name}.weight", weight, f"{name}.product")
        return (
            found
            if bias is None
            else self.add(
                "Add", [found, self.weight(f"{name}.bias", bias)], f"{name}.sum"
            )
        )

    def product(self, x: str, own: str, weight: Array, name: str) -> str:
        """x [.., K] times weights [N, K], which are called `own`."""
        rows, columns = weight.shape
        if not self.int8 or columns % BLOCK:
            return self.add("MatMul", [x, self.weight(own, weight.T)], name)
        whole, scales = packed(weight)
        parts = [x, self.weight(own, whole), self.weight(f"{own}.scales", scales)]
        how = {
            "K": columns,
            "N": rows,
            "bits": 8,
            "block_size": BLOCK,
            "accuracy_level": INT8_SUMS,
        }
        return self.add("MatMulNBits", parts, name, domain=OWN, **how)

    def norm(self, x: str, name: str, weights: Mapping[str, Array]) -> str:
        """A torch LayerNorm."""
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
    places: int,
    int8: bool = False,
) -> "ModelProto":
    """Blocks of `transformer.Block` between `embedding` and `last`, whose logits the
    embedding gives.

    `engines.onnx_steps.Steps` describes inputs and outputs.
    """
    from onnx import TensorProto, helper

    graph = Graph(int8=int8)
    tokens, width = weights["embedding.weight"].shape
    size = width // heads
    angles = np.arange(places)[:, None] * (10_000.0 ** (-np.arange(0, size, 2) / size))
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
    kept = ["batch", heads, places, size]
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
            *(value(f"past_{name}", TensorProto.FLOAT, kept) for name in names),
        ],
        [
            value("logits", TensorProto.FLOAT, ["batch", "kept", tokens]),
            *(value(n, TensorProto.FLOAT, kept) for n in names),
        ],
        graph.weights,
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(OWN, 1)]
    return helper.make_model(body, opset_imports=opsets, ir_version=10)


def _block(
    graph: Graph,
    x: str,
    name: str,
    layer: int,
    weights: Mapping[str, Array],
    heads: int,
) -> str:
    inside = f"{name}.attention.inside"
    query, key, value = np.split(weights[f"{inside}.weight"], 3)
    biases = np.split(weights[f"{inside}.bias"], 3)
    normal = graph.norm(x, f"{name}.first", weights)
    parts = [
        graph.linear(normal, f"{inside}.{part}", weight, bias)
        for part, weight, bias in zip(
            ("query", "key", "value"), (query, key, value), biases, strict=True
        )
    ]
    seen = graph.add(
        "GroupQueryAttention",
        [
            *parts,
            f"past_key_{layer}",
            f"past_value_{layer}",
            "seqlens",
            "total",
            "cos",
            "sin",
        ],
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
    seen = graph.linear(
        seen, outside, weights[f"{outside}.weight"], weights[f"{outside}.bias"]
    )
    x = graph.add("Add", [x, seen], f"{name}.middle")
    wide, narrow = f"{name}.body.0", f"{name}.body.2"
    found = graph.linear(
        graph.norm(x, f"{name}.second", weights),
        wide,
        weights[f"{wide}.weight"],
        weights[f"{wide}.bias"],
    )
    found = graph.add("Gelu", [found], f"{name}.gelu")
    found = graph.linear(
        found, narrow, weights[f"{narrow}.weight"], weights[f"{narrow}.bias"]
    )
    return graph.add("Add", [x, found], f"{name}.out")
