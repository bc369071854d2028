"""labels: what an input is, by name."""

from modelmill.tasks.kinds.base import OutputKind

OUTPUT = OutputKind(
    name="labels",
    meaning="labels with scores, the best first",
    shown="labels",
    example=lambda: [
        {"label": "cat", "score": 0.9},
        {"label": "dog", "score": 0.1},
    ],
)
