"""Pairs of input and target pictures, in two folders with the same names in both."""

import functools
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from modelmill.data.base import Content, Item, Source, check_options
from modelmill.data.magic import kind_of_name
from modelmill.data.mask_values import upright_size
from modelmill.data.names import shown, split_of_file
from modelmill.errors import InvalidInput

INPUT = "image"
TARGET = "picture"
SUMMARY = (
    "pictures before and after: input/NAME.png and target/NAME.png, optionally below or "
    "above folders of splits"
)
OPTIONS: dict[str, str] = {}
RANK = 3
"""Above pictures alone, which would fit as well."""
INPUT_FOLDERS = frozenset(
    {
        "input",
        "inputs",
        "before",
        "damaged",
        "degraded",
        "noisy",
        "blur",
        "blurred",
        "lr",
        "lq",
        "low",
    }
)
TARGET_FOLDERS = frozenset(
    {
        "target",
        "targets",
        "after",
        "clean",
        "sharp",
        "gt",
        "groundtruth",
        "hr",
        "hq",
        "high",
    }
)
SCALES = (1, 2, 3, 4)


class PairNames(NamedTuple):
    """Names of the input and target pictures that share a key."""

    inputs: list[str]
    targets: list[str]

    @property
    def is_clear(self) -> bool:
        """Whether there is one of each."""
        return len(self.inputs) == len(self.targets) == 1


def detect(source: Source) -> bool:
    """Whether there are pictures in folders of both kinds."""
    sides = {_side_and_key(name) for name in source.names}
    return {side[0] for side in sides if side} == {False, True}


def read(source: Source, options: Mapping[str, str]) -> Iterator[Item]:
    """All input pictures with their targets; raises `InvalidInput` where there are no pairs."""
    check_options(options, OPTIONS)
    pairs = _by_key(source)
    if not any(pair.is_clear for pair in pairs.values()):
        raise InvalidInput(
            f"'{source.title}' has no pictures in pairs; lay them out as input/NAME.png and "
            "target/NAME.png"
        )
    for key, pair in sorted(pairs.items()):
        split = split_of_file(key)
        yield from _items(source, pair, split)


def _by_key(source: Source) -> dict[str, PairNames]:
    pairs: dict[str, PairNames] = {}
    for name in source.names:
        if side_and_key := _side_and_key(name):
            is_target, key = side_and_key
            pairs.setdefault(key, PairNames([], []))[is_target].append(name)
    return pairs


def _side_and_key(name: str) -> tuple[bool, str] | None:
    """Whether a picture is a target, and the key that it shares with its partner: its path without
    the folder of its side and without extension; None for other files.
    """
    if not kind_of_name(name):
        return None
    *folders, base = name.split("/")
    for at, folder in enumerate(folder.lower() for folder in folders):
        if folder in INPUT_FOLDERS | TARGET_FOLDERS:
            rest = [*folders[:at], *folders[at + 1 :], base.rpartition(".")[0]]
            return folder in TARGET_FOLDERS, "/".join(rest)
    return None


def _items(
    source: Source, pair: PairNames, split: str | None
) -> Iterator[Item]:
    """The pair as an item, or each picture that is in no pair as a problem."""
    if pair.is_clear:
        read = functools.partial(
            _content, source, pair.inputs[0], pair.targets[0]
        )
        yield Item.later(pair.inputs[0], "", split, read)
        return
    problem = _why_unpaired(pair)
    for name in [*pair.inputs, *pair.targets]:
        yield Item(name, "", b"", split, problem)


def _why_unpaired(pair: PairNames) -> str:
    if not (pair.inputs and pair.targets):
        missing = "target" if pair.inputs else "input"
        return f"there is no picture of the same name in {missing}/"
    names = [*pair.inputs, *pair.targets][:4]
    return "it is not clear which belong together: " + ", ".join(
        map(shown, names)
    )


def _content(source: Source, name: str, target_name: str) -> Content:
    data, target = source.read(name), source.read(target_name)
    input_size, target_size = upright_size(data), upright_size(target)
    if input_size and target_size and not _is_scaled(input_size, target_size):
        problem = (
            f"it is {input_size[1]}x{input_size[0]}, what should come out "
            f"{target_size[1]}x{target_size[0]}: as large, or 2, 3 or 4 times as large, is wanted"
        )
        raise InvalidInput(problem)
    return Content(data, target)


def _is_scaled(size: tuple[int, int], target: tuple[int, int]) -> bool:
    return any(target == (scale * size[0], scale * size[1]) for scale in SCALES)
