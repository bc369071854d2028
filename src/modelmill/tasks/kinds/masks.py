"""masks: which pixels of a picture are what, one PNG as base64 for each label."""

from base64 import b64encode

from modelmill.tasks.kinds.base import OutputKind
from modelmill.tasks.kinds.image import example

OUTPUT = OutputKind(
    name="masks",
    meaning="labels with scores and masks",
    shown="masks",
    example=lambda: [
        {"label": "cat", "score": 0.9, "mask": b64encode(example()).decode()}
    ],
)
