"""Pictures as files."""

import io
from typing import Any

import numpy as np
from PIL import Image


def png(pixels: Any) -> bytes:
    """Pixels as a PNG file."""
    return encoded(Image.fromarray(np.asarray(pixels, np.uint8)))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """A picture as a file."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()
