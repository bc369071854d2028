"""How classifiers are trained."""

from modelmill.tasks._classifier import SCORE, deployed, loss, validate
from modelmill.tasks._classifier import change_pictures as change

__all__ = ["SCORE", "change", "deployed", "loss", "validate"]
