"""Proofs that take minutes: `make test-slow`."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from modelmill.errors import MillError
from tests.platform.conftest import until
from tests.platform.test_faults import SETTINGS, weights

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_mnist_is_learnt_to_99_percent_by_the_defaults(
    launch, shared: Callable[[str], Path]
) -> None:
    platform = launch(empty=True)
    platform.client.add_data(
        "mnist", shared("data/mnist"), task="image-classification"
    )
    job = platform.client.train(
        "mnist",
        task="image-classification",
        data="mnist",
        recipe="cnn",
        wait=True,
    )
    assert job["metrics"]["accuracy"] >= 0.99
    assert job["metrics"]["items"] == 10_000


def test_a_job_killed_again_and_again_ends_with_the_very_same_weights(
    launch,
) -> None:
    platform = launch()
    client, rng = platform.client, random.Random(0)
    settings = {**SETTINGS, "epochs": 60}
    task = "image-classification"
    client.train(
        "whole", task=task, data="digits", settings=settings, wait=True
    )
    job = client.train("killed", task=task, data="digits", settings=settings)[
        "job"
    ]
    kills = 0
    while client.job(job)["state"] not in ("succeeded", "failed"):
        pid = until(
            lambda: (
                client.job(job)["pid"]
                or client.job(job)["state"] == "succeeded"
            )
        )
        if pid is True or kills == 6:
            break
        time.sleep(rng.uniform(1.5, 6))
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            break
        kills += 1
        until(lambda: client.job(job)["state"] != "running")
        try:
            client.resume(job)
        except MillError:  # it had ended before the signal came
            break
    assert client.wait(job)["state"] == "succeeded"
    assert kills >= 2
    assert weights(platform, "whole") == weights(platform, "killed")
