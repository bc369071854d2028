"""How classifiers of recordings are trained."""

import torch
from torch import Tensor

from modelmill.tasks.audio_classification.recipes.cnn import Changes
from modelmill.tasks.base import Signature
from modelmill.tasks.networks.classifier_training import SCORE, deployed, loss, validate

__all__ = ["SCORE", "change", "deployed", "loss", "validate"]
Batch = dict[str, Tensor]


def change(batch: Batch, how: Changes, signature: Signature) -> Batch:
    """A training batch with each recording moved in time, and noise as loud as the recording
    allows.
    """
    audio = batch["audio"]
    count, length = audio.shape
    moves = (
        ((torch.rand(count, 1, device=audio.device) * 2 - 1) * how.shift * length)
        .round()
        .long()
    )
    places = torch.arange(length, device=audio.device) - moves
    moved = audio.gather(1, places.clamp(0, length - 1)) * (
        (places >= 0) & (places < length)
    )
    loudness = audio.abs().amax(1, keepdim=True)
    noise = torch.randn(audio.shape, device=audio.device) * torch.rand(
        count, 1, device=audio.device
    )
    return {**batch, "audio": moved + noise * how.noise * loudness}
