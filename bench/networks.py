"""The reference networks of the serving benchmark as ONNX files, with seeded random weights:
nothing is downloaded.

`cnn`: FP32 [N,1,28,28] (3,136 bytes) -> FP32 [N,10] (40 bytes). `resnet18`, `resnet50`: FP32
[N,3,224,224] -> FP32 [N,1000]; batch normalisation is folded into the convolutions, as every
exporter does for serving. `bert`, `bert-base`: INT64 [N,128] tokens -> FP32 [N,2]; encoders of 6
layers of 384 and of 12 layers of 768. N is free. Random weights cost what trained ones cost; their
scale keeps the values in the range of trained ones.
"""

import os
from dataclasses import dataclass, field
from math import prod, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 20
TOKENS, VOCABULARY = 128, 30522


@dataclass
class Network:
    """A graph in the making: every method adds nodes and returns the name of what they give."""

    seed: int = 0
    nodes: list[Any] = field(default_factory=list)
    weights: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """One operator of one output."""
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(kind, inputs, [name], name, **attributes)
        )
        return name

    def constant(self, values: Any, kind: type = np.float32) -> str:
        """A weight with given values."""
        name = f"weight_{len(self.weights)}"
        self.weights.append(
            numpy_helper.from_array(np.asarray(values, kind), name)
        )
        return name

    def weight(self, *shape: int, fan: int, gain: float = 1.0) -> str:
        """A weight with normal values of deviation gain / sqrt(fan)."""
        return self.constant(
            self.random.standard_normal(shape, np.float32)
            * np.float32(gain / sqrt(fan))
        )

    def convolution(
        self,
        x: str,
        channels: tuple[int, int],
        side: int,
        stride: int = 1,
        gain: float = 1.4,
    ) -> str:
        """A square convolution with bias, padded to keep the size (not padded where stride is
        0).
        """
        weight = self.weight(
            channels[1],
            channels[0],
            side,
            side,
            fan=channels[0] * side * side,
            gain=gain,
        )
        pads = [side // 2 if stride else 0] * 4
        bias = self.constant(np.zeros(channels[1]))
        return self.node(
            "Conv", x, weight, bias, pads=pads, strides=[stride or 1] * 2
        )

    def dense(self, x: str, width: int, wanted: int) -> str:
        """x @ weight + bias over the last axis."""
        product = self.node("MatMul", x, self.weight(width, wanted, fan=width))
        return self.node("Add", product, self.constant(np.zeros(wanted)))

    def normalised(self, x: str, width: int) -> str:
        """Layer normalisation over the last axis."""
        return self.node(
            "LayerNormalization",
            x,
            self.constant(np.ones(width)),
            self.constant(np.zeros(width)),
            axis=-1,
        )

    def save(
        self,
        path: Path,
        given: tuple[str, int, list[Any]],
        answer: tuple[str, str, int],
    ) -> None:
        """Write the file, complete or not at all; `given` is name, type, shape, `answer` name,
        node, width.
        """
        name, source, width = answer
        self.nodes.append(helper.make_node("Identity", [source], [name]))
        graph = helper.make_graph(
            self.nodes,
            path.stem,
            [helper.make_tensor_value_info(*given)],
            [
                helper.make_tensor_value_info(
                    name, TensorProto.FLOAT, ["N", width]
                )
            ],
            self.weights,
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10
        )
        onnx.checker.check_model(model, full_check=True)
        draft = path.with_name(f"{path.name}.{os.getpid()}")
        onnx.save(model, draft)
        draft.rename(path)


def _cnn(path: Path) -> None:
    net = Network()
    x = net.node("Relu", net.convolution("input", (1, 10), 5, stride=0))
    x = net.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = net.node("Relu", net.convolution(x, (10, 20), 5, stride=0))
    x = net.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = net.node("Flatten", x)
    x = net.node("Relu", net.dense(x, 320, 50))
    x = net.node("Softmax", net.dense(x, 50, 10), axis=-1)
    net.save(
        path,
        ("input", TensorProto.FLOAT, ["N", 1, 28, 28]),
        ("probabilities", x, 10),
    )


def _resnet(path: Path, blocks: list[int], *, bottleneck: bool) -> None:
    net = Network()
    x = net.node("Relu", net.convolution("input", (3, 64), 7, stride=2))
    x = net.node(
        "MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]
    )
    width = 64
    for stage, count in enumerate(blocks):
        inner = 64 << stage
        wanted = inner * (4 if bottleneck else 1)
        for block in range(count):
            stride = 2 if stage and not block else 1
            short = (
                x
                if width == wanted and stride == 1
                else net.convolution(x, (width, wanted), 1, stride, 1.0)
            )
            layers = (
                _bottleneck(width, inner)
                if bottleneck
                else [(width, inner, 3), (inner, inner, 3)]
            )
            at = 1 if bottleneck else 0  # where the stride goes: ResNet v1.5
            for index, (before, after, side) in enumerate(layers):
                last = index == len(layers) - 1
                x = net.convolution(
                    x,
                    (before, after),
                    side,
                    stride if index == at else 1,
                    0.3 if last else 1.4,
                )
                x = x if last else net.node("Relu", x)
            x, width = net.node("Relu", net.node("Add", x, short)), wanted
    x = net.dense(
        net.node("Flatten", net.node("GlobalAveragePool", x)), width, 1000
    )
    net.save(
        path,
        ("input", TensorProto.FLOAT, ["N", 3, 224, 224]),
        ("scores", x, 1000),
    )


def _bottleneck(width: int, inner: int) -> list[tuple[int, int, int]]:
    return [(width, inner, 1), (inner, inner, 3), (inner, inner * 4, 1)]


def _bert(path: Path, layers: int, width: int, heads: int) -> None:
    net = Network()
    words = net.node(
        "Gather",
        net.weight(VOCABULARY, width, fan=1, gain=0.5),
        "input_ids",
        axis=0,
    )
    x = net.normalised(
        net.node("Add", words, net.weight(TOKENS, width, fan=1, gain=0.5)),
        width,
    )
    for _ in range(layers):
        x = net.normalised(
            net.node("Add", x, _attention(net, x, width, heads)), width
        )
        inner = net.node("Gelu", net.dense(x, width, 4 * width))
        x = net.normalised(
            net.node("Add", x, net.dense(inner, 4 * width, width)), width
        )
    first = net.node("Gather", x, net.constant(0, np.int64), axis=1)
    x = net.dense(net.node("Tanh", net.dense(first, width, width)), width, 2)
    net.save(
        path, ("input_ids", TensorProto.INT64, ["N", TOKENS]), ("logits", x, 2)
    )


def _attention(net: Network, x: str, width: int, heads: int) -> str:
    size = width // heads
    split = net.constant([0, TOKENS, heads, size], np.int64)
    query, key, value = (
        net.node(
            "Transpose",
            net.node("Reshape", net.dense(x, width, width), split),
            perm=perm,
        )
        for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
    )
    scores = net.node(
        "Mul", net.node("MatMul", query, key), net.constant(1 / sqrt(size))
    )
    mixed = net.node("MatMul", net.node("Softmax", scores, axis=-1), value)
    joined = net.node("Transpose", mixed, perm=[0, 2, 1, 3])
    return net.dense(
        net.node("Reshape", joined, net.constant([0, TOKENS, width], np.int64)),
        width,
        width,
    )


MAKERS: dict[str, Any] = {
    "cnn": _cnn,
    "resnet18": lambda path: _resnet(path, [2, 2, 2, 2], bottleneck=False),
    "resnet50": lambda path: _resnet(path, [3, 4, 6, 3], bottleneck=True),
    "bert": lambda path: _bert(path, 6, 384, 12),
    "bert-base": lambda path: _bert(path, 12, 768, 12),
}
INPUTS: dict[str, tuple[str, str, list[int]]] = {
    "cnn": ("input", "FP32", [1, 28, 28]),
    "resnet18": ("input", "FP32", [3, 224, 224]),
    "resnet50": ("input", "FP32", [3, 224, 224]),
    "bert": ("input_ids", "INT64", [TOKENS]),
    "bert-base": ("input_ids", "INT64", [TOKENS]),
}
"""Name, datatype (as in the Open Inference Protocol) and shape of one item."""


def network(name: str, folder: Path) -> Path:
    """The network's file in `folder`, made at the first time; `name` is a key of `MAKERS`."""
    path = folder / f"{name}.onnx"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        MAKERS[name](path)
    return path


def example(name: str, count: int = 1, seed: int = 1) -> np.ndarray[Any, Any]:
    """`count` random items of what a network takes."""
    _, datatype, shape = INPUTS[name]
    random = np.random.default_rng(seed)
    if datatype == "INT64":
        return random.integers(0, VOCABULARY, (count, *shape), np.int64)
    return random.standard_normal(count * prod(shape), np.float32).reshape(
        count, *shape
    )
