"""hog-svm: histograms of oriented gradients and a linear SVM, the classical baseline, as one ONNX
graph.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from msgspec import Meta

from modelmill.errors import InvalidInput
from modelmill.tasks.base import Choice, Facts, Plan, Signature
from modelmill.tasks.decoding.image_decoder import Preprocessing
from modelmill.types import Struct

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

SUMMARY = (
    "histograms of oriented gradients and a linear SVM; trains in seconds, for shapes"
)
INPUT = Preprocessing(max_side=64)

Array = np.ndarray[Any, Any]
OPSET, IR = 18, 10
BATCH = 256
CELLS = 8
"""Cells along the shorter side, where `fit_to` chooses."""
CLIP, TINY = 0.2, 1e-3
HELD_OUT = 5
"""One in so many training items calibrates the scores."""


class Settings(Struct, frozen=True, kw_only=True):
    """Options of the features and the SVM."""

    cell: Annotated[int, Meta(ge=2, le=256, description="side of a cell in pixels")] = 8
    orientations: Annotated[
        int, Meta(ge=2, le=36, description="bins of a histogram, over half a turn")
    ] = 9
    block: Annotated[
        int,
        Meta(ge=1, le=4, description="side of a block in cells, normalised together"),
    ] = 2
    inverse_regularisation: Annotated[
        float, Meta(gt=0, description="larger fits the training pictures closer")
    ] = 0.1


def fit_to(facts: Facts, plan: Plan) -> Iterator[Choice]:
    """Cells by the size of the pictures."""
    height, width = facts.inputs.for_model(plan.input)
    cell = max(2, round(min(height, width) / CELLS))
    yield Choice(
        why=f"pictures of {width}x{height} have about {CELLS} cells on their shorter side",
        settings={"cell": cell},
    )


def fit(
    plan: Plan,
    signature: Signature,
    arrays: dict[str, Array],
    targets: dict[str, Array],
) -> tuple["ModelProto", dict[str, Array]]:
    """`image` uint8 [N, H, W, C] and `label` [N] -> the graph and its weights by name.

    The features are computed by the very graph that is deployed. Raises `InvalidInput` for cells
    that do not fit.
    """
    settings, shape = plan.network, signature.inputs[0].shape[1:]
    if min(shape[:2]) < settings.cell:
        raise InvalidInput(
            f"cell={settings.cell} is larger than pictures of {shape[1]}x{shape[0]}"
        )
    labels = np.asarray(targets["label"])
    features = described(arrays["image"], model(settings, shape, {}))
    weight, bias = separated(
        features, labels, settings.inverse_regularisation, signature.classes
    )
    weights = {
        "weight": np.asarray(weight, np.float32),
        "bias": np.asarray(bias, np.float32),
    }
    return model(settings, shape, weights), weights


def described(pictures: Array, graph: "ModelProto") -> Array:
    """The features of all pictures, float32 [N, D]."""
    import onnxruntime

    session = onnxruntime.InferenceSession(graph.SerializeToString())
    rows = [
        session.run(None, {"image": pictures[at : at + BATCH]})[0]
        for at in range(0, len(pictures), BATCH)
    ]
    return np.concatenate(rows)


def separated(
    features: Array, labels: Array, strength: float, classes: int
) -> tuple[Array, Array]:
    """Rows [K, D] and biases [K] of an SVM for each class against the others, scaled so that a
    softmax is calibrated.

    Some items are held out to find the scale and the biases (Platt 1999, for many classes), then
    all are used.
    """
    held = np.zeros(len(labels), bool)
    for label in range(classes):
        held[np.flatnonzero(labels == label)[HELD_OUT - 1 :: HELD_OUT]] = True
    if len(np.unique(labels[~held])) == classes and held.any():
        weight, bias = _machine(features[~held], labels[~held], strength)
        scale, offsets = _calibration(features[held] @ weight.T + bias, labels[held])
    else:  # too few to hold any out
        scale, offsets = 1.0, np.zeros(classes)
    weight, bias = _machine(features, labels, strength)
    return weight * scale, bias * scale + offsets


def _machine(features: Array, labels: Array, strength: float) -> tuple[Array, Array]:
    from sklearn.svm import LinearSVC

    # The dual takes a third of the primal's time, also where items are many.
    svm = LinearSVC(C=strength, dual=True, tol=0.01, random_state=0, max_iter=5000).fit(
        features, labels
    )
    weight, bias = svm.coef_, svm.intercept_
    if len(weight) == 1:  # two classes: one row tells them apart
        weight = np.vstack([-weight, weight]) / 2
        bias = np.concatenate([-bias, bias]) / 2
    return weight, bias


def _calibration(margins: Array, labels: Array) -> tuple[float, Array]:
    """The scale and the offsets [K] by which margins [N, K] have the smallest cross-entropy, a
    little held back.
    """
    from scipy.optimize import minimize
    from scipy.special import logsumexp

    def loss(x: Array) -> float:
        logits = margins * np.exp(x[0]) + x[1:]
        own = logits[np.arange(len(labels)), labels]
        return float((logsumexp(logits, axis=1) - own).mean() + 1e-3 * (x**2).sum())

    found = minimize(loss, np.zeros(1 + margins.shape[1]), method="L-BFGS-B").x
    return float(np.exp(found[0])), np.asarray(found[1:])


def model(
    settings: Settings, shape: list[int], weights: dict[str, Array]
) -> "ModelProto":
    """The graph from `image` to `scores`, or without weights to `features` [N, D]."""
    from onnx import TensorProto, checker, helper, numpy_helper

    height, width, channels = shape
    cells = -(-height // settings.cell), -(-width // settings.cell)
    nodes = [
        *gradients(channels),
        *histograms(settings, cells),
        *blocks(settings, cells),
    ]
    if weights:
        nodes += [
            helper.make_node(
                "Gemm", ["features", "weight", "bias"], ["logits"], transB=1
            ),
            helper.make_node("Softmax", ["logits"], ["scores"], axis=1),
        ]
    rows, name = min(settings.block, cells[0]), "scores" if weights else "features"
    columns = min(settings.block, cells[1])
    spots = (cells[0] - rows + 1) * (cells[1] - columns + 1)
    size = (
        len(weights["bias"])
        if weights
        else spots * rows * columns * settings.orientations
    )
    constants = {**_constants(settings, shape, cells), **weights}
    body = helper.make_graph(
        nodes,
        "hog",
        [
            helper.make_tensor_value_info(
                "image", TensorProto.UINT8, ["batch", height, width, channels]
            )
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size])],
        [
            numpy_helper.from_array(np.ascontiguousarray(value), key)
            for key, value in constants.items()
        ],
    )
    graph = helper.make_model(
        body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR
    )
    checker.check_model(graph, full_check=True)
    return graph


def gradients(channels: int) -> list["NodeProto"]:
    """`image` -> `dx`, `dy` and `size` [N, 1, H, W] of the channel that changes most at each pixel.

    Pixels are square roots (the gamma of Dalal and Triggs 2005), the differences centred, [-1, 0,
    1].
    """
    from onnx import TensorProto, helper

    node = helper.make_node
    nodes = [
        node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        node("Transpose", ["floats"], ["planes"], perm=[0, 3, 1, 2]),
        node("Sqrt", ["planes"], ["roots"]),
        node("Pad", ["roots", "border"], ["framed"], mode="edge"),
        node("Conv", ["framed", "across"], ["dxs"], group=channels),
        node("Conv", ["framed", "down"], ["dys"], group=channels),
        node("Mul", ["dxs", "dxs"], ["dxs2"]),
        node("Mul", ["dys", "dys"], ["dys2"]),
        node("Add", ["dxs2", "dys2"], ["sizes2"]),
        node("ArgMax", ["sizes2"], ["most"], axis=1, keepdims=1),
    ]
    nodes += [
        node("GatherElements", [every, "most"], [one], axis=1)
        for every, one in (("dxs", "dx"), ("dys", "dy"), ("sizes2", "size2"))
    ]
    return [*nodes, node("Sqrt", ["size2"], ["size"])]


def histograms(settings: Settings, cells: tuple[int, int]) -> list["NodeProto"]:
    """`dx`, `dy`, `size` -> `cells` [N, bins, rows, columns]; votes are shared by near bins and
    near cells.
    """
    from onnx import helper

    node = helper.make_node
    cell = settings.cell
    return [
        node("Add", ["dx", "tiny"], ["dx_some"]),
        node("Div", ["dy", "dx_some"], ["slope"]),
        # Of half a turn: a direction and its opposite are one
        node("Atan", ["slope"], ["angle"]),
        node("Mul", ["angle", "bins_by_turn"], ["turn"]),
        node("Sub", ["turn", "middles"], ["away"]),
        node("Div", ["away", "bins"], ["rounds"]),
        node("Round", ["rounds"], ["whole"]),
        node("Mul", ["whole", "bins"], ["full"]),
        node("Sub", ["away", "full"], ["nearest"]),
        node("Abs", ["nearest"], ["distance"]),
        node("Sub", ["one", "distance"], ["part"]),
        node("Relu", ["part"], ["share"]),
        node("Mul", ["share", "size"], ["votes"]),
        node("Pad", ["votes", "margin"], ["roomy"]),
        node(
            "Conv",
            ["roomy", "spread"],
            ["cells"],
            group=settings.orientations,
            strides=[cell, cell],
        ),
    ]


def blocks(settings: Settings, cells: tuple[int, int]) -> list["NodeProto"]:
    """`cells` -> `features`: all blocks of neighbouring cells, normalised, clipped and normalised
    again (L2-Hys).
    """
    from onnx import helper

    node = helper.make_node
    rows, columns = (min(settings.block, side) for side in cells)
    places = [(y, x) for y in range(rows) for x in range(columns)]
    nodes = [
        node("Slice", ["cells", f"from{y}{x}", f"to{y}{x}", "sides"], [f"part{y}{x}"])
        for y, x in places
    ]
    nodes.append(node("Concat", [f"part{y}{x}" for y, x in places], ["block"], axis=1))
    for raw, number, unit in (("block", 1, "unit"), ("clipped", 2, "normal")):
        nodes += [
            node("ReduceL2", [raw, "depth"], [f"length{number}"], keepdims=1),
            node("Add", [f"length{number}", "least"], [f"longer{number}"]),
            node("Div", [raw, f"longer{number}"], [unit]),
        ]
        if number == 1:
            nodes.append(node("Min", ["unit", "clip"], ["clipped"]))
    return [*nodes, node("Flatten", ["normal"], ["features"], axis=1)]


def _constants(
    settings: Settings, shape: list[int], cells: tuple[int, int]
) -> dict[str, Array]:
    height, width, channels = shape
    bins, cell = settings.orientations, settings.cell
    across, down = np.zeros((2, channels, 1, 3, 3), np.float32)
    across[:, 0, 1], down[:, 0, :, 1] = (-1, 0, 1), (-1, 0, 1)
    # A vote is shared by the cells whose middles are near, less the further they are: a tent two
    # cells wide.
    tent = 1 - np.abs(np.arange(2 * cell) - (2 * cell - 1) / 2) / cell
    spread = (
        np.broadcast_to(np.outer(tent, tent), (bins, 1, 2 * cell, 2 * cell)) / cell**2
    )
    before = cell // 2
    after = [
        (side + 1) * cell - length - before
        for side, length in zip(cells, (height, width), strict=True)
    ]
    rows, columns = (min(settings.block, side) for side in cells)
    constants = {
        "border": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
        "margin": np.array([0, 0, before, before, 0, 0, *after], np.int64),
        "across": across,
        "down": down,
        "spread": spread.astype(np.float32),
        "tiny": np.float32(1e-9),
        "bins": np.float32(bins),
        "bins_by_turn": np.float32(bins / np.pi),
        "middles": (np.arange(bins, dtype=np.float32) + 0.5).reshape(1, bins, 1, 1),
        "one": np.float32(1),
        "sides": np.array([2, 3], np.int64),
        "depth": np.array([1], np.int64),
        "least": np.float32(TINY),
        "clip": np.float32(CLIP),
    }
    for y in range(rows):
        for x in range(columns):
            constants[f"from{y}{x}"] = np.array([y, x], np.int64)
            constants[f"to{y}{x}"] = np.array(
                [cells[0] - rows + 1 + y, cells[1] - columns + 1 + x], np.int64
            )
    return {name: np.asarray(value) for name, value in constants.items()}
