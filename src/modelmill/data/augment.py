"""Random changes to training pictures, a whole batch at a time: one geometric resampling, then
colour and noise.

Everything random comes from torch's default generator, which the training loop seeds before each
step.
"""

import math
from typing import TYPE_CHECKING, Annotated, Protocol

from msgspec import Meta

from modelmill.types import Fraction, Struct

if TYPE_CHECKING:
    from torch import Tensor

GREY = 127.5


class Augment(Struct, frozen=True, kw_only=True):
    """How far training pictures are changed; 0 or false leaves a property alone."""

    flip: Annotated[bool, Meta(description="mirror left and right at random")] = True
    flip_vertical: Annotated[
        bool, Meta(description="mirror top and bottom at random")
    ] = False
    rotate: Annotated[float, Meta(ge=0, le=180, description="degrees, up to")] = 15.0
    scale_min: Annotated[
        float,
        Meta(gt=0, le=1, description="smallest share of the picture to zoom in on"),
    ] = 0.75
    scale_max: Annotated[
        float, Meta(ge=1, le=2, description="largest share; above 1 zooms out")
    ] = 1.1
    aspect: Annotated[
        float,
        Meta(ge=0, le=1, description="log of the change of the sides' ratio, up to"),
    ] = 0.1
    crop: Annotated[Fraction, Meta(description="shift, share of the side, up to")] = 0.1
    brightness: Annotated[Fraction, Meta(description="factor, up to 1 + this")] = 0.2
    contrast: Annotated[Fraction, Meta(description="factor, up to 1 + this")] = 0.2
    saturation: Annotated[Fraction, Meta(description="factor, up to 1 + this")] = 0.2
    noise: Annotated[
        float,
        Meta(ge=0, le=128, description="deviation of Gaussian noise, of 255, up to"),
    ] = 0.0
    erase: Annotated[
        Fraction, Meta(description="share of pictures that get a grey box")
    ] = 0.0
    mixup: Annotated[
        float, Meta(ge=0, le=1, description="strength of blending pairs of pictures")
    ] = 0.0

    @property
    def upright(self) -> bool:
        """Whether pictures are mirrored and shifted at most, not turned or scaled."""
        return (
            not self.rotate
            and not self.aspect
            and self.scale_min == self.scale_max == 1
        )


NONE = Augment(
    flip=False,
    rotate=0.0,
    scale_min=1.0,
    scale_max=1.0,
    aspect=0.0,
    crop=0.0,
    brightness=0.0,
    contrast=0.0,
    saturation=0.0,
)
"""Pictures as they are: the default of recipes for which most changes would be wrong, such as of
digits.
"""


def augment(pictures: "Tensor", how: Augment) -> "Tensor":
    """uint8 [N, H, W, C] -> float [N, H, W, C] of the same range 0..255."""
    x = pictures.permute(0, 3, 1, 2).float()
    return _recast(_sampled(x, _grid(x, how)), how)


def augment_with_masks(
    pictures: "Tensor", masks: "Tensor", how: Augment
) -> tuple["Tensor", "Tensor"]:
    """The same, and the masks uint8 [N, H, W] moved with their pictures; their values stay what
    they are.
    """
    x = pictures.permute(0, 3, 1, 2).float()
    grid = _grid(x, how)
    moved = (
        _sampled(masks.unsqueeze(1).float(), grid, "nearest").squeeze(1).to(masks.dtype)
    )
    return _recast(_sampled(x, grid), how), moved


def _recast(x: "Tensor", how: Augment) -> "Tensor":
    """Colour, noise and boxes: [N, C, H, W] -> [N, H, W, C]."""
    x = recoloured(x, how)
    if how.noise:
        import torch

        x = x + torch.randn_like(x) * (_between(x, 0, 1) * how.noise)
    if how.erase:
        x = _erased(x, how.erase)
    return x.clamp_(0, 255).permute(0, 2, 3, 1)


def mix(
    pictures: "Tensor", target: "Tensor", classes: int, strength: float
) -> tuple["Tensor", "Tensor"]:
    """Each picture blended with another, and the shares of both labels [N, classes] (Zhang et al.
    2018, mixup).
    """
    import torch

    share = torch.distributions.Beta(strength, strength).sample()
    other = torch.randperm(len(target))
    shares = torch.nn.functional.one_hot(target, classes).float()
    return torch.lerp(pictures[other], pictures, share), torch.lerp(
        shares[other], shares, share
    )


def _between(x: "Tensor", low: float, high: float) -> "Tensor":
    """One random number for each picture, [N, 1, 1, 1]."""
    import torch

    return torch.rand(len(x), 1, 1, 1, device=x.device) * (high - low) + low


def _grid(x: "Tensor", how: Augment) -> "Tensor":
    """Where each pixel comes from: flip, rotate, scale and crop as one affine map, [N, H, W, 2].

    Angles are true although the sides may differ.
    """
    import torch
    from torch.nn import functional as F

    count, _, height, width = x.shape
    angle = _between(x, -how.rotate, how.rotate).flatten() * (math.pi / 180)
    scale = (
        _between(x, math.log(how.scale_min), math.log(how.scale_max)).flatten().exp()
    )
    aspect = _between(x, -how.aspect, how.aspect).flatten().exp()
    across = scale * aspect * _sign(x, how.flip)
    down = scale / aspect * _sign(x, how.flip_vertical)
    room = (1 - scale).abs() + how.crop
    shift_x, shift_y = (
        (torch.rand(count, device=x.device) * 2 - 1) * room for _ in "xy"
    )
    if how.upright:
        # By whole pixels nothing is blurred, which small pictures would suffer from.
        shift_x = (shift_x * width / 2).round() * 2 / width
        shift_y = (shift_y * height / 2).round() * 2 / height
    cos, sin = angle.cos(), angle.sin()
    theta = torch.stack(
        [
            torch.stack([cos * across, -sin * down * (height / width), shift_x], 1),
            torch.stack([sin * across * (width / height), cos * down, shift_y], 1),
        ],
        1,
    )
    return F.affine_grid(theta, list(x.shape), align_corners=False)


def _sampled(x: "Tensor", grid: "Tensor", mode: str = "bilinear") -> "Tensor":
    from torch.nn import functional as F

    return F.grid_sample(
        x, grid, mode=mode, padding_mode="reflection", align_corners=False
    )


def _sign(x: "Tensor", flip: bool) -> "Tensor":
    """+1 or -1 for each picture."""
    import torch

    return (
        1 - 2 * (torch.rand(len(x), device=x.device) < (0.5 if flip else 0.0)).float()
    )


class Colours(Protocol):
    """The settings that `recoloured` reads."""

    @property
    def brightness(self) -> float:
        """Factor, up to 1 + this."""

    @property
    def contrast(self) -> float:
        """Factor, up to 1 + this."""

    @property
    def saturation(self) -> float:
        """Factor, up to 1 + this."""


def recoloured(x: "Tensor", how: Colours) -> "Tensor":
    """float [N, C, H, W] with each picture's brightness, contrast and saturation changed; may leave
    0..255.
    """
    import torch

    if how.brightness or how.contrast:
        gain = _between(x, 1 - how.brightness, 1 + how.brightness)
        contrast = _between(x, 1 - how.contrast, 1 + how.contrast)
        x = x * (gain * contrast) + x.mean((1, 2, 3), keepdim=True) * gain * (
            1 - contrast
        )
    if how.saturation and x.shape[1] == 3:
        saturation = _between(x, 1 - how.saturation, 1 + how.saturation)
        x = torch.lerp(x.mean(1, keepdim=True).expand_as(x), x, saturation)
    return x


def _erased(x: "Tensor", share: float) -> "Tensor":
    """A grey box of 2 to 20 % of the area in some pictures (Zhong et al. 2017, random erasing)."""
    import torch

    height, width = x.shape[2:]
    area = _between(x, 0.02, 0.2).squeeze(-1)
    ratio = _between(x, math.log(0.5), math.log(2)).squeeze(-1).exp()
    middle_y = _between(x, 0, height).squeeze(-1)
    middle_x = _between(x, 0, width).squeeze(-1)
    rows = torch.arange(height, device=x.device).view(1, height, 1)
    columns = torch.arange(width, device=x.device).view(1, 1, width)
    inside = ((rows - middle_y).abs() < (area * ratio).sqrt() * height / 2) & (
        (columns - middle_x).abs() < (area / ratio).sqrt() * width / 2
    )
    chosen = _between(x, 0, 1).squeeze(-1) < share
    return x.masked_fill((inside & chosen).unsqueeze(1), GREY)
