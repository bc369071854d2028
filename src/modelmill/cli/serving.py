"""Deployments and predictions."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from modelmill.cli._app import (
    Reference,
    Wait,
    app,
    connect,
    fail,
    pairs_of,
    screen,
    show,
)

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

    from modelmill.client import Client
    from modelmill.client.rows import Prediction

NOTHING = "nothing to predict: name files, or texts for a text model"


@app.command
def deploy(
    model: Reference,
    /,
    *,
    as_: Annotated[
        str,
        Parameter(
            name="--as", help="name to serve it under; default: the model's"
        ),
    ] = "",
    replicas: Annotated[int | None, Parameter(help="workers, fixed")] = None,
    min_replicas: Annotated[
        int | None, Parameter(help="fewest workers; 0: none while nobody calls")
    ] = None,
    max_replicas: Annotated[
        int | None, Parameter(help="most workers, by the queue's delay")
    ] = None,
    idle_seconds: Annotated[
        float | None,
        Parameter(help="without a call, before the last worker goes"),
    ] = None,
    target_delay: Annotated[
        float | None,
        Parameter(help="ms in the queue that call for one more worker"),
    ] = None,
    threads: Annotated[
        int | None,
        Parameter(help="of the engine in each worker; 0: share the cores"),
    ] = None,
    engine: Annotated[
        str | None,
        Parameter(help="such as onnx or openvino; default: the bundle's"),
    ] = None,
    precision: Annotated[
        str | None,
        Parameter(help="such as bf16 or int8, where the engine offers it"),
    ] = None,
    max_wait: Annotated[
        float | None,
        Parameter(help="ms that a call may wait for a fuller batch"),
    ] = None,
    batch: Annotated[
        int | None,
        Parameter(
            help="most calls that share a batch; 1: none do; 0: what it gains from"
        ),
    ] = None,
    canary: Annotated[
        float | None,
        Parameter(help="serve beside the main version: percent of requests"),
    ] = None,
    shadow: Annotated[
        bool,
        Parameter(negative="", help="serve beside it: copies, answers dropped"),
    ] = False,
    wait: Wait = False,
) -> None:
    """Serve a version; over a running one without a failed request, or beside it as a canary or a
    shadow.
    """
    client = connect()
    options = {
        "min_replicas": min_replicas,
        "max_replicas": max_replicas,
        "idle_seconds": idle_seconds,
        "target_delay_ms": target_delay,
        "threads": threads,
        "engine": engine,
        "precision": precision,
        "max_wait_ms": max_wait,
        "batch": batch,
        "canary": canary,
        "shadow": shadow,
    }
    set_options = {
        name: value
        for name, value in options.items()
        if value is not None and value is not False
    }
    row = client.deploy(
        model, name=as_, replicas=replicas, wait=wait, **set_options
    )
    show(row, lambda: screen().deployment(row, client.url))


@app.command
def deployments() -> None:
    """All deployments."""
    rows = connect().deployments()
    show(rows, lambda: screen().deployments(rows))


@app.command
def promote(deployment: str, version: int | None = None, /) -> None:
    """Make the canary (or shadow) of a deployment its main version."""
    _show_deployment(connect().promote(deployment, version))


@app.command
def rollback(deployment: str, version: int | None = None, /) -> None:
    """Remove the canaries and shadows of a deployment."""
    _show_deployment(connect().rollback(deployment, version))


@app.command
def load(deployment: str, /) -> None:
    """Start the workers of an unloaded deployment."""
    _show_deployment(connect().load(deployment))


@app.command
def unload(deployment: str, /) -> None:
    """End the workers of a deployment; it keeps its name."""
    _show_deployment(connect().unload(deployment))


def _show_deployment(row: Any) -> None:
    show(row, lambda: screen().deployment(row, connect().url))


@app.command
def undeploy(deployment: str, /) -> None:
    """Stop serving."""
    connect().undeploy(deployment)
    show(
        {"undeployed": deployment},
        lambda: print(f"{deployment} is no longer served"),
    )


@app.command
def predict(
    deployment: str,
    /,
    *inputs: Annotated[
        str,
        Parameter(
            help="files, texts for a text model, seeds for a model that generates pictures, JSON "
            "for questions"
        ),
    ],
    set: Annotated[
        list[str] | None,
        Parameter(negative="", help="a parameter, as top_k=3 or mask=@FILE"),
    ] = None,
    out: Annotated[
        Path | None,
        Parameter(
            help="a folder for answered pictures and masks, and for boxes drawn on the inputs"
        ),
    ] = None,
    stream: Annotated[
        bool, Parameter(negative="", help="print a text while it is generated")
    ] = False,
) -> None:
    """Predict with a deployed model."""
    client, parameters = connect(), _parameters(set)
    if stream:
        if not inputs:
            fail(NOTHING)
        for text in inputs:
            _print_stream(
                client.stream(deployment, text, parameters=parameters)
            )
        return
    rows = client.predict(deployment, *inputs, parameters=parameters)
    if not rows:
        fail(NOTHING)
    if out is not None:
        _save_pictures(rows, out)
    show(rows, lambda: _print_predictions(client, deployment, rows, parameters))


def _print_predictions(
    client: "Client",
    deployment: str,
    rows: list["Prediction"],
    parameters: Mapping[str, Any],
) -> None:
    """Answers in the form in which their kind is shown."""
    from modelmill.tasks.kinds import output_kind

    kind = output_kind(client.served(deployment).get("output", "json"))
    screen().predictions(rows, _threshold(rows, parameters), kind.shown)


@app.command
def chat(
    deployment: str,
    /,
    *,
    system: Annotated[
        str,
        Parameter(help="the system message at the start of the conversation"),
    ] = "",
    set: Annotated[
        list[str] | None,
        Parameter(negative="", help="a parameter, as temperature=0.7"),
    ] = None,
) -> None:
    """Chat with a model that generates text; an empty line, or the end of the input, ends it."""
    client, parameters = connect(), _parameters(set)
    messages = [{"role": "system", "content": system}] if system else []
    while text := _read_line():
        messages.append({"role": "user", "content": text})
        answer = _print_stream(
            client.chat(deployment, messages, parameters=parameters)
        )
        messages.append({"role": "assistant", "content": answer})


def _read_line() -> str:
    """A line of the user; "" at the end of the input."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""


def _print_stream(parts: Iterable[str]) -> str:
    """Print a text as it comes; returns all of it."""
    whole = []
    for part in parts:
        whole.append(part)
        print(part, end="", flush=True)
    print()
    return "".join(whole)


def _parameters(pairs: list[str] | None) -> dict[str, Any]:
    """Parameters of a task: `@FILE` is the file in base64, valid JSON is parsed, anything else is a
    text.
    """
    return {
        name: _parameter(name, text) for name, text in pairs_of(pairs).items()
    }


def _parameter(name: str, text: str) -> Any:
    import json
    from base64 import b64encode

    if text.startswith("@"):
        try:
            return b64encode(Path(text[1:]).read_bytes()).decode()
        except OSError as error:
            fail(
                f"--set {name}={text}: the file can't be read: {error.strerror}"
            )
    try:
        return json.loads(text)
    except ValueError:
        return text


def _threshold(
    rows: Sequence[Mapping[str, Any]], parameters: Mapping[str, Any]
) -> float | None:
    """The least score that applied, where an answer is empty; else None.

    Without a parameter only a detector gives empty answers.
    """
    if all(row["output"] != [] for row in rows):
        return None
    threshold = parameters.get("threshold")
    if isinstance(threshold, int | float):
        return float(threshold)
    from modelmill.tasks.object_detection import THRESHOLD

    return THRESHOLD


def _save_pictures(rows: list[Any], folder: Path) -> None:
    """Write the pictures of the answers as PNG files named after the inputs; the answers then name
    the files.
    """
    for number, row in enumerate(rows):
        if row["output"] != []:  # without boxes there is nothing to draw
            _save_picture(row, folder, f"{number}-" if len(rows) > 1 else "")


def _save_picture(row: dict[str, Any], folder: Path, prefix: str) -> None:
    stem = f"{prefix}{Path(row['input']).stem or 'picture'}"
    output = row["output"]
    if isinstance(output, dict) and "image" in output:
        row["output"] = {"file": _write_picture(output["image"], folder, stem)}
    elif _all_have(output, "mask"):
        _save_masks(output, folder, stem)
    elif _all_have(output, "box"):
        file = _draw_boxes(Path(row["input"]), output, folder, stem)
        for box in output:
            box["file"] = file
    elif isinstance(output, list) and all(
        isinstance(data, str) for data in output
    ):
        row["output"] = _write_pictures(output, folder, stem, prefix)
    else:
        fail(
            "--out is for models that answer with pictures, masks or boxes: this one "
            "does not"
        )


def _save_masks(parts: list[Any], folder: Path, stem: str) -> None:
    """Write the masks; the parts then name the files."""
    for part in parts:
        name = f"{stem}-{_as_file_name(part['label'])}"
        part["mask"] = _write_picture(part["mask"], folder, name)


def _all_have(output: Any, field: str) -> bool:
    """Whether an answer is a list of dictionaries with this field."""
    return isinstance(output, list) and all(
        isinstance(entry, dict) and field in entry for entry in output
    )


def _write_pictures(
    pictures: list[str], folder: Path, stem: str, prefix: str
) -> dict[str, Any]:
    """Write several pictures, in base64, of one input; returns their files."""
    if len(pictures) == 1 and not prefix:
        return {"file": _write_picture(pictures[0], folder, stem)}
    name = stem.removeprefix(prefix)
    files = [
        _write_picture(picture, folder, f"{prefix or '0-'}{number}-{name}")
        for number, picture in enumerate(pictures)
    ]
    return {"file": files[0]} if len(files) == 1 else {"files": files}


def _as_file_name(label: str) -> str:
    """A label as a part of a file's name."""
    return "".join(letter if letter.isalnum() else "_" for letter in label)[:60]


def _draw_boxes(
    picture: Path, boxes: list[Any], folder: Path, stem: str
) -> str:
    """Write the picture with its boxes drawn; corners are those of the upright picture."""
    from io import BytesIO

    from PIL import ImageDraw

    sheet = _upright(picture)
    pen = ImageDraw.Draw(sheet)
    for box in boxes:
        _draw_box(pen, box)
    written = BytesIO()
    sheet.save(written, "PNG")
    return _write_file(written.getvalue(), folder, stem)


def _upright(picture: Path) -> "Image":
    from PIL import Image, ImageOps

    try:
        with Image.open(picture) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")
    except OSError as error:
        fail(f"can't draw on {picture}: {error.strerror or error}")


def _draw_box(pen: "ImageDraw", box: Any) -> None:
    left, top, right, bottom = box["box"].values()
    pen.rectangle((left, top, right - 1, bottom - 1), outline="red", width=2)
    pen.text(
        (left + 3, top + 2), f"{box['label']} {box['score']:.2f}", fill="red"
    )


def _write_picture(picture: str, folder: Path, stem: str) -> str:
    from base64 import b64decode

    return _write_file(b64decode(picture), folder, stem)


def _write_file(picture: bytes, folder: Path, stem: str) -> str:
    file = folder / f"{stem}.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture)
    except OSError as error:
        fail(f"can't write {file}: {error.strerror}")
    return str(file)
