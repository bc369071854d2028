"""tensor: what a model without a task takes; it has no single form."""

from modelmill.tasks.kinds.base import TensorKind

INPUT = TensorKind(name="tensor", article="a tensor", example=lambda: bytes(4))
