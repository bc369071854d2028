"""Pictures with masks of class numbers, each of the size of its picture.

Three layouts: lists of pairs, as SegNet's CamVid has (train.txt: "train/a.png trainannot/a.png");
folders of pictures and of masks with the same names (images/a.jpg, masks/a.png), split by folders
above or below; and PASCAL VOC's (JPEGImages, SegmentationClass, ImageSets/Segmentation/train.txt).
Where there are lists, what they do not name is left out.
"""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from modelmill.data import mask_values
from modelmill.data.base import SPLITS, Item, Source, check_options
from modelmill.data.magic import kind_of_name
from modelmill.data.names import base_of, shown, split_of, split_of_file
from modelmill.errors import InvalidInput

INPUT = "image"
TARGET = "mask"
SUMMARY = (
    "pictures with masks of class numbers: images/ and masks/, CamVid's train.txt and "
    "trainannot/, or PASCAL VOC"
)
OPTIONS = mask_values.OPTIONS
RANK = 1

PICTURES = frozenset(
    {"images", "image", "imgs", "img", "jpegimages", "pictures", "photos"}
)
MASKS = frozenset(
    {
        "masks",
        "mask",
        "labels",
        "label",
        "annotations",
        "annotation",
        "annot",
        "segmentationclass",
        "segmentationclassaug",
        "segmentation",
        "gt",
        "groundtruth",
        "ground_truth",
    }
)
OTHER_LISTS = re.compile(r"(?:.*/)?ImageSets/(?!Segmentation/)", re.IGNORECASE)
ANNOT = "annot"
"""The end of names of folders of masks, as in CamVid's trainannot."""
SUFFIX = re.compile(r"[-_](?:masks?|labels?|seg|gt|L)$")
LINE = 4096
LIST_BYTES = 64 << 20


Group = tuple[list[str], list[str]]
"""Names of pictures, and of masks."""


class Pair(NamedTuple):
    """A picture and its mask, or the problem with `picture`."""

    picture: str
    mask: str
    split: str | None
    problem: str = ""


def detect(source: Source) -> bool:
    """Whether there are pictures both in folders of masks and in others."""
    kinds = {
        _mask_and_key(name)[0] for name in source.names if kind_of_name(name)
    }
    return len(kinds) == 2


def read(source: Source, options: Mapping[str, str]) -> Iterator[Item]:
    """All pictures with their masks as PNG of class numbers, 255 where ignored; raises
    `InvalidInput` where there are no pairs.
    """
    check_options(options, OPTIONS)
    pairs = _pairs(source)
    classes = mask_values.classes_of(source, options, _mask_names(pairs))
    for pair in pairs:
        if pair.problem:
            yield Item(pair.picture, "", b"", pair.split, pair.problem)
        else:
            yield mask_values.pair(
                source, pair.picture, pair.mask, pair.split, classes
            )


def labels(source: Source, options: Mapping[str, str]) -> list[str]:
    """The classes by number, without ignored ones; raises `InvalidInput` for fewer than two."""
    check_options(options, OPTIONS)
    masks = _mask_names(_pairs(source))
    return mask_values.class_names(
        source, mask_values.classes_of(source, options, masks), masks
    )


def _mask_names(pairs: list[Pair]) -> list[str]:
    return [pair.mask for pair in pairs if not pair.problem]


def _pairs(source: Source) -> list[Pair]:
    """All pairs of the set in a fixed order; raises `InvalidInput` when there is none."""
    by_key = _by_key(source)
    lists = [
        (split, name)
        for name in source.names
        if (split := _split_of_list(name))
    ]
    pairs = _by_lists(source, lists, by_key) if lists else _by_folders(by_key)
    if all(pair.problem for pair in pairs):
        raise _no_pairs(source, pairs)
    return pairs


def _no_pairs(source: Source, pairs: list[Pair]) -> InvalidInput:
    why = (
        f", such as {shown(pairs[0].picture)}: {pairs[0].problem}"
        if pairs
        else ""
    )
    return InvalidInput(
        f"'{source.title}' has no pictures with masks{why}; lay them out as images/NAME.jpg "
        "and masks/NAME.png, or name the pairs in train.txt"
    )


# ---- folders


def _mask_and_key(name: str) -> tuple[bool, str]:
    """Whether a name is a mask's, and the key that it shares with its partner: its path without the
    folder of pictures or masks and without extension.
    """
    *folders, base = name.split("/")
    mask, rest = False, []
    for folder in folders:
        lower = folder.lower()
        if not mask and _is_of_masks(lower):
            mask = True
            # CamVid's trainannot belongs to train
            rest += [] if lower in MASKS else [folder[: -len(ANNOT)]]
        elif lower not in PICTURES:
            rest.append(folder)
    return mask, "/".join([*rest, base.rpartition(".")[0]])


def _is_of_masks(folder: str) -> bool:
    return folder in MASKS or (folder.endswith(ANNOT) and folder != ANNOT)


def _by_key(source: Source) -> dict[str, Group]:
    """Names of pictures and of masks by their key."""
    groups: dict[str, Group] = {}
    suffixed: list[tuple[str, str]] = []
    for name in filter(kind_of_name, source.names):
        mask, key = _mask_and_key(name)
        if mask and SUFFIX.search(key):
            suffixed.append((key, name))
        else:
            groups.setdefault(key, ([], []))[mask].append(name)
    for key, name in suffixed:
        groups.setdefault(_key_of(key, groups), ([], []))[True].append(name)
    return groups


def _key_of(key: str, groups: Mapping[str, Group]) -> str:
    """The key of a mask with a suffix: cat_mask.png belongs to cat.jpg, unless there is a
    cat_mask.jpg.
    """
    short = SUFFIX.sub("", key)
    return key if key in groups or short not in groups else short


def _by_folders(by_key: dict[str, Group]) -> list[Pair]:
    return [
        pair
        for key, group in sorted(by_key.items())
        for pair in _pairs_of(key, *group)
    ]


def _pairs_of(key: str, pictures: list[str], masks: list[str]) -> list[Pair]:
    """The pair of the names that share a key, or each name as a problem."""
    split = split_of_file(key)
    if len(pictures) == len(masks) == 1:
        return [Pair(pictures[0], masks[0], split)]
    why = _why_unpaired(pictures, masks)
    return [Pair(name, "", split, why) for name in [*pictures, *masks]]


def _why_unpaired(pictures: list[str], masks: list[str]) -> str:
    """Why names that share a key make no pair."""
    if not pictures:
        return "a mask without a picture of the same name"
    if not masks:
        return "a picture without a mask of the same name"
    return (
        "it is not clear which belong together: "
        f"{', '.join(map(shown, [*pictures, *masks][:4]))}"
    )


# ---- lists


def _split_of_list(name: str) -> str | None:
    """The split that a list of names is for."""
    stem, _, end = base_of(name).rpartition(".")
    return (
        split_of(stem)
        if end.lower() in ("txt", "lst") and not OTHER_LISTS.match(name)
        else None
    )


def _by_lists(
    source: Source, lists: list[tuple[str, str]], by_key: dict[str, Group]
) -> list[Pair]:
    """The pairs that lists (split and name) name, train first; a picture that is listed twice is a
    problem.
    """
    resolver = _Resolver(source, by_key)
    pairs: list[Pair] = []
    listed: dict[str, str] = {}
    for split, name in sorted(lists, key=lambda one: SPLITS.index(one[0])):
        for place, line in _lines(source, name):
            pair = resolver.pair(line)
            problem = pair.problem or _listed_before(pair.picture, listed)
            if problem:
                pairs.append(Pair(place, "", split, problem))
            else:
                pairs.append(pair._replace(split=split))
                listed[pair.picture] = name
    return pairs


def _listed_before(picture: str, listed: Mapping[str, str]) -> str:
    """The problem with a picture that a list named before; empty for another."""
    if picture not in listed:
        return ""
    return f"'{shown(picture)}' is listed before, in {listed[picture]}"


def _lines(source: Source, name: str) -> Iterator[tuple[str, str]]:
    """The lines of a list that are not empty, each with its place, `FILE:LINE`."""
    content = source.read(name, LIST_BYTES).decode("utf-8", "replace")
    for number, line in enumerate(content.splitlines(), 1):
        if stripped := line.strip():
            yield f"{name}:{number}", stripped[:LINE]


class _Resolver:
    """Finds the pictures and masks that the lines of lists stand for."""

    def __init__(self, source: Source, by_key: dict[str, Group]) -> None:
        self._names = frozenset(source.names)
        self._by_key = by_key
        self._keys = {
            name: key
            for key, (pictures, _) in by_key.items()
            for name in pictures
        }
        self._keys_by_stem: dict[str, list[str]] = {}
        for key in self._keys.values():
            self._keys_by_stem.setdefault(base_of(key), []).append(key)

    def pair(self, line: str) -> Pair:
        """The pair of a line: a picture and its mask, or one name for both."""
        pair = self._two_names(line) or self._one_name(line)
        if pair is None:
            problem = (
                f"'{shown(line, 100)}' names no picture and mask of the set"
            )
            return Pair("", "", None, problem)
        return pair

    def _two_names(self, line: str) -> Pair | None:
        words = line.replace(",", " ").split()
        for at in range(1, min(len(words), 16)):  # names may hold spaces
            picture = self._file(" ".join(words[:at]))
            mask = self._file(" ".join(words[at:]))
            if picture and mask:
                return Pair(picture, mask, None)
        return None

    def _one_name(self, line: str) -> Pair | None:
        key = self._key(line)
        pictures, masks = self._by_key.get(key, ([], []))
        if not len(pictures) == len(masks) == 1:
            return None
        return Pair(pictures[0], masks[0], None)

    def _key(self, line: str) -> str:
        """The key of the picture that a line names, by its path or its stem; empty where it is not
        clear.
        """
        picture = self._file(line)
        if picture in self._keys:
            return self._keys[picture]
        keys = self._keys_by_stem.get(base_of(line.replace("\\", "/")), [])
        return keys[0] if len(keys) == 1 else ""

    def _file(self, path: str) -> str:
        """The file that a path from another machine stands for: its longest end that is in the set,
        or "".
        """
        parts = path.replace("\\", "/").strip("/").split("/")
        ends = ("/".join(parts[at:]) for at in range(min(len(parts), 32)))
        return next((end for end in ends if end in self._names), "")
