"""Augmentation of training pictures, a batch at a time: one geometric resampling, then colour and
noise.

Everything random comes from torch's default generator, which the training loop seeds before each
step.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Protocol

from msgspec import Meta

from modelmill.types import Fraction, Struct

if TYPE_CHECKING:
    from torch import Tensor

GREY = 127.5
"""Level of erased boxes."""


class Augment(Struct, frozen=True, kw_only=True):
    """Settings of augmentation; 0 or false turns a kind off."""

    flip: Annotated[
        bool, Meta(description="mirror left and right at random")
    ] = True
    flip_vertical: Annotated[
        bool, Meta(description="mirror top and bottom at random")
    ] = False
    rotate: Annotated[
        float, Meta(ge=0, le=180, description="degrees, up to")
    ] = 15.0
    scale_min: Annotated[
        float,
        Meta(
            gt=0,
            le=1,
            description="smallest share of the picture to zoom in on",
        ),
    ] = 0.75
    scale_max: Annotated[
        float, Meta(ge=1, le=2, description="largest share; above 1 zooms out")
    ] = 1.1
    aspect: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="log of the change of the sides' ratio, up to",
        ),
    ] = 0.1
    crop: Annotated[
        Fraction, Meta(description="shift, share of the side, up to")
    ] = 0.1
    brightness: Annotated[
        Fraction, Meta(description="factor, up to 1 + this")
    ] = 0.2
    contrast: Annotated[
        Fraction, Meta(description="factor, up to 1 + this")
    ] = 0.2
    saturation: Annotated[
        Fraction, Meta(description="factor, up to 1 + this")
    ] = 0.2
    noise: Annotated[
        float,
        Meta(
            ge=0,
            le=128,
            description="deviation of Gaussian noise, of 255, up to",
        ),
    ] = 0.0
    erase: Annotated[
        Fraction, Meta(description="share of pictures that get a grey box")
    ] = 0.0
    mixup: Annotated[
        float,
        Meta(ge=0, le=1, description="strength of blending pairs of pictures"),
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
        x = _add_noise(x, options.noise)
    if options.erase:
        x = _erase_boxes(x, options.erase)
    return x.clamp_(0, 255).permute(0, 2, 3, 1)


def _add_noise(x: "Tensor", most: float) -> "Tensor":
    """Gaussian noise of a random deviation for each picture."""
    import torch

    return x + torch.randn_like(x) * (_uniform(x, 0, 1) * most)


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


def _ratios(x: "Tensor", low: float, high: float) -> "Tensor":
    """A random factor for each picture, uniform in its logarithm, [N]."""
    return _uniform(x, math.log(low), math.log(high)).flatten().exp()


@dataclass(frozen=True)
class _Affine:
    """What happens to each picture: an angle in radians, factors across and down (negative where it
    is mirrored) and shifts in half sides, all [N].
    """

    angle: "Tensor"
    across: "Tensor"
    down: "Tensor"
    shift_x: "Tensor"
    shift_y: "Tensor"

    def matrices(self, height: int, width: int) -> "Tensor":
        """The affine maps [N, 2, 3] for pictures of a size: rotations keep angles also where they
        are not square.
        """
        import torch

        cos, sin = self.angle.cos(), self.angle.sin()
        x = [
            cos * self.across,
            -sin * self.down * (height / width),
            self.shift_x,
        ]
        y = [
            sin * self.across * (width / height),
            cos * self.down,
            self.shift_y,
        ]
        return torch.stack([torch.stack(x, 1), torch.stack(y, 1)], 1)


def _affine_grid(x: "Tensor", options: Augment) -> "Tensor":
    """The sampling grid [N, H, W, 2] of flip, rotation, scale and crop as one affine map."""
    from torch.nn import functional as F

    height, width = x.shape[2:]
    theta = _random_affine(x, options).matrices(height, width)
    return F.affine_grid(theta, list(x.shape), align_corners=False)


def _random_affine(x: "Tensor", options: Augment) -> _Affine:
    angle = _uniform(x, -options.rotate, options.rotate).flatten() * (
        math.pi / 180
    )
    scale = _ratios(x, options.scale_min, options.scale_max)
    aspect = _uniform(x, -options.aspect, options.aspect).flatten().exp()
    across = scale * aspect * _sign(x, options.flip)
    down = scale / aspect * _sign(x, options.flip_vertical)
    limit = (1 - scale).abs() + options.crop
    return _Affine(
        angle, across, down, *_random_shifts(x, limit, options.upright)
    )


def _random_shifts(
    x: "Tensor", limit: "Tensor", whole: bool
) -> tuple["Tensor", "Tensor"]:
    """Shifts across and down in half sides, up to a limit [N]; of whole pixels where asked, for
    small pictures would suffer from blur.
    """
    import torch

    height, width = x.shape[2:]
    shift_x, shift_y = (
        (torch.rand(len(x), device=x.device) * 2 - 1) * limit for _ in "xy"
    )
    if whole:
        return _whole_pixels(shift_x, width), _whole_pixels(shift_y, height)
    return shift_x, shift_y


def _whole_pixels(shift: "Tensor", side: int) -> "Tensor":
    return (shift * side / 2).round() * 2 / side


def _resample(x: "Tensor", grid: "Tensor", mode: str = "bilinear") -> "Tensor":
    from torch.nn import functional as F

    return F.grid_sample(
        x, grid, mode=mode, padding_mode="reflection", align_corners=False
    )


def _sign(x: "Tensor", flip: bool) -> "Tensor":
    """+1, or where `flip` is true at random -1, for each picture [N]."""
    import torch

    return (
        1
        - 2
        * (torch.rand(len(x), device=x.device) < (0.5 if flip else 0.0)).float()
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
    if options.brightness or options.contrast:
        x = _jitter_contrast(x, options)
    if options.saturation and x.shape[1] == 3:
        x = _jitter_saturation(x, options.saturation)
    return x


def _jitter_contrast(x: "Tensor", options: Colours) -> "Tensor":
    gain = _factors(x, options.brightness)
    contrast = _factors(x, options.contrast)
    mean = x.mean((1, 2, 3), keepdim=True)
    return x * (gain * contrast) + mean * gain * (1 - contrast)


def _jitter_saturation(x: "Tensor", spread: float) -> "Tensor":
    import torch

    saturation = _factors(x, spread)
    return torch.lerp(x.mean(1, keepdim=True).expand_as(x), x, saturation)


def _factors(x: "Tensor", spread: float) -> "Tensor":
    """A random factor around 1 for each picture, [N, 1, 1, 1]."""
    return _uniform(x, 1 - spread, 1 + spread)


def _erase_boxes(x: "Tensor", share: float) -> "Tensor":
    """Random erasing (Zhong et al. 2017): a grey box of 2 to 20 % of the area in some pictures."""
    height, width = x.shape[2:]
    area = _uniform(x, 0.02, 0.2).flatten()
    ratio = _ratios(x, 0.5, 2)
    rows = _random_span(x, height, (area * ratio).sqrt())
    columns = _random_span(x, width, (area / ratio).sqrt())
    chosen = _uniform(x, 0, 1).flatten() < share
    inside = rows.unsqueeze(2) & columns.unsqueeze(1) & chosen.view(-1, 1, 1)
    return x.masked_fill(inside.unsqueeze(1), GREY)


def _random_span(x: "Tensor", side: int, share: "Tensor") -> "Tensor":
    """Where a share [N] of a side lies that is `side` pixels long: true inside, [N, side]."""
    import torch

    centre = _uniform(x, 0, side).view(-1, 1)
    pixels = torch.arange(side, device=x.device)
    return (pixels - centre).abs() < share.unsqueeze(1) * side / 2
