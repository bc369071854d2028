"""Constants and augmentation settings of detection; cheap to import."""

from typing import Annotated

from msgspec import Meta

from modelmill.types import Fraction, Struct

TOP = 100
"""Most boxes in an answer."""
NO_BOX = -1
"""Class number of a padding row without a box."""
IGNORED = -2
"""Class number of an ignored box: neither object nor background."""


SIDES = ("xmin", "ymin", "xmax", "ymax")
"""The corners of an answered box, in order."""


class BoxAugment(Struct, frozen=True, kw_only=True):
    """Augmentation of pictures and their boxes; 0 or false turns a kind off."""

    flip: Annotated[
        bool, Meta(description="mirror left and right at random")
    ] = True
    flip_vertical: Annotated[
        bool, Meta(description="mirror top and bottom at random")
    ] = False
    scale_min: Annotated[
        float,
        Meta(
            gt=0,
            le=1,
            description="smallest share of the picture to zoom in on",
        ),
    ] = 0.55
    scale_max: Annotated[
        float, Meta(ge=1, le=4, description="largest share; above 1 zooms out")
    ] = 1.6
    aspect: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="log of the change of the sides' ratio, up to",
        ),
    ] = 0.2
    crop: Annotated[
        Fraction,
        Meta(
            description="shift beyond the zoom's room, share of the side, up to"
        ),
    ] = 0.15
    mosaic: Annotated[
        Fraction, Meta(description="share of pictures put together from four")
    ] = 0.3
    brightness: Annotated[
        Fraction, Meta(description="factor, up to 1 + this")
    ] = 0.3
    contrast: Annotated[
        Fraction, Meta(description="factor, up to 1 + this")
    ] = 0.3
    saturation: Annotated[
        Fraction, Meta(description="factor, up to 1 + this")
    ] = 0.4
