"""resnet: a small residual network for photographs of 32 to 200 pixels, made to be trained from
scratch on a CPU.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from modelmill.data.augment import Augment
from modelmill.tasks.base import (
    Choice,
    Facts,
    Fraction,
    Plan,
    Signature,
    TrainSettings,
)
from modelmill.tasks.decoding.image_decoder import Preprocessing
from modelmill.types import Struct

if TYPE_CHECKING:
    from torch import nn

SUMMARY = (
    "a residual network with augmentation, for photographs; minutes on a CPU"
)
INPUT = Preprocessing(max_side=160)
AUGMENT = Augment()
TRAIN = TrainSettings(
    epochs=45,
    batch_size=32,
    optimiser="muon",
    learning_rate=0.02,
    weight_decay=0.05,
    warmup=0.1,
    label_smoothing=0.1,
    clip=1.0,
    ema=0.995,
)
STEM = 48
"""Pictures smaller than this are not halved by the stem."""
FEW = 500
FEWER = 1000
MANY = 4000
SMALL_SEEN, LARGE_SEEN = 320_000, 135_000
"""Pictures that a training sees, all epochs together: what two cores see in ten minutes."""
SIGNS = {"flip": False, "rotate": 10.0, "brightness": 0.0, "contrast": 0.0}
SHIFTED = {
    "rotate": 0.0,
    "scale_min": 1.0,
    "scale_max": 1.0,
    "aspect": 0.0,
    "crop": 0.25,
    "brightness": 0.1,
    "contrast": 0.1,
    "saturation": 0.1,
}


class Settings(Struct, frozen=True, kw_only=True):
    """Options of the network."""

    channels: Annotated[
        int,
        Meta(
            ge=4,
            le=512,
            description="of the first stage; each stage doubles them",
        ),
    ] = 32
    stages: Annotated[
        int,
        Meta(ge=1, le=6, description="each after the first halves the picture"),
    ] = 4
    blocks: Annotated[
        int, Meta(ge=1, le=16, description="residual blocks in each stage")
    ] = 1
    dropout: Annotated[Fraction, Meta(description="before the last layer")] = (
        0.0
    )


def fit_to(facts: Facts, plan: Plan) -> Iterator[Choice]:
    """Augmentation by the size and colour of the pictures; batches and epochs by how many there
    are.
    """
    count, seen = facts.counts["train"], facts.inputs
    height, width = seen.for_model(plan.input)
    small = max(height, width) < STEM
    if small:
        yield _augmentation_of_small(f"{width}x{height}", grey=seen.grey)
    if small and count >= MANY:
        yield Choice(
            why=f"{count:,} small pictures give enough steps in large batches",
            settings={"batch_size": 128},
        )
    elif count < FEW:
        yield Choice(
            why=f"{count:,} pictures give too few steps in large batches",
            settings={"batch_size": 16},
        )
    yield Choice(
        why=f"{count:,} pictures of {width}x{height} in some minutes",
        settings={"epochs": _epochs(count, small=small)},
    )


def _augmentation_of_small(size: str, *, grey: bool) -> Choice:
    if grey:
        return Choice(
            why=f"grey pictures of {size} may be characters, which a mirror spoils",
            settings=SIGNS,
        )
    return Choice(
        why=f"photographs of {size} blur when they are turned or scaled",
        settings=SHIFTED,
    )


def _epochs(count: int, *, small: bool) -> int:
    """Epochs over so many pictures."""
    if small:
        return min(60, max(8, round(SMALL_SEEN / count)))
    if count < FEWER:
        return min(90, round(45 * FEWER / count))
    return max(8, min(45, round(LARGE_SEEN / count)))


def network(settings: Settings, signature: Signature) -> "nn.Module":
    """uint8 [N, H, W, C] -> logits [N, classes]."""
    from torch import nn

    from modelmill.tasks.networks.layers import (
        pixel_input,
        pixel_stem,
        residual_stages,
    )

    channels, stages = settings.channels, settings.stages
    # The first stage sees about 32 pixels: the stem halves what is larger, and so does the first
    # block.
    side = min(pixel_input(signature)[:2])
    return nn.Sequential(
        *pixel_stem(signature, channels, halve=side >= STEM),
        *residual_stages(
            channels, stages, settings.blocks, halve_first=side >= 96
        ),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(settings.dropout),
        nn.Linear(channels << stages - 1, signature.classes),
    )
