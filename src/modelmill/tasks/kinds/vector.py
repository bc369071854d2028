"""vector: numbers that lie near those of what means the same."""

from modelmill.tasks.kinds.base import OutputKind

OUTPUT = OutputKind(
    name="vector",
    meaning="a list of numbers",
    shown="vector",
    example=lambda: [0.6, 0.0, -0.8],
)
