"""The registry."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from modelmill.cli._app import (
    Reference,
    app,
    connect,
    on_event,
    read_text,
    screen,
    show,
)


@app.command(name="import")
def import_(
    name: str,
    path: Annotated[
        Path,
        Parameter(
            help="model.onnx, model.pt2, or a bundle as a folder or a zip"
        ),
    ],
    /,
    *,
    labels: Annotated[
        Path | None,
        Parameter(help="text file with the name of a class on each line"),
    ] = None,
    trust: Annotated[
        bool,
        Parameter(
            help="take a file that may run code, such as model.pt2: you know where it comes from",
            negative="",
        ),
    ] = False,
) -> None:
    """Import a model as a new version of NAME."""
    names = (
        [line for line in read_text(labels).splitlines() if line]
        if labels
        else []
    )
    client = connect()
    row = client.import_model(
        name, path, labels=names, trust=trust, on_event=on_event()
    )
    show(row, lambda: screen().version(row, client.url))


@app.command
def models() -> None:
    """All versions of all models."""
    rows = connect().models()
    show(
        rows,
        lambda: screen().table(
            rows, ("name", "version", "task", "aliases", "metrics", "created")
        ),
    )


@app.command
def model(reference: Reference, /) -> None:
    """One version: metrics, files, lineage."""
    client = connect()
    row = client.model(reference)
    show(row, lambda: screen().version(row, client.url))


@app.command
def alias(
    reference: Annotated[str, Parameter(help="NAME:VERSION")], alias: str, /
) -> None:
    """Point an alias such as `champion` at a version."""
    row = connect().alias(reference, alias)
    show(
        row, lambda: print(f"{row['name']}@{alias} is version {row['version']}")
    )
