"""Pieces of networks that several recipes share."""

from typing import Any

import torch
from torch import Tensor, nn

from modelmill.tasks.base import Signature


class Pixels(nn.Module):
    """uint8 [N, H, W, C] -> normalised float [N, C, H, W], in channels-last memory without a
    copy.
    """

    def __init__(self, signature: Signature) -> None:
        super().__init__()
        self.scale: Tensor
        self.shift: Tensor
        how = signature.preprocessing
        shape = (1, how.channels, 1, 1)
        self.register_buffer("scale", (1 / 255 / torch.tensor(how.std)).reshape(shape))
        self.register_buffer(
            "shift", (-torch.tensor(how.mean) / torch.tensor(how.std)).reshape(shape)
        )

    def forward(self, image: Tensor) -> Tensor:
        """Accepts floats 0..255 as well: an augmented batch is no longer whole numbers."""
        return image.permute(0, 3, 1, 2).float() * self.scale + self.shift


def pixel_input(signature: Signature) -> tuple[int, int, int]:
    """Height, width and channels of the picture that a network is built for."""
    height, width, channels = signature.inputs[0].shape[1:]
    return height, width, channels


def conv(
    inside: int, outside: int, *, size: int = 3, stride: int = 1, **options: Any
) -> nn.Conv2d:
    """A convolution that keeps the size (divided by the stride)."""
    return nn.Conv2d(inside, outside, size, stride, padding=size // 2, **options)


class Residual(nn.Module):
    """Two 3x3 convolutions and a shortcut, which shrinks by averaging (ResNet-D, He et al. 2018,
    arXiv 1812.01187).
    """

    def __init__(self, inside: int, outside: int, *, stride: int) -> None:
        super().__init__()
        last = nn.BatchNorm2d(outside)
        nn.init.zeros_(last.weight)  # each block begins as its shortcut
        self.body = nn.Sequential(
            conv(inside, outside, stride=stride, bias=False),
            nn.BatchNorm2d(outside),
            nn.ReLU(),
            conv(outside, outside, bias=False),
            last,
        )
        shortcut: list[nn.Module] = (
            [nn.AvgPool2d(2, ceil_mode=True)] if stride == 2 else []
        )
        if inside != outside:
            shortcut += [
                nn.Conv2d(inside, outside, 1, bias=False),
                nn.BatchNorm2d(outside),
            ]
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inside, H, W] -> [N, outside, H / stride, W / stride]."""
        return torch.relu(self.body(x) + self.shortcut(x))


class BiLstm(nn.Module):
    """Token ids [N, L], padded on the right with 0, to logits [N, classes], whatever the padding's
    length.

    The LSTM has no bias and the embedding of padding is zero, so its state stays zero until the
    first word: the backward direction, which meets the padding first, in effect starts at the last
    word.
    """

    def __init__(
        self,
        tokens: int,
        classes: int,
        *,
        width: int,
        hidden: int,
        dense: int,
        dropout: float,
        word_dropout: float,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width, padding_idx=0)
        # Torch's deviation of 1 learns poorly
        nn.init.normal_(self.embedding.weight, std=0.1)
        with torch.no_grad():
            self.embedding.weight[0] = 0
        self.lstm = nn.LSTM(
            width, hidden, batch_first=True, bidirectional=True, bias=False
        )
        self.dense = nn.Linear(4 * hidden, dense)
        self.last = nn.Linear(dense, classes)
        self.dropout = nn.Dropout(dropout)
        self.word_dropout = word_dropout

    def forward(self, ids: Tensor) -> Tensor:
        """The largest and the mean state of all words decide."""
        if not torch.compiler.is_exporting():
            used = (ids != 0).any(0).nonzero()
            ids = ids[
                :, : int(used.max()) + 1 if len(used) else 1
            ]  # padding that all share changes nothing
        if self.training and self.word_dropout:
            hidden = (torch.rand(ids.shape, device=ids.device) < self.word_dropout) & (
                ids != 0
            )
            ids = ids.masked_fill(hidden, 1)
        words = (ids != 0).unsqueeze(2)
        states, _ = self.lstm(self.dropout(self.embedding(ids)))
        largest = states.masked_fill(~words, -1.0).amax(1)  # states lie within -1..1
        mean = (states * words).sum(1) / words.sum(1).clamp(min=1)
        pooled = self.dropout(torch.cat([largest, mean], 1))
        logits: Tensor = self.last(self.dropout(torch.relu(self.dense(pooled))))
        return logits
