"""The CTC network."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelmill.tasks.base import Signature
from modelmill.tasks.networks.mel_spectrogram import LogMel, SpecAugment


class Ctc(nn.Module):
    """Log-mel spectrogram, convolutions that halve its frames, a bidirectional GRU, and a linear
    layer over characters.
    """

    def __init__(self, signature: Signature, settings: Any) -> None:
        super().__init__()
        preprocessing = signature.preprocessing
        self.step = preprocessing.step
        self.mel = LogMel(
            preprocessing.rate, settings.mels, hop=preprocessing.hop / 2
        )
        self.hide = SpecAugment(settings.hidden_bands, settings.hidden_frames)
        self.body = _convolutions(
            settings.mels, settings.channels, settings.dropout
        )
        self.recurrent = _recurrent(settings)
        self.last = nn.Linear(2 * settings.hidden, signature.classes + 1)

    def positions(self, length: Tensor) -> Tensor:
        """Output positions of recordings of `length` samples [N]."""
        frames = torch.div(length, self.mel.hop, rounding_mode="floor") + 1
        return torch.div(frames + 1, 2, rounding_mode="floor")

    def forward(self, audio: Tensor, length: Tensor | None = None) -> Tensor:
        """Samples [N, S] -> log-probabilities [N, positions, characters + 1]; in training `length`
        [N] is the number of samples before the padding.
        """
        x = self.body(self.hide(self.mel(audio))).transpose(1, 2)
        if length is None:
            states = self.recurrent(x)[0]
        else:
            positions = self.positions(length).clamp(max=x.shape[1])
            states = over_lengths(self.recurrent, x, positions)
        return self.last(states).float().log_softmax(2)  # type: ignore[no-any-return]


def _convolutions(mels: int, channels: int, dropout: float) -> nn.Sequential:
    """[N, mels, frames] -> [N, channels, frames / 2]."""
    return nn.Sequential(
        nn.Conv1d(mels, channels, 5, stride=2, padding=2, bias=False),
        nn.BatchNorm1d(channels),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Conv1d(channels, channels, 5, padding=2, bias=False),
        nn.BatchNorm1d(channels),
        nn.ReLU(),
        nn.Dropout(dropout),
    )


def _recurrent(settings: Any) -> nn.GRU:
    return nn.GRU(
        settings.channels,
        settings.hidden,
        settings.layers,
        batch_first=True,
        bidirectional=True,
        dropout=settings.dropout if settings.layers > 1 else 0.0,
    )


def over_lengths(gru: nn.GRU, x: Tensor, lengths: Tensor) -> Tensor:
    """Outputs [N, T, 2 H] of a bidirectional GRU over x [N, T, C], each row as if it ended after
    its length [N]; what comes after that is of no meaning.

    The same as over a packed sequence, in time that grows with T: the gradient of a packed one
    grows with its square, since each step takes a slice of all steps.
    """
    backwards = _reversed_positions(lengths, x.shape[1])
    for layer in range(gru.num_layers):
        if layer:
            x = F.dropout(x, gru.dropout, gru.training)
        ahead = _one_direction(gru, x, f"l{layer}")
        back = _one_direction(gru, _taken(x, backwards), f"l{layer}_reverse")
        x = torch.cat([ahead, _taken(back, backwards)], dim=2)
    return x


def _reversed_positions(lengths: Tensor, most: int) -> Tensor:
    """Positions [N, T] that turn each row around within its length."""
    position = torch.arange(most, device=lengths.device).expand(
        len(lengths), most
    )
    last = lengths.unsqueeze(1) - 1
    return torch.where(position <= last, last - position, position)


def _taken(x: Tensor, positions: Tensor) -> Tensor:
    return x.gather(1, positions.unsqueeze(2).expand(-1, -1, x.shape[2]))


def _one_direction(gru: nn.GRU, x: Tensor, suffix: str) -> Tensor:
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    weights = [getattr(gru, f"{name}_{suffix}") for name in names]
    start = x.new_zeros(1, x.shape[0], gru.hidden_size)
    return torch.gru(
        x, start, weights, True, 1, 0.0, gru.training, False, True
    )[0]
