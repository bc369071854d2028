"""The platform itself, and what it can do."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from modelmill.cli._app import app, connect, fail, screen, show


@app.command
def up(
    *,
    home: Annotated[
        Path | None, Parameter(help="database, artifacts, logs and admin.key")
    ] = None,
    host: Annotated[
        str | None, Parameter(help="address to listen on (127.0.0.1)")
    ] = None,
    port: Annotated[
        int | None, Parameter(help="port to listen on (8080); 0: any free one")
    ] = None,
    grpc_port: Annotated[
        int | None,
        Parameter(help="port for gRPC (the one after --port); 0: any free one"),
    ] = None,
    gateways: Annotated[
        int | None, Parameter(help="gateway processes that share the port (1)")
    ] = None,
    demo: Annotated[
        bool,
        Parameter(negative="", help="train and deploy a digit model first"),
    ] = False,
) -> None:
    """Start the platform; Ctrl-C drains and stops it."""
    from modelmill.node import up as run
    from modelmill.settings import read_settings

    folder = home.expanduser().absolute() if home else None
    settings = read_settings(
        home=folder,
        host=host,
        port=port,
        grpc_port=grpc_port,
        gateways=gateways,
    )
    if demo:
        from modelmill.demo import show

        raise SystemExit(run(settings, show))
    raise SystemExit(run(settings))


@app.command
def tasks() -> None:
    """What can be trained and served."""
    rows = connect().tasks()
    show(
        rows,
        lambda: screen().table(
            rows, ("name", "input", "summary", "recipes", "formats")
        ),
    )


@app.command
def kinds(kind: str = "", /) -> None:
    """The kinds of jobs (or one) with the fields that `modelmill job submit` takes."""
    known = connect().kinds()
    rows = [row for row in known if kind in ("", row["name"])]
    if kind and not rows:
        names = ", ".join(row["name"] for row in known)
        fail(f"unknown kind of jobs '{kind}'; there are: {names}")
    show(rows, lambda: screen().kinds(rows))


@app.command
def recipes(task: str = "", /) -> None:
    """The recipes of a task (or of all) with the defaults of their settings."""
    client = connect()
    names = [task] if task else [row["name"] for row in client.tasks()]
    rows = [
        {"task": name, **recipe}
        for name in names
        for recipe in client.recipes(name)
    ]
    show(rows, lambda: screen().recipes(rows))
