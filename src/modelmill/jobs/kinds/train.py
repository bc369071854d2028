"""A training: a data set and a recipe become a version of a model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from modelmill import plugins
from modelmill.errors import InvalidInput
from modelmill.jobs.kinds.base import COMPUTE, JobStores, Kind, Order, Request
from modelmill.tasks.base import plan, recipe_named, task_named, usual_name
from modelmill.types import WEIGHTS, JobSpec, Json, check_name

if TYPE_CHECKING:
    from modelmill.control.db import Job, Version
    from modelmill.jobs.process import Events, Stop

FROM = "from"
"""Among the settings of a training: the version that it starts from. No setting can have the
name.
"""


class TrainRequest(Request, frozen=True, kw_only=True, rename={"base": FROM}):
    """A training to queue."""

    name: Annotated[str, Meta(description="model to make a version of")]
    task: Annotated[str, Meta(examples=["image-classification"])]
    data: Annotated[str, Meta(description="name of a data set")]
    recipe: Annotated[
        str,
        Meta(
            description="empty: the task's default, or that of the version it starts from"
        ),
    ] = ""
    base: Annotated[
        str,
        Meta(
            description="NAME[:VERSION|@ALIAS] to start from; empty: from nothing"
        ),
    ] = ""
    settings: Annotated[Json, Meta(description="overrides; see /recipes")] = (
        msgspec.field(default_factory=dict)
    )


class Train(Kind[TrainRequest]):
    """Trains a version of a model, from nothing or from another version."""

    SUMMARY = "Queue a training."
    LANE = COMPUTE
    Request = TrainRequest

    def order(
        self,
        request: TrainRequest,
        project: int,
        stores: JobStores,
        upload: Path | None,
    ) -> Order:
        """Checks names, settings and data; what is left open the job chooses by the data."""
        check_name("model", request.name)
        task = usual_name(request.task)
        base = (
            stores.registry.get(project, request.base) if request.base else None
        )
        recipe = _recipe_name(request.recipe, task, base)
        settings = _valid(task, recipe, request.settings)
        dataset = stores.datasets.trainable(project, request.data, task)
        with stores.database.session() as session:
            stores.registry.refuse_other_task(
                session, project, request.name, task
            )
        if base:
            settings[FROM] = f"{base.model}:{base.number}"
        return Order(
            model=request.name,
            task=task,
            recipe=recipe,
            dataset=dataset,
            settings=settings,
        )

    def spec(self, row: "Job", draft: JobSpec, stores: JobStores) -> JobSpec:
        """With the bundle of the version that it starts from."""
        base = row.settings.get(FROM, "")
        if not base:
            return draft
        version = stores.registry.get(row.project_id, base)
        return msgspec.structs.replace(
            draft,
            settings={
                name: value
                for name, value in draft.settings.items()
                if name != FROM
            },
            bundle=str(stores.registry.folder(version)),
            base=base,
        )

    def run(self, spec: JobSpec, events: "Events", stop: "Stop") -> Json:
        """Leaves a sealed bundle."""
        from modelmill.jobs.train import train_version

        return train_version(spec, events, stop)

    def keep(self, row: "Job", result: Json, stores: JobStores) -> int:
        """The bundle becomes the model's next version."""
        folder = stores.folder(row.id)
        version = stores.registry.add(
            row.project_id,
            row.model,
            folder / "bundle",
            row.id,
            result["bundle"],
        )
        (folder / "checkpoint.pt").unlink(missing_ok=True)
        return version.number


def _valid(task: str, recipe: str, given: Json) -> Json:
    """The settings that were given, checked; raises `InvalidInput`."""
    every = plan(recipe_named(task, recipe), given).flat()
    return {setting: every[setting] for setting in given}


def _recipe_name(wanted: str, task: str, base: "Version | None") -> str:
    """The recipe that is asked for, that of the version to start from, or the task's own; raises
    `InvalidInput`.
    """
    if base is None:
        return wanted or task_named(task).RECIPE
    if WEIGHTS not in base.manifest["files"]:
        raise InvalidInput(
            f"{base.model}:{base.number} has no weights to start from: it came here as a finished "
            "network"
        )
    same = base.manifest["lineage"]["recipe"] if base.task == task else ""
    chosen = wanted or same or task_named(task).RECIPE
    if not _has_network(task, chosen):
        recipes = plugins.names(plugins.recipes_of(task))
        others = [recipe for recipe in recipes if _has_network(task, recipe)]
        raise InvalidInput(
            f"the recipe {chosen} starts from nothing; choose another: {', '.join(others)}"
        )
    return chosen


def _has_network(task: str, recipe: str) -> bool:
    """Whether a recipe trains a network, which can start from weights."""
    return hasattr(recipe_named(task, recipe), "network")


KIND = Train()
