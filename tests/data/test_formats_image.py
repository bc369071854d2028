"""Pictures: the files of MNIST and folders of classes."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelmill.data import formats
from modelmill.data.base import open_source
from modelmill.data.formats import idx
from modelmill.errors import InvalidInput, MillError
from modelmill.tasks.base import task_named

from .conftest import make_folder, make_zip, png, read_all, read_with


def idx_images(count: int, height: int = 3, width: int = 2) -> bytes:
    pixels = bytes(number % 256 for number in range(count * height * width))
    return struct.pack(">IIII", 0x803, count, height, width) + pixels


def idx_labels(labels: list[int]) -> bytes:
    return struct.pack(">II", 0x801, len(labels)) + bytes(labels)


MNIST = {
    "train-images-idx3-ubyte": idx_images(4),
    "train-labels-idx1-ubyte": idx_labels([1, 0, 9, 1]),
    "t10k-images-idx3-ubyte": idx_images(2),
    "t10k-labels-idx1-ubyte": idx_labels([7, 0]),
}


def zipped(files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{name}.gz": gzip.compress(data) for name, data in files.items()}


@pytest.mark.parametrize(
    "files",
    [
        MNIST,
        zipped(MNIST),
        {
            f"MNIST/raw/{name}": data
            for name, data in (MNIST | zipped(MNIST)).items()
        },
        {name.replace("-idx", ".idx"): data for name, data in MNIST.items()},
        {
            f"emnist-letters-{name.replace('t10k', 'test')}": data
            for name, data in MNIST.items()
        },
    ],
    ids=["plain", "gzip", "torchvision", "dots", "emnist"],
)
def test_idx_under_its_usual_names(tmp_path, files):
    items = read_all(make_folder(tmp_path / "set", files), "image")
    assert [(item.name, item.label, item.split) for item in items] == [
        ("train/0", "1", "train"),
        ("train/1", "0", "train"),
        ("train/2", "9", "train"),
        ("train/3", "1", "train"),
        ("test/0", "7", "test"),
        ("test/1", "0", "test"),
    ]
    assert items[1].data.dtype == np.uint8
    assert items[1].data.tolist() == [[6, 7], [8, 9], [10, 11]]


def test_one_of_several_idx_sets_is_chosen_by_an_option(tmp_path):
    files = {
        f"{kind}-{name}": data
        for kind in ("emnist-letters", "emnist-digits")
        for name, data in MNIST.items()
    }
    folder = make_folder(tmp_path / "set", files)
    with pytest.raises(InvalidInput, match="emnist-digits, emnist-letters"):
        read_all(folder, "image")
    assert len(read_all(folder, "image", set="emnist-digits")) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train-labels-idx1-ubyte": idx_labels([1, 2])},
            "4 pictures, 'train-labels-idx1-ubyte' 2 labels",
        ),
        (
            {"train-images-idx3-ubyte": MNIST["train-images-idx3-ubyte"][:-1]},
            "ends too early",
        ),
        (
            {
                "train-images-idx3-ubyte": MNIST["train-images-idx3-ubyte"]
                + b"x"
            },
            "goes on after",
        ),
        (
            {"train-images-idx3-ubyte": MNIST["train-labels-idx1-ubyte"]},
            "0x00000801, not 0x00000803",
        ),
        (
            {"train-images-idx3-ubyte": struct.pack(">IIII", 0x803, 4, 0, 28)},
            "0x28 pixels",
        ),
        (
            {
                "train-images-idx3-ubyte": struct.pack(
                    ">IIII", 0x803, 4, 2**31, 2**31
                )
            },
            "claims pictures",
        ),
        ({"train-labels-idx1-ubyte": None}, "lacks its labels file"),
    ],
)
def test_idx_files_that_disagree_say_how(tmp_path, changes, message):
    files = {
        name: data
        for name, data in (MNIST | changes).items()
        if data is not None
    }
    with pytest.raises(InvalidInput, match=message):
        read_all(make_folder(tmp_path / "set", files), "image")


COMPRESSED = zipped(MNIST)


@settings(max_examples=150)
@given(
    st.sampled_from([MNIST, COMPRESSED]),
    st.integers(0, 3),
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=3),
    st.integers(0, 40),
)
def test_changed_idx_bytes_raise_nothing_but_a_meaning(
    tmp_path_factory, files, which, changes, cut
):
    name = list(files)[which]
    data = bytearray(files[name][: len(files[name]) - cut])
    for place, value in changes:
        if place < len(data):
            data[place] = value
    folder = tmp_path_factory.getbasetemp() / f"idx{name.count('.')}"
    make_folder(folder, {**files, name: bytes(data)})
    try:
        items = read_with(folder, idx)
    except MillError:
        return
    assert all(item.label.isdecimal() for item in items)


def names_of(items):
    return [(item.name, item.split, item.label) for item in items]


def test_class_folders_without_splits(tmp_path):
    files = {
        "Greek/alpha/1.png": png(1),
        "Greek/beta/2.JPG": png(2),
        "Latin/a/3": png(3),
    }
    items = read_all(make_folder(tmp_path / "set", files), "image")
    assert names_of(items) == [
        ("Greek/alpha/1.png", None, "Greek/alpha"),
        ("Greek/beta/2.JPG", None, "Greek/beta"),
        ("Latin/a/3", None, "Latin/a"),
    ]
    assert [item.data for item in items] == list(files.values())


@pytest.mark.parametrize(
    ("folder", "split"),
    [
        ("train", "train"),
        ("Training", "train"),
        ("val", "val"),
        ("valid", "val"),
        ("validation", "val"),
        ("dev", "val"),
        ("test", "test"),
        ("testing", "test"),
    ],
)
def test_split_folders_under_their_usual_names(tmp_path, folder, split):
    other = "test" if split == "train" else "train"
    path = make_zip(
        tmp_path / "set.zip",
        {f"{folder}/a/b/1.png": png(1), f"{other}/c/2.png": png(2)},
    )
    assert (f"{folder}/a/b/1.png", split, "a/b") in names_of(
        read_all(path, "image")
    )


def test_train_is_a_class_beside_bus_and_car(tmp_path):
    folder = make_folder(
        tmp_path / "set",
        {f"{name}/1.png": png() for name in ("bus", "car", "train")},
    )
    assert {item.label for item in read_all(folder, "image")} == {
        "bus",
        "car",
        "train",
    }


def test_other_files_are_items_with_a_problem(tmp_path):
    files = {
        "train/a/1.png": png(1),
        "train/a/1.xml": b"",
        "test/a/2.png": png(2),
        "lost.png": png(),
        "l.csv": b"",
    }
    items = read_all(make_folder(tmp_path / "set", files), "image")
    assert {item.name: item.problem for item in items if item.problem} == {
        "l.csv": "not a picture file",
        "lost.png": "not in a class folder",
        "train/a/1.xml": "not a picture file",
    }


@pytest.mark.parametrize(
    "names", [["1.png", "2.png"], ["train/1.png", "test/2.png"]]
)
def test_pictures_without_class_folders_get_an_error_that_shows_the_layout(
    tmp_path, names
):
    with pytest.raises(InvalidInput, match=r"CLASS/NAME\.jpg"):
        read_all(
            make_folder(tmp_path / "set", dict.fromkeys(names, png())), "image"
        )


def test_a_huge_or_damaged_picture_is_a_problem_of_its_own(tmp_path):
    path = make_zip(
        tmp_path / "set.zip",
        {"a/1.png": bytes(65 << 20), "a/2.png": b"x" * 1000, "b/3.png": png()},
    )
    data = bytearray(path.read_bytes())
    data[data.index(b"a/2.png") + 8] ^= 0xFF
    path.write_bytes(data)
    problems = [item.problem for item in read_all(path, "image")]
    assert "larger than 64 MiB" in problems[0]
    assert "damaged" in problems[1]
    assert problems[2] == ""


def test_unknown_options_are_refused(tmp_path):
    folder = make_folder(tmp_path / "set", MNIST)
    with pytest.raises(
        InvalidInput, match="unknown setting 'sett'; did you mean 'set'"
    ):
        read_all(folder, "image", sett="x")


def test_detection_prefers_the_specific_and_names_what_exists(tmp_path):
    with open_source(
        make_folder(tmp_path / "a", MNIST | {"cat/1.png": png()})
    ) as source:
        assert (
            formats.detect(source, task_named("image-classification")) == "idx"
        )
        with pytest.raises(
            InvalidInput,
            match=r"no known format for text-classification \(csv: .*lines: .*tsv: ",
        ):
            formats.detect(source, task_named("text-classification"))
    with (
        open_source(
            make_folder(tmp_path / "b", {"a.csv": b"", "b.tsv": b""})
        ) as source,
        pytest.raises(
            InvalidInput, match=r"several formats, say which: csv: .*tsv: "
        ),
    ):
        formats.detect(source, task_named("text-classification"))


def test_mnist_is_read_as_published(shared):
    items = read_all(Path(shared("mnist")), "image")
    assert len(items) == 70_000
    assert [item.label for item in items[:5]] == ["5", "0", "4", "1", "9"]
    assert items[0].data.shape == (28, 28)
    assert (items[60_000].name, items[60_000].label, items[60_000].split) == (
        "test/0",
        "7",
        "test",
    )
