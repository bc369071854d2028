"""A training that starts from a version: its preprocessing, its settings and its weights, as far as
they fit.
"""

import shutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import msgspec

from modelmill import bundle
from modelmill.errors import InvalidInput
from modelmill.tasks.base import Plan, Signature, names
from modelmill.tasks.decoding.tokenizer import TOKENIZER
from modelmill.types import WEIGHTS, Ancestor, Json, Manifest

if TYPE_CHECKING:
    from torch import nn

LEARNT = frozenset(
    {"tokenizer", "units", "vocabulary", "minimum_count", "lowercase"}
)
"""What a tokenizer was trained with: it can't be had without another tokenizer."""
FITTED = frozenset({"max_length"})
"""What follows from the data of one task, and is no matter to the weights."""
OWN = frozenset({WEIGHTS, "README.md", "golden.json"})
"""Files of a bundle that the next version makes anew."""
INHERITED = "inherited"
SHOWN = 6


class Base:
    """The version that a training starts from."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.manifest: Manifest = bundle.open_bundle(folder)
        self.digest = bundle.digest_of(folder)

    def chain(self) -> list[Ancestor]:
        """What a version that starts from it comes from."""
        lineage = self.manifest.lineage
        own = Ancestor(
            name=self.name,
            digest=self.digest,
            task=self.manifest.task,
            dataset=lineage.dataset,
        )
        return [*lineage.chain, own]

    def settings(
        self, recipe: ModuleType, task: str, given: Mapping[str, Any]
    ) -> Json:
        """The settings that follow from it, and those `given`; raises `InvalidInput` for what can't
        go together.

        Of another task's version only whole numbers and words are taken over: they are the
        network's shape.
        """
        same = task == self.manifest.task
        known = self.manifest.lineage.settings | self.manifest.preprocessing
        self._refuse_other_tokenizer(given)
        inside = [
            name
            for name in names(recipe.Settings())
            if same or not isinstance(known.get(name), float)
        ]
        outside = [
            name for name in names(recipe.INPUT) if same or name not in FITTED
        ]
        taken = {
            name: known[name] for name in [*inside, *outside] if name in known
        }
        return taken | dict(given)

    def _refuse_other_tokenizer(self, given: Mapping[str, Any]) -> None:
        """Raises `InvalidInput` for a setting that would need another tokenizer."""
        if not (self.folder / TOKENIZER).exists():
            return
        learnt = self.manifest.preprocessing
        for name, value in given.items():
            fixed = name in LEARNT and name in learnt
            if fixed and str(value).lower() != str(learnt[name]).lower():
                raise InvalidInput(
                    f"setting {name}={value}: {self.name} has {learnt[name]}, and its tokenizer "
                    "is kept"
                )

    def prepared(self, chosen: Plan, draft: Path) -> Plan:
        """The plan with what the version has learnt of its data, whose files are copied."""
        for name in filter(_is_learnt, self.manifest.files):
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.folder / name, draft / name)
        learnt = self.manifest.preprocessing
        settings = names(chosen.input)
        derived = {
            field.name: learnt[field.name]
            for field in msgspec.structs.fields(type(chosen.input))
            if field.name not in settings and field.name in learnt
        }
        preprocessing = msgspec.structs.replace(chosen.input, **derived)
        return msgspec.structs.replace(chosen, input=preprocessing)

    def give(
        self, network: "nn.Module", head: set[str]
    ) -> tuple[list[str], list[str]]:
        """Put weights into a network; the names of those that were, and of those that stay as they
        are.

        `head` are those that tell classes apart. Raises `InvalidInput` where there is nothing in
        common.
        """
        import torch
        from safetensors.torch import load_file

        there = load_file(self.folder / WEIGHTS)
        state = network.state_dict()
        taken = [
            name
            for name, one in state.items()
            if name in there
            and name not in head
            and there[name].shape == one.shape
        ]
        parameters = {name for name, _ in network.named_parameters()}
        if parameters.isdisjoint(taken):
            raise InvalidInput(
                f"{self.name} (recipe {self.manifest.lineage.recipe}) has no weights that fit "
                f"this network: its parts are {_parts(there)}"
            )
        with torch.no_grad():
            for name in taken:
                state[name].copy_(there[name])
        return taken, [name for name in state if name not in taken]


def _is_learnt(name: str) -> bool:
    """Whether a file of a bundle holds what was learnt of its data."""
    return name not in OWN and not name.startswith(("pictures/", "model."))


def _parts(weights: Iterable[str]) -> str:
    """The parts of a network by the names of its weights."""
    return ", ".join(sorted({name.partition(".")[0] for name in weights}))


def head_of(recipe: ModuleType, chosen: Plan, signature: Signature) -> set[str]:
    """The weights whose shape depends on the number of classes."""
    more = msgspec.structs.replace(signature, classes=signature.classes + 1)
    one, other = (
        recipe.network(chosen.network, each).state_dict()
        for each in (signature, more)
    )
    return {
        name
        for name, tensor in one.items()
        if name not in other or other[name].shape != tensor.shape
    }


def freeze(network: "nn.Module", parts: str, taken: list[str]) -> int:
    """Let parts of a network stay as they are; how many numbers that are. Raises `InvalidInput` for
    unknown parts.
    """
    every = dict(network.named_parameters())
    frozen: set[str] = set()
    for part in filter(None, map(str.strip, parts.split(","))):
        frozen |= _weights_of(part, every.keys(), taken)
    if frozen >= every.keys():
        raise InvalidInput(
            f"setting freeze={parts:.60}: nothing is left to train"
        )
    for name in frozen:
        every[name].requires_grad_(False)
    return sum(every[name].numel() for name in frozen)


def _weights_of(
    part: str, every: Collection[str], taken: list[str]
) -> set[str]:
    """The weights of a part, or those that were inherited; raises `InvalidInput` for none."""
    if part == INHERITED:
        found = {name for name in taken if name in every}
        why = "nothing was inherited"
    else:
        found = {name for name in every if f"{name}.".startswith(f"{part}.")}
        why = f"the network has the parts {_parts(every)}"
    if not found:
        raise InvalidInput(f"setting freeze={part:.60}: {why}")
    return found


def few(parts: list[str]) -> str:
    """Some names, and how many there are."""
    shown = ", ".join(parts[:SHOWN])
    return (
        f"{shown} and {len(parts) - SHOWN} more"
        if len(parts) > SHOWN
        else shown
    )
