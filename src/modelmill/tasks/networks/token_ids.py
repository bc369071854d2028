"""What networks do to padded token ids [N, L] before they embed them: 0 is padding, 1 unknown."""

import torch
from torch import Tensor


def shortened(ids: Tensor) -> Tensor:
    """Ids without the padding that all texts share; unchanged during export, where the length is
    fixed.
    """
    return ids if torch.compiler.is_exporting() else ids[:, : longest(ids)]


def longest(ids: Tensor) -> int:
    """Tokens of the longest text; at least 1."""
    used = (ids != 0).any(0).nonzero()
    return int(used.max()) + 1 if len(used) else 1


def drop_words(ids: Tensor, share: float) -> Tensor:
    """Ids of which a random share, padding left out, is the unknown token."""
    dropped = (torch.rand(ids.shape, device=ids.device) < share) & (ids != 0)
    return ids.masked_fill(dropped, 1)


def attention_mask(ids: Tensor) -> Tensor:
    """True for tokens, and for the first position also where all is padding: a softmax over nothing
    is NaN.
    """
    first = torch.arange(ids.shape[1], device=ids.device) == 0
    return (ids != 0) | first
