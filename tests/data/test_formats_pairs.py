"""Pictures in pairs: which belong together, what is refused, and that the check looks at both."""

import io

import numpy as np
import pytest
from PIL import Image

from modelmill.data import formats
from modelmill.data.base import open_source
from modelmill.data.formats import pairs
from modelmill.errors import InvalidInput
from modelmill.tasks.base import task_named
from tests.data.conftest import make_folder, make_zip, read_with

REPAIR = task_named("image-to-image")


def picture(side: int = 8, seed: int = 0) -> bytes:
    out = io.BytesIO()
    Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (side, 2 * side), np.uint8)
    ).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize(
    "names",
    [
        [
            "train/input/1.png",
            "train/target/1.png",
            "test/input/1.png",
            "test/target/1.png",
        ],
        [
            "input/train/1.jpg",
            "target/train/1.png",
            "input/test/1.jpg",
            "target/test/1.png",
        ],
        [
            "set/Noisy/training/1.png",
            "set/Clean/training/1.png",
            "set/Noisy/test/1.png",
            "set/Clean/test/1.png",
        ],
    ],
)
def test_pairs_share_a_name_and_a_split(tmp_path, names):
    folder = make_folder(
        tmp_path / "set",
        {name: picture(seed=number) for number, name in enumerate(names)},
    )
    with open_source(folder) as source:
        assert formats.detect(source, REPAIR) == "pairs"
    found = read_with(folder, pairs)
    assert sorted(item.split for item in found) == ["test", "train"]
    assert [item.problem for item in found] == ["", ""]
    assert all(
        isinstance(item.target, bytes) and item.target != item.data
        for item in found
    )


def test_a_zip_of_them_reads_the_same(tmp_path):
    files = {"input/a.png": picture(seed=1), "target/a.png": picture(seed=2)}
    folder = make_folder(tmp_path / "set", files)
    archive = make_zip(tmp_path / "set.zip", files)
    assert [item.target for item in read_with(folder, pairs)] == [
        item.target for item in read_with(archive, pairs)
    ]


@pytest.mark.parametrize(
    ("side", "problem"),
    [(8, ""), (24, ""), (32, ""), (9, "it is 16x8"), (40, "80x40"), (4, "8x4")],
)
def test_what_should_come_out_is_as_large_or_some_times_as_large(
    tmp_path, side, problem
):
    files = {
        "input/a.png": picture(8),
        "target/a.png": picture(side),
        "input/b.png": picture(),
        "target/b.png": picture(),
    }
    first, second = read_with(make_folder(tmp_path / "set", files), pairs)
    assert problem in first.problem
    assert bool(first.problem) == bool(problem)
    assert not second.problem


def test_what_has_no_partner_is_named_and_the_others_stay(tmp_path):
    files = {
        "input/a.png": picture(),
        "target/a.png": picture(seed=1),
        "input/b.png": picture(),
        "target/c.png": picture(),
        "input/d.png": picture(),
        "input/d.jpg": picture(),
        "target/d.png": picture(),
        "notes.txt": b"hello",
    }
    found = {
        item.name: item.problem
        for item in read_with(make_folder(tmp_path / "set", files), pairs)
    }
    assert found["input/a.png"] == ""
    assert (
        found["input/b.png"]
        == "there is no picture of the same name in target/"
    )
    assert (
        found["target/c.png"]
        == "there is no picture of the same name in input/"
    )
    assert "not clear which belong together" in found["input/d.png"]
    assert "notes.txt" not in found


def test_a_set_without_pairs_is_refused_with_the_layout(tmp_path):
    with pytest.raises(
        InvalidInput, match=r"input/NAME\.png and target/NAME\.png"
    ):
        read_with(
            make_folder(
                tmp_path / "set",
                {"input/a.png": picture(), "target/b.png": picture()},
            ),
            pairs,
        )
