"""The CTC network."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

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
        channels = settings.channels
        self.mel = LogMel(preprocessing.rate, settings.mels, hop=preprocessing.hop / 2)
        self.hide = SpecAugment(settings.hidden_bands, settings.hidden_frames)
        self.body = nn.Sequential(
            nn.Conv1d(settings.mels, channels, 5, stride=2, padding=2, bias=False),
            nn.BatchNorm1d(channels),
            nn.ReLU(),
            nn.Dropout(settings.dropout),
            nn.Conv1d(channels, channels, 5, padding=2, bias=False),
            nn.BatchNorm1d(channels),
            nn.ReLU(),
            nn.Dropout(settings.dropout),
        )
        layer_dropout = settings.dropout if settings.layers > 1 else 0.0
        self.recurrent = nn.GRU(
            channels,
            settings.hidden,
            settings.layers,
            batch_first=True,
            bidirectional=True,
            dropout=layer_dropout,
        )
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
            x, _ = self.recurrent(x)
        else:
            positions = self.positions(length).clamp(max=x.shape[1])
            packed = pack_padded_sequence(
                x, positions.cpu(), batch_first=True, enforce_sorted=False
            )
            x, _ = pad_packed_sequence(
                self.recurrent(packed)[0], batch_first=True, total_length=x.shape[1]
            )
        return self.last(x).float().log_softmax(2)  # type: ignore[no-any-return]
