"""The import of a data set: detect its format, check every item, sort them into splits."""

import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import msgspec

from modelmill import plugins
from modelmill.artifacts import sha256_of
from modelmill.data import formats
from modelmill.data.base import Item, open_source
from modelmill.data.check import Finding, Index, Report, examine
from modelmill.data.report import few
from modelmill.errors import InvalidInput, MillError
from modelmill.jobs.process import Events, Interrupted, Stop, log
from modelmill.tasks.base import Task, task_named
from modelmill.types import JobSpec, Json

REPORT_SECONDS = 0.3


def check_dataset(spec: JobSpec, events: Events, stop: Stop) -> Json:
    """Leaves `index` in the job's folder; the result holds the format and the report.

    Raises `InvalidInput` for data that no reader understands, none of which is sound, or, when
    strict, with any finding.
    """
    task = task_named(spec.task)
    format, index, report = _examined(spec, task, events, stop)
    for line in report.lines():
        log.info("%s", line)  # the data set itself shows them to people
    _refuse(spec, report, task.CLASSES)
    path = Path(spec.folder) / "index"
    index.save(path)
    return {
        "format": format,
        "report": msgspec.to_builtins(report),
        "index_digest": sha256_of(path),
    }


def _examined(
    spec: JobSpec, task: Task, events: Events, stop: Stop
) -> tuple[str, Index, Report]:
    """The format of the archive, the index of its sound items, and what was found."""
    name = spec.dataset["name"]
    options = spec.dataset["options"]
    with open_source(Path(spec.dataset["archive"]), name) as source:
        format = spec.dataset["format"] or formats.detect(source, task)
        events.stage(f"checking '{name}' as {format}")
        reader = plugins.load("data.formats", format)
        index, report = examine(
            reader.read(source, options),
            _fingerprint_of(task, reader),
            _progress(events, stop),
            labelled=formats.labelled(reader, task),
            declared=formats.labels(reader, source, options),
            whole_classes=task.SPLIT == "classes",
            group_key=lambda item: task.group_key(item.data),
        )
    return format, index, report


def _fingerprint_of(task: Task, reader: ModuleType) -> Callable[[Item], str]:
    """What makes items of a format the same; it raises `InvalidInput` for one that can't be
    decoded, or whose target is a picture that can't be.
    """
    if getattr(reader, "TARGET", "") != "picture":
        return lambda item: task.fingerprint(item.data)

    def fingerprint(item: Item) -> str:
        if isinstance(item.target, bytes):
            try:
                task.fingerprint(item.target)
            except MillError as error:
                raise InvalidInput(
                    f"the picture that should come out: {error.message}"
                ) from error
        return task.fingerprint(item.data)

    return fingerprint


def _progress(events: Events, stop: Stop) -> Callable[[int], None]:
    """Tells how many items are done, not more often than people can read; raises `Interrupted`
    when the job should stop.
    """
    reported = [0.0]

    def progress(done: int) -> None:
        if stop.requested:
            raise Interrupted
        if done and time.monotonic() - reported[0] > REPORT_SECONDS:
            reported[0] = time.monotonic()
            events.write("progress", message="checking", done=done, total=0)

    return progress


def _refuse(spec: JobSpec, report: Report, least: int) -> None:
    """Raises `InvalidInput` for what can't be used, or with strict should not be."""
    if not report.sound:
        why = _told(report.findings[0]) if report.findings else ""
        raise InvalidInput(f"none of the {report.items} items can be used{why}")
    classes = [name for name, count in report.classes.items() if count]
    if len(classes) < least:
        raise InvalidInput(
            f"'{spec.dataset['name']}' has {few(classes)}; {spec.task} needs at least {least}"
        )
    if spec.dataset["strict"] and report.findings:
        kinds = [
            f"{finding.kind} ({finding.count})" for finding in report.findings
        ]
        raise InvalidInput(f"refused because of --strict: {', '.join(kinds)}")


def _told(finding: Finding) -> str:
    """A finding with an example: where nothing can be used, one reason is mostly that of all."""
    example = f", such as {finding.examples[0]}" if finding.examples else ""
    return f": {finding.message}{example}"
