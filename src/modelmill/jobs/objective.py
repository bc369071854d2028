"""What a network is trained for: the names of a task's module `training`, each of which a recipe
may override.

- `SCORE`: the figure of `validate` by which the best epoch is kept, larger is better; "" keeps the
  last one.
- `loss(network, batch, settings)`: a scalar; or an iterator of (part, scalar) where parts of the
  network named in its
  `parts` are trained in turns: each is stepped before the next loss is asked for.
- `validate(network, batch, settings)`: figures of a batch by name, one of them `loss` (optional),
  means over its items.
- `deployed(network, signature)`: the module that becomes the model, or several `Graph` by name.
- `preview(network)` (optional): a picture (PNG) of what the network has learnt, kept a few times
  during a training.
- `sizes(arrays)` (optional): how long each item is [items]; batches are made of items of about one
  length.
- `change(batch, how, signature)` (optional): a training batch, changed at random as the recipe's
  `AUGMENT` says.

A batch holds tensors by name: what the task's `sample` gives, inputs and targets.
"""

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

from numpy.typing import NDArray
from torch import Tensor, nn

from modelmill.tasks.base import Arrays, Signature, Task, TrainSettings

Batch = dict[str, Tensor]
Loss = Tensor | Iterator[tuple[str, Tensor]]


class Objective(NamedTuple):
    """The task's training, as one recipe has it."""

    score: str
    loss: Callable[[nn.Module, Batch, TrainSettings], Loss]
    validate: Callable[[nn.Module, Batch, TrainSettings], dict[str, Tensor]]
    deployed: Callable[[nn.Module, Signature], nn.Module]
    change: Callable[[Batch, Any, Signature], Batch] | None = None
    preview: Callable[[nn.Module], bytes] | None = None
    sizes: Callable[[Arrays], NDArray[Any]] | None = None


def objective(task: Task, recipe: ModuleType) -> Objective:
    """What a recipe of a task trains for."""
    usual = task.training()

    def named(name: str) -> Any:
        return getattr(recipe, name, None) or getattr(usual, name, None)

    score = getattr(recipe, "SCORE", usual.SCORE)
    optional = {name: named(name) for name in ("change", "preview", "sizes")}
    return Objective(
        score, named("loss"), named("validate"), named("deployed"), **optional
    )
