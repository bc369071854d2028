"""question: a question, and the passage that holds its answer."""

from modelmill.tasks.kinds.base import JsonKind

EXAMPLE = {
    "question": "Where does she live?",
    "context": "Her name is Clara and she lives in Berkeley.",
}
INPUT = JsonKind(
    name="question",
    article="a question",
    form='{"question": ..., "context": ...}',
    example=lambda: dict(EXAMPLE),
)
