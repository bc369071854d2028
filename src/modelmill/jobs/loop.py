"""The training loop: one network, one set of arrays, top to bottom.

Everything random in a step comes from the seed and the step's number, so that a run that was interrupted and
resumed ends with the same weights, bit for bit on a CPU, as an undisturbed one.
"""

import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from modelmill.data.cache import Arrays
from modelmill.jobs.process import Events, Interrupted, Stop
from modelmill.tasks.base import TrainSettings
from modelmill.types import Json

CHECKPOINT = "checkpoint.pt"
CHECKPOINT_SECONDS = 20.0
VALIDATION_BATCH = 256

Augment = Callable[[list[Tensor], Tensor], tuple[list[Tensor], Tensor]]
Loss = Callable[[Tensor, Tensor, TrainSettings], Tensor]


class State:
    """All that a checkpoint keeps: what has been learnt and how far the loop has come."""

    def __init__(self, network: nn.Module, settings: TrainSettings, steps: int) -> None:
        self.network = network
        decay = settings.ema
        self.average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)  # type: ignore[no-untyped-call]
        self.averaging = decay > 0
        self.optimiser = make_optimiser(network, settings)
        factor = schedule(settings, steps)
        self.rate = torch.optim.lr_scheduler.LambdaLR(self.optimiser, factor)
        self.step = 0
        self.loss_sum = 0.0
        self.best: dict[str, Any] = {}
        self.history: list[Json] = []

    @property
    def judged(self) -> nn.Module:
        """The network that is validated and kept: the averaged one, where weights are averaged."""
        return self.average.module if self.averaging else self.network

    def save(self, path: Path) -> None:
        """Whole or not at all."""
        draft = path.with_suffix(".tmp")
        kept = {name: getattr(self, name) for name in ("step", "loss_sum", "best", "history")}
        kept |= {name: part.state_dict() for name, part in self._parts()}
        torch.save(kept, draft)
        os.rename(draft, path)

    def load(self, path: Path) -> None:
        """Go on where a checkpoint was written."""
        kept = torch.load(path, weights_only=True)
        for name, part in self._parts():
            part.load_state_dict(kept[name])
        for name in ("step", "loss_sum", "best", "history"):
            setattr(self, name, kept[name])

    def _parts(self) -> list[tuple[str, Any]]:
        parts: list[tuple[str, Any]] = [
            ("network", self.network),
            ("optimiser", self.optimiser),
            ("rate", self.rate),
        ]
        return [*parts, ("average", self.average)] if self.averaging else parts


class Trained(NamedTuple):
    """The best network and how it came about."""

    network: nn.Module
    history: list[Json]


def train(
    network: nn.Module,
    data: Arrays,
    validation: Arrays,
    settings: TrainSettings,
    loss: Loss,
    augment: Augment | None,
    folder: Path,
    events: Events,
    stop: Stop,
) -> Trained:
    """Train to the last epoch or until patience ends; the weights of the best validation are kept.

    Raises `Interrupted`, with a checkpoint in `folder`, when asked to stop.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    cast = torch.autocast(device, torch.bfloat16, enabled=uses_bf16(settings.precision, device))
    count = len(data.labels)
    steps = math.ceil(count / settings.batch_size)
    state = State(network, settings, steps * settings.epochs)
    checkpoint = folder / CHECKPOINT
    if checkpoint.exists():
        state.load(checkpoint)
        events.stage(f"resuming at step {state.step} of {steps * settings.epochs}")
    saved = time.monotonic()
    while state.step < steps * settings.epochs and not out_of_patience(state.history, settings.patience):
        epoch = state.step // steps
        network.train()
        started, first = time.monotonic(), state.step
        for inputs, target in batches(data, settings, epoch, steps, state.step % steps, device):
            torch.manual_seed(settings.seed * 1_000_003 + state.step)
            if augment is not None:
                inputs, target = augment(inputs, target)
            with cast:
                value = loss(network(*inputs), target, settings)
            number = advance(state, value, settings)
            events.write(
                "step",
                epoch=epoch + 1,
                epochs=settings.epochs,
                step=state.step - epoch * steps,
                steps=steps,
                loss=round(number, 5),
                learning_rate=state.rate.get_last_lr()[0],
            )
            if stop.asked or time.monotonic() - saved > CHECKPOINT_SECONDS:
                state.save(checkpoint)
                saved = time.monotonic()
                if stop.asked:
                    raise Interrupted
        speed = (state.step - first) / steps * count / (time.monotonic() - started)
        close_epoch(state, validation, settings, cast, loss, device, steps, speed, events)
        state.save(checkpoint)
        saved = time.monotonic()
    kept = state.judged
    kept.load_state_dict(state.best["weights"])
    return Trained(kept.to("cpu").eval(), state.history)


def batches(
    data: Arrays, settings: TrainSettings, epoch: int, steps: int, skip: int, device: str
) -> Iterator[tuple[list[Tensor], Tensor]]:
    """The batches of an epoch in an order that its number decides, sliced from memory, evenly sized."""
    order = np.random.default_rng((settings.seed, epoch)).permutation(len(data.labels))
    for rows in np.array_split(order, steps)[skip:]:
        inputs = [torch.from_numpy(array[rows]).to(device) for array in data.arrays.values()]
        yield inputs, torch.from_numpy(data.labels[rows]).to(device)


def advance(state: State, value: Tensor, settings: TrainSettings) -> float:
    """One step of the optimiser, the schedule and the average; returns the loss."""
    state.optimiser.zero_grad(set_to_none=True)
    value.backward()  # type: ignore[no-untyped-call]
    if settings.clip:
        nn.utils.clip_grad_norm_(state.network.parameters(), settings.clip)
    state.optimiser.step()
    state.rate.step()
    if state.averaging:
        state.average.update_parameters(state.network)
    number = value.item()
    state.step += 1
    state.loss_sum += number
    return number


def close_epoch(
    state: State,
    validation: Arrays,
    settings: TrainSettings,
    cast: torch.autocast,
    loss: Loss,
    device: str,
    steps: int,
    speed: float,
    events: Events,
) -> None:
    """Validate, remember the best weights, and write the epoch down."""
    accuracy, value = validate(state.judged, validation, settings, cast, loss, device)
    row: Json = {
        "epoch": len(state.history) + 1,
        "epochs": settings.epochs,
        "train_loss": round(state.loss_sum / steps, 5),
        "val_loss": round(value, 5),
        "val_accuracy": round(accuracy, 5),
        "samples_per_second": round(speed, 1),
    }
    state.loss_sum = 0.0
    state.history.append(row)
    score = [accuracy, -value]
    if not state.best or score > state.best["score"]:
        weights = {name: part.detach().clone() for name, part in state.judged.state_dict().items()}
        state.best = {"score": score, "weights": weights}
    events.write("epoch", **row)


@torch.inference_mode()
def validate(
    network: nn.Module,
    data: Arrays,
    settings: TrainSettings,
    cast: torch.autocast,
    loss: Loss,
    device: str,
) -> tuple[float, float]:
    """Accuracy and mean loss."""
    network.eval()
    count, right, total = len(data.labels), 0, 0.0
    for at in range(0, count, VALIDATION_BATCH):
        rows = slice(at, at + VALIDATION_BATCH)
        inputs = [torch.from_numpy(np.array(array[rows])).to(device) for array in data.arrays.values()]
        target = torch.from_numpy(np.array(data.labels[rows])).to(device)
        with cast:
            logits = network(*inputs)
            total += loss(logits, target, settings).item() * len(target)
        right += int((logits.argmax(1) == target).sum())
    return right / max(count, 1), total / max(count, 1)


def out_of_patience(history: list[Json], patience: int) -> bool:
    """Whether the last `patience` epochs brought no better validation."""
    if not patience or len(history) <= patience:
        return False
    scores = [(row["val_accuracy"], -row["val_loss"]) for row in history]
    return bool(max(scores[:-patience]) >= max(scores[-patience:]))


def make_optimiser(network: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """The optimiser; biases and normalisation are not decayed."""
    matrices = [p for p in network.parameters() if p.ndim > 1]
    vectors = [p for p in network.parameters() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors},
    ]
    if settings.optimiser == "sgd":
        return torch.optim.SGD(
            groups,
            settings.learning_rate,
            momentum=settings.momentum,
            nesterov=settings.momentum > 0,
            fused=True,
        )
    if settings.optimiser == "adadelta":
        return torch.optim.Adadelta(groups, settings.learning_rate)
    kind = torch.optim.Adam if settings.optimiser == "adam" else torch.optim.AdamW
    return kind(groups, settings.learning_rate, weight_decay=0.0, fused=True)


def schedule(settings: TrainSettings, steps: int) -> Callable[[int], float]:
    """The learning rate's factor by step: a linear warm-up, then a cosine to zero or a constant."""
    warmup = max(1, round(settings.warmup * steps))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if settings.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    return factor


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
