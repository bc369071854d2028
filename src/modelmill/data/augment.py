"""Augmentation of training pictures, a batch at a time: one geometric resampling, then colour and
noise.

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
"""Level of erased boxes."""


class Augment(Struct, frozen=True, kw_only=True):
    """Settings of augmentation; 0 or false turns a kind off."""

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
        """Whether pictures are at most mirrored and shifted, not rotated or scaled."""
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
"""No augmentation: the default of recipes for pictures such as digits, which most changes
falsify.
"""


def augment(pictures: "Tensor", options: Augment) -> "Tensor":
    """Augment pictures: uint8 [N, H, W, C] -> float [N, H, W, C] of 0..255."""
    x = pictures.permute(0, 3, 1, 2).float()
    return _finish(_resample(x, _affine_grid(x, options)), options)


def augment_with_masks(
    pictures: "Tensor", masks: "Tensor", options: Augment
) -> tuple["Tensor", "Tensor"]:
    """As `augment`, with masks uint8 [N, H, W] resampled like their pictures, by nearest values."""
    x = pictures.permute(0, 3, 1, 2).float()
    grid = _affine_grid(x, options)
    resampled_masks = (
        _resample(masks.unsqueeze(1).float(), grid, "nearest")
        .squeeze(1)
        .to(masks.dtype)
    )
    return _finish(_resample(x, grid), options), resampled_masks


def _finish(x: "Tensor", options: Augment) -> "Tensor":
    """Colour jitter, noise and erased boxes: [N, C, H, W] -> [N, H, W, C]."""
    x = jitter_colours(x, options)
    if options.noise:
        import torch

        x = x + torch.randn_like(x) * (_uniform(x, 0, 1) * options.noise)
    if options.erase:
        x = _erase_boxes(x, options.erase)
    return x.clamp_(0, 255).permute(0, 2, 3, 1)


def mix(
    pictures: "Tensor", target: "Tensor", classes: int, strength: float
) -> tuple["Tensor", "Tensor"]:
    """Mixup (Zhang et al. 2018): each picture blended with another, and label shares [N,
    classes].
    """
    import torch

    share = torch.distributions.Beta(strength, strength).sample()
    partners = torch.randperm(len(target))
    shares = torch.nn.functional.one_hot(target, classes).float()
    return torch.lerp(pictures[partners], pictures, share), torch.lerp(
        shares[partners], shares, share
    )


def _uniform(x: "Tensor", low: float, high: float) -> "Tensor":
    """A uniform random number for each picture, [N, 1, 1, 1]."""
    import torch

    return torch.rand(len(x), 1, 1, 1, device=x.device) * (high - low) + low


def _affine_grid(x: "Tensor", options: Augment) -> "Tensor":
    """The sampling grid [N, H, W, 2] of flip, rotation, scale and crop as one affine map.

    Rotations keep angles also in pictures that are not square.
    """
    import torch
    from torch.nn import functional as F

    count, _, height, width = x.shape
    angle = _uniform(x, -options.rotate, options.rotate).flatten() * (math.pi / 180)
    scale = (
        _uniform(x, math.log(options.scale_min), math.log(options.scale_max))
        .flatten()
        .exp()
    )
    aspect = _uniform(x, -options.aspect, options.aspect).flatten().exp()
    across = scale * aspect * _sign(x, options.flip)
    down = scale / aspect * _sign(x, options.flip_vertical)
    limit = (1 - scale).abs() + options.crop
    shift_x, shift_y = (
        (torch.rand(count, device=x.device) * 2 - 1) * limit for _ in "xy"
    )
    if options.upright:
        # Whole pixels: small pictures would suffer from blur.
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


def _resample(x: "Tensor", grid: "Tensor", mode: str = "bilinear") -> "Tensor":
    from torch.nn import functional as F

    return F.grid_sample(
        x, grid, mode=mode, padding_mode="reflection", align_corners=False
    )


def _sign(x: "Tensor", flip: bool) -> "Tensor":
    """+1, or where `flip` is true at random -1, for each picture [N]."""
    import torch

    return (
        1 - 2 * (torch.rand(len(x), device=x.device) < (0.5 if flip else 0.0)).float()
    )


class Colours(Protocol):
    """The settings that `jitter_colours` reads."""

    @property
    def brightness(self) -> float:
        """Factor, up to 1 + this."""

    @property
    def contrast(self) -> float:
        """Factor, up to 1 + this."""

    @property
    def saturation(self) -> float:
        """Factor, up to 1 + this."""


def jitter_colours(x: "Tensor", options: Colours) -> "Tensor":
    """Random brightness, contrast and saturation of float pictures [N, C, H, W]; values may leave
    0..255.
    """
    import torch

    if options.brightness or options.contrast:
        gain = _uniform(x, 1 - options.brightness, 1 + options.brightness)
        contrast = _uniform(x, 1 - options.contrast, 1 + options.contrast)
        x = x * (gain * contrast) + x.mean((1, 2, 3), keepdim=True) * gain * (
            1 - contrast
        )
    if options.saturation and x.shape[1] == 3:
        saturation = _uniform(x, 1 - options.saturation, 1 + options.saturation)
        x = torch.lerp(x.mean(1, keepdim=True).expand_as(x), x, saturation)
    return x


def _erase_boxes(x: "Tensor", share: float) -> "Tensor":
    """Random erasing (Zhong et al. 2017): a grey box of 2 to 20 % of the area in some pictures."""
    import torch

    height, width = x.shape[2:]
    area = _uniform(x, 0.02, 0.2).squeeze(-1)
    ratio = _uniform(x, math.log(0.5), math.log(2)).squeeze(-1).exp()
    centre_y = _uniform(x, 0, height).squeeze(-1)
    centre_x = _uniform(x, 0, width).squeeze(-1)
    rows = torch.arange(height, device=x.device).view(1, height, 1)
    columns = torch.arange(width, device=x.device).view(1, 1, width)
    inside = ((rows - centre_y).abs() < (area * ratio).sqrt() * height / 2) & (
        (columns - centre_x).abs() < (area / ratio).sqrt() * width / 2
    )
    chosen = _uniform(x, 0, 1).squeeze(-1) < share
    return x.masked_fill((inside & chosen).unsqueeze(1), GREY)
