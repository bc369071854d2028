"""boxes: what is where in a picture, in pixels of the upright one; the far corner is excluded."""

from modelmill.tasks.kinds.base import OutputKind

CORNERS = ("xmin", "ymin", "xmax", "ymax")
OUTPUT = OutputKind(
    name="boxes",
    meaning="labels with scores and boxes",
    shown="boxes",
    example=lambda: [
        {
            "label": "cat",
            "score": 0.9,
            "box": dict(zip(CORNERS, (2, 2, 20, 18), strict=True)),
        }
    ],
)
