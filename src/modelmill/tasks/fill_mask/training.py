"""Masked-language training: words are hidden at random, anew each time (Devlin et al. 2018, arXiv
1810.04805).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelmill.tasks.base import Signature, TrainSettings
from modelmill.tasks.decoding.text_tokenizer import MASK, SPECIAL, sizes

__all__ = ["SCORE", "deployed", "hide", "loss", "sizes", "validate"]

SCORE = "accuracy"
SHARE = 0.2
"""More than the 15 % of the paper: small models learn faster so (Wettig et al. 2022, arXiv
2202.08005).
"""
SHOWN, RANDOM = 0.1, 0.1
"""Shares of the hidden words that are shown as they are, or as any other word."""
Batch = dict[str, Tensor]


def loss(network: nn.Module, batch: Batch, settings: TrainSettings) -> Tensor:
    """The cross-entropy of the hidden words, in nats."""
    ids, seen = hide(batch["ids"].long(), int(network.tokens), None)  # type: ignore[arg-type]
    logits = network.told(ids, seen)  # type: ignore[operator]
    return _surprise(logits.float(), batch["ids"].long()[seen])


def _surprise(logits: Tensor, wanted: Tensor) -> Tensor:
    """In nats; 0 where nothing is hidden: no word of the batch is known."""
    return F.cross_entropy(logits, wanted) if len(wanted) else logits.sum()


def validate(
    network: nn.Module, batch: Batch, settings: TrainSettings
) -> dict[str, Tensor]:
    """The same over words that are always the same ones, and how often the likeliest word is
    right.
    """
    generator = torch.Generator(batch["ids"].device).manual_seed(0)
    ids, seen = hide(batch["ids"].long(), int(network.tokens), generator)  # type: ignore[arg-type]
    logits, wanted = network.told(ids, seen).float(), batch["ids"].long()[seen]  # type: ignore[operator]
    right = (logits.argmax(1) == wanted).float().mean() if len(wanted) else logits.sum()
    return {"loss": _surprise(logits, wanted), "accuracy": right}


def hide(
    ids: Tensor, tokens: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Texts with some words hidden, and where [N, L]; at least one word of a batch, where it has
    any.
    """
    known = ids >= len(SPECIAL)

    def chance() -> Tensor:
        return torch.rand(ids.shape, device=ids.device, generator=generator)

    drawn = chance()
    hidden = known & (drawn < SHARE)
    if not hidden.any():
        hidden = known & (
            drawn == drawn.where(known, torch.full_like(drawn, 2.0)).min()
        )
    how = chance()
    other = torch.randint(
        len(SPECIAL),
        max(tokens, len(SPECIAL) + 1),
        ids.shape,
        device=ids.device,
        generator=generator,
    )
    shown = ids.masked_fill(hidden & (how >= SHOWN + RANDOM), SPECIAL.index(MASK))
    return torch.where(
        hidden & (how >= SHOWN) & (how < SHOWN + RANDOM), other, shown
    ), hidden


def deployed(network: nn.Module, signature: Signature) -> nn.Module:
    """The network itself: ids and places in, logits out."""
    return network
