"""The training loop: interrupted anywhere and resumed, it ends as if nothing had happened."""

import itertools
import json
import random
from contextlib import closing
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import softplus
from torch.nn.utils.parametrizations import spectral_norm

from modelmill.data.cache import Arrays
from modelmill.jobs import loop
from modelmill.jobs.loop import Loop, out_of_patience
from modelmill.jobs.objective import Objective, objective
from modelmill.jobs.optimisers import schedule
from modelmill.jobs.process import Events, Interrupted
from modelmill.tasks.base import TrainSettings, recipe_named, task_named

ITEMS = 40
BATCH = 12
EPOCHS = 3
STEPS = 4  # an epoch: 40 items in batches of at most 12
AIM = objective(
    task_named("image-classification"),
    recipe_named("image-classification", "cnn"),
)
SETTINGS = TrainSettings(
    epochs=EPOCHS,
    batch_size=BATCH,
    learning_rate=0.01,
    precision="fp32",
    seed=5,
)


def data(seed=0, items=ITEMS):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(items, 6)).astype(np.float32)
    return Arrays({"x": x}, {"label": (x[:, 0] > 0).astype(np.int64)})


def network():
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Unflatten(1, (6, 1, 1)),
        nn.Conv2d(6, 16, 1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(16, 2),
    )


def run(folder, settings=SETTINGS, stop_at=None, validation=None, made=network):
    """Train in a folder; asked to stop while step number `stop_at` (from 1) runs."""
    folder.mkdir(exist_ok=True)
    stop = SimpleNamespace(requested=False)
    step = [0]

    def noisy(batch):
        step[0] += 1
        stop.requested = step[0] == stop_at
        return batch | {"x": batch["x"] + 0.1 * torch.randn_like(batch["x"])}

    with closing(Events(folder / "events.jsonl")) as events:
        return Loop(
            made(),
            data(),
            validation or data(1),
            settings,
            AIM,
            noisy,
            folder,
            events,
            stop,
        ).run()


def test_a_normalisation_that_is_frozen_keeps_its_means(tmp_path):
    def frozen():
        made = network()
        for weight in made[2].parameters():
            weight.requires_grad_(False)
        return made

    before = {
        name: kept.clone() for name, kept in frozen()[2].state_dict().items()
    }
    after = run(tmp_path / "frozen", made=frozen).network[2].state_dict()
    assert all(torch.equal(after[name], kept) for name, kept in before.items())
    assert not torch.equal(
        run(tmp_path / "free").network[2].running_mean, before["running_mean"]
    )


def test_an_epoch_of_a_number_of_steps_takes_items_evenly_again_and_again():
    settings = msgspec.structs.replace(SETTINGS, epoch_steps=10)
    numbered = Arrays({"x": np.arange(ITEMS)}, {})
    found = [
        batch["x"].numpy()
        for batch in loop.batches(numbered, settings, 0, 10, 0, "cpu")
    ]
    assert [len(batch) for batch in found] == [BATCH] * 10
    assert np.bincount(np.concatenate(found)).tolist() == [3] * ITEMS
    later = [
        batch["x"].numpy()
        for batch in loop.batches(numbered, settings, 0, 10, 7, "cpu")
    ]
    assert all(map(np.array_equal, later, found[7:]))


def test_a_run_of_epochs_of_a_number_of_steps_ends(tmp_path):
    trained = run(
        tmp_path / "job", msgspec.structs.replace(SETTINGS, epoch_steps=2)
    )
    assert len(trained.history) == EPOCHS


def same(one, other):
    a, b = one.network.state_dict(), other.network.state_dict()
    return a.keys() == b.keys() and all(
        torch.equal(a[name], b[name]) for name in a
    )


def without_time(history):
    return [
        {
            name: value
            for name, value in row.items()
            if name != "samples_per_second"
        }
        for row in history
    ]


def events_of(folder, kind):
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [
        row
        for row in map(json.loads, filter(None, lines))
        if row["event"] == kind
    ]


WAYS = {
    "fp32": {},
    "bf16": {"precision": "bf16"},
    "averaged": {"ema": 0.9},
    "with betas": {"beta1": 0.5, "beta2": 0.99},
    "adamw": {"optimiser": "adamw", "weight_decay": 0.1, "clip": 1.0},
    "sgd": {"optimiser": "sgd", "schedule": "constant"},
    "muon": {"optimiser": "muon"},
    "adadelta": {"optimiser": "adadelta", "learning_rate": 1.0},
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What each way of training ends with, worked out once."""
    known = {}

    def ended(way):
        if way not in known:
            folder = tmp_path_factory.mktemp(way)
            known[way] = run(
                folder, msgspec.structs.replace(SETTINGS, **WAYS[way])
            )
        return known[way]

    return ended


class Rivals(nn.Module):
    """Two parts that are trained in turns."""

    parts = ("judge", "maker")

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.maker = nn.Sequential(
            nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 6)
        )
        self.judge = nn.Sequential(
            spectral_norm(nn.Linear(6, 16)),
            nn.ReLU(),
            spectral_norm(nn.Linear(16, 1)),
        )


def rivalry(network, batch, settings):
    """Told the loss of one, the next sees what its step has changed."""
    real = batch["x"]
    made = network.maker(torch.randn(len(real), 4)).detach()
    yield (
        "judge",
        softplus(-network.judge(real)).mean()
        + softplus(network.judge(made)).mean(),
    )
    yield (
        "maker",
        softplus(
            -network.judge(network.maker(torch.randn(len(real), 4)))
        ).mean(),
    )


def judged(network, batch, settings):
    return {"taken_for_real": (network.judge(batch["x"]) > 0).float().mean()}


IN_TURNS = msgspec.structs.replace(SETTINGS, beta1=0.5, ema=0.9)


def run_in_turns(folder, stop_at=None, **changed):
    folder.mkdir(exist_ok=True)
    stop, step = SimpleNamespace(requested=False), [0]

    def counting(batch):
        step[0] += 1
        stop.requested = step[0] == stop_at
        return batch

    aim = Objective(
        "", rivalry, judged, lambda network, signature: network, **changed
    )
    with closing(Events(folder / "events.jsonl")) as events:
        return Loop(
            Rivals(),
            data(),
            data(1),
            IN_TURNS,
            aim,
            counting,
            folder,
            events,
            stop,
        ).run()


@pytest.mark.parametrize(
    "step", [1, STEPS - 1, STEPS, STEPS + 2, STEPS * EPOCHS]
)
def test_parts_trained_in_turns_resume_bit_for_bit(tmp_path, step):
    whole = run_in_turns(tmp_path / "whole")
    with pytest.raises(Interrupted):
        run_in_turns(tmp_path / "cut", stop_at=step)
    resumed = run_in_turns(tmp_path / "cut")
    assert same(resumed, whole)
    assert without_time(resumed.history) == without_time(whole.history)


def test_both_parts_are_trained_and_the_last_epoch_is_kept(tmp_path):
    trained = run_in_turns(tmp_path)
    begun = Rivals().state_dict()
    changed = {
        name
        for name, part in trained.network.state_dict().items()
        if not torch.equal(part, begun[name])
    }
    assert {"maker.0.weight", "maker.3.weight"} <= changed
    assert any(name.startswith("judge.0") for name in changed)
    assert len(trained.history) == EPOCHS


def test_a_training_leaves_pictures_of_what_it_has_learnt(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(loop, "PREVIEWS", 2)
    seen = []

    def preview(network):
        seen.append(network.training)
        return b"picture %d" % len(seen)

    run_in_turns(tmp_path, preview=preview)
    pictures = {
        path.name: path.read_bytes()
        for path in (tmp_path / "pictures").iterdir()
    }
    assert pictures == {
        "samples-0002.png": b"picture 1",
        "samples-0003.png": b"picture 2",
    }
    assert seen == [False, False]


def interrupted(folder, settings, step):
    with pytest.raises(Interrupted):
        run(folder, settings, stop_at=step)
    assert (folder / loop.CHECKPOINT).exists()


@pytest.mark.parametrize("step", range(1, STEPS * EPOCHS + 1))
def test_interrupted_at_any_step_it_ends_with_the_same_weights(
    tmp_path, undisturbed, step
):
    interrupted(tmp_path, SETTINGS, step)
    resumed = run(tmp_path)
    assert same(resumed, undisturbed("fp32"))
    assert without_time(resumed.history) == without_time(
        undisturbed("fp32").history
    )


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_training_resumes_bit_for_bit(tmp_path, undisturbed, way):
    settings = msgspec.structs.replace(SETTINGS, **WAYS[way])
    step = random.Random(way).choice(
        [n for n in range(1, STEPS * EPOCHS) if n % STEPS]
    )
    interrupted(tmp_path, settings, step)
    resumed = run(tmp_path, settings)
    assert same(resumed, undisturbed(way)), f"interrupted at step {step}"
    assert without_time(resumed.history) == without_time(
        undisturbed(way).history
    )


def test_interrupted_again_and_again_it_still_ends_the_same(
    tmp_path, undisturbed
):
    for step in (2, 3, 1, 3):
        interrupted(tmp_path, SETTINGS, step)
    assert same(run(tmp_path), undisturbed("fp32"))


def test_one_epoch_of_one_step_can_be_interrupted(tmp_path):
    settings = msgspec.structs.replace(SETTINGS, epochs=1, batch_size=64)
    whole = run(tmp_path / "whole", settings)
    interrupted(tmp_path / "cut", settings, 1)
    assert same(run(tmp_path / "cut", settings), whole)


def test_a_finished_run_started_again_is_finished(tmp_path, undisturbed):
    first = run(tmp_path)
    again = run(tmp_path)
    assert same(first, again)
    assert len(again.history) == EPOCHS
    assert len(events_of(tmp_path, "step")) == STEPS * EPOCHS


def test_the_seed_decides(tmp_path):
    one, two, other = (
        run(tmp_path / str(n), msgspec.structs.replace(SETTINGS, seed=seed))
        for n, seed in enumerate((5, 5, 6))
    )
    assert same(one, two)
    assert not same(one, other)


def test_the_weights_of_the_best_validation_are_kept(tmp_path):
    # With labels the wrong way round every further epoch is worse.
    wrong = data(1, 200)
    wrong = Arrays(wrong.arrays, {"label": 1 - wrong.targets["label"]})
    settings = msgspec.structs.replace(SETTINGS, epochs=6)
    trained = run(tmp_path / "all", settings, validation=wrong)
    scores = [
        (row["val_accuracy"], -row["val_loss"]) for row in trained.history
    ]
    best = scores.index(max(scores))
    assert best < 5
    with torch.inference_mode():
        guess = (
            trained.network(torch.from_numpy(wrong.arrays["x"]))
            .argmax(1)
            .numpy()
        )
    assert float((guess == wrong.targets["label"]).mean()) == pytest.approx(
        scores[best][0], abs=1e-4
    )
    assert not trained.network.training


def test_it_stops_when_nothing_gets_better(tmp_path):
    wrong = data(1, 200)
    wrong = Arrays(wrong.arrays, {"label": 1 - wrong.targets["label"]})
    settings = msgspec.structs.replace(SETTINGS, epochs=50, patience=2)
    trained = run(tmp_path, settings, validation=wrong)
    scores = [
        (row["val_accuracy"], -row["val_loss"]) for row in trained.history
    ]
    assert len(scores) < 50
    assert scores.index(max(scores)) == len(scores) - 3


def rows(*scores):
    return [{"val_accuracy": score, "val_loss": 1.0} for score in scores]


@pytest.mark.parametrize(
    ("scores", "patience", "over"),
    [
        ([], 2, False),
        ([0.5], 1, False),
        ([0.5, 0.5], 1, True),
        ([0.5, 0.4], 1, True),
        ([0.5, 0.6], 1, False),
        ([0.5, 0.4], 2, False),
        ([0.5, 0.4, 0.4], 2, True),
        ([0.5, 0.4, 0.6], 2, False),
        ([0.5, 0.6, 0.4, 0.4], 2, True),
        ([0.5, 0.4, 0.3, 0.2], 0, False),
    ],
)
def test_patience(scores, patience, over):
    assert out_of_patience(rows(*scores), patience, "accuracy") is over


def test_a_lower_loss_at_the_same_accuracy_is_better():
    history = [
        {"val_accuracy": 0.5, "val_loss": 1.0},
        {"val_accuracy": 0.5, "val_loss": 0.9},
    ]
    assert not out_of_patience(history, 1, "accuracy")


@pytest.mark.parametrize(
    ("warmup", "kind", "steps", "wanted"),
    [
        (0.0, "constant", 4, {0: 1.0, 1: 1.0, 3: 1.0}),
        (0.5, "constant", 8, {0: 0.25, 1: 0.5, 3: 1.0, 7: 1.0}),
        (0.5, "cosine", 8, {0: 0.25, 3: 1.0, 4: 1.0, 6: 0.5, 8: 0.0}),
        (0.0, "cosine", 5, {0: 1.0, 1: 1.0, 3: 0.5, 5: 0.0}),
        (1.0, "cosine", 4, {0: 0.25, 3: 1.0}),
        (0.05, "cosine", 1, {0: 1.0}),
    ],
)
def test_the_learning_rate_warms_up_and_falls(warmup, kind, steps, wanted):
    factor = schedule(TrainSettings(warmup=warmup, schedule=kind), steps)
    assert {step: pytest.approx(factor(step)) for step in wanted} == wanted


def test_events_are_json_lines_one_for_every_step(tmp_path):
    run(tmp_path)
    steps, epochs = events_of(tmp_path, "step"), events_of(tmp_path, "epoch")
    assert [(row["epoch"], row["step"]) for row in steps] == [
        (epoch, step)
        for epoch in range(1, EPOCHS + 1)
        for step in range(1, STEPS + 1)
    ]
    assert all(
        row["steps"] == STEPS and row["epochs"] == EPOCHS and row["time"] > 0
        for row in steps
    )
    assert [row["epoch"] for row in epochs] == [1, 2, 3]
    assert all(
        {"train_loss", "val_loss", "val_accuracy", "samples_per_second"}
        <= row.keys()
        for row in epochs
    )
    assert epochs[-1]["train_loss"] == pytest.approx(
        np.mean([row["loss"] for row in steps[-STEPS:]]), abs=1e-4
    )


def test_every_item_comes_once_in_an_epoch_in_an_order_of_its_own():
    numbered = Arrays({"x": np.arange(ITEMS)}, {"label": np.arange(ITEMS)})
    orders = []
    for epoch in (0, 1):
        batches = list(loop.batches(numbered, SETTINGS, epoch, STEPS, 0, "cpu"))
        assert [len(batch["label"]) for batch in batches] == [10] * 4
        orders.append(torch.cat([batch["label"] for batch in batches]).tolist())
        assert all(torch.equal(batch["x"], batch["label"]) for batch in batches)
        later = list(loop.batches(numbered, SETTINGS, epoch, STEPS, 2, "cpu"))
        assert torch.equal(later[0]["x"], batches[2]["x"])
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(ITEMS))
    assert orders[0] != orders[1]


def test_items_of_a_batch_are_of_about_one_size_and_batches_of_any():
    sizes = np.random.default_rng(0).permutation(ITEMS)
    numbered = Arrays({"x": np.arange(ITEMS)}, {})
    found = [
        batch["x"].numpy()
        for batch in loop.batches(numbered, SETTINGS, 0, STEPS, 0, "cpu", sizes)
    ]
    assert sorted(np.concatenate(found).tolist()) == list(range(ITEMS))
    spans = sorted((sizes[rows].min(), sizes[rows].max()) for rows in found)
    assert all(one[1] < other[0] for one, other in itertools.pairwise(spans))
    orders = [
        [
            int(sizes[batch["x"].numpy()].min())
            for batch in loop.batches(
                numbered, SETTINGS, epoch, STEPS, 0, "cpu", sizes
            )
        ]
        for epoch in range(6)
    ]
    assert any(order != sorted(order) for order in orders)
    later = [
        batch["x"].numpy()
        for batch in loop.batches(numbered, SETTINGS, 0, STEPS, 2, "cpu", sizes)
    ]
    assert all(map(np.array_equal, later, found[2:]))


def test_a_checkpoint_is_whole_or_not_there(tmp_path, monkeypatch):
    import os

    interrupted(tmp_path, SETTINGS, 3)
    before = (tmp_path / loop.CHECKPOINT).read_bytes()

    def full(*_):
        raise OSError(28, "no room")

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(OSError, match="no room"):
        run(tmp_path)
    assert (tmp_path / loop.CHECKPOINT).read_bytes() == before


def test_a_network_with_convolutions_in_space_is_trained(tmp_path):
    def spatial():
        torch.manual_seed(5)
        return nn.Sequential(
            nn.Unflatten(1, (6, 1, 1, 1)),
            nn.Conv3d(6, 4, 1),
            nn.Flatten(),
            nn.Linear(4, 2),
        )

    short = msgspec.structs.replace(SETTINGS, epochs=1, epoch_steps=1)
    assert len(run(tmp_path / "job", short, made=spatial).history) == 1


def test_only_kernels_of_planes_get_their_channels_last():
    made = loop._channels_last(
        nn.ModuleList([nn.Conv2d(3, 4, 3), nn.Conv3d(3, 4, 3)])
    )
    plane, space = made[0].weight, made[1].weight
    assert plane.is_contiguous(memory_format=torch.channels_last)
    assert space.is_contiguous()
