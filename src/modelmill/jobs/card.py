"""The model card: what a version is, for people, with the metadata that the Hugging Face hub
reads.
"""

import html
import io
import json
from typing import TYPE_CHECKING

from modelmill.tasks.base import SAMPLES, task_named
from modelmill.types import Json, Lineage, Manifest

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LIBRARY = "modelmill"
CARD = "README.md"


def model_card(name: str, manifest: Manifest, pictures: list[str]) -> str:
    """`README.md` of a bundle."""
    lineage = manifest.lineage
    lines = [
        _front_matter(name, manifest),
        f"# {name}",
        "",
        f"A model for {manifest.task}{_labels(manifest.labels)}, trained by the recipe "
        f"`{lineage.recipe}` "
        f"on the data set `{lineage.dataset}`.",
        "",
        *_evaluation(manifest.metrics, pictures),
        *_input_and_output(manifest),
        "Preprocessing, executed by the server:",
        "",
        _code(manifest.preprocessing),
        "",
        *_lineage(lineage),
    ]
    return "\n".join(lines)


def _evaluation(metrics: Json, pictures: list[str]) -> list[str]:
    """The figures, those of classes, what the model wrote, and pictures."""
    numbers = {
        key: one for key, one in metrics.items() if isinstance(one, float)
    }
    texts = {key: one for key, one in metrics.items() if isinstance(one, str)}
    return [
        "## Evaluation",
        "",
        f"On {metrics['items']} test items, through the path that serves requests:",
        "",
        "| metric | value |",
        "|---|---|",
        *(f"| {key} | {value:.4f} |" for key, value in numbers.items()),
        *(f"| {key} | `{value}` |" for key, value in texts.items()),
        "",
        *_per_class(metrics.get("per_class", {})),
        *_samples(metrics.get(SAMPLES, [])),
        *(f"![{name.partition('.')[0]}](pictures/{name})" for name in pictures),
        "",
    ]


def _lineage(lineage: Lineage) -> list[str]:
    """What a trained version comes from."""
    return [
        "## Lineage",
        "",
        f"- data: sha256 `{lineage.data_digest}`",
        f"- recipe `{lineage.recipe}`, seed {lineage.seed}, modelmill {lineage.code_version}, "
        f"job {lineage.job}, {lineage.created}",
        *(
            f"- started from `{one.name}` ({one.task} on the data set `{one.dataset}`), sha256 "
            f"`{one.digest}`"
            for one in reversed(lineage.chain)
        ),
        "",
        _code(lineage.settings),
        "",
    ]


def brought_card(name: str, manifest: Manifest) -> str:
    """`README.md` of a model that was not trained here: what it takes and how it is answered."""
    task, lineage = manifest.task, manifest.lineage
    what = (
        f"A model for {task}"
        if task
        else "A model that takes and gives tensors"
    )
    lines = [
        "---",
        f"library_name: {LIBRARY}",
        *([f"pipeline_tag: {task}"] if task else []),
        "---",
        "",
        f"# {name}",
        "",
        f"{what}{_labels(manifest.labels)}. It was brought as a finished network.",
        "",
        *_input_and_output(manifest),
        "## Lineage",
        "",
        f"- what was brought: sha256 `{lineage.data_digest}`",
        f"- modelmill {lineage.code_version}, job {lineage.job}, {lineage.created}",
        "",
    ]
    return "\n".join(lines)


def _input_and_output(manifest: Manifest) -> list[str]:
    batches = manifest.batches
    return [
        "## Input and output",
        "",
        *(
            f"- input `{spec.name}`: {spec.datatype} {spec.shape}"
            for spec in manifest.inputs
        ),
        *(
            f"- output `{spec.name}`: {spec.datatype} {spec.shape}"
            for spec in manifest.outputs
        ),
        *([f"- {batches}"] if batches else []),
        "",
    ]


def _front_matter(name: str, manifest: Manifest) -> str:
    """The metadata block; JSON strings are valid YAML, so nothing in a name can break out of it."""
    index = [{"name": name, "results": [_main_result(manifest)]}]
    lines = [
        "---",
        f"library_name: {LIBRARY}",
        f"pipeline_tag: {manifest.task}",
        f"model-index: {json.dumps(index, ensure_ascii=False)}",
        "---",
        "",
    ]
    return "\n".join(lines)


def _main_result(manifest: Manifest) -> Json:
    """The task's metric as the hub reads it."""
    metrics = manifest.metrics
    metric = task_named(manifest.task).METRIC
    if metric not in metrics:  # some data are measured in another way
        metric = next(iter(metrics), metric)
    dataset = manifest.lineage.dataset
    return {
        "task": {"type": manifest.task},
        "dataset": {"name": dataset, "type": dataset},
        "metrics": [
            {"type": metric, "value": round(metrics.get(metric, 0.0), 4)}
        ],
    }


def _labels(labels: list[str]) -> str:
    return (
        f" with {len(labels)} label{'s' * (len(labels) > 1)}" if labels else ""
    )


def _per_class(rows: Json) -> list[str]:
    """A table of the figures of each class; nothing where there are none."""
    if not rows:
        return []
    names = list(next(iter(rows.values())))
    head = [
        f"| label | {' | '.join(name.replace('_', ' ') for name in names)} |",
        "|---" * (len(names) + 1) + "|",
    ]
    return [*head, *(_row(label, row) for label, row in rows.items()), ""]


def _samples(rows: list[Json]) -> list[str]:
    """A table of what the model wrote; nothing where there is nothing."""
    if not rows:
        return []
    head = [f"| {' | '.join(rows[0])} |", "|---" * len(rows[0]) + "|"]
    return [
        *head,
        *(f"| {' | '.join(map(_safe, row.values()))} |" for row in rows),
        "",
    ]


def _safe(text: str) -> str:
    """A text in a cell of a table, on one line."""
    return (
        html.escape(" ".join(text.split()), quote=False)
        .replace("|", "\\|")
        .replace("`", "\\`")
    )


def _row(label: str, row: Json) -> str:
    cells = (
        f"{value:.4f}" if isinstance(value, float) else str(value)
        for value in row.values()
    )
    return f"| {_safe(label)} | {' | '.join(cells)} |"


def _code(values: Json) -> str:
    return f"```json\n{json.dumps(values, indent=1, ensure_ascii=False)}\n```"


def curves_picture(history: list[Json]) -> bytes:
    """Loss and the validation's other figures by epoch, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    losses = {"train_loss": "training", "val_loss": "validation"}
    _draw(left, history, losses)
    left.set(title="Loss", xlabel="epoch")
    left.legend()
    others = [
        key
        for key in history[0]
        if key.startswith("val_") and key not in losses
    ]
    _draw(right, history, {key: _figure_name(key) for key in others})
    right.set(title="Validation", xlabel="epoch")
    if right.lines:
        right.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100)
    return buffer.getvalue()


def _figure_name(key: str) -> str:
    return key.removeprefix("val_").replace("_", " ")


def _draw(axes: "Axes", history: list[Json], curves: dict[str, str]) -> None:
    """Figures by epoch, under their names; those that the history lacks are left out."""
    epochs = [row["epoch"] for row in history]
    for key, name in curves.items():
        if key in history[0]:
            axes.plot(
                epochs, [row[key] for row in history], marker=".", label=name
            )
    axes.grid(alpha=0.3)
