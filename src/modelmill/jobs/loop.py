"""The training loop: one network, one set of arrays, top to bottom.

Everything random in a step comes from the seed and the step's number, so that a run that was
interrupted and resumed ends with the same weights, bit for bit on a CPU, as an undisturbed one.
"""

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel

from modelmill.data.cache import Arrays
from modelmill.errors import ModelFailed
from modelmill.jobs.contention import Contention
from modelmill.jobs.objective import Batch, Objective
from modelmill.jobs.optimisers import averaging, make_optimisers
from modelmill.jobs.pace import Clock, Pace
from modelmill.jobs.process import Events, Interrupted, Stop, save_pictures
from modelmill.tasks.base import TrainSettings
from modelmill.types import Json

CHECKPOINT = "checkpoint.pt"
CHECKPOINT_SECONDS = 20.0
VALIDATION_BATCH = 64
STRETCH = 32
"""Batches whose items are put in order of their sizes together: enough to be alike, and few enough
to be mixed.
"""
PICTURES, PREVIEWS = "pictures", 8
"""Where the pictures of a job are, and how many previews a training leaves there."""

Change = Callable[[Batch], Batch]


class State:
    """All that a checkpoint keeps: what has been learnt and how far the loop has come."""

    def __init__(
        self, network: nn.Module, settings: TrainSettings, pace: Pace
    ) -> None:
        self.network = network
        self.average: AveragedModel | None = None
        if settings.ema:
            self.average = AveragedModel(
                network, multi_avg_fn=averaging(settings.ema), use_buffers=True
            )
        # A network whose parts are trained in turns has optimisers for each of them.
        self.parts = {
            part: make_optimisers(network.get_submodule(part), settings)
            for part in getattr(network, "parts", ("",))
        }
        self.pace = pace
        self.step = 0
        self.loss_sum = 0.0
        self.best: dict[str, Any] = {}
        self.history: list[Json] = []

    @property
    def judged(self) -> nn.Module:
        """The network that is validated and kept: the averaged one, where weights are averaged."""
        return self.network if self.average is None else self.average.module

    def close_step(self, loss: float) -> float:
        """Average the weights and count the step."""
        if self.average is not None:
            self.average.update_parameters(self.network)
        self.step += 1
        self.loss_sum += loss
        return loss

    def save(self, path: Path) -> None:
        """Whole or not at all."""
        draft = path.with_suffix(".tmp")
        kept = {
            name: getattr(self, name)
            for name in ("step", "loss_sum", "best", "history")
        }
        kept |= {"spent": self.pace.spent, "share": self.pace.share}
        kept |= {name: part.state_dict() for name, part in self._parts()}
        with draft.open("wb") as file:
            torch.save(kept, file)
            file.flush()
            os.fsync(file.fileno())
        os.rename(draft, path)

    def load(self, path: Path) -> None:
        """Go on where a checkpoint was written."""
        kept = torch.load(path, weights_only=True)
        for name, part in self._parts():
            part.load_state_dict(kept[name])
        for name in ("step", "loss_sum", "best", "history"):
            setattr(self, name, kept[name])
        self.pace.resume(kept.get("spent", 0.0), kept.get("share", 0.0))

    def _parts(self) -> list[tuple[str, Any]]:
        parts: list[tuple[str, Any]] = [("network", self.network)]
        for part, optimisers in self.parts.items():
            parts += [
                (f"optimiser{part}{number}", optimiser)
                for number, optimiser in enumerate(optimisers)
            ]
        return (
            parts
            if self.average is None
            else [*parts, ("average", self.average)]
        )


class Trained(NamedTuple):
    """The best network and how it came about."""

    network: nn.Module
    history: list[Json]


class Loop:
    """One training: to the last epoch, the end of its time or of patience; the weights of the best
    validation are kept.

    `folder` holds its checkpoint, from which `run` goes on where there is one. A time budget is
    kept by the `clock`: it ends an epoch where it is, and a run that was interrupted goes on with
    what is left.
    """

    def __init__(
        self,
        network: nn.Module,
        data: Arrays,
        validation: Arrays,
        settings: TrainSettings,
        aim: Objective,
        change: Change | None,
        folder: Path,
        events: Events,
        stop: Stop,
        clock: Clock = time.monotonic,
    ) -> None:
        self.data = data
        self.validation = validation
        self.settings = settings
        self.aim = aim
        self.change = change
        self.events = events
        self.stop = stop
        self.clock = clock
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.cast = _autocast(settings.precision, self.device)
        self.steps = settings.epoch_steps or math.ceil(
            len(data) / settings.batch_size
        )
        self.state = self._new_state(network)
        self.trained = 0
        self._sizes = aim.sizes(data.arrays) if aim.sizes is not None else None
        self._checkpoint = folder / CHECKPOINT
        self._saved = time.monotonic()
        self._pictures = folder / PICTURES
        self._contention = Contention(events)

    def _new_state(self, network: nn.Module) -> State:
        """The network on its device, before the first step."""
        settings = self.settings
        pace = Pace(settings, self.steps * settings.epochs, self.clock)
        return State(_channels_last(network.to(self.device)), settings, pace)

    def run(self) -> Trained:
        """All epochs that are left; raises `Interrupted`, with a checkpoint, when asked to stop."""
        state, settings = self.state, self.settings
        if self._checkpoint.exists():
            state.load(self._checkpoint)
            self.events.stage(f"resuming {self._where()}")
        while len(state.history) < settings.epochs and not self._ended():
            speed = self._train_epoch(epoch=len(state.history))
            self._close_epoch(speed)
            self._save()
        kept = state.judged
        kept.load_state_dict(state.best["weights"])
        return Trained(kept.to("cpu").eval(), state.history)

    def _where(self) -> str:
        state, settings = self.state, self.settings
        if settings.seconds:
            return f"at step {state.step}, {state.pace.spent:.0f} s of {settings.time} are spent"
        return f"at step {state.step} of {self.steps * settings.epochs}"

    def _train_epoch(self, epoch: int) -> float:
        """The steps of an epoch that are left, or for which there is time; returns items a
        second.
        """
        state = self.state
        learn(state.network)
        started = time.monotonic()
        before = self.trained
        skip = state.step - epoch * self.steps
        for batch in batches(
            self.data,
            self.settings,
            epoch,
            self.steps,
            skip,
            self.device,
            self._sizes,
        ):
            self._train_batch(epoch, batch)
            if (
                self.stop.requested
                or time.monotonic() - self._saved > CHECKPOINT_SECONDS
            ):
                self._save()
                if self.stop.requested:
                    raise Interrupted
            if state.pace.over:
                break
        return (self.trained - before) / max(time.monotonic() - started, 1e-9)

    def _train_batch(self, epoch: int, batch: Batch) -> None:
        state = self.state
        torch.manual_seed(self.settings.seed * 1_000_003 + state.step)
        if self.change is not None:
            batch = self.change(batch)
        self._tell_step(epoch, self._step(batch))
        self._contention.look()
        self.trained += len(next(iter(batch.values())))
        state.pace.advance(state.step, self.trained, len(self.validation))

    def _step(self, batch: Batch) -> float:
        """One step, or one of each part in turn; returns the loss, summed over the parts."""
        with self.cast:
            losses = self.aim.loss(self.state.network, batch, self.settings)
        if isinstance(losses, Tensor):
            losses = iter([("", losses)])
        total = 0.0
        while True:
            with self.cast:  # what an iterator computes, it computes here
                step = next(losses, None)
            if step is None:
                break
            total += descend(self.state, *step, self.settings)
        return self.state.close_step(total)

    def _ended(self) -> bool:
        history = self.state.history
        return out_of_patience(
            history, self.settings.patience, self.aim.score
        ) or bool(history and self.state.pace.over)

    def _close_epoch(self, speed: float) -> None:
        """Validate, remember the best weights, and write the epoch down."""
        row = self._row(speed, self._validate())
        self.state.loss_sum = 0.0
        self.state.history.append(row)
        self._keep_best(row)
        self._preview(row["epoch"], row["epochs"])
        self.events.write("epoch", **row)

    def _validate(self) -> dict[str, float]:
        started = self.clock()
        figures = validate(
            self.state.judged,
            self.validation,
            self.settings,
            self.cast,
            self.aim,
            self.device,
        )
        self.state.pace.validated(self.clock() - started)
        return figures

    def _row(self, speed: float, figures: dict[str, float]) -> Json:
        """What the history says of an epoch."""
        state = self.state
        epoch = len(state.history) + 1
        loss = state.loss_sum / (state.step - (epoch - 1) * self.steps)
        return {
            "epoch": epoch,
            "epochs": state.pace.epochs(
                state.step / self.steps, self.settings.epochs
            ),
            "train_loss": round(loss, 5),
            **{
                f"val_{name}": round(value, 5)
                for name, value in figures.items()
            },
            "samples_per_second": round(speed, 1),
        }

    def _keep_best(self, row: Json) -> None:
        """Remember the weights, if no epoch was better."""
        state = self.state
        score = list(score_of(row, self.aim.score))
        if not state.best or not self.aim.score or score > state.best["score"]:
            weights = {
                name: part.detach().clone()
                for name, part in state.judged.state_dict().items()
            }
            state.best = {"score": score, "weights": weights}

    def _preview(self, epoch: int, epochs: int) -> None:
        """Show what has been learnt, after some of the epochs."""
        if (
            self.aim.preview is None
            or epoch * PREVIEWS // epochs == (epoch - 1) * PREVIEWS // epochs
        ):
            return
        picture = self.aim.preview(self.state.judged.eval())
        save_pictures(self._pictures, {f"samples-{epoch:04}.png": picture})

    def _tell_step(self, epoch: int, loss: float) -> None:
        self.events.write(
            "step",
            epoch=epoch + 1,
            epochs=self.state.pace.epochs(
                self.state.step / self.steps, self.settings.epochs
            ),
            step=self.state.step - epoch * self.steps,
            steps=self.steps,
            loss=round(loss, 5),
            learning_rate=next(iter(self.state.parts.values()))[0].param_groups[
                0
            ]["lr"],
        )

    def _save(self) -> None:
        self.state.save(self._checkpoint)
        self._saved = time.monotonic()


def learn(network: nn.Module) -> None:
    """Into training; where parts stay as they are, so do the means and variances that they
    normalise by.
    """
    network.train()
    for part in network.modules():
        if (
            isinstance(part, _BatchNorm)
            and part.affine
            and not part.weight.requires_grad
        ):
            part.eval()


def batches(
    data: Arrays,
    settings: TrainSettings,
    epoch: int,
    steps: int,
    skip: int,
    device: str,
    sizes: NDArray[Any] | None = None,
) -> Iterator[Batch]:
    """The batches of an epoch in an order that its number decides, sliced from memory, evenly many
    items in each.

    With `sizes` of the items, those of a batch are of about one size: little of it is padding.
    """
    rng = np.random.default_rng((settings.seed, epoch))
    order = _order(rng, len(data), epoch_items(data, settings))
    turns = np.arange(steps)
    if sizes is not None:
        order = _by_size(order, sizes, steps)
        turns = rng.permutation(steps)
    parts = np.array_split(order, steps)
    for turn in turns[skip:]:
        yield _to_device(data.rows(parts[turn]), device)


def _order(
    rng: np.random.Generator, count: int, wanted: int
) -> NDArray[np.intp]:
    """Items at random, each once before any of them comes again."""
    passes = math.ceil(wanted / count)
    order = np.concatenate([rng.permutation(count) for _ in range(passes)])
    return order[:wanted]


def _by_size(
    order: NDArray[np.intp], sizes: NDArray[Any], steps: int
) -> NDArray[np.intp]:
    """The items of `STRETCH` batches at a time in the order of their sizes."""
    stretches = np.array_split(order, math.ceil(steps / STRETCH))
    return np.concatenate(
        [rows[np.argsort(sizes[rows], kind="stable")] for rows in stretches]
    )


def _to_device(rows: Mapping[str, NDArray[Any]], device: str) -> Batch:
    return {
        name: torch.from_numpy(array).to(device) for name, array in rows.items()
    }


def epoch_items(data: Arrays, settings: TrainSettings) -> int:
    """How many items an epoch takes, some of them again where it is longer than the data."""
    return settings.epoch_steps * settings.batch_size or len(data)


def descend(
    state: State, part: str, value: Tensor, settings: TrainSettings
) -> float:
    """One step of the optimisers of a part; returns the loss."""
    state.network.zero_grad(set_to_none=True)
    value.backward()  # type: ignore[no-untyped-call]
    if settings.clip:
        nn.utils.clip_grad_norm_(
            state.network.get_submodule(part).parameters(), settings.clip
        )
    state.pace.set_rates(state.parts[part], state.step)
    for optimiser in state.parts[part]:
        optimiser.step()
    number = value.item()
    if not math.isfinite(number):
        raise ModelFailed(
            f"training diverged at step {state.step + 1}: the loss is {number}; lower learning_rate"
        )
    return number


@torch.inference_mode()
def validate(
    network: nn.Module,
    data: Arrays,
    settings: TrainSettings,
    cast: torch.autocast,
    aim: Objective,
    device: str,
) -> dict[str, float]:
    """The figures of the objective, means over all items."""
    network.eval()
    sums: dict[str, float] = {}
    for at in range(0, len(data), VALIDATION_BATCH):
        part = data.rows(slice(at, at + VALIDATION_BATCH))
        rows = {name: np.array(array) for name, array in part.items()}
        with cast:
            figures = aim.validate(network, _to_device(rows, device), settings)
        count = len(next(iter(rows.values())))
        for name, value in figures.items():
            sums[name] = sums.get(name, 0.0) + float(value) * count
    return {name: value / max(len(data), 1) for name, value in sums.items()}


def score_of(row: Json, figure: str) -> tuple[float, float]:
    """What makes one epoch better than another: its figure, then its loss."""
    return row.get(f"val_{figure}", 0.0), -row.get("val_loss", 0.0)


def out_of_patience(history: list[Json], patience: int, figure: str) -> bool:
    """Whether the last `patience` epochs brought no better validation."""
    if not patience or len(history) <= patience:
        return False
    scores = [score_of(row, figure) for row in history]
    return bool(max(scores[:-patience]) >= max(scores[-patience:]))


def _autocast(precision: str, device: str) -> torch.autocast:
    """The context in which a network computes."""
    bf16 = uses_bf16(precision, device)
    return torch.autocast(device, torch.bfloat16, enabled=bf16)


def uses_bf16(precision: str, device: str) -> bool:
    """`auto` takes bf16 where the processor multiplies it in hardware."""
    if precision != "auto":
        return precision == "bf16"
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    try:
        flags = Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        return False
    return bool("avx512_bf16" in flags or "amx_bf16" in flags)


def _channels_last(network: nn.Module) -> nn.Module:
    """The kernels of plane convolutions with their channels last, which is faster; no other
    weights have such a form.
    """
    for value in [*network.parameters(), *network.buffers()]:
        if value.dim() == 4:
            value.data = value.data.contiguous(
                memory_format=torch.channels_last
            )
    return network
