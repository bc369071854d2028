"""seed: the number that a new picture is made from."""

from modelmill.tasks.kinds.base import NumberKind

INPUT = NumberKind(
    name="seed", article="a seed", optional=True, example=lambda: "7"
)
