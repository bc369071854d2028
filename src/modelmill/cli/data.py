"""Data sets."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from modelmill.cli._app import (
    Task,
    connect,
    data,
    on_event,
    pairs_of,
    screen,
    show,
)


@data.command(name="add")
def data_add(
    name: str,
    path: Annotated[Path, Parameter(help="a folder, a file or a zip")],
    /,
    *,
    task: Task,
    format: Annotated[
        str,
        Parameter(
            help="a format that `modelmill tasks` names; detected when not given"
        ),
    ] = "",
    set: Annotated[
        list[str] | None,
        Parameter(
            negative="", help="option of the format, such as text=COLUMN"
        ),
    ] = None,
    strict: Annotated[
        bool,
        Parameter(
            negative="", help="refuse data in which the check finds anything"
        ),
    ] = False,
) -> None:
    """Add a data set: upload it, check it, and print the findings."""
    client = connect()
    options = pairs_of(set)
    row = client.add_data(
        name,
        path,
        task=task,
        format=format,
        options=options,
        strict=strict,
        on_event=on_event(),
    )
    show(row, lambda: screen().dataset(row))


@data.command(name="list")
def data_list() -> None:
    """All data sets."""
    rows = connect().datasets()
    show(
        rows,
        lambda: screen().table(
            rows,
            ("name", "task", "format", "state", "items", "classes", "splits"),
        ),
    )


@data.command(name="show")
def data_show(name: str, /) -> None:
    """One data set with the findings of its check."""
    row = connect().dataset(name)
    show(row, lambda: screen().dataset(row))


@data.command(name="remove")
def data_remove(name: str, /) -> None:
    """Remove a data set."""
    connect().remove_data(name)
    show({"removed": name}, lambda: print(f"removed {name}"))
