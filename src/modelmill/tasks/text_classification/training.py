"""How classifiers are trained."""

from modelmill.tasks._classifier import SCORE, deployed, loss, validate

__all__ = ["SCORE", "deployed", "loss", "validate"]
