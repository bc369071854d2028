"""json: what only the task knows."""

from modelmill.tasks.kinds.base import OutputKind

OUTPUT = OutputKind(
    name="json",
    meaning="JSON of the task's own",
    example=lambda: {"answer": "Berkeley"},
)
