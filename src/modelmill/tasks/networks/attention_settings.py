"""The settings that all recipes with attention share; cheap to import."""

from typing import Annotated, Any, ClassVar

from msgspec import Meta

from modelmill.tasks.base import Fraction
from modelmill.types import Struct

Width = Annotated[
    int, Meta(ge=16, le=4096, multiple_of=16, description="of a token's state")
]
Heads = Annotated[
    int, Meta(ge=1, le=64, description="into which attention is split")
]
Layers = Annotated[int, Meta(ge=1, le=48, description="blocks")]
Dropout = Annotated[Fraction, Meta(description="of states")]


class Blocks(Struct, frozen=True, kw_only=True):
    """The shape of a network of `tasks.networks.transformer`."""

    HEAD: ClassVar[int] = 2
    """A head's width is a multiple of this: rotary positions rotate pairs of numbers."""

    width: Width = 256
    heads: Heads = 4
    layers: Layers = 3
    dropout: Dropout = 0.1

    def __post_init__(self) -> None:
        """Raises `ValueError` for values that do not go together."""
        if self.width % (self.HEAD * self.heads):
            raise ValueError(
                f"width={self.width} is not a multiple of {self.HEAD} for each of "
                f"heads={self.heads}"
            )

    @property
    def shape(self) -> dict[str, Any]:
        """The keyword arguments of the networks in `tasks.networks.transformer`."""
        return {
            "width": self.width,
            "heads": self.heads,
            "layers": self.layers,
            "dropout": self.dropout,
        }
