"""Pictures in pairs: as they are sent, and as they should come out, in two folders with the same
names in both.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from modelmill.data.base import Content, Item, Source, check_options
from modelmill.data.magic import kind_of_name
from modelmill.data.mask_values import upright_size
from modelmill.data.names import shown, split_of
from modelmill.errors import InvalidInput

INPUT = "image"
TARGET = "picture"
SUMMARY = (
    "pictures before and after: input/NAME.png and target/NAME.png, optionally below or "
    "above folders of splits"
)
OPTIONS: dict[str, str] = {}
RANK = 3
"""Above pictures alone, which these are too."""
BEFORE = frozenset(
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
AFTER = frozenset(
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


class Pair(NamedTuple):
    """Names of what belongs together."""

    before: list[str]
    after: list[str]


def detect(source: Source) -> bool:
    """Whether there are pictures in folders of both kinds."""
    return {place[0] for name in source.names if (place := _place(name))} == {
        False,
        True,
    }


def read(source: Source, options: Mapping[str, str]) -> Iterator[Item]:
    """All pictures with those that should come out; raises `InvalidInput` where nothing belongs
    together.
    """
    check_options(options, OPTIONS)
    pairs: dict[str, Pair] = {}
    for name in source.names:
        if place := _place(name):
            after, key = place
            pairs.setdefault(key, Pair([], []))[after].append(name)
    if not any(len(before) == len(after) == 1 for before, after in pairs.values()):
        raise InvalidInput(
            f"'{source.title}' has no pictures in pairs; lay them out as input/NAME.png and "
            "target/NAME.png"
        )
    for key, pair in sorted(pairs.items()):
        split = next(
            (known for part in key.split("/")[:-1] if (known := split_of(part))), None
        )
        yield from _items(source, pair, split)


def _place(name: str) -> tuple[bool, str] | None:
    """Whether a picture is one that should come out, and what it shares with the name of its
    partner.
    """
    *folders, base = name.split("/")
    for number, folder in enumerate(folders):
        if folder.lower() in BEFORE | AFTER and kind_of_name(name):
            kept = [*folders[:number], *folders[number + 1 :], base.rpartition(".")[0]]
            return folder.lower() in AFTER, "/".join(kept)
    return None


def _items(source: Source, pair: Pair, split: str | None) -> Iterator[Item]:
    """The pair as an item, or each of what makes none with its problem."""
    if len(pair.before) == len(pair.after) == 1:
        read = functools.partial(_content, source, pair.before[0], pair.after[0])
        yield Item.later(pair.before[0], "", split, read)
        return
    problem = "it is not clear which belong together: " + ", ".join(
        map(shown, [*pair.before, *pair.after][:4])
    )
    if not (pair.before and pair.after):
        problem = f"there is no picture of the same name in {'target' if pair.before else 'input'}/"
    for name in [*pair.before, *pair.after]:
        yield Item(name, "", b"", split, problem)


def _content(source: Source, before: str, after: str) -> Content:
    data, target = source.read(before), source.read(after)
    sent, wanted = upright_size(data), upright_size(target)
    if (
        sent
        and wanted
        and all(wanted != (scale * sent[0], scale * sent[1]) for scale in SCALES)
    ):
        problem = (
            f"it is {sent[1]}x{sent[0]}, what should come out {wanted[1]}x{wanted[0]}: "
            "as large, or 2, 3 or 4 times as large, is wanted"
        )
        raise InvalidInput(problem)
    return Content(data, target)
