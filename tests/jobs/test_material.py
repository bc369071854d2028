"""The data of a job: one walk over the archive, whatever is asked of it and however it is packed."""

import pathlib
import zipfile
from collections import Counter
from contextlib import closing
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from modelmill.data import base
from modelmill.data.base import Item
from modelmill.data.items import Items
from modelmill.errors import InvalidInput, NotFound
from modelmill.jobs import material
from modelmill.jobs.evaluate import evaluate_version
from modelmill.jobs.material import Material
from modelmill.jobs.process import Events, Interrupted
from modelmill.jobs.train import train_version
from modelmill.types import JobSpec
from tests.helpers.datasets import dataset, picture_folder, text_table
from tests.helpers.workers import going

PICTURES, TEXTS = "image-classification", "text-classification"
MAKERS = {PICTURES: picture_folder, TEXTS: text_table}
QUICK = {
    PICTURES: ("cnn", {"epochs": 2, "batch_size": 16}),
    TEXTS: ("tfidf", {}),
}


@pytest.fixture
def walks(monkeypatch):
    """How often an archive was opened, and each of its files."""
    seen = SimpleNamespace(archives=0, files=Counter())

    def opened(*names):
        seen.archives += 1
        return base.open_source(*names)

    def read(source, name, open=base.Source.open):
        seen.files[name] += 1
        return open(source, name)

    monkeypatch.setattr(material, "open_source", opened)
    monkeypatch.setattr(base.Source, "open", read)
    return seen


@pytest.fixture(params=["zip", "folder"])
def spec(request, tmp_path):
    """What a job of a task is told, its data in a zip or in a folder."""

    def one(task, **changed):
        data = dataset(MAKERS[task](tmp_path / "set"), task, tmp_path / "store")
        if request.param == "folder":
            data["archive"] = str(tmp_path / "set")
        folder = tmp_path / "job"
        folder.mkdir(exist_ok=True)
        recipe, settings = QUICK[task]
        return JobSpec(
            job=1,
            kind="train",
            folder=str(folder),
            threads=1,
            name="tiny",
            task=task,
            dataset=data,
            recipe=recipe,
            settings=settings,
            cache=str(tmp_path / "cache"),
            **changed,
        )

    return one


@pytest.fixture
def events(tmp_path):
    with closing(Events(tmp_path / "events.jsonl")) as events:
        yield events


def names_of(spec, events, split):
    with Material(spec, events, going()) as data:
        return {item.name for item in data.items(split)}


@pytest.mark.filterwarnings("ignore")  # as in a job's process
def test_a_training_on_pictures_opens_each_of_them_once(spec, events, walks):
    told = spec(PICTURES)
    walks.files.clear()
    train_version(told, events, going())
    opened = Counter(walks.files)
    assert walks.archives == 1
    assert len(opened) == 40
    # A sheet shows pictures that were answered wrong: these alone are read again.
    again = {name for name, count in opened.items() if count > 1}
    assert again <= names_of(told, events, "test")


@pytest.mark.filterwarnings("ignore")
def test_a_training_on_a_table_reads_it_once(spec, events, walks):
    told = spec(TEXTS)
    walks.files.clear()
    train_version(told, events, going())
    assert walks.archives == 1
    assert walks.files == {"reviews.csv": 1}
    bundle = f"{told.folder}/bundle"
    again = msgspec.structs.replace(told, kind="evaluate", bundle=bundle)
    evaluate_version(again, events, going())
    assert walks.files == {"reviews.csv": 2}


@pytest.mark.parametrize("task", [PICTURES, TEXTS])
def test_an_evaluation_opens_the_files_of_its_split_alone(
    task, spec, events, walks
):
    told = spec(task)
    walks.files.clear()
    with Material(told, events, going(), ["test"]) as data:
        found = list(data.items("test"))
        assert len(found) == data.count("test") > 2
        expected = (
            {item.name for item in found}
            if task == PICTURES
            else {"reviews.csv"}
        )
        assert set(walks.files) == expected
        assert [item.data for item in data.rows("test", [2, 0])] == [
            found[2].data,
            found[0].data,
        ]
        # A split that was not announced is another walk.
        assert walks.archives == 1
        assert {item.split for item in data.sample("train", 3)} == {None}
        assert walks.archives == 2


def test_samples_are_spread_and_always_the_same(spec, events):
    told = spec(PICTURES)
    with Material(told, events, going()) as data:
        one = [item.name for item in data.sample("train", 3)]
        every = [item.name for item in data.items("train")]
        assert one == [every[0], every[(len(every) - 1) // 2], every[-1]]
        assert [item.name for item in data.sample("train", 3)] == one
        assert len(data.sample("train", 10_000)) == len(every)


def test_a_file_that_changed_since_the_check_is_named(spec, events):
    told = spec(PICTURES)
    archive = pathlib.Path(told.dataset["archive"])
    with Material(told, events, going()) as data:
        names = [item.name for item in data.items("train")]
        if archive.is_file():
            with zipfile.ZipFile(archive) as packed:
                start = packed.getinfo(names[-1]).header_offset
            damaged = bytearray(archive.read_bytes())
            damaged[start + 50 : start + 60] = bytes(10)
            archive.write_bytes(damaged)
        else:
            (archive / names[-1]).unlink()
        with pytest.raises(InvalidInput, match=f"'{names[-1]}' can't be read"):
            list(data.items("train"))


def test_a_stopped_job_ends_its_walk_of_the_archive(spec, events):
    told = spec(TEXTS)
    stop = going()
    stop.requested = True
    with Material(told, events, stop) as data, pytest.raises(Interrupted):
        data.sample("train", 1)


# ---- what is kept


def rows():
    """Items as readers find them: texts, pixels, and targets of all kinds."""
    box = base.Box("cup", 1, 1, 9, 9)
    yield Item("a", "x", "caf\u00e9 \udc80")
    yield Item("b", "y", np.arange(6, dtype=np.uint8).reshape(2, 3), "train")
    yield Item("c", "", b"picture", "test", target=[box])
    yield Item("d", "", "passage", target=(("word", 3), ("other", 5)))
    yield Item("e", "", "", problem="odd")


def test_items_come_back_as_they_were(tmp_path):
    with Items(rows(), np.array([True] * 5), tmp_path) as kept:
        for number, item in enumerate(rows()):
            found = kept[number]
            for field in ("name", "label", "split", "problem", "target"):
                assert getattr(found, field) == getattr(item, field)
            np.testing.assert_array_equal(found.data, item.data)
        assert list(tmp_path.iterdir()) == []  # the file has no name


def test_only_rows_that_are_wanted_are_kept_and_what_follows_is_not_read(
    tmp_path,
):
    def walk():
        yield from list(rows())[:3]
        raise AssertionError("there is no need to go on")

    with Items(
        walk(), np.array([False, True, True, False, False]), tmp_path
    ) as kept:
        assert (kept[1].name, kept[2].name) == ("b", "c")
        for row in (0, 3, 9):
            with pytest.raises(NotFound, match=f"row {row}"):
                kept[row]


def test_nothing_wanted_is_nothing_read(tmp_path):
    def walk():
        raise AssertionError
        yield

    Items(walk(), np.array([False, False]), tmp_path).close()


def test_an_item_is_read_when_it_is_asked_for_and_again_each_time(tmp_path):
    read = []

    def content():
        read.append(1)
        return base.Content(b"data", target="wanted")

    with Items(
        iter([Item.later("a", "x", None, content)]), np.array([True]), tmp_path
    ) as kept:
        assert kept[0].name == "a"
        assert read == []
        one = kept[0]
        assert (one.data, one.target, one.problem) == (b"data", "wanted", "")
        assert len(read) == 1
        assert kept[0].data == b"data"
        assert len(read) == 2


def test_a_reader_that_gives_up_leaves_no_file_open(tmp_path):
    def walk():
        yield from rows()
        raise InvalidInput("damaged")

    with pytest.raises(InvalidInput, match="damaged"):
        Items(walk(), np.array([True] * 9), tmp_path)
