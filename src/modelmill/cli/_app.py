"""The application that commands join, and how it is run."""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

from cyclopts import App, CycloptsError, Parameter

from modelmill import __version__

if TYPE_CHECKING:
    from modelmill.client import Client

HELP = """From a folder of data to a live API.

Commands speak to the platform at MODELMILL_URL with MODELMILL_KEY; without these, to the one that
`modelmill up` started in MODELMILL_HOME (default ~/.modelmill). With --json every command prints
one JSON document."""

app = App(
    name="modelmill",
    help=HELP,
    version=__version__,
    result_action="return_value",
    help_format="plaintext",
)
data = App(name="data", help="Data sets: add, list, show, remove.")
app.command(data)
job = App(
    name="job",
    help="One job, or a new one of any kind: job NUMBER, job submit.",
)
app.command(job)
key = App(name="key", help="Access keys: add, list, remove.")
app.command(key)

index = App(
    name="index",
    help="Indexes: create, add, search, remove, list, delete; recognition without training.",
)
app.command(index)

as_json = False

Task = Annotated[
    str,
    Parameter(
        help="a task, such as image-classification (see `modelmill tasks`)"
    ),
]
Wait = Annotated[
    bool, Parameter(negative="", help="wait until it is done, showing progress")
]
Reference = Annotated[str, Parameter(help="NAME, NAME:VERSION or NAME@ALIAS")]


def main(argv: list[str] | None = None) -> None:
    """Run a command; exits with 0, with 1 after one line on stderr, or with 2 for a wrong command
    line.
    """
    from modelmill.errors import MillError

    global as_json
    words = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in words
    try:
        _run([word for word in words if word != "--json"])
    except MillError as error:
        _refuse(error.message, error.code)
    except KeyboardInterrupt:
        fail("interrupted")
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone


def _run(words: list[str]) -> None:
    try:
        app(words, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        message = " ".join(str(error).split())
        _refuse(message, "invalid_input", " (see `modelmill --help`)", status=2)


def _refuse(
    message: str, code: str, hint: str = "", status: int = 1
) -> NoReturn:
    """End with an error, which is a JSON document too with --json."""
    if as_json:
        print_json({"error": message, "code": code})
    fail(message + hint, status)


def fail(message: str, status: int = 1) -> NoReturn:
    """End with one line on stderr."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(status)


def connect() -> "Client":
    """A client of the platform that the environment names, or of this machine's."""
    from modelmill.client import Client

    return Client()


def print_json(document: Any) -> None:
    """Print a JSON document."""
    import json

    print(json.dumps(document, indent=2, ensure_ascii=False))


def show(document: Any, people: Callable[[], None]) -> None:
    """Print the document with --json, else call `people`."""
    if as_json:
        print_json(document)
    else:
        people()


def on_event() -> Callable[[dict[str, Any]], None] | None:
    """The handler that shows the progress of a job on stderr."""
    from modelmill.cli.screen import Progress

    return Progress(sys.stderr)


def screen() -> Any:
    """The module that prints for people; imported late, for rich is slow to import."""
    from modelmill.cli import screen

    return screen


def read_text(path: Path) -> str:
    """A text file; raises `InvalidInput`."""
    from modelmill.errors import InvalidInput

    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(
            f"'{path}' can't be read as text: {error}"
        ) from error


def object_of(text: str) -> dict[str, Any]:
    """A JSON object; empty for nothing. Raises `InvalidInput`."""
    import json

    from modelmill.errors import InvalidInput

    try:
        value = json.loads(text or "{}")
    except ValueError as error:
        raise InvalidInput(f"--metadata is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidInput('--metadata is a JSON object, such as {"shelf": 3}')
    return value


def _name_and_value(shown: str, text: str, example: str) -> tuple[str, str]:
    """The parts of NAME=VALUE; raises `InvalidInput` that names what was typed."""
    from modelmill.errors import InvalidInput

    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InvalidInput(f"{shown}: write NAME=VALUE, as in {example}")
    return name, value


def fields_of(words: Iterable[str]) -> dict[str, Any]:
    """The fields of `NAME=VALUE ...`: `a.b=1` is a nested field, a repeated name a list, a value in
    brackets JSON. Raises `InvalidInput`.
    """
    fields: dict[str, Any] = {}
    for text in words:
        name, value = _name_and_value(text, text, "model=digits")
        *folders, last = name.split(".")
        target = _nested(fields, folders, text)
        parsed = _value(value)
        if last in target:
            before = target[last]
            parsed = [
                *(before if isinstance(before, list) else [before]),
                parsed,
            ]
        target[last] = parsed
    return fields


def _nested(
    fields: dict[str, Any], path: list[str], text: str
) -> dict[str, Any]:
    """The object at a path, which is made where it is missing; raises `InvalidInput` where
    something else is there.
    """
    from modelmill.errors import InvalidInput

    for name in path:
        fields = fields.setdefault(name, {})
        if not isinstance(fields, dict):
            raise InvalidInput(f"{text}: '{name}' has a value already")
    return fields


def _value(text: str) -> Any:
    import json

    from modelmill.errors import InvalidInput

    if not text.startswith(("[", "{")):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidInput(f"{text:.60} is not valid JSON: {error}") from error


def pairs_of(options: list[str] | None) -> dict[str, str]:
    """The names and values of `--set NAME=VALUE`; raises `InvalidInput`."""
    return dict(
        _name_and_value(f"--set {text}", text, "--set epochs=3")
        for text in options or []
    )
