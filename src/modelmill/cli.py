"""The command line: a thin layer on the SDK. Heavy modules are imported by the command that needs them."""

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, CycloptsError, Parameter

from modelmill import __version__

if TYPE_CHECKING:
    from modelmill.client import Client

HELP = """From a folder of data to a live API.

Commands speak to the platform at MODELMILL_URL with MODELMILL_KEY; without these, to the one that
`modelmill up` started in MODELMILL_HOME (default ~/.modelmill). With --json every command prints one JSON
document."""

app = App(name="modelmill", help=HELP, version=__version__, result_action="return_value", help_format="plaintext")
data = App(name="data", help="Data sets: add, list, show, remove.")
app.command(data)
key = App(name="key", help="Access keys: add, list, remove.")
app.command(key)

index = App(name="index", help="Indexes: create, add, search, remove, list, delete; recognition without training.")
app.command(index)

_as_json = False

Task = Annotated[str, Parameter(help="a task, such as image-classification (see `modelmill tasks`)")]
Wait = Annotated[bool, Parameter(negative="", help="wait until it is done, showing progress")]
Reference = Annotated[str, Parameter(help="NAME, NAME:VERSION or NAME@ALIAS")]


def main(argv: list[str] | None = None) -> None:
    """Run a command; exits with 0, with 1 after one line on stderr, or with 2 for a wrong command line."""
    from modelmill.errors import MillError

    global _as_json
    tokens = list(sys.argv[1:] if argv is None else argv)
    _as_json = "--json" in tokens
    tokens = [word for word in tokens if word != "--json"]
    try:
        app(tokens, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        message = " ".join(str(error).split())
        if _as_json:
            _print_json({"error": message, "code": "invalid_input"})
        _fail(f"{message} (see `modelmill --help`)", status=2)
    except MillError as error:
        if _as_json:
            _print_json({"error": error.message, "code": error.code})
        _fail(error.message)
    except KeyboardInterrupt:
        _fail("interrupted")
    except BrokenPipeError:
        sys.stderr.close()  # what read our output has gone; nobody is left to tell


def _fail(message: str, status: int = 1) -> None:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(status)


def _client() -> "Client":
    from modelmill.client import Client

    return Client()


def _print_json(document: Any) -> None:
    import json

    print(json.dumps(document, indent=2, ensure_ascii=False))


def _show(document: Any, people: Callable[[], None]) -> None:
    """The document as JSON, or what is meant for people."""
    if _as_json:
        _print_json(document)
    else:
        people()


def _on_event() -> Callable[[dict[str, Any]], None] | None:
    from modelmill.terminal import Progress

    return Progress(sys.stderr)


def _out() -> Any:
    from modelmill import terminal

    return terminal


# ---- the platform


@app.command
def up(
    *,
    home: Annotated[Path | None, Parameter(help="database, artifacts, logs and admin.key")] = None,
    host: Annotated[str | None, Parameter(help="address to listen on (127.0.0.1)")] = None,
    port: Annotated[int | None, Parameter(help="port to listen on (8080); 0: any free one")] = None,
    grpc_port: Annotated[int | None, Parameter(help="port for gRPC (the one after --port); 0: any free one")] = None,
    gateways: Annotated[int | None, Parameter(help="gateway processes that share the port (1)")] = None,
    demo: Annotated[bool, Parameter(negative="", help="train and deploy a digit model first")] = False,
) -> None:
    """Start the platform; Ctrl-C drains and stops it."""
    from modelmill.node import up as run
    from modelmill.settings import read_settings

    place = home.expanduser().absolute() if home else None
    settings = read_settings(home=place, host=host, port=port, grpc_port=grpc_port, gateways=gateways)
    if demo:
        from modelmill.demo import show

        raise SystemExit(run(settings, show))
    raise SystemExit(run(settings))


# ---- data


@data.command(name="add")
def data_add(
    name: str,
    path: Annotated[Path, Parameter(help="a folder, a file or a zip")],
    /,
    *,
    task: Task,
    format: Annotated[str, Parameter(help="a format that `modelmill tasks` names; detected when not given")] = "",
    set: Annotated[list[str] | None, Parameter(negative="", help="option of the format, such as text=COLUMN")] = None,
    strict: Annotated[bool, Parameter(negative="", help="refuse data in which the check finds anything")] = False,
) -> None:
    """Add a data set: upload it, check it, and print what was found."""
    client = _client()
    options = _pairs(set)
    row = client.add_data(name, path, task=task, format=format, options=options, strict=strict, on_event=_on_event())
    _show(row, lambda: _out().dataset(row))


@data.command(name="list")
def data_list() -> None:
    """All data sets."""
    rows = _client().datasets()
    _show(rows, lambda: _out().table(rows, ("name", "task", "format", "state", "items", "classes", "splits")))


@data.command(name="show")
def data_show(name: str, /) -> None:
    """One data set with the findings of its check."""
    row = _client().dataset(name)
    _show(row, lambda: _out().dataset(row))


@data.command(name="remove")
def data_remove(name: str, /) -> None:
    """Forget a data set."""
    _client().remove_data(name)
    _show({"removed": name}, lambda: print(f"removed {name}"))


# ---- jobs


@app.command
def train(
    name: Annotated[str, Parameter(help="the model to make a version of")],
    /,
    *,
    task: Task,
    data: Annotated[str, Parameter(help="a data set")],
    recipe: Annotated[str, Parameter(help="see `modelmill recipes TASK`; default: the task's own")] = "",
    set: Annotated[list[str] | None, Parameter(negative="", help="a setting, as epochs=3; may be repeated")] = None,
    wait: Wait = False,
) -> None:
    """Train a new version of a model."""
    client = _client()
    job = client.train(name, task=task, data=data, recipe=recipe, settings=_pairs(set))
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
    """Measure a version on a data set, through the path that serves it."""
    client = _client()
    _submitted(client, client.evaluate(model, data=data, split=split), wait)


def _submitted(client: "Client", job: Any, wait: bool) -> None:
    if not wait:
        number = job["job"]
        _show(job, lambda: print(f"job {number} is queued; follow it with `modelmill logs {number} --follow`"))
        return
    job = client.wait(job["job"], _on_event())
    _show(job, lambda: _out().job(job))
    if job["state"] != "succeeded":
        _fail(f"job {job['job']} {job['state']}{': ' if job['error'] else ''}{job['error']}")


@app.command
def jobs() -> None:
    """All jobs, newest first."""
    rows = _client().jobs()
    _show(rows, lambda: _out().jobs(rows))


@app.command
def job(number: int, /) -> None:
    """One job."""
    row = _client().job(number)
    _show(row, lambda: _out().job(row))


@app.command
def logs(
    number: int, /, *, follow: Annotated[bool, Parameter(negative="", help="until the job has ended")] = False
) -> None:
    """What a job has printed; with --follow also its live progress."""
    client = _client()
    if _as_json:
        return _print_json({"job": number, "log": "".join(client.logs(number, follow=follow))})
    if follow:
        row = client.wait(number, _on_event())
        return print(f"job {number} {row['state']}{': ' if row['error'] else ''}{row['error']}")
    for text in client.logs(number):
        sys.stdout.write(text)
    return None


@app.command
def cancel(number: int, /) -> None:
    """Stop a job now."""
    client = _client()
    row = client.cancel(number)
    if row["state"] == "running":
        row = client.wait(number)
    _show(row, lambda: print(f"job {number} {row['state']}"))


@app.command
def resume(number: int, /, *, wait: Wait = False) -> None:
    """Let a stopped job go on from its last checkpoint."""
    client = _client()
    _submitted(client, client.resume(number), wait)


# ---- models


@app.command(name="import")
def import_(
    name: str,
    path: Annotated[Path, Parameter(help="model.onnx, or a bundle as a folder or a zip")],
    /,
    *,
    labels: Annotated[Path | None, Parameter(help="text file with the name of a class on each line")] = None,
) -> None:
    """Bring a finished model as a new version of NAME."""
    names = [line for line in _read_text(labels).splitlines() if line] if labels else []
    client = _client()
    row = client.import_model(name, path, labels=names, on_event=_on_event())
    _show(row, lambda: _out().version(row, client.url))


@app.command
def models() -> None:
    """All versions of all models."""
    rows = _client().models()
    _show(rows, lambda: _out().table(rows, ("name", "version", "task", "aliases", "metrics", "created")))


@app.command
def model(reference: Reference, /) -> None:
    """One version: metrics, files, lineage."""
    client = _client()
    row = client.model(reference)
    _show(row, lambda: _out().version(row, client.url))


@app.command
def alias(reference: Annotated[str, Parameter(help="NAME:VERSION")], alias: str, /) -> None:
    """Point an alias such as `champion` at a version."""
    row = _client().alias(reference, alias)
    _show(row, lambda: print(f"{row['name']}@{alias} is version {row['version']}"))


# ---- serving


@app.command
def deploy(
    model: Reference,
    /,
    *,
    as_: Annotated[str, Parameter(name="--as", help="name to serve it under; default: the model's")] = "",
    replicas: Annotated[int | None, Parameter(help="workers, fixed")] = None,
    min_replicas: Annotated[int | None, Parameter(help="fewest workers; 0: none while nobody calls")] = None,
    max_replicas: Annotated[int | None, Parameter(help="most workers, by the queue's delay")] = None,
    idle_seconds: Annotated[float | None, Parameter(help="without a call, before the last worker goes")] = None,
    target_delay: Annotated[float | None, Parameter(help="ms in the queue that call for one more worker")] = None,
    threads: Annotated[int | None, Parameter(help="of the engine in each worker; 0: share the cores")] = None,
    engine: Annotated[str | None, Parameter(help="such as onnx or openvino; default: the bundle's")] = None,
    precision: Annotated[str | None, Parameter(help="such as bf16, where the engine offers it")] = None,
    max_wait: Annotated[float | None, Parameter(help="ms that a call may wait for a fuller batch")] = None,
    canary: Annotated[float | None, Parameter(help="serve beside the main version: percent of requests")] = None,
    shadow: Annotated[bool, Parameter(negative="", help="serve beside it: copies, answers dropped")] = False,
    wait: Wait = False,
) -> None:
    """Serve a version; over a running one without a failed request, or beside it as a canary or a shadow."""
    client = _client()
    options = {
        "min_replicas": min_replicas,
        "max_replicas": max_replicas,
        "idle_seconds": idle_seconds,
        "target_delay_ms": target_delay,
        "threads": threads,
        "engine": engine,
        "precision": precision,
        "max_wait_ms": max_wait,
        "canary": canary,
        "shadow": shadow,
    }
    given = {name: value for name, value in options.items() if value is not None and value is not False}
    row = client.deploy(model, name=as_, replicas=replicas, wait=wait, **given)
    _show(row, lambda: _out().deployment(row, client.url))


@app.command
def deployments() -> None:
    """All deployments."""
    rows = _client().deployments()
    _show(rows, lambda: _out().deployments(rows))


@app.command
def promote(deployment: str, version: int | None = None, /) -> None:
    """Make the canary (or shadow) of a deployment its main version."""
    _shown(_client().promote(deployment, version))


@app.command
def rollback(deployment: str, version: int | None = None, /) -> None:
    """Take the canaries and shadows of a deployment away."""
    _shown(_client().rollback(deployment, version))


@app.command
def load(deployment: str, /) -> None:
    """Start the workers of an unloaded deployment."""
    _shown(_client().load(deployment))


@app.command
def unload(deployment: str, /) -> None:
    """End the workers of a deployment; it keeps its name."""
    _shown(_client().unload(deployment))


def _shown(row: Any) -> None:
    _show(row, lambda: _out().deployment(row, _client().url))


@app.command
def undeploy(deployment: str, /) -> None:
    """Stop serving."""
    _client().undeploy(deployment)
    _show({"undeployed": deployment}, lambda: print(f"{deployment} is no longer served"))


@app.command
def predict(
    deployment: str,
    /,
    *inputs: Annotated[str, Parameter(help="files, texts for a model of texts, seeds for one that makes pictures")],
    set: Annotated[list[str] | None, Parameter(negative="", help="a parameter, as top_k=3; may be repeated")] = None,
    out: Annotated[Path | None, Parameter(help="a folder for pictures that are answered")] = None,
) -> None:
    """Ask a deployed model."""
    rows = _client().predict(deployment, *inputs, parameters=_parameters(set))
    if not rows:
        _fail("nothing to predict: name files, or texts for a model of texts")
    if out is not None:
        _save_pictures(rows, out)
    _show(rows, lambda: _out().predictions(rows))


def _parameters(pairs: list[str] | None) -> dict[str, Any]:
    """Parameters of a task: what reads as JSON is meant so, anything else is a text."""
    import json

    found: dict[str, Any] = dict(_pairs(pairs))
    for name, value in found.items():
        with suppress(ValueError):
            found[name] = json.loads(value)
    return found


def _save_pictures(rows: list[Any], folder: Path) -> None:
    """Write the pictures of the answers as PNG files named after the inputs; the answers then name the files."""
    from base64 import b64decode

    for number, row in enumerate(rows):
        output = row["output"]
        pictures = [output["image"]] if isinstance(output, dict) and "image" in output else output
        if not isinstance(pictures, list) or not all(isinstance(one, str) for one in pictures):
            _fail("--out is for models that answer with pictures: this one does not")
        several = len(rows) > 1 or len(pictures) > 1
        files = []
        for place, picture in enumerate(pictures):
            mark = f"{number}-{place}-" if several else ""
            file = folder / f"{mark}{Path(row['input']).stem or 'picture'}.png"
            try:
                folder.mkdir(parents=True, exist_ok=True)
                file.write_bytes(b64decode(picture))
            except OSError as error:
                _fail(f"can't write {file}: {error.strerror}")
            files.append(str(file))
        row["output"] = {"file": files[0]} if len(files) == 1 else {"files": files}


# ---- indexes


@index.command(name="create")
def index_create(name: str, /, *, model: Reference) -> None:
    """Make an empty index of the vectors of a model, such as one of image-feature-extraction."""
    row = _client().create_index(name, model)
    _show(row, lambda: _out().index(row))


@index.command(name="add")
def index_add(
    name: str,
    /,
    *paths: Annotated[Path, Parameter(help="pictures, or folders of them; LABEL/1.jpg in a folder has that label")],
    label: Annotated[str | None, Parameter(help="of all of them, instead of the folder's")] = None,
    metadata: Annotated[str, Parameter(help="kept with each and given back, as JSON: '{\"shelf\": 3}'")] = "",
) -> None:
    """Add pictures to an index; the model has to be deployed."""
    if not paths:
        _fail("nothing to add: name pictures or folders")
    ids = _client().add_to_index(name, *paths, label=label, metadata=_object(metadata))
    people = f"added {len(ids)} items" + (f", numbers {ids[0]} to {ids[-1]}" if len(ids) > 1 else f", number {ids[0]}")
    _show({"ids": ids}, lambda: print(people))


@index.command(name="search")
def index_search(
    name: str, picture: str, /, *, k: Annotated[int, Parameter(name=["--k", "-k"], help="most items to find")] = 5
) -> None:
    """The items of an index that are most like a picture."""
    rows = _client().search_index(name, picture, k)
    _show(rows, lambda: _out().table(rows, ("id", "label", "score", "metadata")))


@index.command(name="remove")
def index_remove(
    name: str,
    id: Annotated[int | None, Parameter(help="number of an item")] = None,
    /,
    *,
    label: Annotated[str | None, Parameter(help="remove all items of this label")] = None,
) -> None:
    """Remove items from an index, by number or by label."""
    count = _client().remove_from_index(name, id, label=label)
    _show({"removed": count}, lambda: print(f"removed {count} item{'s' * (count != 1)}"))


@index.command(name="list")
def index_list(name: str = "", /) -> None:
    """All indexes; with a name, the first items of that one."""
    if name:
        items = _client().index_items(name)
        return _show(items, lambda: _out().table(items, ("id", "label", "metadata")))
    rows = _client().indexes()
    return _show(rows, lambda: _out().table(rows, ("name", "model", "version", "dimensions", "items", "created")))


@index.command(name="deploy")
def index_deploy(
    name: str,
    /,
    *,
    as_: Annotated[str, Parameter(name="--as", help="model and deployment to make")],
    k: Annotated[int, Parameter(name=["--k", "-k"], help="neighbours that share the score")] = 5,
    wait: Wait = False,
) -> None:
    """Serve a classifier by nearest neighbours among the items of now; again when the index has changed."""
    client = _client()
    row = client.deploy_index(name, as_, k=k, wait=wait)
    _show(row, lambda: _out().deployment(row, client.url))


@index.command(name="delete")
def index_delete(name: str, /) -> None:
    """Forget an index with all its items."""
    _client().delete_index(name)
    _show({"deleted": name}, lambda: print(f"deleted {name}"))


# ---- keys


@key.command(name="add")
def key_add(
    name: Annotated[str, Parameter(help="who or what will use it")],
    /,
    *,
    role: Annotated[str, Parameter(help="user: predict and look; admin: everything")] = "user",
    rate: Annotated[float, Parameter(help="requests a second; 0: no limit")] = 0,
    burst: Annotated[int, Parameter(help="requests that may come at once; 0: a second's worth")] = 0,
) -> None:
    """Make an access key and print it, this once."""
    row = _client().add_key(name, role, rate, burst)
    _show(row, lambda: print(row["key"]))


@key.command(name="list")
def key_list() -> None:
    """All access keys, without the keys themselves."""
    rows = _client().keys()
    _show(rows, lambda: _out().table(rows, ("name", "role", "rate", "burst", "created")))


@key.command(name="remove")
def key_remove(name: str, /) -> None:
    """Withdraw an access key."""
    _client().remove_key(name)
    _show({"removed": name}, lambda: print(f"removed {name}"))


# ---- what there is


@app.command
def tasks() -> None:
    """What can be trained and served."""
    rows = _client().tasks()
    _show(rows, lambda: _out().table(rows, ("name", "input", "summary", "recipes", "formats")))


@app.command
def recipes(task: str = "", /) -> None:
    """The recipes of a task (or of all) with the defaults of their settings."""
    client = _client()
    names = [task] if task else [row["name"] for row in client.tasks()]
    rows = [{"task": name, **recipe} for name in names for recipe in client.recipes(name)]
    _show(rows, lambda: _out().recipes(rows))


def _read_text(path: Path) -> str:
    from modelmill.errors import InvalidInput

    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"'{path}' can't be read as text: {error}") from error


def _object(text: str) -> dict[str, Any]:
    """A JSON object; empty for nothing."""
    import json

    from modelmill.errors import InvalidInput

    try:
        found = json.loads(text or "{}")
    except ValueError as error:
        raise InvalidInput(f"--metadata is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise InvalidInput('--metadata is a JSON object, such as {"shelf": 3}')
    return found


def _pairs(given: list[str] | None) -> dict[str, str]:
    from modelmill.errors import InvalidInput

    pairs = {}
    for text in given or []:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InvalidInput(f"--set {text}: write NAME=VALUE, as in --set epochs=3")
        pairs[name] = value
    return pairs


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        main()
