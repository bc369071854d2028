"""Jobs: training, evaluation, their logs and states."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from modelmill.cli import _app
from modelmill.cli._app import (
    Reference,
    Task,
    Wait,
    app,
    connect,
    fail,
    fields_of,
    job,
    on_event,
    pairs_of,
    print_json,
    screen,
    show,
)

if TYPE_CHECKING:
    from modelmill.client import Client


@app.command
def train(
    name: Annotated[str, Parameter(help="the model to make a version of")],
    /,
    *,
    task: Task,
    data: Annotated[str, Parameter(help="a data set")],
    recipe: Annotated[
        str,
        Parameter(help="see `modelmill recipes TASK`; default: the task's own"),
    ] = "",
    base: Annotated[
        str,
        Parameter(
            name="--from",
            help="NAME[:VERSION|@ALIAS] whose weights it starts from; default: from nothing",
        ),
    ] = "",
    set: Annotated[
        list[str] | None,
        Parameter(negative="", help="a setting, as epochs=3; may be repeated"),
    ] = None,
    wait: Wait = False,
) -> None:
    """Train a new version of a model, from scratch or from another version."""
    client = connect()
    job = client.train(
        name,
        task=task,
        data=data,
        recipe=recipe,
        settings=pairs_of(set),
        base=base,
    )
    _submitted(client, job, wait)


@app.command
def evaluate(
    model: Reference,
    /,
    *,
    data: Annotated[str, Parameter(help="a data set")],
    split: Annotated[str, Parameter(help="train, val or test")] = "test",
    wait: Wait = False,
) -> None:
    """Evaluate a version on a data set, through the path that serves it."""
    client = connect()
    _submitted(client, client.evaluate(model, data=data, split=split), wait)


def _submitted(client: "Client", job: Any, wait: bool) -> None:
    """Show a job that was queued, or once it has ended."""
    number = job["job"]
    if not wait:
        follow = f"modelmill logs {number} --follow"
        show(
            job,
            lambda: print(f"job {number} is queued; follow it with `{follow}`"),
        )
        return
    ended = client.wait(number, on_event())
    show(ended, lambda: screen().job(ended))
    if ended["state"] != "succeeded":
        fail(_state_of(ended))


def _state_of(row: Any) -> str:
    """A job's state, with its error where it has one."""
    why = f": {row['error']}" if row["error"] else ""
    return f"job {row['job']} {row['state']}{why}"


@app.command
def jobs() -> None:
    """All jobs, newest first."""
    rows = connect().jobs()
    show(rows, lambda: screen().jobs(rows))


@job.default
def job_show(number: int, /) -> None:
    """One job."""
    row = connect().job(number)
    show(row, lambda: screen().job(row))


@job.command(name="submit")
def job_submit(
    kind: Annotated[
        str, Parameter(help="a kind of jobs (see `modelmill kinds`)")
    ],
    /,
    *fields: Annotated[
        str,
        Parameter(
            help="NAME=VALUE, as in model=digits; NAME.NAME=VALUE for a field in a field, a name "
            "again for a list"
        ),
    ],
    file: Annotated[
        Path | None,
        Parameter(help="what is sent with it, where the kind wants a file"),
    ] = None,
    wait: Wait = False,
) -> None:
    """Queue a job of any kind."""
    client = connect()
    row = client.submit(kind, fields_of(fields), file=file)
    _submitted(client, row, wait)


@app.command
def logs(
    number: int,
    /,
    *,
    follow: Annotated[
        bool, Parameter(negative="", help="until the job has ended")
    ] = False,
) -> None:
    """What a job has printed; with --follow also its live progress."""
    client = connect()
    if _app.as_json:
        printed = "".join(client.logs(number, follow=follow))
        return print_json({"job": number, "log": printed})
    if follow:
        return print(_state_of(client.wait(number, on_event())))
    for text in client.logs(number):
        sys.stdout.write(text)
    return None


@app.command
def cancel(number: int, /) -> None:
    """Stop a job now."""
    client = connect()
    row = client.cancel(number)
    if row["state"] == "running":
        row = client.wait(number)
    show(row, lambda: print(f"job {number} {row['state']}"))


@app.command
def resume(number: int, /, *, wait: Wait = False) -> None:
    """Continue a stopped job from its last checkpoint."""
    client = connect()
    _submitted(client, client.resume(number), wait)
