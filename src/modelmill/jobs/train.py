"""A training, from a checked data set to a sealed bundle.

prepare -> decode (cached) -> loop or fit -> convert -> golden set -> evaluate through the served
path -> card -> seal. Interrupted anywhere, it starts again at the top and goes on from the loop's
checkpoint.
"""

import functools
import shutil
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

from modelmill import __version__, bundle
from modelmill.data.augment import NONE
from modelmill.data.base import SPLITS
from modelmill.data.cache import Arrays, trim
from modelmill.engines.base import engine_named
from modelmill.errors import InvalidInput
from modelmill.exporters.onnx import convert
from modelmill.independence import batches
from modelmill.jobs.card import CARD, curves_picture, model_card
from modelmill.jobs.evaluate import evaluate
from modelmill.jobs.inheriting import Base, few, freeze, head_of
from modelmill.jobs.material import Material
from modelmill.jobs.process import Events, Stop, save_pictures
from modelmill.predictor import Predictor, write_golden
from modelmill.tasks.base import (
    MOST_EPOCHS,
    Context,
    Facts,
    Graph,
    Plan,
    Signature,
    Task,
    TrainSettings,
    fitted,
    recipe_named,
    task_named,
)
from modelmill.types import WEIGHTS, JobSpec, Json, Lineage, Manifest

if TYPE_CHECKING:
    from modelmill.jobs.objective import Objective

ENGINE = "onnx"
GOLDEN = 4
CACHE_BYTES = 50 << 30


class Training(NamedTuple):
    """What every stage of a training is about."""

    spec: JobSpec
    task: Task
    recipe: ModuleType
    base: Base | None
    events: Events
    stop: Stop


def train_version(spec: JobSpec, events: Events, stop: Stop) -> Json:
    """Leaves a sealed `bundle` and `pictures` in the job's folder; the result holds the metrics."""
    folder = Path(spec.folder)
    sealed = folder / "bundle"
    draft = folder / "bundle.draft"
    if sealed.exists():  # stopped between sealing and reporting
        metrics = bundle.open_bundle(sealed).metrics
        return {"metrics": metrics, "bundle": bundle.digest_of(sealed)}
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    with Material(spec, events, stop) as material:
        manifest = make(_training(spec, events, stop), material, draft)
    digest = bundle.seal(draft, manifest, sealed)
    trim(Path(spec.cache), CACHE_BYTES)
    return {"metrics": manifest.metrics, "bundle": digest}


def _training(spec: JobSpec, events: Events, stop: Stop) -> Training:
    """The task, the recipe and the version to start from, by their names."""
    task = task_named(spec.task)
    recipe = recipe_named(spec.task, spec.recipe)
    base = Base(spec.base, Path(spec.bundle)) if spec.base else None
    return Training(spec, task, recipe, base, events, stop)


def make(one: Training, material: Material, draft: Path) -> Manifest:
    """Train, convert and evaluate; leaves all files of the bundle in `draft` but its manifest."""
    spec = one.spec
    chosen, context = prepare(one, material, draft)
    data, validation = (
        material.decoded(split, one.task, context, Path(spec.cache))
        for split in ("train", "val")
    )
    history = fit(one, chosen, context, data, validation)
    one.events.stage("evaluating through the served path")
    model = Predictor(draft, describe(one, context, chosen), spec.threads)
    golden(model, material, draft)
    found = evaluate(model, material, "test", one.events, one.stop)
    pictures = keep_pictures(one, draft, found.pictures, history)
    manifest = msgspec.structs.replace(
        model.manifest, metrics=found.metrics, batches=batches(model)
    )
    write_card(draft, spec.name, manifest, pictures)
    return manifest


def write_card(
    draft: Path, name: str, manifest: Manifest, pictures: Iterable[str]
) -> None:
    """The model card, which shows the pictures by name."""
    card = model_card(name, manifest, sorted(pictures))
    (draft / CARD).write_text(card, "utf-8")


def keep_pictures(
    one: Training, draft: Path, found: Mapping[str, bytes], history: list[Json]
) -> dict[str, bytes]:
    """Previews, those of the evaluation and the learning curves, in the bundle and in the job's
    folder.
    """
    folder = Path(one.spec.folder) / "pictures"
    previews = {
        path.name: path.read_bytes() for path in folder.glob("samples-*.png")
    }
    pictures = {**previews, **found}
    if history:
        pictures["curves.png"] = curves_picture(history)
    for place in (draft / "pictures", folder):
        save_pictures(place, pictures)
    return pictures


def prepare(
    one: Training, material: Material, draft: Path
) -> tuple[Plan, Context]:
    """The settings, and the preprocessing that the training data want; may leave files in
    `draft`.
    """
    task, labels = one.task, material.labels
    count = f" for {len(labels)} classes" if labels else ""
    one.events.stage(f"preparing {one.spec.recipe}{count}")
    items = material.sample("train", task.SAMPLES)
    samples = [task.prepare_sample(item) for item in items]
    chosen = choose(one, material, samples)
    if one.base is not None:
        chosen = one.base.prepared(chosen, draft)
    preprocessing = task.prepare(samples, chosen.input, draft)
    return chosen, Context(
        preprocessing=preprocessing, labels=labels, folder=draft
    )


def choose(one: Training, material: Material, samples: list[Any]) -> Plan:
    """The settings that were given, and for the others what fits the data; the log says what was
    chosen and why.
    """
    base = one.base
    given = one.spec.settings
    if base is not None:
        given = base.settings(one.recipe, one.spec.task, given)
    facts = facts_of(one, material, samples)
    plan, choices = fitted(one.recipe, facts, given)
    for choice in choices:
        settings = [
            f"{name}={value}" for name, value in choice.settings.items()
        ]
        one.events.stage(f"{choice.why}: {', '.join(settings)}")
    return plan


def facts_of(one: Training, material: Material, samples: list[Any]) -> Facts:
    """What the recipe may fit its settings to."""
    fits_data = hasattr(one.recipe, "fit_to")
    return Facts(
        counts={split: material.count(split) for split in SPLITS},
        classes=material.classes("train"),
        inputs=one.task.describe_inputs(samples) if fits_data else None,
        base=one.base.manifest.task if one.base else "",
    )


def fit(
    one: Training,
    chosen: Plan,
    context: Context,
    data: Arrays,
    validation: Arrays,
) -> list[Json]:
    """Train by the recipe's own `fit`, or its `network` by the loop; writes weights and model,
    returns history.
    """
    signature = Signature(
        inputs=one.task.inputs(context),
        classes=len(context.labels),
        preprocessing=context.preprocessing,
    )
    if hasattr(one.recipe, "fit"):
        one.events.stage(f"fitting on {len(data)} items")
        network, weights = one.recipe.fit(
            chosen, signature, data.arrays, data.targets
        )
        history: list[Json] = []
    else:
        start = functools.partial(begin, one, chosen, signature, context.labels)
        network, weights, history = fit_network(
            one, chosen, signature, (data, validation), start
        )
    save_weights(weights, context.folder)
    export(one, network, context)
    return history


def export(one: Training, network: Any, context: Context) -> None:
    """Write the network as the engine reads it, or each of several in a folder of its own."""
    one.events.stage(f"converting to {ENGINE}")
    graphs = network
    if not isinstance(network, dict):
        graphs = {"": Graph(network, *one.task.graph(context))}
    for name, graph in graphs.items():
        folder = context.folder / name
        folder.mkdir(exist_ok=True)
        convert(graph.network, graph.inputs, graph.outputs, folder)


def fit_network(
    one: Training,
    chosen: Plan,
    signature: Signature,
    both: tuple[Arrays, Arrays],
    start: Callable[[], Any],
) -> tuple[Any, dict[str, np.ndarray[Any, Any]], list[Json]]:
    """The loop over a torch network: as it is deployed, its weights, and how it came about."""
    import torch

    from modelmill.jobs.loop import Loop
    from modelmill.jobs.objective import objective

    assert chosen.train is not None
    torch.set_num_threads(one.spec.threads)
    torch.manual_seed(chosen.seed)
    network = start()
    _tell_size(one, network, len(both[0]), chosen.train)
    aim = objective(one.task, one.recipe)
    trained = Loop(
        network,
        *both,
        chosen.train,
        aim,
        _augmentation(aim, chosen, signature),
        Path(one.spec.folder),
        one.events,
        one.stop,
    ).run()
    state = trained.network.state_dict()
    weights = {name: tensor.numpy() for name, tensor in state.items()}
    return aim.deployed(trained.network, signature), weights, trained.history


def _tell_size(
    one: Training, network: Any, items: int, settings: TrainSettings
) -> None:
    count = sum(parameter.numel() for parameter in network.parameters())
    one.events.stage(
        f"training {count:,} parameters on {items} items, {_length(settings)}"
    )


def _augmentation(
    aim: "Objective", chosen: Plan, signature: Signature
) -> Callable[[Any], Any] | None:
    """What changes each batch, where the task has it and the settings want it."""
    if aim.change is None or chosen.augment in (None, NONE):
        return None
    return functools.partial(_changed, aim.change, chosen.augment, signature)


def begin(
    one: Training, chosen: Plan, signature: Signature, labels: list[str]
) -> Any:
    """The network before its training: new, or with the weights of the version it starts from."""
    assert chosen.train is not None
    network = one.recipe.network(chosen.network, signature)
    taken = (
        _inherit(one, chosen, signature, labels, network) if one.base else []
    )
    parts = chosen.train.freeze
    if parts:
        count = freeze(network, parts, taken)
        one.events.stage(f"{count:,} parameters stay as they are")
    return network


def _inherit(
    one: Training,
    chosen: Plan,
    signature: Signature,
    labels: list[str],
    network: Any,
) -> list[str]:
    """Take over the weights of the base, but those that tell other classes apart; their names."""
    base = one.base
    assert base is not None
    head = set[str]()
    if labels != base.manifest.labels:
        head = head_of(one.recipe, chosen, signature)
    taken, new = base.give(network, head)
    others = f", new: {few(new)}" if new else ""
    one.events.stage(
        f"starting from {base.name}: {len(taken)} weights taken{others}"
    )
    return taken


def _length(settings: TrainSettings) -> str:
    if not settings.time:
        return f"{settings.epochs} epochs"
    most = (
        f", at most {settings.epochs} epochs"
        if settings.epochs < MOST_EPOCHS
        else ""
    )
    return f"{settings.time}{most}; the learning rate falls to the end of that time"


def _changed(change: Any, how: Any, signature: Signature, batch: Any) -> Any:
    return change(batch, how, signature)


def save_weights(weights: dict[str, np.ndarray[Any, Any]], draft: Path) -> None:
    """For further training."""
    from safetensors.numpy import save_file

    # `ascontiguousarray` alone gives a number an axis.
    save_file(
        {
            name: np.ascontiguousarray(array).reshape(array.shape)
            for name, array in weights.items()
        },
        draft / WEIGHTS,
    )


def describe(one: Training, context: Context, chosen: Plan) -> Manifest:
    """The manifest, but for metrics and files."""
    spec = one.spec
    return Manifest(
        task=spec.task,
        engine=ENGINE,
        inputs=one.task.inputs(context),
        outputs=one.task.outputs(context),
        preprocessing=msgspec.to_builtins(context.preprocessing),
        labels=context.labels,
        takes=one.task.takes,
        also_takes=list(one.task.ALSO_TAKES),
        gives=one.task.GIVES,
        streams=one.task.streams,
        lineage=Lineage(
            dataset=spec.dataset["name"],
            data_digest=spec.dataset["digest"],
            recipe=spec.recipe,
            settings=chosen.flat(),
            seed=chosen.seed,
            code_version=__version__,
            job=spec.job,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            chain=one.base.chain() if one.base else [],
        ),
    )


def golden(model: Predictor, material: Material, draft: Path) -> None:
    """A few raw test inputs and their answers."""
    inputs: list[bytes | str] = []
    for item in material.sample("test", GOLDEN):
        inputs.append(
            model.task.as_sent(model.task.measured_by(item, model.context))
        )
    if not inputs:
        raise InvalidInput("there is nothing to test on")
    _write_golden(model, draft, inputs)
    for precision in engine_named(ENGINE).VARIANTS:
        if (draft / precision).exists():
            other = Predictor(
                draft, model.manifest, model.threads, precision=precision
            )
            _write_golden(other, draft / precision, inputs)


def _write_golden(
    model: Predictor, folder: Path, inputs: list[bytes | str]
) -> None:
    write_golden(folder, inputs, [model.predict([raw])[0] for raw in inputs])
