"""Where a file lies in folders of classes, below folders of splits or not."""

from collections.abc import Callable, Sequence

from modelmill.data.names import split_of


def splits_in(names: Sequence[str], wanted: Callable[[str], bool]) -> dict[str, str]:
    """The top folders that name a split, if they do: 'train' may also be a class, beside 'bus' and
    'car'.
    """
    tops = {name.partition("/")[0] for name in names if "/" in name and wanted(name)}
    named = {top: split for top in tops if (split := split_of(top))}
    return named if len(named) == len(tops) or len(set(named.values())) > 1 else {}


def place_of(name: str, splits: dict[str, str]) -> tuple[str | None, str]:
    """The split and the class of a name; the class is empty where no folder names one."""
    folder = name.rpartition("/")[0]
    if not splits:
        return None, folder
    top, _, label = folder.partition("/")
    return (splits[top], label) if top in splits else (None, "")
