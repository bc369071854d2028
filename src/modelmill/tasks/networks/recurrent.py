"""Recurrent layers over padded batches of texts."""

import torch
from torch import Tensor, nn


class BidirectionalGru(nn.Module):
    """Two GRUs: one from the first token of each text, one from its last."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.ahead = nn.GRU(width, hidden, batch_first=True)
        self.back = nn.GRU(width, hidden, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[N, L, width], padded on the right where the mask [N, L] is false -> states
        [N, L, 2 * hidden], 0 at the padding.
        """
        # Reading from the right would meet the padding first, and change the states of the tokens.
        order = reversed_order(mask)[:, :, None]
        back = self.back(x.gather(1, order.repeat(1, 1, x.shape[2])))[0]
        back = back.gather(1, order.repeat(1, 1, back.shape[2]))
        return torch.cat([self.ahead(x)[0], back], 2) * mask[:, :, None]


def reversed_order(mask: Tensor) -> Tensor:
    """Positions [N, L] of each text from its last token to its first; padding keeps its own."""
    length = mask.sum(1, keepdim=True)
    position = torch.arange(mask.shape[1], device=mask.device)[None]
    return torch.where(position < length, length - 1 - position, position)
