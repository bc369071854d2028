"""Masked-language training: random tokens are hidden, others in every epoch (Devlin et al. 2018,
arXiv 1810.04805).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelmill.tasks.base import Signature, TrainSettings
from modelmill.tasks.decoding.text_tokenizer import MASK, SPECIAL, sizes

__all__ = ["SCORE", "deployed", "hide", "loss", "sizes", "validate"]

SCORE = "accuracy"
SHARE = 0.2
"""Share of the tokens that are hidden: more than the paper's 15 %, for small models learn faster so
(Wettig et al. 2022, arXiv 2202.08005).
"""
SHOWN, RANDOM = 0.1, 0.1
"""Shares of the hidden tokens that are left as they are, or replaced by a random one."""
Batch = dict[str, Tensor]


def loss(network: nn.Module, batch: Batch, settings: TrainSettings) -> Tensor:
    """The cross-entropy of the hidden tokens, in nats."""
    ids, mask = hide(batch["ids"].long(), int(network.tokens), None)  # type: ignore[arg-type]
    logits = network.logits(ids, mask)  # type: ignore[operator]
    return _cross_entropy(logits.float(), batch["ids"].long()[mask])


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """In nats; 0 where nothing is hidden, because the batch has no ordinary token."""
    return F.cross_entropy(logits, targets) if len(targets) else logits.sum()


def validate(
    network: nn.Module, batch: Batch, settings: TrainSettings
) -> dict[str, Tensor]:
    """Cross-entropy and accuracy over hidden tokens that are the same at every validation."""
    generator = torch.Generator(batch["ids"].device).manual_seed(0)
    ids, mask = hide(batch["ids"].long(), int(network.tokens), generator)  # type: ignore[arg-type]
    logits = network.logits(ids, mask).float()  # type: ignore[operator]
    targets = batch["ids"].long()[mask]
    right = (
        (logits.argmax(1) == targets).float().mean()
        if len(targets)
        else logits.sum()
    )
    return {"loss": _cross_entropy(logits, targets), "accuracy": right}


def hide(
    ids: Tensor, tokens: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Ids [N, L] with random tokens hidden, and the mask of these [N, L]; a batch that has ordinary
    tokens has at least one hidden.
    """
    hidden = _chosen(ids, generator)
    kind = _chance(ids, generator)
    random_tokens = _random_tokens(ids, tokens, generator)
    masked = ids.masked_fill(
        hidden & (kind >= SHOWN + RANDOM), SPECIAL.index(MASK)
    )
    replaced = hidden & (kind >= SHOWN) & (kind < SHOWN + RANDOM)
    return torch.where(replaced, random_tokens, masked), hidden


def _chosen(ids: Tensor, generator: torch.Generator | None) -> Tensor:
    """Which tokens are hidden [N, L]: a share of the ordinary ones, one of them at least."""
    ordinary = ids >= len(SPECIAL)
    chance = _chance(ids, generator)
    hidden = ordinary & (chance < SHARE)
    if hidden.any():
        return hidden
    least = chance.where(ordinary, torch.full_like(chance, 2.0)).min()
    return ordinary & (chance == least)


def _chance(ids: Tensor, generator: torch.Generator | None) -> Tensor:
    """A number of 0..1 for each token."""
    return torch.rand(ids.shape, device=ids.device, generator=generator)


def _random_tokens(
    ids: Tensor, tokens: int, generator: torch.Generator | None
) -> Tensor:
    """Any ordinary token in the place of each [N, L]."""
    first = len(SPECIAL)
    most = max(tokens, first + 1)
    return torch.randint(
        first, most, ids.shape, device=ids.device, generator=generator
    )


def deployed(network: nn.Module, signature: Signature) -> nn.Module:
    """The network itself: ids and positions in, logits out."""
    return network
