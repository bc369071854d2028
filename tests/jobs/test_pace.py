"""A training with a time budget ends with it, its learning rate annealed. The clock is one that
steps move.
"""

import json
from contextlib import closing
from types import SimpleNamespace

import msgspec
import pytest
import torch

from modelmill.jobs.loop import Loop
from modelmill.jobs.process import Events, Interrupted
from tests.jobs.test_loop import AIM, SETTINGS, STEPS, data, events_of, network

BUDGET = 100.0
TIMED = msgspec.structs.replace(
    SETTINGS, time="100s", epochs=10_000, schedule="cosine"
)


class Clock:
    """Seconds that pass when a step or a validation says so."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def run(folder, settings=TIMED, step=1.0, validation=2.0, stop_at=None):
    """A run whose steps and validations take these seconds; returns what was trained and the
    seconds it took.
    """
    folder.mkdir(exist_ok=True)
    clock, stop = Clock(), SimpleNamespace(requested=False)
    steps = [0]

    def changed(batch):
        clock.now += step
        steps[0] += 1
        stop.requested = steps[0] == stop_at
        return batch

    def validate(network, batch, how):
        clock.now += validation
        return AIM.validate(network, batch, how)

    aim = AIM._replace(validate=validate)
    with closing(Events(folder / "events.jsonl")) as events:
        trained = Loop(
            network(),
            data(),
            data(1),
            settings,
            aim,
            changed,
            folder,
            events,
            stop,
            clock,
        ).run()
    return trained, clock.now - 1000.0


@pytest.mark.parametrize(
    ("step", "validation"),
    [(1.0, 2.0), (0.1, 0.1), (3.0, 0.5), (0.5, 4.0), (30.0, 40.0), (1.0, 0.0)],
)
def test_it_ends_with_its_time_and_a_validation(tmp_path, step, validation):
    trained, seconds = run(tmp_path, step=step, validation=validation)
    assert seconds == pytest.approx(BUDGET, abs=0.05 * BUDGET + step)
    assert trained.history
    rows = [
        json.loads(line)
        for line in (tmp_path / "events.jsonl").read_text().splitlines()
        if line
    ]
    assert rows[-1]["event"] == "epoch", "what was trained last was validated"


def test_the_learning_rate_falls_to_the_end_of_the_time(tmp_path):
    run(tmp_path, step=0.2, validation=0.4)
    rates = [row["learning_rate"] for row in events_of(tmp_path, "step")]
    peak = rates.index(max(rates))
    assert max(rates) == pytest.approx(TIMED.learning_rate, rel=0.01)
    assert peak < 0.1 * len(rates)
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] < 0.01 * TIMED.learning_rate
    middle = rates[round((1 + TIMED.warmup) / 2 * len(rates))]
    assert middle == pytest.approx(TIMED.learning_rate / 2, rel=0.15)


def test_a_resumed_run_goes_on_with_what_is_left(tmp_path):
    with pytest.raises(Interrupted):
        run(tmp_path, stop_at=30)
    first = len(events_of(tmp_path, "step"))
    _, seconds = run(tmp_path)
    assert seconds == pytest.approx(
        BUDGET - 30 - 2 * (30 // STEPS) - 1, abs=0.05 * BUDGET + 3
    )
    rates = [row["learning_rate"] for row in events_of(tmp_path, "step")]
    assert first == 30
    assert rates[29] == pytest.approx(rates[30], rel=0.1), (
        "it goes on where it was"
    )
    assert rates[-1] < 0.01 * TIMED.learning_rate
    said = [row["message"] for row in events_of(tmp_path, "stage")]
    assert any("of 100s are spent" in message for message in said)


def test_a_run_that_used_up_its_time_is_finished(tmp_path):
    first, _ = run(tmp_path)
    again, seconds = run(tmp_path)
    assert seconds == 0
    assert again.history == first.history
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            first.network.parameters(), again.network.parameters(), strict=True
        )
    )


def test_less_time_than_an_epoch_still_gives_a_validated_model(tmp_path):
    trained, _ = run(tmp_path, step=60.0, validation=1.0)
    assert len(trained.history) == 1
    assert len(events_of(tmp_path, "step")) < STEPS
    assert trained.history[0]["train_loss"] == pytest.approx(
        sum(row["loss"] for row in events_of(tmp_path, "step"))
        / len(events_of(tmp_path, "step")),
        abs=1e-4,
    )


def test_epochs_that_are_set_end_it_earlier_and_anneal_there(tmp_path):
    trained, seconds = run(tmp_path, msgspec.structs.replace(TIMED, epochs=3))
    assert len(trained.history) == 3
    assert seconds < BUDGET / 2
    assert (
        events_of(tmp_path, "step")[-1]["learning_rate"]
        < 0.05 * TIMED.learning_rate
    )


def test_it_estimates_how_many_epochs_it_will_be(tmp_path):
    trained, _ = run(tmp_path)
    told = [row["epochs"] for row in trained.history]
    assert told[-1] == len(trained.history)
    assert all(abs(number - told[-1]) <= 2 for number in told)
