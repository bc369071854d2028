"""Recurrent layers over texts of different lengths."""

import torch
from torch import Tensor, nn


class BothWays(nn.Module):
    """A GRU that reads each text from its first token and another that reads it from its last
    one.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.ahead = nn.GRU(width, hidden, batch_first=True)
        self.back = nn.GRU(width, hidden, batch_first=True)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """[N, L, width] with tokens where `seen` [N, L], from the left -> states [N, L, 2 *
        hidden], 0 elsewhere.
        """
        # Read backwards padding would come first, and change what is behind it.
        order = turned(seen)[:, :, None]
        back = self.back(x.gather(1, order.repeat(1, 1, x.shape[2])))[0]
        back = back.gather(1, order.repeat(1, 1, back.shape[2]))
        return torch.cat([self.ahead(x)[0], back], 2) * seen[:, :, None]


def turned(seen: Tensor) -> Tensor:
    """Places of each text from its last token to its first, the padding behind it as it is [N,
    L].
    """
    length = seen.sum(1, keepdim=True)
    place = torch.arange(seen.shape[1], device=seen.device)[None]
    return torch.where(place < length, length - 1 - place, place)
