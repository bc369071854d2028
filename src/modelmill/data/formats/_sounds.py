"""What the formats of recordings share: which files are recordings, and the tables that describe
them.
"""

import csv
import fnmatch
from collections.abc import Iterator, Mapping, Sequence

from modelmill.data.base import Item, Source
from modelmill.data.magic import extension
from modelmill.data.names import shown, split_of
from modelmill.errors import InvalidInput

EXTENSIONS = frozenset(
    {
        "wav",
        "wave",
        "flac",
        "ogg",
        "oga",
        "opus",
        "mp3",
        "aif",
        "aiff",
        "au",
        "caf",
        "w64",
    }
)
TABLES = ("metadata.csv", "manifest.csv", "metadata.tsv", "manifest.tsv")
FILES = ("file_name", "file", "path", "filename", "audio", "wav", "recording")
LIMIT = 256 << 20


def is_recording(name: str) -> bool:
    """Whether a name is that of a recording."""
    return extension(name) in EXTENSIONS


def tables_of(source: Source) -> list[str]:
    """The tables that describe recordings."""
    return [name for name in source.names if name.rpartition("/")[2].lower() in TABLES]


def untold(source: Source, what: str, row: tuple[str, str], other: str) -> InvalidInput:
    """The error for recordings of which nothing says what they are: which table is looked for.

    `row` is the column that the table should have and an example of it, `other` says what else
    would do.
    """
    first = next(name for name in source.names if is_recording(name))
    column, said = row
    beside = [
        name for name in source.names if name.lower().endswith((".csv", ".tsv", ".txt"))
    ]
    renamed = (
        f" ('{shown(beside[0], 60)}' is there: a table is found when it has that name)"
        if beside
        else ""
    )
    return InvalidInput(
        f"nothing says {what} in '{source.title}': put {TABLES[0]} beside the recordings, with the "
        f"columns {FILES[0]} and {column}: first the line {FILES[0]},{column}, then one for each, "
        f"as {shown(first, 60)},{said}{renamed}; or {other}"
    )


def described(
    source: Source, tables: Sequence[str], columns: Sequence[str]
) -> Iterator[Item]:
    """The recordings that tables name, with what one of the columns says of each as label.

    A table's split is that of its folder, or of its column `split`. Raises `InvalidInput` for a
    table without columns that name files and say what they are.
    """
    known = frozenset(source.names)
    for table in tables:
        folder = table.rpartition("/")[0]
        split = next(
            (found for part in folder.split("/") if (found := split_of(part))), None
        )
        for line, row in _rows(source, table, columns):
            path = "/".join(
                part for part in (folder, row["file"].replace("\\", "/")) if part
            )
            place = path if path in known else row["file"]
            own = split_of(row["split"]) or split
            if place not in known:
                yield Item(
                    f"{table}:{line}",
                    "",
                    b"",
                    own,
                    f"there is no file '{shown(row['file'])}'",
                )
            else:
                yield source.item(place, row["said"], own)


def _rows(
    source: Source, table: str, columns: Sequence[str]
) -> Iterator[tuple[int, dict[str, str]]]:
    text = source.read(table, LIMIT).decode("utf-8-sig", "replace")
    rows = csv.reader(
        text.splitlines(), delimiter="\t" if table.lower().endswith(".tsv") else ","
    )
    head = [cell.strip().lower() for cell in next(rows, [])]
    file, said = (
        next((head.index(name) for name in names if name in head), None)
        for names in (FILES, columns)
    )
    if file is None or said is None:
        raise InvalidInput(
            f"'{table}' wants a column {FILES[0]} and one of {', '.join(columns[:3])}; "
            f"it has {', '.join(head) or 'none'}"
        )
    split = head.index("split") if "split" in head else None
    for row in rows:
        cells = [*row, *[""] * (len(head) - len(row))]
        if any(cells):
            found = {"file": cells[file].strip(), "said": cells[said].strip()}
            yield (
                rows.line_num,
                {**found, "split": cells[split] if split is not None else ""},
            )


def split_by_name(name: str, options: Mapping[str, str]) -> str | None:
    """The split whose pattern, such as *_[0-4].wav, fits a file's name; without a fit, train where
    there are any.
    """
    base = name.rpartition("/")[2]
    for split in ("test", "val"):
        if any(
            fnmatch.fnmatchcase(base, pattern.strip())
            for pattern in options.get(split, "").split(",")
        ):
            return split
    return "train" if "test" in options else None
