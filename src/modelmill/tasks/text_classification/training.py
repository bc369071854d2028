"""How classifiers are trained."""

from modelmill.tasks.decoding.text_tokenizer import sizes
from modelmill.tasks.networks.classifier_training import (
    SCORE,
    deployed,
    loss,
    validate,
)

__all__ = ["SCORE", "deployed", "loss", "sizes", "validate"]
