"""image: a picture in any of the formats that are read."""

from base64 import b64encode

from modelmill.tasks.kinds.base import BYTES, JSON, InputKind, OutputKind

PNG = "image/png"


def example() -> bytes:
    """A small grey gradient as PNG."""
    import numpy as np

    from modelmill.tasks.decoding.image_decoder import png

    return png(np.tile(np.arange(0, 240, 10, dtype=np.uint8), (24, 1)))


INPUT = InputKind(
    name="image",
    article="an image",
    media=("image/*", BYTES, JSON),
    shown="picture",
    example=example,
)
OUTPUT = OutputKind(
    name="image",
    meaning="pictures as base64, which may be sent as pictures",
    media=(JSON, PNG),
    shown="picture",
    example=lambda: {"image": b64encode(example()).decode()},
)
