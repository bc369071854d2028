"""The network that listens and spells."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from modelmill.tasks.base import Signature
from modelmill.tasks.networks.mel_spectrogram import Hidden, LogMel


class Ctc(nn.Module):
    """A spectrogram every 10 ms, convolutions that halve its frames, recurrent layers both ways,
    and characters.
    """

    def __init__(self, signature: Signature, settings: Any) -> None:
        super().__init__()
        how = signature.preprocessing
        self.step = how.step
        inside = settings.channels
        self.mel = LogMel(how.rate, settings.mels, hop=how.hop / 2)
        self.hide = Hidden(settings.hidden_bands, settings.hidden_frames)
        self.body = nn.Sequential(
            nn.Conv1d(settings.mels, inside, 5, stride=2, padding=2, bias=False),
            nn.BatchNorm1d(inside),
            nn.ReLU(),
            nn.Dropout(settings.dropout),
            nn.Conv1d(inside, inside, 5, padding=2, bias=False),
            nn.BatchNorm1d(inside),
            nn.ReLU(),
            nn.Dropout(settings.dropout),
        )
        between = settings.dropout if settings.layers > 1 else 0.0
        self.recurrent = nn.GRU(
            inside,
            settings.hidden,
            settings.layers,
            batch_first=True,
            bidirectional=True,
            dropout=between,
        )
        self.last = nn.Linear(2 * settings.hidden, signature.classes + 1)

    def places(self, length: Tensor) -> Tensor:
        """How many places a recording of so many samples has."""
        frames = torch.div(length, self.mel.hop, rounding_mode="floor") + 1
        return torch.div(frames + 1, 2, rounding_mode="floor")

    def forward(self, audio: Tensor, length: Tensor | None = None) -> Tensor:
        """[N, S] to log-probabilities [N, places, characters + 1]; in training behind `length`
        samples is padding.
        """
        x = self.body(self.hide(self.mel(audio))).transpose(1, 2)
        if length is None:
            x, _ = self.recurrent(x)
        else:
            places = self.places(length).clamp(max=x.shape[1])
            packed = pack_padded_sequence(
                x, places.cpu(), batch_first=True, enforce_sorted=False
            )
            x, _ = pad_packed_sequence(
                self.recurrent(packed)[0], batch_first=True, total_length=x.shape[1]
            )
        return self.last(x).float().log_softmax(2)  # type: ignore[no-any-return]
