"""hog-svm: histograms of oriented gradients and a linear SVM, the classical baseline."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from msgspec import Meta

from modelmill.errors import InvalidInput
from modelmill.tasks.base import Choice, Facts, Plan, Signature
from modelmill.tasks.decoding.image_decoder import Preprocessing
from modelmill.types import Struct

if TYPE_CHECKING:
    from modelmill.tasks.image_classification.hog import Hog, LinearHog

SUMMARY = "histograms of oriented gradients and a linear SVM; trains in seconds, for shapes"
INPUT = Preprocessing(max_side=64)

Array = np.ndarray[Any, Any]
BATCH = 256
CELLS = 8
"""Cells along the shorter side, where `fit_to` chooses."""
HELD_OUT = 5
"""One in so many training items calibrates the scores."""


class Settings(Struct, frozen=True, kw_only=True):
    """Options of the features and the SVM."""

    cell: Annotated[
        int, Meta(ge=2, le=256, description="side of a cell in pixels")
    ] = 8
    orientations: Annotated[
        int,
        Meta(ge=2, le=36, description="bins of a histogram, over half a turn"),
    ] = 9
    block: Annotated[
        int,
        Meta(
            ge=1,
            le=4,
            description="side of a block in cells, normalised together",
        ),
    ] = 2
    inverse_regularisation: Annotated[
        float,
        Meta(gt=0, description="larger fits the training pictures closer"),
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
) -> tuple["LinearHog", dict[str, Array]]:
    """`image` uint8 [N, H, W, C] and `label` [N] -> the network and its weights by name.

    Raises `InvalidInput` for cells that do not fit.
    """
    import torch

    from modelmill.tasks.image_classification.hog import Hog, LinearHog

    settings, (height, width, _) = plan.network, signature.inputs[0].shape[1:]
    if min(height, width) < settings.cell:
        raise InvalidInput(
            f"cell={settings.cell} is larger than pictures of {width}x{height}"
        )
    hog = Hog(settings, height, width)
    rows, labels = features(hog, arrays["image"]), np.asarray(targets["label"])
    strength = settings.inverse_regularisation
    weight, bias = separated(rows, labels, strength, signature.classes)
    weights = {
        "weight": np.asarray(weight, np.float32),
        "bias": np.asarray(bias, np.float32),
    }
    linear = {name: torch.from_numpy(array) for name, array in weights.items()}
    return LinearHog(hog, **linear), weights


def features(hog: "Hog", pictures: Array) -> Array:
    """The features of all pictures, float32 [N, D]."""
    import torch

    with torch.inference_mode():
        rows = [
            hog(torch.from_numpy(np.array(pictures[at : at + BATCH])))
            for at in range(0, len(pictures), BATCH)
        ]
        return np.asarray(torch.cat(rows))


def separated(
    features: Array, labels: Array, strength: float, classes: int
) -> tuple[Array, Array]:
    """Rows [K, D] and biases [K] of an SVM for each class against the others, scaled so that a
    softmax is calibrated.

    Some items are held out to find the scale and the biases (Platt 1999, for many classes), then
    all are used.
    """
    held = _held_out(labels, classes)
    if len(np.unique(labels[~held])) == classes and held.any():
        weight, bias = _machine(features[~held], labels[~held], strength)
        scale, offsets = _calibration(
            features[held] @ weight.T + bias, labels[held]
        )
    else:  # too few to hold any out
        scale, offsets = 1.0, np.zeros(classes)
    weight, bias = _machine(features, labels, strength)
    return weight * scale, bias * scale + offsets


def _held_out(labels: Array, classes: int) -> Array:
    """True [N] for one in `HELD_OUT` items of each class."""
    held = np.zeros(len(labels), bool)
    for label in range(classes):
        held[np.flatnonzero(labels == label)[HELD_OUT - 1 :: HELD_OUT]] = True
    return held


def _machine(
    features: Array, labels: Array, strength: float
) -> tuple[Array, Array]:
    from sklearn.svm import LinearSVC

    # The dual takes a third of the primal's time, also where items are many.
    svm = LinearSVC(
        C=strength, dual=True, tol=0.01, random_state=0, max_iter=5000
    ).fit(features, labels)
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
        return float(
            (logsumexp(logits, axis=1) - own).mean() + 1e-3 * (x**2).sum()
        )

    found = minimize(loss, np.zeros(1 + margins.shape[1]), method="L-BFGS-B").x
    return float(np.exp(found[0])), np.asarray(found[1:])
