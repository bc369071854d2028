"""Indexes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from modelmill.cli._app import (
    Reference,
    Wait,
    connect,
    fail,
    index,
    object_of,
    screen,
    show,
)
from modelmill.errors import InvalidInput


@index.command(name="create")
def index_create(name: str, /, *, model: Reference) -> None:
    """Make an empty index of the vectors of a model, such as one of a feature-extraction task."""
    row = connect().create_index(name, model)
    show(row, lambda: screen().index(row))


@index.command(name="add")
def index_add(
    name: str,
    /,
    *paths: Annotated[
        Path,
        Parameter(
            help="pictures, texts, folders or zips; LABEL/1.jpg in a folder has that label"
        ),
    ],
    label: Annotated[
        str | None, Parameter(help="of all of them, instead of the folder's")
    ] = None,
    metadata: Annotated[
        str,
        Parameter(
            help="kept with each and given back, as JSON: '{\"shelf\": 3}'"
        ),
    ] = "",
    strict: Annotated[
        bool,
        Parameter(negative="", help="end at the first file that can't be read"),
    ] = False,
) -> None:
    """Add pictures or texts to an index; the model has to be deployed. Files that can't be read are
    left out and named.
    """
    if not paths:
        fail("nothing to add: name files or folders")
    left_out: list[dict[str, str]] = []

    def leave_out(file: str, why: str) -> None:
        left_out.append({"file": file, "error": why})

    ids = connect().add_to_index(
        name,
        *paths,
        label=label,
        metadata=object_of(metadata),
        left_out=None if strict else leave_out,
    )
    if not ids:
        raise _nothing_added(paths, left_out)
    document = {"ids": ids, **({"left_out": left_out} if left_out else {})}
    show(document, lambda: screen().items_added(ids, left_out))


def _nothing_added(
    paths: Sequence[Path], left_out: list[dict[str, str]]
) -> InvalidInput:
    some = (
        left_out[0]
        if left_out
        else {"file": str(paths[0]), "error": "is empty"}
    )
    return InvalidInput(
        f"nothing was added, {len(left_out)} left out: {some['file']}: {some['error']}"
    )


@index.command(name="search")
def index_search(
    name: str,
    file: Annotated[str, Parameter(help="a picture or a text")] = "",
    /,
    *,
    text: Annotated[
        str | None, Parameter(help="what to search for, in the place of a file")
    ] = None,
    k: Annotated[
        int, Parameter(name=["--k", "-k"], help="most items to find")
    ] = 5,
) -> None:
    """The items of an index that are most like a picture or a text."""
    if (text is None) == (not file):
        fail("say what to search for: a file, or --text TEXT")
    rows = connect().search_index(name, file or b"", k, text=text)
    columns = ("id", "label", "score", "metadata")
    show(rows, lambda: screen().table(rows, columns, _empty(name)))


@index.command(name="remove")
def index_remove(
    name: str,
    id: Annotated[int | None, Parameter(help="number of an item")] = None,
    /,
    *,
    label: Annotated[
        str | None, Parameter(help="remove all items of this label")
    ] = None,
) -> None:
    """Remove items from an index, by number or by label."""
    count = connect().remove_from_index(name, id, label=label)
    show(
        {"removed": count},
        lambda: print(f"removed {count} item{'s' * (count != 1)}"),
    )


@index.command(name="list")
def index_list(name: str = "", /) -> None:
    """All indexes; with a name, the first items of that one."""
    if name:
        items = connect().index_items(name)
        columns = ("id", "label", "metadata")
        return show(items, lambda: screen().table(items, columns, _empty(name)))
    rows = connect().indexes()
    return show(
        rows,
        lambda: screen().table(
            rows, ("name", "model", "version", "dimensions", "items", "created")
        ),
    )


def _empty(name: str) -> str:
    return f"the index is empty: add items with `modelmill index add {name} FOLDER`"


@index.command(name="deploy")
def index_deploy(
    name: str,
    /,
    *,
    as_: Annotated[
        str, Parameter(name="--as", help="model and deployment to make")
    ],
    k: Annotated[
        int,
        Parameter(name=["--k", "-k"], help="neighbours that share the score"),
    ] = 5,
    wait: Wait = False,
) -> None:
    """Serve a classifier by nearest neighbours among the current items; repeat when the index has
    changed.
    """
    client = connect()
    row = client.deploy_index(name, as_, k=k, wait=wait)
    show(row, lambda: screen().deployment(row, client.url))


@index.command(name="delete")
def index_delete(name: str, /) -> None:
    """Remove an index with all its items."""
    connect().delete_index(name)
    show({"deleted": name}, lambda: print(f"deleted {name}"))
