"""Split and class of a file by its folders."""

from collections.abc import Callable, Sequence

from modelmill.data.names import folder_of, split_of, top_folder


def splits_in(
    names: Sequence[str], wanted: Callable[[str], bool]
) -> dict[str, str]:
    """The split of each top folder; empty unless all name one, or at least two splits are named:
    'train' may also be a class, beside 'bus' and 'car'.
    """
    tops = {top_folder(name) for name in names if wanted(name)} - {""}
    named = {top: split for top in tops if (split := split_of(top))}
    return (
        named if len(named) == len(tops) or len(set(named.values())) > 1 else {}
    )


def split_and_label(
    name: str, splits: dict[str, str]
) -> tuple[str | None, str]:
    """The split and the class of a file; the class is "" where no folder names one."""
    folder = folder_of(name)
    if not splits:
        return None, folder
    top, _, label = folder.partition("/")
    return (splits[top], label) if top in splits else (None, "")
