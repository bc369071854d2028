"""Models that answer with pictures or texts: the command line sends masks, keeps pictures and shows
what was heard.
"""

import json

import httpx2
import numpy as np
import pytest
from PIL import Image

from tests.helpers.bundles import hole_bundle, mask_bundle
from tests.helpers.datasets import tones
from tests.helpers.text_bundles import speech_bundle
from tests.platform.conftest import Platform

HOLE = np.zeros((8, 12), bool)
HOLE[2:5, 3:9] = True


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    platform = Platform(folder / "home")
    for name, make in {
        "fill": hole_bundle,
        "scenes": mask_bundle,
        "ears": speech_bundle,
    }.items():
        platform.client.import_model(name, make(folder / name))
        platform.client.deploy(name, wait=True)
    yield platform
    platform.end()


@pytest.fixture
def photo(tmp_path):
    pixels = np.full((8, 12), 40, np.uint8)
    pixels[:, 6:] = 220
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_the_masks_of_a_segmentation_are_kept_as_files(
    running, photo, tmp_path
):
    done = running.run(
        "predict",
        "scenes",
        str(photo),
        "--out",
        str(tmp_path / "masks"),
        "--json",
    )
    assert done.returncode == 0, done.stderr
    parts = json.loads(done.stdout)[0]["output"]
    assert {part["mask"] for part in parts} == {
        str(path) for path in (tmp_path / "masks").iterdir()
    }
    assert len(parts) == 2
    for part in parts:
        with Image.open(part["mask"]) as mask:
            assert mask.size == (12, 8)


def test_a_mask_goes_along_as_a_file(running, photo, tmp_path):
    Image.fromarray(np.where(HOLE, 255, 0).astype(np.uint8)).save(
        tmp_path / "hole.png"
    )
    out = tmp_path / "out"
    done = running.run(
        "predict",
        "fill",
        str(photo),
        "--set",
        f"mask=@{tmp_path / 'hole.png'}",
        "--out",
        str(out),
    )
    assert done.returncode == 0, done.stderr
    with Image.open(out / "photo.png") as filled:
        assert np.array_equal(np.asarray(filled)[:, :, 0] > 127, HOLE)


def test_transcriptions_have_times(running, tmp_path):
    (tmp_path / "call.wav").write_bytes(tones("abba"))
    plain = running.run(
        "predict", "ears", str(tmp_path / "call.wav")
    ).stdout.split()
    assert plain[:2] == ["input", "text"]
    assert plain[-1] == "abba"
    timed = running.run(
        "predict",
        "ears",
        str(tmp_path / "call.wav"),
        "--set",
        "return_timestamps=char",
    ).stdout
    rows = [line.split()[-3:] for line in timed.splitlines()]
    assert rows[0] == ["from", "to", "text"]
    assert [row[2] for row in rows[1:]] == list("abba")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--set", "mask=@nowhere.png"], "the file can't be read"),
        (["--set", "mask=white"], "mask wants a picture as base64"),
        (["--set", "msk=1"], "unknown parameter 'msk'; did you mean 'mask'?"),
        ([], "does not say what to fill in"),
    ],
)
def test_a_wrong_call_is_one_line(running, photo, arguments, says):
    done = running.run("predict", "fill", str(photo), *arguments)
    assert done.returncode == 1
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_program_of_torch_is_brought_trusted_and_served(running, tmp_path):
    pytest.importorskip("torch")
    from modelmill.engines.torch import ENGINE

    sample = ENGINE.sample(tmp_path, "FP32")
    path = str(tmp_path / "model.pt2")
    refused = running.run("import", "program", path)
    assert refused.returncode != 0
    assert "--trust" in refused.stderr + refused.stdout
    taken = running.run("import", "program", path, "--trust")
    assert taken.returncode == 0, taken.stderr
    running.client.deploy("program", wait=True)
    tensor = {"name": "x", "datatype": "FP32", "shape": [2, 3]}
    body = {"inputs": [{**tensor, "data": sample.given["x"].tolist()}]}
    answer = httpx2.post(
        f"{running.url}/v2/models/program/infer",
        json=body,
        headers=running.headers,
        timeout=30,
    ).json()
    found = np.reshape(answer["outputs"][0]["data"], (2, 3))
    np.testing.assert_allclose(found, sample.answered["y"], atol=1e-5)
