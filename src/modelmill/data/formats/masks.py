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
from modelmill.data.names import shown, split_of
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
SUFFIX = re.compile(r"[-_](?:masks?|labels?|seg|gt|L)$")
LINE = 4096
LIST_BYTES = 64 << 20


class Pair(NamedTuple):
    """What belongs together, or why it does not."""

    picture: str
    mask: str
    split: str | None
    problem: str = ""


def detect(source: Source) -> bool:
    """Whether there are pictures in folders of masks, and others beside them."""
    kinds = {_place(name)[0] for name in source.names if kind_of_name(name)}
    return len(kinds) == 2


def read(source: Source, options: Mapping[str, str]) -> Iterator[Item]:
    """All pictures with their masks as PNG of class numbers, 255 where ignored; raises
    `InvalidInput`.
    """
    check_options(options, OPTIONS)
    pairs = _pairs(source)
    classes = mask_values.classes_of(source, options, _found(pairs))
    for one in pairs:
        if one.problem:
            yield Item(one.picture, "", b"", one.split, one.problem)
        else:
            yield mask_values.pair(source, one.picture, one.mask, one.split, classes)


def labels(source: Source, options: Mapping[str, str]) -> list[str]:
    """The classes by number, those ignored left out; raises `InvalidInput` where there are fewer
    than two.
    """
    check_options(options, OPTIONS)
    masks = _found(_pairs(source))
    return mask_values.named(
        source, mask_values.classes_of(source, options, masks), masks
    )


def _found(pairs: list[Pair]) -> list[str]:
    return [one.mask for one in pairs if not one.problem]


def _pairs(source: Source) -> list[Pair]:
    """Everything that the set declares, in a fixed order; raises `InvalidInput` when nothing
    belongs together.
    """
    by_key = _by_key(source)
    lists = [name for name in source.names if _split_of_list(name)]
    pairs = _listed(source, lists, by_key) if lists else _beside(by_key)
    if all(one.problem for one in pairs):
        why = (
            f", such as {shown(pairs[0].picture)}: {pairs[0].problem}" if pairs else ""
        )
        raise InvalidInput(
            f"'{source.title}' has no pictures with masks{why}; lay them out as images/NAME.jpg "
            "and masks/NAME.png, "
            "or name the pairs in train.txt"
        )
    return pairs


# ---- folders


def _place(name: str) -> tuple[bool, str]:
    """Whether a name is a mask's, and what it shares with the name of its partner."""
    *folders, base = name.split("/")
    mask, kept = False, []
    for folder in folders:
        low = folder.lower()
        if low in MASKS and not mask:
            mask = True
        elif low.endswith("annot") and len(low) > len("annot") and not mask:
            mask = True
            kept.append(folder[: -len("annot")])
        elif low not in PICTURES:
            kept.append(folder)
    return mask, "/".join([*kept, base.rpartition(".")[0]])


def _by_key(source: Source) -> dict[str, list[list[str]]]:
    """Pictures and masks by what they share."""
    found: dict[str, list[list[str]]] = {}
    late: list[tuple[str, str]] = []
    for name in source.names:
        if kind_of_name(name):
            mask, key = _place(name)
            if mask and SUFFIX.search(key):
                late.append((key, name))
            else:
                found.setdefault(key, [[], []])[mask].append(name)
    for (
        key,
        name,
    ) in late:  # cat_mask.png belongs to cat.jpg, unless there is a cat_mask.jpg
        short = SUFFIX.sub("", key)
        place = key if key in found or short not in found else short
        found.setdefault(place, [[], []])[True].append(name)
    return found


def _beside(by_key: dict[str, list[list[str]]]) -> list[Pair]:
    pairs = []
    for key, (pictures, masks) in sorted(by_key.items()):
        split = next(
            (known for part in key.split("/")[:-1] if (known := split_of(part))), None
        )
        if len(pictures) == len(masks) == 1:
            pairs.append(Pair(pictures[0], masks[0], split))
        else:
            pairs += [
                Pair(name, "", split, _lack(pictures, masks))
                for name in [*pictures, *masks]
            ]
    return pairs


def _lack(pictures: list[str], masks: list[str]) -> str:
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
    stem, _, end = name.rpartition("/")[2].rpartition(".")
    return (
        split_of(stem)
        if end.lower() in ("txt", "lst") and not OTHER_LISTS.match(name)
        else None
    )


def _listed(
    source: Source, lists: list[str], by_key: dict[str, list[list[str]]]
) -> list[Pair]:
    """What the lists name, train first."""
    names = {name: key for key, (pictures, _) in by_key.items() for name in pictures}
    stems: dict[str, list[str]] = {}
    for key in names.values():
        stems.setdefault(key.rpartition("/")[2], []).append(key)
    known = frozenset(source.names)
    pairs: list[Pair] = []
    seen: dict[str, str] = {}
    for place in sorted(
        lists, key=lambda name: SPLITS.index(_split_of_list(name) or "")
    ):
        for number, line in enumerate(
            source.read(place, LIST_BYTES).decode("utf-8", "replace").splitlines(), 1
        ):
            if not line.strip():
                continue
            split = _split_of_list(place)
            one = _line(line.strip()[:LINE], known, by_key, names, stems)._replace(
                split=split
            )
            if one.picture in seen:
                one = one._replace(
                    problem=f"'{shown(one.picture)}' is listed before, in {seen[one.picture]}"
                )
            if one.problem:
                pairs.append(Pair(f"{place}:{number}", "", split, one.problem))
            else:
                pairs.append(one)
                seen[one.picture] = place
    return pairs


def _line(
    line: str,
    known: frozenset[str],
    by_key: dict[str, list[list[str]]],
    names: dict[str, str],
    stems: dict[str, list[str]],
) -> Pair:
    """A picture and its mask, or one name for both."""
    words = line.replace(",", " ").split()
    for at in range(1, min(len(words), 16)):  # names may hold blanks
        picture = _known(" ".join(words[:at]), known)
        mask = _known(" ".join(words[at:]), known)
        if picture and mask:
            return Pair(picture, mask, None)
    whole = _known(line, known)
    keys = (
        [names[whole]]
        if whole in names
        else stems.get(line.replace("\\", "/").rpartition("/")[2], [])
    )
    if len(keys) == 1 and [len(part) for part in by_key[keys[0]]] == [1, 1]:
        (picture,), (mask,) = by_key[keys[0]]
        return Pair(picture, mask, None)
    return Pair(
        "", "", None, f"'{shown(line, 100)}' names no picture and mask of the set"
    )


def _known(path: str, known: frozenset[str]) -> str:
    """The file that a path from another machine means: the longest end of it that is in the set; or
    nothing.
    """
    parts = path.replace("\\", "/").strip("/").split("/")
    ends = ("/".join(parts[at:]) for at in range(min(len(parts), 32)))
    return next((end for end in ends if end in known), "")
