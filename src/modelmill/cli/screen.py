"""What the command line prints for people: tables, cards, and live progress."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.table import Table

# Programs that read a pipe want whole lines; people want lines as wide as their window.
_console = Console(highlight=False, width=None if sys.stdout.isatty() else 1000)


UNWRAPPED = ("job", "kind", "state", "version", "figure")
"""Columns whose cells stay on one line."""
JOB_COLUMNS = (
    "job",
    "kind",
    "state",
    "model",
    "recipe",
    "dataset",
    "figure",
    "started",
    "error",
)
JOB_FIELDS = (
    "kind",
    "task",
    "recipe",
    "dataset",
    "error",
    "created",
    "started",
    "ended",
)
DEPLOYMENT_COLUMNS = (
    "name",
    "model",
    "version",
    "serving",
    "beside",
    "state",
    "workers",
    "MB",
    "batch",
    "error",
    "note",
)
MOST_CLASSES = 40
"""Classes of which metrics are shown."""
CLASSES = 12
"""Classes that are named; of more, only that there are more is said."""


def table(
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    none: str = "none yet",
) -> None:
    """Rows under column heads; columns that are empty throughout are left out. `none` is what is
    said where there are no rows.
    """
    if rows:
        _console.print(_sheet(rows, columns))
    else:
        _console.print(escape(none))


def _sheet(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Table:
    shown = [
        column
        for column in columns
        if any(_cell(row.get(column)) for row in rows)
    ]
    sheet = Table(box=None, header_style="bold", pad_edge=False)
    for column in shown:
        sheet.add_column(column.replace("_", " "), no_wrap=column in UNWRAPPED)
    for row in rows:
        sheet.add_row(*[escape(_cell(row.get(column))) for column in shown])
    return sheet


def _cell(value: Any) -> str:
    if value is None or value == {} or value == []:
        return ""
    if isinstance(value, dict):
        return _cell_of_fields(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return _cell_of_text(str(value))


def _cell_of_text(text: str) -> str:
    """A text; a time without fractions of its seconds and its zone."""
    is_time = len(text) > 25 and text[4:5] == "-" and text[10:11] == "T"
    return text[:19].replace("T", " ") if is_time else text


def _cell_of_fields(value: dict[str, Any]) -> str:
    if "per_class" in value:
        return _figure(value)
    if len(value) > 4:
        return str(len(value))
    return _counts(value)


def _counts(values: Mapping[str, Any]) -> str:
    """Names with their values on one line."""
    return " ".join(f"{name}:{_cell(value)}" for name, value in values.items())


def _first(names: Sequence[str], most: int) -> str:
    """The first names, and a mark where there are more."""
    return ", ".join(names[:most]) + (" ..." if len(names) > most else "")


def _pairs(title: str, pairs: Mapping[str, Any]) -> None:
    _console.print(f"[bold]{escape(title)}[/bold]")
    sheet = Table(box=None, show_header=False, pad_edge=False)
    for key, value in pairs.items():
        if text := _cell(value):
            sheet.add_row(f"  {key}", escape(text))
    _console.print(sheet)


def dataset(row: Mapping[str, Any]) -> None:
    """A data set and its findings."""
    classes = row["classes"]
    _pairs(
        row["name"],
        {
            "task": row["task"],
            "format": row["format"],
            "items": row["items"],
            "splits": _counts(row["splits"]),
            f"{len(classes)} classes": _largest(classes),
            "sha256": row["digest"],
        },
    )
    for finding in row["findings"]:
        _print_finding(finding)
    if not row["findings"]:
        _console.print("  the check found nothing wrong")


def _largest(classes: Mapping[str, int]) -> str:
    """The largest classes with their sizes."""
    most = sorted(classes.items(), key=lambda pair: -pair[1])[:CLASSES]
    return _counts(dict(most)) + (" ..." if len(classes) > CLASSES else "")


def _print_finding(finding: Mapping[str, Any]) -> None:
    color = "red" if finding["severity"] == "dropped" else "yellow"
    _console.print(
        f"  [{color}]{finding['severity']}[/{color}] {escape(finding['message'])}"
    )
    for example in finding["examples"]:
        _console.print(f"    {escape(example)}", style="dim")


def _figure(metrics: Mapping[str, Any]) -> str:
    """The first metric of an evaluation, which sums it up."""
    named = (
        (name, value)
        for name, value in metrics.items()
        if isinstance(value, float)
    )
    return next((f"{name} {value:.4f}" for name, value in named), "")


def job(row: Mapping[str, Any]) -> None:
    """A job with its metrics."""
    _pairs(
        f"job {row['job']}: {row['state']}",
        {
            "model": _model_of_job(row),
            **{key: row[key] for key in JOB_FIELDS},
            "seconds": row["result"].get("seconds"),
        },
    )
    metrics(row["metrics"])


def _model_of_job(row: Mapping[str, Any]) -> str:
    """The model of a job, with the version that it made."""
    return (
        f"{row['model']}:{row['version']}"
        if row["version"]
        else str(row["model"])
    )


def jobs(rows: Sequence[Mapping[str, Any]]) -> None:
    """All jobs, a line each."""
    short = [
        {
            **row,
            "model": _model_of_job(row),
            "figure": _figure(row["metrics"]),
            "started": (row["started"] or "")[5:16].replace("T", " "),
        }
        for row in rows
    ]
    table(short, JOB_COLUMNS)


def metrics(values: Mapping[str, Any]) -> None:
    """Numbers, then texts to read, then a table of classes."""
    if not values:
        return
    plain = {
        key: value
        for key, value in values.items()
        if not isinstance(value, dict | list)
    }
    _pairs("metrics", plain)
    if samples := values.get("samples"):
        table(samples, list(samples[0]))
    if classes := values.get("per_class"):
        _print_classes(classes)


def _print_classes(classes: Mapping[str, Mapping[str, Any]]) -> None:
    """The metrics of each class, unless there are too many to read."""
    if len(classes) <= MOST_CLASSES:
        rows = [{"label": label, **entry} for label, entry in classes.items()]
        table(rows, list(rows[0]))


def version(row: Mapping[str, Any], url: str) -> None:
    """A version of a model."""
    _pairs(
        f"{row['name']}:{row['version']}",
        {
            "task": row["task"] or "none: tensors in, tensors out",
            "aliases": row["aliases"],
            "inputs": _specs(row["inputs"]),
            "outputs": _specs(row["outputs"]),
            "labels": _first(row["labels"], 20),
            **_origin(row["lineage"]),
            "parameters": [
                f"{one['name']}: {one['allowed']}" for one in row["parameters"]
            ],
            "batches": row["batches"],
            "files": list(row["files"]),
            "model card": _model_card(row, url),
            "created": row["created"],
        },
    )
    metrics(row["metrics"])


def _specs(specs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Inputs or outputs of a model."""
    return [
        f"{spec['name']} {spec['datatype']} {spec['shape']}" for spec in specs
    ]


def _origin(lineage: Mapping[str, Any]) -> dict[str, Any]:
    """How a version was trained, and from which ones."""
    trained = (
        f"by {lineage['recipe']} on {lineage['dataset']}, job {lineage['job']}"
        if lineage["recipe"]
        else ""
    )
    ancestors = [
        f"{ancestor['name']} ({ancestor['task']} on {ancestor['dataset']})"
        for ancestor in lineage.get("chain", [])
    ]
    return {"trained": trained, "started from": ancestors}


def _model_card(row: Mapping[str, Any], url: str) -> str:
    if "README.md" not in row["files"]:
        return ""
    return f"{url}/api/v1/models/{row['name']}:{row['version']}/files/README.md"


def deployments(rows: Sequence[Mapping[str, Any]]) -> None:
    """All deployments, a line each."""
    shown = [
        {
            **row,
            "workers": _workers(row),
            "beside": _beside(row),
            "MB": _megabytes(row),
            "batch": _batch(row),
        }
        for row in rows
    ]
    table(shown, DEPLOYMENT_COLUMNS)


def _workers(row: Mapping[str, Any]) -> str:
    return f"{row['ready_replicas']} of {row['replicas']}"


def _beside(row: Mapping[str, Any]) -> str:
    """Canaries and shadows, in words."""
    return ", ".join(map(_variant, row["variants"]))


def _variant(row: Mapping[str, Any]) -> str:
    what = "shadow" if row["shadow"] else f"canary {row['weight']:.0%}"
    return f"{row['model']}:{row['version']} {what}"


def _batch(row: Mapping[str, Any]) -> str:
    """How many calls share a batch, and the reason where none do."""
    if not row["batch"]:
        return ""
    why = row["batches"].partition(": ")[2] if row["batch"] == 1 else ""
    return f"{row['batch']}: {why}" if why else str(row["batch"])


def _megabytes(row: Mapping[str, Any]) -> str:
    return str(round(row["memory"] / 1e6)) if row["memory"] else ""


def deployment(row: Mapping[str, Any], url: str) -> None:
    """How to use a deployment."""
    _pairs(
        f"{row['name']}: {row['state']}",
        {
            "model": f"{row['model']}:{row['version']}",
            "beside it": _beside(row),
            "workers": _workers(row),
            "batches": row["batches"],
            "Hugging Face": f"{url}/models/{row['name']}"
            if row["task"]
            else "",
            "Open Inference": f"{url}/v2/models/{row['name']}/infer",
            "error": row["error"],
            "note": row["note"],
        },
    )


TEXT_FIELDS = ("generated_text", "translation_text", "answer", "sequence")
"""Fields of answers that are texts."""
PICTURE = ("input", "picture")


def _named(picture: str) -> str:
    """The name of a picture's file, or its size."""
    is_file = picture.endswith(".png")
    return (
        picture
        if is_file
        else f"{len(picture) * 3 // 4} bytes of PNG (--out FOLDER keeps pictures as files)"
    )


def index(row: Mapping[str, Any]) -> None:
    """An index."""
    labels = row["labels"]
    _pairs(
        row["name"],
        {
            "model": f"{row['model']}:{row['version']}",
            "dimensions": row["dimensions"],
            "items": str(row["items"]),
            f"{len(labels)} labels": _counts(
                dict(list(labels.items())[:CLASSES])
            ),
        },
    )


FEW = 10
"""Files that are named; the others are counted."""


def items_added(
    ids: Sequence[int], left_out: Sequence[Mapping[str, str]]
) -> None:
    """How many items an index got, and which files it did not."""
    numbers = (
        f"numbers {ids[0]} to {ids[-1]}" if len(ids) > 1 else f"number {ids[0]}"
    )
    _console.print(f"added {len(ids)} item{'s' * (len(ids) > 1)}, {numbers}")
    if left_out:
        _print_left_out(left_out)


def _print_left_out(files: Sequence[Mapping[str, str]]) -> None:
    _console.print(f"left out {len(files)}, which can't be read:")
    for one in files[:FEW]:
        _console.print(f"  {escape(one['file'])}: {escape(one['error'])}")
    if len(files) > FEW:
        _console.print(f"  and {len(files) - FEW} more (--json names all)")


CORNERS = ("xmin", "ymin", "xmax", "ymax")
ANSWER = ("input", "answer")
SCORED = ("input", "answer", "score")
SPOKEN = ("input", "text")
TIMED = ("input", "from", "to", "text")
BOX = ("input", "label", "score", *CORNERS, "file")
LABEL = ("input", "label", "score", "then")
VECTOR = ("input", "vector")
"""Columns of answers, by their form."""


Rows = list[dict[str, Any]]
Answers = Sequence[Mapping[str, Any]]
"""Inputs, each with the model's output."""
Form = tuple[Rows, Sequence[str]]
"""A table: its rows and its columns."""


def predictions(
    rows: Answers, threshold: float | None = None, shown: str = "json"
) -> None:
    """Inputs with their best answers, or the files of pictures that were answered.

    `threshold` is the least score that applied to these answers, None if there was none; `shown`
    says in which form their kind is shown (`tasks.kinds`).
    """
    for row in rows:
        if row["output"] == []:
            _console.print(
                escape(f"{row['input'][:60]}: {_nothing_found(threshold)}")
            )
    answered = [row for row in rows if row["output"] != []]
    if answered:
        _print_answers(answered, shown)


def _print_answers(rows: Answers, shown: str) -> None:
    """A table of answers, in the form of their kind; JSON where parameters made them another."""
    makers = [FORMS[shown]] if shown in FORMS else list(FORMS.values())
    forms = filter(None, (make(rows) for make in makers))
    table(*(next(forms, None) or _json_table(rows)))


def _rows_of(kind: Callable[[str, Any], Rows], answers: Answers) -> Rows:
    """The rows of all answers, each made of an input's name and its output."""
    return [
        row for one in answers for row in kind(one["input"][:60], one["output"])
    ]


def _box_table(rows: Answers) -> Form | None:
    found = _rows_of(_boxes, rows)
    return (found, BOX) if found else None


def _picture_table(rows: Answers) -> Form | None:
    """Single pictures, or lists of them."""
    if any(_is_picture(row["output"]) for row in rows):
        return [_picture_row(row) for row in rows], ANSWER
    if all(_is_list_of(str, row["output"]) for row in rows):
        return _rows_of(_picture_rows, rows), PICTURE
    return None


def _text_table(rows: Answers) -> Form | None:
    """Transcriptions, with their times where they are known, or other texts."""
    if all(_is_transcription(row["output"]) for row in rows):
        spoken = _rows_of(_spoken_rows, rows)
        return spoken, TIMED if "from" in spoken[0] else SPOKEN
    texts = _rows_of(_text_rows, rows)
    return (texts, SCORED) if texts else None


def _label_table(rows: Answers) -> Form | None:
    """The best label of each, and the next ones."""
    if not all(_is_label(_best(row["output"])) for row in rows):
        return None
    answers = [_label_row(row["input"][:60], row["output"]) for row in rows]
    return answers, LABEL


def _vector_table(rows: Answers) -> Form | None:
    if not all(_is_list_of(float, row["output"]) for row in rows):
        return None
    vectors = [
        {"input": row["input"][:60], "vector": _vector(row["output"])}
        for row in rows
    ]
    return vectors, VECTOR


def _json_table(rows: Answers) -> Form:
    """Answers as they are."""
    answers = [
        {
            "input": row["input"][:60],
            "answer": json.dumps(row["output"])[:MOST_JSON],
        }
        for row in rows
    ]
    return answers, ANSWER


FORMS: dict[str, Callable[[Answers], Form | None]] = {
    "boxes": _box_table,
    "picture": _picture_table,
    "text": _text_table,
    "masks": _label_table,
    "labels": _label_table,
    "vector": _vector_table,
}
"""How answers are shown, by the form that their kind names; those of other kinds in the first form
that fits.
"""
MOST_JSON = 1000
"""Characters of an answer as JSON; `--json` prints all."""


def _is_list_of(kind: type, output: Any) -> bool:
    return isinstance(output, list) and all(
        isinstance(one, kind) for one in output
    )


def _best(output: Any) -> Any:
    return output[0] if isinstance(output, list) and output else output


def _is_label(entry: Any) -> bool:
    return isinstance(entry, dict) and {"label", "score"} <= entry.keys()


def _picture_rows(name: str, output: Sequence[str]) -> Rows:
    """A row for each picture."""
    return [{"input": name, "picture": _named(picture)} for picture in output]


def _is_picture(output: Any) -> bool:
    return isinstance(output, dict) and bool(
        output.keys() & {"image", "file", "files"}
    )


def _is_transcription(output: Any) -> bool:
    return isinstance(output, dict) and "text" in output


def _picture_row(row: Mapping[str, Any]) -> dict[str, Any]:
    hint = "a picture: name a folder with --out to keep it"
    output = row["output"]
    files = output.get("files", [output.get("file", hint)])
    return {"input": row["input"], "answer": ", ".join(files)}


def _label_row(name: str, output: Any) -> dict[str, Any]:
    """A row for labels with scores."""
    rest = output[1:3] if isinstance(output, list) else []
    return {"input": name, **_best(output), "then": _scores(rest)}


def _scores(labels: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{one['label']} {one['score']:.3f}" for one in labels)


def _nothing_found(threshold: float | None) -> str:
    """The message for an answer without anything, with a lower threshold to try."""
    if threshold is None:
        return "nothing found"
    text = f"nothing found above the threshold {threshold:g}"
    lower = 0.1 if threshold > 0.1 else 0.01
    if threshold <= lower:
        return text
    return f"{text}; lower it with --set threshold={lower:g}"


def _boxes(name: str, output: Any) -> Rows:
    """A row for each box; none for other answers."""
    entries = output if isinstance(output, list) else []
    return [
        {
            "input": name,
            "label": entry["label"],
            "score": f"{entry['score']:.3f}",
            "file": entry.get("file"),
            **{corner: str(entry["box"][corner]) for corner in CORNERS},
        }
        for entry in entries
        if isinstance(entry, dict) and "box" in entry
    ]


def _text_rows(name: str, output: Any) -> Rows:
    """A row for each text of an answer, with its score if there is one; none for other answers."""
    return [
        {
            "input": name,
            "answer": next(
                entry[field] for field in TEXT_FIELDS if field in entry
            ),
            "score": f"{entry['score']:.3f}" if "score" in entry else "",
        }
        for entry in _flat(output)
        if isinstance(entry, dict) and entry.keys() & set(TEXT_FIELDS)
    ]


def _flat(output: Any) -> Iterator[Any]:
    """The entries of an answer, of its lists, and of lists in these."""
    for part in output if isinstance(output, list) else [output]:
        yield from part if isinstance(part, list) else [part]


def _spoken_rows(name: str, output: Mapping[str, Any]) -> Rows:
    """A row for a transcription, or one for each word with its times in seconds."""
    if not output.get("chunks"):
        return [{"input": name, "text": output["text"]}]
    return [
        {
            "input": name,
            "from": f"{chunk['timestamp'][0]:.2f}",
            "to": f"{chunk['timestamp'][1]:.2f}",
            "text": chunk["text"],
        }
        for chunk in output["chunks"]
    ]


def _vector(values: Sequence[float]) -> str:
    first = ", ".join(f"{value:.3f}" for value in values[:4])
    return (
        f"[{first}, ...] ({len(values)} numbers)"
        if len(values) > 4
        else f"[{first}]"
    )


def recipes(rows: Sequence[Mapping[str, Any]]) -> None:
    """Recipes, each with its settings."""
    for row in rows:
        mark = " (default)" if row["default"] else ""
        _console.print(
            f"\n[bold]{row['task']} / {row['name']}[/bold]{mark}: {escape(row['summary'])}"
        )
        table(row["settings"], ("name", "default", "help"))


def kinds(rows: Sequence[Mapping[str, Any]]) -> None:
    """Kinds of jobs, each with its request."""
    for row in rows:
        file = f" Wants --file: {row['file']}." if row["file"] else ""
        _console.print(
            f"\n[bold]{row['name']}[/bold]: {escape(row['summary'])}{escape(file)}"
        )
        table(_request_fields(row["request"]), ("field", "default", "help"))


def _request_fields(schema: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The fields of a request, from its JSON schema."""
    shape = schema["$defs"][schema["$ref"].rpartition("/")[2]]
    return [
        {
            "field": name,
            "default": "(needed)"
            if name in shape["required"]
            else field.get("default", ""),
            "help": field.get("description", ""),
        }
        for name, field in shape["properties"].items()
    ]


class Progress:
    """Shows the events of a job: bars on a terminal, a line per stage and epoch elsewhere."""

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream, highlight=False)
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        if self._console.is_terminal:
            self._bars = Bars(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Show one event."""
        kind = event["event"]
        if kind == "stage":
            self._console.print(escape(event["message"]))
        elif kind == "epoch":
            self._close()
            self._console.print(_epoch(event))
        elif kind == "step":
            text = f"epoch {event['epoch']}  loss {event['loss']:.4f}"
            self._advance(text, event["step"], event["steps"])
        elif kind == "progress":
            self._advance(event["message"], event["done"], event["total"])
        elif kind == "end":
            self._close()

    def _advance(self, text: str, done: int, total: int) -> None:
        if self._bars is None:
            return
        if not self._tasks:
            self._bars.start()
            self._tasks["now"] = self._bars.add_task(text, total=total or None)
        task = self._tasks["now"]
        self._bars.update(
            task, description=text, completed=done, total=total or None
        )
        if total and done >= total:
            self._close()

    def _close(self) -> None:
        if self._bars is not None and self._tasks:
            self._bars.remove_task(self._tasks.pop("now"))
            self._bars.stop()


def _epoch(event: Mapping[str, Any]) -> str:
    return (
        f"epoch {event['epoch']}/{event['epochs']}  loss {event['train_loss']:.4f}  "
        f"validation: {_figures(event)}  "
        f"({event['samples_per_second']:,.0f} items/s)"
    )


def _figures(event: Mapping[str, Any]) -> str:
    """The metrics on the validation data."""
    figures = [
        f"{name.removeprefix('val_').replace('_', ' ')} {value:.4f}"
        for name, value in event.items()
        if name.startswith("val_")
    ]
    return " ".join(figures) or "none"
