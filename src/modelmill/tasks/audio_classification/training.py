"""How classifiers of recordings are trained."""

import torch
from torch import Tensor

from modelmill.tasks.audio_classification.recipes.cnn import Changes
from modelmill.tasks.base import Signature
from modelmill.tasks.networks.classifier_training import (
    SCORE,
    deployed,
    loss,
    validate,
)

__all__ = ["SCORE", "change", "deployed", "loss", "validate"]
Batch = dict[str, Tensor]


def change(batch: Batch, options: Changes, signature: Signature) -> Batch:
    """A training batch with each recording shifted in time and white noise added, scaled by its
    loudest sample.
    """
    audio = batch["audio"]
    shifted = _shifted(audio, options.shift)
    loudness = audio.abs().amax(1, keepdim=True)
    noise = torch.randn(audio.shape, device=audio.device)
    noise = noise * torch.rand(len(audio), 1, device=audio.device)
    return {**batch, "audio": shifted + noise * options.noise * loudness}


def _shifted(audio: Tensor, share: float) -> Tensor:
    """Recordings [N, S] moved by up to this share of their length, silence where nothing is."""
    count, length = audio.shape
    chance = torch.rand(count, 1, device=audio.device) * 2 - 1
    shifts = (chance * share * length).round().long()
    positions = torch.arange(length, device=audio.device) - shifts
    inside = (positions >= 0) & (positions < length)
    return audio.gather(1, positions.clamp(0, length - 1)) * inside
