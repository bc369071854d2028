"""Layers that several recipes share."""

from typing import Any

import torch
from torch import Tensor, nn

from modelmill.tasks.base import Signature
from modelmill.tasks.networks.token_ids import drop_words, shortened


class Pixels(nn.Module):
    """uint8 [N, H, W, C] -> normalised float [N, C, H, W], in channels-last memory without a
    copy.
    """

    def __init__(self, signature: Signature) -> None:
        super().__init__()
        self.scale: Tensor
        self.shift: Tensor
        preprocessing = signature.preprocessing
        shape = (1, preprocessing.channels, 1, 1)
        mean = torch.tensor(preprocessing.mean)
        std = torch.tensor(preprocessing.std)
        self.register_buffer("scale", (1 / 255 / std).reshape(shape))
        self.register_buffer("shift", (-mean / std).reshape(shape))

    def forward(self, image: Tensor) -> Tensor:
        """[N, H, W, C] of 0..255, as uint8 or, where a batch was augmented, as float."""
        return image.permute(0, 3, 1, 2).float() * self.scale + self.shift


def pixel_input(signature: Signature) -> tuple[int, int, int]:
    """Height, width and channels of a network's input picture."""
    height, width, channels = signature.inputs[0].shape[1:]
    return height, width, channels


def conv(
    in_channels: int,
    out_channels: int,
    *,
    size: int = 3,
    stride: int = 1,
    **options: Any,
) -> nn.Conv2d:
    """A convolution that keeps height and width (divided by the stride)."""
    return nn.Conv2d(
        in_channels, out_channels, size, stride, padding=size // 2, **options
    )


class Residual(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is downsampled by average pooling (ResNet-D, He et
    al. 2018, arXiv 1812.01187).
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int
    ) -> None:
        super().__init__()
        last = nn.BatchNorm2d(out_channels)
        nn.init.zeros_(last.weight)  # each block begins as its shortcut
        self.body = nn.Sequential(
            conv(in_channels, out_channels, stride=stride, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            conv(out_channels, out_channels, bias=False),
            last,
        )
        self.shortcut = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, out_channels, H / stride, W / stride]."""
        return torch.relu(self.body(x) + self.shortcut(x))


def pixel_stem(
    signature: Signature, channels: int, *, halve: bool
) -> list[nn.Module]:
    """The first layers of a network of pictures: uint8 [N, H, W, C] -> [N, channels, H, W], or half
    the size.
    """
    size, stride = (5, 2) if halve else (3, 1)
    planes = pixel_input(signature)[2]
    return [
        Pixels(signature),
        conv(planes, channels, size=size, stride=stride, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    ]


def residual_stages(
    channels: int, stages: int, blocks: int, *, halve_first: bool = False
) -> list[nn.Module]:
    """Residual blocks [N, channels, H, W] -> [N, channels << (stages - 1), ...]: each stage but the
    first has twice the channels at half the size of the one before.
    """
    layers: list[nn.Module] = []
    before = channels
    for stage in range(stages):
        after = channels << stage
        stride = 2 if stage or halve_first else 1
        layers.append(Residual(before, after, stride=stride))
        layers += [Residual(after, after, stride=1) for _ in range(blocks - 1)]
        before = after
    return layers


def _shortcut(
    in_channels: int, out_channels: int, stride: int
) -> nn.Sequential:
    """The input of a residual block in the shape of its output; empty where they are the same."""
    layers: list[nn.Module] = []
    if stride == 2:
        layers.append(nn.AvgPool2d(2, ceil_mode=True))
    if in_channels != out_channels:
        layers += [
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        ]
    return nn.Sequential(*layers)


class BiLstm(nn.Module):
    """A bidirectional LSTM: token ids [N, L], padded on the right with 0 -> logits [N, classes],
    which do not depend on the length of the padding.

    The LSTM has no bias and the embedding of padding is zero, so its state stays zero over padding:
    the backward direction, which meets the padding first, in effect starts at the last token.
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
        self.embedding = _embedding(tokens, width)
        self.lstm = nn.LSTM(
            width, hidden, batch_first=True, bidirectional=True, bias=False
        )
        self.dense = nn.Linear(4 * hidden, dense)
        self.last = nn.Linear(dense, classes)
        self.dropout = nn.Dropout(dropout)
        self.word_dropout = word_dropout

    def forward(self, ids: Tensor) -> Tensor:
        """Logits from the maximum and the mean of the states of all tokens."""
        ids = shortened(ids)
        if self.training and self.word_dropout:
            ids = drop_words(ids, self.word_dropout)
        words = (ids != 0).unsqueeze(2)
        states, _ = self.lstm(self.dropout(self.embedding(ids)))
        pooled = self.dropout(_maximum_and_mean(states, words))
        logits: Tensor = self.last(self.dropout(torch.relu(self.dense(pooled))))
        return logits


def _embedding(tokens: int, width: int) -> nn.Embedding:
    embedding = nn.Embedding(tokens, width, padding_idx=0)
    # torch's standard deviation of 1 learns poorly.
    nn.init.normal_(embedding.weight, std=0.1)
    with torch.no_grad():
        embedding.weight[0] = 0
    return embedding


def _maximum_and_mean(states: Tensor, words: Tensor) -> Tensor:
    """States of an LSTM [N, L, C] over the tokens [N, L, 1] -> [N, 2 * C]."""
    largest = states.masked_fill(~words, -1.0).amax(
        1
    )  # states lie within -1..1
    mean = (states * words).sum(1) / words.sum(1).clamp(min=1)
    return torch.cat([largest, mean], 1)
