"""How classifiers are trained."""

from modelmill.tasks._classifier import SCORE, deployed, loss, validate
from modelmill.tasks._text import sizes

__all__ = ["SCORE", "deployed", "loss", "sizes", "validate"]
