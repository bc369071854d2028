"""A home that an earlier version made opens: its models, deployments, keys and data sets work.

`tests/homes/0.1.zip` was made by 0.1.0 before its code was reordered: 60 made-up reviews and 60
made-up pictures were added, `mood` (`tfidf`) and `stripes` (`hog-svm`) trained on them and deployed,
`mood@champion` and the key `shop` made. Its supervisor was killed, so rows of workers are left.
"""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modelmill import Client
from tests.platform.conftest import Platform, until

HOME = Path(__file__).parents[1] / "homes" / "0.1.zip"
TRAIN = (
    "train",
    "mood",
    "--task",
    "text-classification",
    "--data",
    "reviews",
    "--wait",
)
SHOP = "mm_UMTAJpXKOI-PnI4ysvaKX5AtypQ87FW-I3jNyuorOzk"


@pytest.fixture(scope="module")
def platform(tmp_path_factory):
    home = tmp_path_factory.mktemp("earlier") / "home"
    with zipfile.ZipFile(HOME) as archive:
        archive.extractall(home)
    platform = Platform(home)
    yield platform
    platform.end()


def stripe():
    """A light column on dark noise, as in the training pictures."""
    pixels = np.random.default_rng(3).integers(0, 60, (12, 12)).astype(np.uint8)
    pixels[:, 5] = 220
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_its_deployments_come_up_and_answer_as_they_did(platform):
    for name in ("mood", "stripes"):
        until(
            lambda name=name: platform.client.deployment(name)["state"] == "ready", 90
        )
    (answer,) = platform.client.predict("mood", "the room was lovely")
    assert answer["output"][0]["label"] == "good"
    assert answer["output"][0]["score"] == pytest.approx(0.931668, abs=1e-5)
    (answer,) = platform.client.predict("stripes", stripe())
    assert answer["output"][0]["label"] == "down"
    assert answer["output"][0]["score"] > 0.99


def test_its_versions_keep_their_names_metrics_and_files(platform):
    version = platform.client.model("mood@champion")
    assert (version["name"], version["version"]) == ("mood", 1)
    assert version["metrics"]["accuracy"] == 1.0
    assert version["labels"] == ["bad", "good"]
    assert {"model.onnx", "tokenizer.json", "golden.json"} <= set(version["files"])


def test_its_keys_open_what_they_opened(platform):
    until(lambda: platform.client.deployment("mood")["state"] == "ready", 90)
    shop = Client(platform.url, key=SHOP)
    (answer,) = shop.predict("mood", "the room was awful")
    shop.close()
    assert answer["output"][0]["label"] == "bad"


def test_a_training_goes_on_from_its_data_and_its_versions(platform):
    again = platform.run(*TRAIN)
    assert again.returncode == 0, again.stderr
    assert platform.client.model("mood")["version"] == 2
    measured = platform.run("evaluate", "stripes", "--data", "shapes", "--wait")
    assert measured.returncode == 0, measured.stderr
