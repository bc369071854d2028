"""A training that starts from a version: what it takes over, what is new, and what can't be had."""

import warnings
from contextlib import closing

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from modelmill.bundle import open_bundle
from modelmill.errors import InvalidInput
from modelmill.jobs.process import Events
from modelmill.jobs.train import train_version
from modelmill.predictor import load
from modelmill.types import WEIGHTS, JobSpec
from tests.helpers.datasets import book, dataset, picture_folder, text_table
from tests.helpers.workers import going

SMALL = {"width": "32", "layers": "1", "heads": "2"}
QUICK = {"epochs": "1", "batch_size": "16", "epoch_steps": "2"}


class Trainings:
    """Trainings one after the other, in folders of their own."""

    def __init__(self, home):
        self.home, self.count = home, 0

    def train(self, task, recipe, data, base=None, **settings):
        self.count += 1
        folder = self.home / f"job{self.count}"
        folder.mkdir()
        spec = JobSpec(
            job=self.count,
            kind="train",
            folder=str(folder),
            threads=1,
            name="tiny",
            task=task,
            recipe=recipe,
            dataset=data,
            settings={**QUICK, **settings},
            cache=str(self.home / "cache"),
            base=f"base:{self.count - 1}" if base else "",
            bundle=str(base or ""),
        )
        threads = torch.get_num_threads()
        with (
            warnings.catch_warnings(),
            closing(Events(folder / "events.jsonl")) as events,
        ):
            warnings.simplefilter("ignore")  # as in a job's process
            train_version(spec, events, going())
        torch.set_num_threads(threads)
        return folder / "bundle"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("inheriting")


@pytest.fixture(scope="module")
def trainings(home):
    return Trainings(home)


@pytest.fixture(scope="module")
def reviews(home):
    return text_table(home / "reviews")


@pytest.fixture(scope="module")
def bert(trainings, reviews, home):
    data = dataset(reviews, "fill-mask", home / "fill")
    return trainings.train("fill-mask", "bert", data, **SMALL)


def same(one, other, part):
    mine, theirs = (load_file(folder / WEIGHTS) for folder in (one, other))
    names = [name for name in mine if name.startswith(part) and name in theirs]
    assert names
    return [np.array_equal(mine[name], theirs[name]) for name in names]


def test_a_classifier_goes_on_from_what_was_learnt_of_the_language(
    trainings, bert, reviews, home
):
    data = dataset(reviews, "text-classification", home / "label")
    found = trainings.train(
        "text-classification", "transformer", data, bert, freeze="inherited"
    )
    assert all(same(found, bert, "encoder."))
    manifest, before = open_bundle(found), open_bundle(bert)
    assert manifest.files["tokenizer.json"] == before.files["tokenizer.json"]
    assert manifest.preprocessing["tokens"] == before.preprocessing["tokens"]
    assert {name: manifest.lineage.settings[name] for name in SMALL} == {
        "width": 32,
        "layers": 1,
        "heads": 2,
    }
    (origin,) = manifest.lineage.chain
    assert (origin.task, origin.dataset) == ("fill-mask", "reviews")
    assert "started from `base:" in (found / "README.md").read_text()
    load(found)


def test_without_freezing_all_of_it_learns_on(trainings, bert, reviews, home):
    data = dataset(reviews, "text-classification", home / "label2")
    found = trainings.train("text-classification", "transformer", data, bert)
    assert not any(same(found, bert, "encoder.blocks"))
    again = trainings.train(
        "text-classification",
        "transformer",
        data,
        found,
        freeze="encoder.embedding",
    )
    assert all(same(again, found, "encoder.embedding"))
    assert not any(same(again, found, "head."))
    assert [one.task for one in open_bundle(again).lineage.chain] == [
        "fill-mask",
        "text-classification",
    ]


@pytest.fixture(scope="module")
def classifier(trainings, home):
    data = dataset(
        picture_folder(home / "pictures"),
        "image-classification",
        home / "vision",
    )
    return trainings.train("image-classification", "cnn", data)


def test_new_labels_get_a_new_head(trainings, classifier, home):
    root = picture_folder(home / "others")
    for name in ("left", "right"):
        (root / name).rename(root / f"other-{name}")
    data = dataset(root, "image-classification", home / "vision2")
    found = trainings.train(
        "image-classification", "cnn", data, classifier, freeze="inherited"
    )
    mine, theirs = load_file(found / WEIGHTS), load_file(classifier / WEIGHTS)
    assert mine.keys() == theirs.keys()
    kept = {name for name in mine if np.array_equal(mine[name], theirs[name])}
    heads = {name for name, array in mine.items() if array.shape[0] == 2}
    assert heads
    assert heads.isdisjoint(kept)
    assert (
        open_bundle(found).preprocessing
        == open_bundle(classifier).preprocessing
    )


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"freeze": "nothing.here"},
            "freeze=nothing.here: the network has the parts encoder, head",
        ),
        ({"freeze": "encoder,head"}, "nothing is left to train"),
        (
            {"tokenizer": "char"},
            "tokenizer=char: base:.* has word, and its tokenizer is kept",
        ),
        (
            {"width": "64"},
            "has no weights that fit this network: its parts are bias, encoder, head",
        ),
    ],
)
def test_what_can_not_be_had_is_said(
    trainings, bert, reviews, home, settings, says
):
    data = dataset(
        reviews, "text-classification", home / f"no{abs(hash(str(settings)))}"
    )
    with pytest.raises(InvalidInput, match=says):
        trainings.train(
            "text-classification", "transformer", data, bert, **settings
        )


def test_nothing_is_inherited_where_nothing_was_there(trainings, reviews, home):
    data = dataset(reviews, "text-classification", home / "alone")
    with pytest.raises(
        InvalidInput, match="freeze=inherited: nothing was inherited"
    ):
        trainings.train(
            "text-classification", "transformer", data, freeze="inherited"
        )


def test_a_writer_goes_on_writing_in_another_manner(trainings, home):
    small = {**SMALL, "context": "32", "passage": "64"}
    first = trainings.train(
        "text-generation",
        "gpt",
        dataset(book(home / "one"), "text-generation", home / "g1"),
        **small,
    )
    found = trainings.train(
        "text-generation",
        "gpt",
        dataset(book(home / "two", 70), "text-generation", home / "g2"),
        first,
    )
    assert (
        open_bundle(found).files["tokenizer.json"]
        == open_bundle(first).files["tokenizer.json"]
    )
    assert load(found).predict(["line "])[0]["generated_text"]
