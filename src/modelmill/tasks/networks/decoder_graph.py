"""The ONNX graph of a decoder with a cache of keys and values, built from its weights.

torch's exporter can't write a cache that is updated in place: the graph is built here from the
layers of `tasks.networks.transformer`, with ONNX Runtime's `GroupQueryAttention`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

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

        self.weights.append(
            numpy_helper.from_array(np.ascontiguousarray(value), name)
        )
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

    def linear(
        self, x: str, name: str, weight: Array, bias: Array | None
    ) -> str:
        """Add a torch `Linear`; returns the name of its output."""
        product = self.product(x, f"{name}.weight", weight, f"{name}.product")
        if bias is None:
            return product
        return self.add(
            "Add", [product, self.weight(f"{name}.bias", bias)], f"{name}.sum"
        )

    def product(self, x: str, own: str, weight: Array, name: str) -> str:
        """Add x [.., K] times weights [N, K] named `own`; returns the output's name, `name`."""
        if not self.int8 or weight.shape[1] % BLOCK:
            return self.add("MatMul", [x, self.weight(own, weight.T)], name)
        return self._quantised_product(x, own, weight, name)

    def _quantised_product(
        self, x: str, own: str, weight: Array, name: str
    ) -> str:
        rows, columns = weight.shape
        whole, scales = quantised(weight)
        parts = [
            x,
            self.weight(own, whole),
            self.weight(f"{own}.scales", scales),
        ]
        return self.add(
            "MatMulNBits",
            parts,
            name,
            domain=OWN,
            K=columns,
            N=rows,
            bits=8,
            block_size=BLOCK,
            accuracy_level=INT8_SUMS,
        )

    def norm(self, x: str, name: str, weights: Mapping[str, Array]) -> str:
        """Add a torch `LayerNorm`; returns the name of its output."""
        parts = [
            self.weight(f"{name}.{part}", weights[f"{name}.{part}"])
            for part in ("weight", "bias")
        ]
        return self.add(
            "LayerNormalization",
            [x, *parts],
            f"{name}.out",
            axis=-1,
            epsilon=1e-5,
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
    graph = GraphBuilder(int8=int8)
    tokens, width = weights["embedding.weight"].shape
    size = width // heads
    _add_rotations(graph, positions, size)
    embedding = graph.weight("embedding", weights["embedding.weight"])
    x = graph.add("Gather", [embedding, "ids"], "embedded")
    for layer in range(layers):
        x = _layer(graph, x, Layer(layer, heads, weights))
    x = graph.norm(_last_positions(graph, x), "last", weights)
    graph.product(x, "head", weights["embedding.weight"], "logits")
    return _model(graph, layers, ["batch", heads, positions, size], tokens)


def _add_rotations(graph: GraphBuilder, positions: int, size: int) -> None:
    """The cosines and sines of rotary positions, [positions, size / 2] each."""
    rates = 10_000.0 ** (-np.arange(0, size, 2) / size)
    angles = np.arange(positions)[:, None] * rates
    graph.weight("cos", np.cos(angles).astype(np.float32))
    graph.weight("sin", np.sin(angles).astype(np.float32))


def _last_positions(graph: GraphBuilder, x: str) -> str:
    """The states of the last `keep` tokens alone."""
    graph.add("Neg", ["keep"], "begin")
    graph.weight("axis", np.array([1], np.int64))
    graph.weight("far", np.array([2**31 - 1], np.int64))
    return graph.add("Slice", [x, "begin", "far", "axis"], "final")


def _model(
    graph: GraphBuilder, layers: int, cache: list[int | str], tokens: int
) -> "ModelProto":
    """The model of a whole graph; `cache` is the shape of the keys, and of the values, of a
    layer.
    """
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info
    names = [
        f"{kind}_{layer}"
        for layer in range(layers)
        for kind in ("key", "value")
    ]
    inputs = [
        value("ids", TensorProto.INT64, ["batch", "length"]),
        value("seqlens", TensorProto.INT32, ["batch"]),
        value("total", TensorProto.INT32, []),
        value("keep", TensorProto.INT64, [1]),
        *(value(f"past_{name}", TensorProto.FLOAT, cache) for name in names),
    ]
    outputs = [
        value("logits", TensorProto.FLOAT, ["batch", "kept", tokens]),
        *(value(name, TensorProto.FLOAT, cache) for name in names),
    ]
    body = helper.make_graph(
        graph.nodes, "decoder", inputs, outputs, graph.weights
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(OWN, 1)]
    return helper.make_model(body, opset_imports=opsets, ir_version=10)


class Layer(NamedTuple):
    """A layer of the decoder: its number, and the weights of all layers."""

    number: int
    heads: int
    weights: Mapping[str, Array]

    @property
    def name(self) -> str:
        """What the names of its weights begin with."""
        return f"blocks.{self.number}"

    def linear(self, graph: GraphBuilder, x: str, part: str) -> str:
        """Add a linear part of the layer; returns the name of its output."""
        name = f"{self.name}.{part}"
        weight, bias = (
            self.weights[f"{name}.weight"],
            self.weights[f"{name}.bias"],
        )
        return graph.linear(x, name, weight, bias)

    def norm(self, graph: GraphBuilder, x: str, part: str) -> str:
        """Add a norm of the layer; returns the name of its output."""
        return graph.norm(x, f"{self.name}.{part}", self.weights)


def _layer(graph: GraphBuilder, x: str, layer: Layer) -> str:
    attended = _attention(graph, layer.norm(graph, x, "first"), layer)
    x = graph.add("Add", [x, attended], f"{layer.name}.middle")
    wide = layer.linear(graph, layer.norm(graph, x, "second"), "body.0")
    bent = graph.add("Gelu", [wide], f"{layer.name}.gelu")
    narrow = layer.linear(graph, bent, "body.2")
    return graph.add("Add", [x, narrow], f"{layer.name}.out")


def _attention(graph: GraphBuilder, x: str, layer: Layer) -> str:
    attended = graph.add(
        "GroupQueryAttention",
        [
            *_projections(graph, x, layer),
            f"past_key_{layer.number}",
            f"past_value_{layer.number}",
            "seqlens",
            "total",
            "cos",
            "sin",
        ],
        f"{layer.name}.seen",
        f"key_{layer.number}",
        f"value_{layer.number}",
        domain=OWN,
        num_heads=layer.heads,
        kv_num_heads=layer.heads,
        do_rotary=1,
        rotary_interleaved=0,
    )
    return layer.linear(graph, attended, "attention.outside")


def _projections(graph: GraphBuilder, x: str, layer: Layer) -> list[str]:
    """Query, key and value: one layer of torch, cut in three."""
    inside = f"{layer.name}.attention.inside"
    weights = np.split(layer.weights[f"{inside}.weight"], 3)
    biases = np.split(layer.weights[f"{inside}.bias"], 3)
    return [
        graph.linear(x, f"{inside}.{part}", weight, bias)
        for part, weight, bias in zip(
            ("query", "key", "value"), weights, biases, strict=True
        )
    ]
