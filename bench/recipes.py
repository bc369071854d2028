"""Every recipe's training in our loop beside a plain one, in one run: `python -m bench.recipes
[RECIPE]`.

Both train the same network by the same loss, changes, optimisers, averaging and batch size, on
pictures and texts made here, alternately, each in a process of its own with the environment that
its users would have. The plain loop is what one writes with torch's DataLoader: fp32, in torch's
usual layout of memory.
"""

import functools
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from PIL import Image

from bench.running import table

EPOCHS, ROUNDS = 2, 3
KINDS = ("ours", "plain")
SOUNDS = ("audio-classification", "automatic-speech-recognition")
WORDS = [f"word{number}" for number in range(2000)]


class Case(NamedTuple):
    """What a recipe is timed on: the sides of the pictures made for it, grey or not, and the steps
    of an epoch.
    """

    task: str
    recipe: str
    height: int
    width: int
    grey: bool
    steps: int


CASES = [
    Case("image-classification", "cnn", 28, 28, True, 40),
    Case("image-classification", "resnet", 120, 160, False, 12),
    Case("object-detection", "centernet", 192, 256, False, 8),
    Case("image-segmentation", "unet", 180, 240, False, 16),
    Case("image-feature-extraction", "embed", 64, 64, True, 20),
    Case("image-to-image", "denoise", 180, 180, True, 20),
    Case("image-to-image", "super-resolution", 180, 180, True, 20),
    Case("image-to-image", "inpaint", 180, 180, False, 12),
    Case("unconditional-image-generation", "dcgan", 28, 28, True, 20),
    Case("unconditional-image-generation", "ddpm", 28, 28, True, 12),
    Case("text-classification", "bilstm", 0, 0, False, 20),
    Case("text-classification", "transformer", 0, 0, False, 20),
    Case("fill-mask", "bert", 0, 0, False, 20),
    Case("feature-extraction", "encoder", 0, 0, False, 6),
    Case("translation", "transformer", 0, 0, False, 6),
    Case("translation", "attention", 0, 0, False, 6),
    Case("question-answering", "reader", 0, 0, False, 10),
    Case("question-answering", "transformer", 0, 0, False, 10),
    Case("text-generation", "gpt", 0, 0, False, 6),
    Case("audio-classification", "cnn", 0, 0, False, 20),
    Case("automatic-speech-recognition", "ctc", 0, 0, False, 12),
]


def measure(only: str = "") -> str:
    """A Markdown table: items a second of both loops, their ratio, and where our time goes."""
    rows = []
    for number, case in enumerate(CASES):
        if only not in case.recipe:
            continue
        found: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for _ in range(ROUNDS):
            for kind in KINDS:
                found[kind].append(
                    _in_a_process(kind, number)["items_per_second"]
                )
        ours, plain = (statistics.median(found[kind]) for kind in KINDS)
        ratio = statistics.median(
            one / other
            for one, other in zip(found["ours"], found["plain"], strict=True)
        )
        shares = ", ".join(
            f"{name} {100 * share:.0f} %"
            for name, share in _in_a_process("shares", number).items()
        )
        told = f"**{ratio:.2f}** (1.0: {'met' if ratio >= 1 else 'MISSED'})"
        rows.append(
            [
                f"{case.task} `{case.recipe}`",
                f"{ours:,.0f}",
                f"{plain:,.0f}",
                told,
                shares,
            ]
        )
        print("|", " | ".join(rows[-1]), "|", flush=True)
    return table(
        [
            "recipe",
            "items/s, ours",
            "plain",
            "ratio (bar)",
            "where our time goes",
        ],
        rows,
    )


def _in_a_process(kind: str, number: int) -> dict[str, float]:
    from modelmill.control.jobs import ENVIRONMENT

    env = {**os.environ, **({} if kind == "plain" else ENVIRONMENT)}
    command = [sys.executable, "-m", "bench.recipes", kind, str(number)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


# ---- what is trained


class Training(NamedTuple):
    """A network before its training, and what it is trained on."""

    network: Any
    settings: Any
    aim: Any
    change: Callable[[Any], Any] | None
    data: Any


def training(case: Case, folder: Path) -> Training:
    """As a job would have it."""
    import torch

    from modelmill.data.augment import NONE
    from modelmill.data.cache import Arrays
    from modelmill.jobs.objective import objective
    from modelmill.tasks.base import (
        Context,
        Signature,
        plan,
        recipe_named,
        task_named,
    )

    task, recipe = task_named(case.task), recipe_named(case.task, case.recipe)
    chosen = plan(
        recipe, {"scale": 2} if case.recipe == "super-resolution" else {}
    )
    assert chosen.train is not None
    items = list(made(case, 8 * chosen.train.batch_size))
    labels = ["0", "1", "2", "3"]
    seen = [task.prepare_sample(item) for item in items]
    how = task.prepare(seen, chosen.input, folder)
    context = Context(preprocessing=how, labels=labels, folder=folder)
    samples = [task.sample(item, context) for item in items]
    inputs, targets = (
        {
            name: np.stack([one[part][name] for one in samples])
            for name in samples[0][part]
        }
        for part in (0, 1)
    )
    signature = Signature(
        inputs=task.inputs(context), classes=len(labels), preprocessing=how
    )
    torch.manual_seed(0)
    network = recipe.network(chosen.network, signature)
    aim, change = objective(task, recipe), None
    if aim.change is not None and chosen.augment not in (None, NONE):
        change = functools.partial(
            _changed, aim.change, chosen.augment, signature
        )
    settings = msgspec.structs.replace(
        chosen.train, epochs=1 + EPOCHS, epoch_steps=case.steps
    )
    return Training(network, settings, aim, change, Arrays(inputs, targets))


def _changed(change: Any, how: Any, signature: Any, batch: Any) -> Any:
    return change(batch, how, signature)


def made(case: Case, count: int) -> Iterator[Any]:
    """Items of the task, the same ones every time."""
    from modelmill.data.base import Box, Item
    from modelmill.tasks.decoding.audio_decoder import wav

    rng = np.random.default_rng(0)
    for number in range(count):
        label = str(number % 4)
        if case.task in SOUNDS:
            noise = rng.normal(size=8000).astype(np.float32) / 8
            yield Item(str(number), label, wav(noise, 8000), target=label * 5)
            continue
        if not case.height:
            yield _text(case.task, str(number), label, rng)
            continue
        shape = (
            (case.height, case.width)
            if case.grey
            else (case.height, case.width, 3)
        )
        target: Any = None
        if case.task == "object-detection":
            target = [Box(label, 20, 20, 90, 100)]
        if case.task == "image-segmentation":
            out = io.BytesIO()
            Image.fromarray(
                rng.integers(0, 4, (case.height, case.width)).astype(np.uint8)
            ).save(out, "PNG")
            target = out.getvalue()
        yield Item(
            str(number),
            label,
            rng.integers(0, 256, shape).astype(np.uint8),
            target=target,
        )


def _text(task: str, name: str, label: str, rng: np.random.Generator) -> Any:
    """An item of a language task: sentences of 20 words, passages of 120, pages of 500."""
    from modelmill.data.base import Item

    def words(count: int) -> str:
        return " ".join(rng.choice(WORDS, count))

    if task in ("translation", "feature-extraction"):
        return Item(name, "", words(20), target=(words(20),))
    if task == "question-answering":
        passage = words(120)
        asked = json.dumps({"question": words(10), "context": passage})
        return Item(
            name, "", asked, target=((passage[:16].rpartition(" ")[0], 0),)
        )
    return Item(name, label, words(500 if task == "text-generation" else 20))


# ---- both loops


def ours(
    case: Case, watch: Callable[[Training], Training] = lambda one: one
) -> float:
    """Items a second of the loop of a training job, without its first epoch."""
    from modelmill.data.cache import Arrays
    from modelmill.jobs.loop import Loop
    from modelmill.jobs.process import Events, Stop

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        network, settings, aim, change, data = watch(training(case, folder))
        few = Arrays(
            *(
                {name: array[:4] for name, array in part.items()}
                for part in (data.arrays, data.targets)
            )
        )
        events = Events(folder / "events.jsonl")
        aim = aim._replace(preview=None)
        done = Loop(
            network, data, few, settings, aim, change, folder, events, Stop()
        ).run()
        events.close()
    return statistics.median(
        row["samples_per_second"] for row in done.history[1:]
    )


def plain(case: Case) -> float:
    """Items a second of a loop as a tutorial has it, without its first epoch."""
    import torch
    from torch.optim.swa_utils import AveragedModel
    from torch.utils.data import DataLoader, RandomSampler, TensorDataset

    from modelmill.jobs.optimisers import averaging, make_optimisers, schedule

    with tempfile.TemporaryDirectory() as temporary:
        network, settings, aim, change, data = training(case, Path(temporary))
    arrays = {**data.arrays, **data.targets}
    dataset = TensorDataset(*map(torch.from_numpy, arrays.values()))
    sampler = RandomSampler(
        dataset, replacement=False, num_samples=case.steps * settings.batch_size
    )
    loader = DataLoader(dataset, settings.batch_size, sampler=sampler)
    parts = {
        part: make_optimisers(network.get_submodule(part), settings)
        for part in getattr(network, "parts", ("",))
    }
    rates = [
        torch.optim.lr_scheduler.LambdaLR(
            one, schedule(settings, settings.epochs * case.steps)
        )
        for optimisers in parts.values()
        for one in optimisers
    ]
    average = (
        AveragedModel(
            network, multi_avg_fn=averaging(settings.ema), use_buffers=True
        )
        if settings.ema
        else None
    )
    network.train()
    speeds = []
    for _ in range(settings.epochs):
        started = time.perf_counter()
        for tensors in loader:
            batch = dict(zip(arrays, tensors, strict=True))
            losses = aim.loss(
                network, change(batch) if change else batch, settings
            )
            for part, loss in (
                [("", losses)] if isinstance(losses, torch.Tensor) else losses
            ):
                network.zero_grad()
                loss.backward()
                if settings.clip:
                    torch.nn.utils.clip_grad_norm_(
                        network.get_submodule(part).parameters(), settings.clip
                    )
                for optimiser in parts[part]:
                    optimiser.step()
            for rate in rates:
                rate.step()
            if average is not None:
                average.update_parameters(network)
        speeds.append(len(sampler) / (time.perf_counter() - started))
    return statistics.median(speeds[1:])


# ---- where the time goes


def shares(case: Case) -> dict[str, float]:
    """The parts of a training's time, as its own loop spends it."""
    import torch
    from torch.optim import Optimizer
    from torch.optim.swa_utils import AveragedModel

    from modelmill.jobs import optimisers  # noqa: F401, its own kinds are watched, too

    spent = dict.fromkeys(
        ("changes", "forward", "backward", "optimiser", "averaging"), 0.0
    )
    marks: list[float] = []

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        started, inner = time.perf_counter(), sum(spent.values())
        yield
        spent[name] += (
            time.perf_counter() - started - (sum(spent.values()) - inner)
        )

    def watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            with timed(name):
                return function(*arguments, **options)

        return call

    def forward(loss: Callable[..., Any], *arguments: Any) -> Any:
        with timed("forward"):
            found = loss(*arguments)
        return found if isinstance(found, torch.Tensor) else _each(found, timed)

    def watch(one: Training) -> Training:
        marks.append(time.perf_counter())
        aim = one.aim._replace(loss=functools.partial(forward, one.aim.loss))
        return one._replace(
            aim=aim,
            change=watched("changes", one.change) if one.change else None,
        )

    torch.Tensor.backward = watched("backward", torch.Tensor.backward)  # type: ignore[method-assign]
    AveragedModel.update_parameters = watched(
        "averaging", AveragedModel.update_parameters
    )  # type: ignore[method-assign]
    for kind in {
        *Optimizer.__subclasses__(),
        *(
            deep
            for k in Optimizer.__subclasses__()
            for deep in k.__subclasses__()
        ),
    }:
        kind.step = watched("optimiser", kind.step)  # type: ignore[method-assign]
    ours(case, watch)
    whole = time.perf_counter() - marks[0]
    return {name: part / whole for name, part in spent.items()} | {
        "rest": 1 - sum(spent.values()) / whole
    }


def _each(losses: Iterator[Any], timed: Callable[[str], Any]) -> Iterator[Any]:
    while True:
        with timed("forward"):
            found = next(losses, None)
        if found is None:
            return
        yield found


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] in (*KINDS, "shares"):
        chosen = CASES[int(sys.argv[2])]
        if sys.argv[1] == "shares":
            print(json.dumps(shares(chosen)))
        else:
            print(
                json.dumps(
                    {
                        "items_per_second": {"ours": ours, "plain": plain}[
                            sys.argv[1]
                        ](chosen)
                    }
                )
            )
    else:
        measure(sys.argv[1] if len(sys.argv) > 1 else "")
