"""text: what is written; as an answer with what is known of it."""

from modelmill.tasks.kinds.base import OutputKind, TextKind

INPUT = TextKind(
    name="text",
    article="a text",
    example=lambda: "A quiet film that stays with you.",
)
OUTPUT = OutputKind(
    name="text",
    meaning="a text, with what is known of it",
    shown="text",
    example=lambda: {"text": "Once upon a time there was a mill."},
)
