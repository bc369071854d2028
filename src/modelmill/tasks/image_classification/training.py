"""How classifiers are trained."""

from modelmill.tasks.networks.classifier_training import (
    SCORE,
    deployed,
    loss,
    validate,
)
from modelmill.tasks.networks.classifier_training import (
    augment_pictures as change,
)

__all__ = ["SCORE", "change", "deployed", "loss", "validate"]
