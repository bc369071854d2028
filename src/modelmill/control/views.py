"""Rows of the database and plugins as the admin API shows them."""

from collections import Counter

import msgspec

from modelmill import plugins
from modelmill.control import schemas
from modelmill.control.db import ApiKey, Dataset, Deployment, Job, Replica
from modelmill.control.kinds import kind_named
from modelmill.control.options import options_of
from modelmill.data.formats import fitting
from modelmill.tasks.base import describe, plan, recipe_named, task_named
from modelmill.tasks.parameters import describe_parameters
from modelmill.types import ALONE, BY_HAND, Json, ServingOptions


def task_view(name: str) -> schemas.TaskView:
    """A task with its recipes and the formats it reads."""
    task = task_named(name)
    formats = list(fitting(task))
    recipes = list(plugins.names(plugins.recipes_of(name)))
    return schemas.TaskView(
        name=name,
        summary=task.SUMMARY,
        input=task.takes,
        also=list(task.ALSO_TAKES),
        output=task.GIVES,
        recipes=recipes,
        formats=formats,
        parameters=list(describe_parameters(task.PARAMETERS)),
    )


def parameters_view(task: str) -> list[Json]:
    """What a call of a task's model may choose; nothing for one without a task, or whose task is
    not installed.
    """
    if task not in plugins.names("tasks"):
        return []
    return list(describe_parameters(task_named(task).PARAMETERS))


def kind_view(name: str) -> schemas.KindView:
    """A kind of jobs with its request."""
    kind = kind_named(name)
    return schemas.KindView(
        name=name,
        summary=kind.SUMMARY,
        file=kind.FILE,
        request=msgspec.json.schema(kind.Request),
    )


def recipe_view(task: str, name: str, default: bool) -> schemas.RecipeView:
    """A recipe with the defaults and meaning of its settings."""
    module = recipe_named(task, name)
    rows = [
        row
        for part in plan(module, {}).sections().values()
        for row in describe(part)
    ]
    return schemas.RecipeView(
        name=name,
        summary=module.SUMMARY,
        default=default,
        settings=msgspec.to_builtins(rows),
    )


def dataset_view(row: Dataset) -> schemas.DatasetView:
    """A data set with the findings of its check."""
    report = row.report or {}
    return schemas.DatasetView(
        name=row.name,
        task=row.task,
        format=row.format,
        state=row.state,
        digest=row.digest,
        items=report.get("sound", 0),
        classes=report.get("classes", {}),
        splits=report.get("splits", {}),
        findings=report.get("findings", []),
        created=row.created,
    )


def job_view(row: Job) -> schemas.JobView:
    """A job."""
    result = dict(row.result or {})
    metrics = result.pop("metrics", {})
    return schemas.JobView(
        job=row.id,
        kind=row.kind,
        state=row.state,
        model=row.model,
        version=row.version,
        task=row.task,
        recipe=row.recipe,
        dataset=row.dataset,
        settings=row.settings or {},
        metrics=metrics,
        result=result,
        error=row.error or "",
        pid=row.pid if row.state == "running" else None,
        created=row.created,
        started=row.started,
        ended=row.ended,
    )


def deployment_view(
    row: Deployment, replicas: dict[int, list[Replica]], tasks: dict[str, str]
) -> schemas.DeploymentView:
    """A deployment; it is ready when its main version answers with the options it should."""
    workers = replicas.get(row.id, [])
    options = options_of(row)
    ready = _count_ready(workers)
    serving = (row.serving_model or row.model, row.serving or row.version)
    batch, batches = _batching(workers, serving)
    return schemas.DeploymentView(
        name=row.name,
        model=row.model,
        version=row.version,
        task=tasks.get(row.model, ""),
        replicas=row.replicas,
        ready_replicas=ready[serving],
        state=_state(row, workers, options),
        serving=row.serving,
        error=row.error,
        note=row.note,
        options=msgspec.to_builtins(options),
        variants=[_variant_view(variant, ready) for variant in row.variants],
        memory=sum(worker.memory for worker in workers),
        batch=batch,
        batches=batches,
        created=row.created,
    )


def _count_ready(workers: list[Replica]) -> Counter[tuple[str, int]]:
    """The number of ready workers of each version."""
    return Counter(
        (worker.model, worker.version) for worker in workers if worker.ready
    )


def _batching(
    workers: list[Replica], serving: tuple[str, int]
) -> tuple[int, str]:
    """How many calls share a batch where the version that answers is, and the same in words."""
    answering = [
        w for w in workers if w.ready and (w.model, w.version) == serving
    ]
    batch = max((worker.batch for worker in answering), default=0)
    alone = next((worker.alone for worker in answering if worker.alone), "")
    return batch, _batches(batch, alone)


def _variant_view(
    variant: Json, ready: Counter[tuple[str, int]]
) -> schemas.VariantView:
    """A canary or shadow with the number of its ready workers."""
    return schemas.VariantView(
        model=variant["model"],
        version=variant["version"],
        weight=variant["weight"],
        shadow=variant["shadow"],
        ready_replicas=ready[(variant["model"], variant["version"])],
    )


def _batches_as(worker: Replica, options: ServingOptions) -> bool:
    """Whether a worker joins calls as the options say; one with former options is replaced."""
    if options.batch:
        return worker.batch <= options.batch
    return worker.alone != BY_HAND


def _state(
    row: Deployment, workers: list[Replica], options: ServingOptions
) -> str:
    """The state of a deployment with these workers."""
    if not row.loaded:
        return "unloaded"
    if row.error:
        return "failed"
    if row.asleep:
        return "asleep"
    main = (row.model, row.version)
    ready = any(
        worker.ready
        and (worker.model, worker.version) == main
        and _batches_as(worker, options)
        for worker in workers
    )
    routed = (row.serving_model, row.serving) == main
    return "ready" if routed and ready else "loading"


def _batches(batch: int, alone: str) -> str:
    """How many calls share a batch, in words; empty where it is not known."""
    if alone:
        return f"{ALONE}: {alone}"
    if batch == 1:
        return f"{ALONE}: the model gains nothing from more"
    return f"up to {batch} calls share a batch" if batch else ""


def key_view(row: ApiKey) -> schemas.KeyView:
    """A key, without the key itself."""
    return schemas.KeyView(
        name=row.name,
        role=row.role,
        rate=row.rate,
        burst=row.burst,
        created=row.created,
    )
