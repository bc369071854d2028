"""The optimisers of the training loop, and the learning rate by step."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from modelmill.tasks.base import TrainSettings

ADAMW_SHARE = 0.15
"""With muon, AdamW trains what is not a convolution at this share of the learning rate."""


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are made near-orthogonal (Jordan et al. 2024), for convolutions as
    well.

    A kernel [out, in, h, w] counts as the matrix [out, in * h * w]; `torch.optim.Muon` takes plain
    matrices only.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params,
            {"lr": lr, "momentum": momentum, "weight_decay": weight_decay},
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update with Nesterov momentum and decoupled weight decay."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, weight.grad, group)

    def _update(
        self, weight: Tensor, gradient: Tensor, group: dict[str, Any]
    ) -> None:
        average = self.state[weight].setdefault(
            "average", torch.zeros_like(weight)
        )
        average.lerp_(gradient, 1 - group["momentum"])
        matrix = gradient.lerp(average, group["momentum"]).flatten(1)
        stretch = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(
            orthogonal(matrix).view_as(weight), alpha=-group["lr"] * stretch
        )


def orthogonal(matrix: Tensor, steps: int = 5) -> Tensor:
    """About U V^T of a matrix with the singular value decomposition U S V^T, by Newton-Schulz
    iteration.

    The iteration runs on the small Gram matrix, so that only two products are as large as the
    matrix.
    """
    turned = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if turned else matrix
    x = x / (x.norm() + 1e-7)
    gram = x @ x.T
    total = eye = torch.eye(len(gram), dtype=x.dtype, device=x.device)
    for _ in range(steps):
        factor = 3.4445 * eye + gram @ (-4.7750 * eye + 2.0315 * gram)
        total, gram = factor @ total, factor @ gram @ factor
        gram = (gram + gram.T) / 2
    x = total @ x
    return torch.as_tensor(x.T if turned else x)


def make_optimisers(
    network: nn.Module, settings: TrainSettings
) -> list[torch.optim.Optimizer]:
    """One optimiser, or two for muon; biases and normalisation are not decayed."""
    every = [p for p in network.parameters() if p.requires_grad]
    if settings.optimiser == "muon":
        return _muon(every, settings)
    return [_one_optimiser(_groups(every, settings), settings)]


def _muon(
    every: list[nn.Parameter], settings: TrainSettings
) -> list[torch.optim.Optimizer]:
    """Muon for the kernels of convolutions, and AdamW for the others."""
    rate = settings.learning_rate
    kernels = [p for p in every if p.ndim == 4 and p.shape[1] > 4]
    chosen = {id(p) for p in kernels}
    groups = _groups((p for p in every if id(p) not in chosen), settings)
    rest = torch.optim.AdamW(groups, rate * ADAMW_SHARE, fused=True)
    if not kernels:
        return [rest]
    return [Muon(kernels, rate, weight_decay=settings.weight_decay), rest]


def _groups(
    parameters: Iterable[nn.Parameter], settings: TrainSettings
) -> list[dict[str, Any]]:
    every = list(parameters)
    return [
        {
            "params": [p for p in every if p.ndim > 1],
            "weight_decay": settings.weight_decay,
        },
        {"params": [p for p in every if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _one_optimiser(
    groups: list[dict[str, Any]], settings: TrainSettings
) -> torch.optim.Optimizer:
    rate, momentum = settings.learning_rate, settings.momentum
    if settings.optimiser == "sgd":
        return torch.optim.SGD(
            groups, rate, momentum=momentum, nesterov=momentum > 0, fused=True
        )
    if settings.optimiser == "adadelta":
        return torch.optim.Adadelta(groups, rate)
    kind = (
        torch.optim.Adam if settings.optimiser == "adam" else torch.optim.AdamW
    )
    return kind(
        groups, rate, betas=(settings.beta1, settings.beta2), fused=True
    )


def schedule(settings: TrainSettings, steps: int) -> Callable[[int], float]:
    """The learning rate's factor by step: a linear warm-up, then a cosine to zero or a constant."""
    warmup = max(1, round(settings.warmup * steps))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if settings.schedule == "constant":
            return 1.0
        return 0.5 * (
            1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))
        )

    return factor


def averaging(decay: float) -> Callable[[Any, Any, Any], None]:
    """An exponential average of weights whose memory grows with the steps, up to `decay`."""

    def update(
        averages: list[Tensor], weights: list[Tensor], count: Tensor
    ) -> None:
        memory = min(decay, (1 + float(count)) / (10 + float(count)))
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, weights, 1 - memory)
        else:  # counters, such as those of batch normalisation
            for average, weight in zip(averages, weights, strict=True):
                average.copy_(weight)

    return torch.no_grad()(update)
