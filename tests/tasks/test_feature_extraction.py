"""Vectors of texts: what is fed, what training asks for, and how they are measured."""

import warnings
from contextlib import closing

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from modelmill.data.base import Item
from modelmill.errors import InvalidInput
from modelmill.jobs.process import Events
from modelmill.jobs.train import train_version
from modelmill.tasks import feature_extraction as module
from modelmill.tasks.base import Context
from modelmill.tasks.feature_extraction.measures import (
    labelled,
    measures,
    paired,
    spearman,
)
from modelmill.types import JobSpec
from tests.helpers.datasets import dataset, scored_table, text_table
from tests.helpers.workers import going

task = module.TASK

PAIRS = [
    ("one red house", "ein rotes haus"),
    ("two blue cars", "zwei blaue autos"),
    ("three trees", "drei baeume"),
]


def pair(number, score=None):
    one, other = PAIRS[number % len(PAIRS)]
    return Item(
        str(number),
        "",
        one,
        target=(other,) if score is None else (other, score),
    )


@pytest.fixture
def context(tmp_path):
    how = task.prepare(
        [task.prepare_sample(pair(number)) for number in range(6)],
        module.Preprocessing(),
        tmp_path,
    )
    return Context(
        preprocessing=how, labels=["cars", "houses"], folder=tmp_path
    )


def test_the_tokenizer_knows_both_sides(context):
    assert 1 not in task.decode("ein rotes haus", context)["ids"]


def test_a_pair_a_scored_pair_and_a_labelled_text_are_trained_on(context):
    ids, target = task.sample(pair(0), context)
    assert (
        ids["ids"].shape
        == target["other"].shape
        == (context.preprocessing.max_length,)
    )
    _, scored = task.sample(pair(0, 0.5), context)
    assert scored["score"] == 0.5
    _, own = task.sample(Item("x", "houses", "one red house"), context)
    assert own == {"label": 1}


@pytest.mark.parametrize(
    "text", ["\ud800", "a\x00b", "שלום עולם", "ᚠᛇᚻ", "🎉", "word " * 20_000]
)
def test_any_text_becomes_ids(context, text):
    ids = task.decode(text, context)["ids"]
    assert ids.max() < context.preprocessing.tokens


def test_a_long_text_is_cut_on_the_side_that_is_said(context):
    length = context.preprocessing.max_length
    text = " ".join(["red"] * length + ["blue"])
    right = task.decode(text, context, task.parameters({}))["ids"]
    left = task.decode(
        text, context, task.parameters({"truncation_direction": "left"})
    )["ids"]
    assert len(set(right)) == 1
    assert left[-1] != right[-1]
    with pytest.raises(InvalidInput, match="truncate is false"):
        task.decode(text, context, task.parameters({"truncate": False}))


def vectors_of(context, table):
    """A model whose vectors are looked up by the texts' ids."""
    known = {
        task.decode(text, context)["ids"].tobytes(): vector
        for text, vector in table.items()
    }
    return lambda arrays: {
        "embedding": np.stack([known[row.tobytes()] for row in arrays["ids"]])
    }


def test_pairs_are_measured_by_what_each_text_finds(context):
    table = {
        text: np.eye(3, dtype=np.float32)[number]
        for number, both in enumerate(PAIRS)
        for text in both
    }
    items = [pair(number) for number in range(3)]
    found = measures(vectors_of(context, table), items, context)
    assert (
        found.metrics["recall_at_1"]
        == found.metrics["recall_at_1_back"]
        == found.metrics["mrr"]
        == 1
    )
    assert found.pictures["similarities.png"].startswith(b"\x89PNG")
    table["ein rotes haus"], table["zwei blaue autos"] = (
        table["zwei blaue autos"],
        table["ein rotes haus"],
    )
    found = measures(vectors_of(context, table), items, context)
    assert found.metrics["recall_at_1"] == pytest.approx(1 / 3)
    assert found.metrics["recall_at_5"] == 1


def test_a_tie_is_no_find():
    same = np.ones((4, 1), np.float32)
    assert (
        paired(same, same, list("abcd"), list("efgh")).metrics["recall_at_1"]
        == 0
    )


def test_the_same_text_twice_is_right_both_times():
    one = np.eye(2, dtype=np.float32)[[0, 0, 1]]
    assert (
        paired(one, one, ["a", "a", "b"], ["x", "x", "y"]).metrics[
            "recall_at_1"
        ]
        == 1
    )


def test_labelled_texts_are_measured_among_one_another():
    vectors = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], np.float32)
    assert labelled(vectors, ["a", "a", "b", "b"]).metrics["recall_at_1"] == 1
    assert labelled(vectors, ["a", "b", "a", "b"]).metrics["recall_at_1"] == 0


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=30
    )
)
def test_spearman_is_scipys(rows):
    one, other = (np.array(values, float) for values in zip(*rows, strict=True))
    wanted = (
        spearmanr(one, other).statistic
        if np.ptp(one) and np.ptp(other)
        else 0.0
    )
    assert spearman(one, other) == pytest.approx(wanted, abs=1e-9)


def test_scored_pairs_are_measured_by_their_order(context):
    table = {text: np.array([1, 0], np.float32) for text, _ in PAIRS}
    table |= {
        other: np.array(way, np.float32)
        for (_, other), way in zip(
            PAIRS, [(1, 0), (0.6, 0.8), (0, 1)], strict=True
        )
    }
    items = [
        pair(number, score) for number, score in enumerate((5.0, 2.5, 0.0))
    ]
    assert measures(vectors_of(context, table), items, context).metrics == {
        "spearman": 1.0,
        "items": 3,
    }


# ---- training


def test_the_loss_of_pairs_falls_when_they_lie_together():
    import torch

    from modelmill.tasks.feature_extraction.training import by_pairs

    batch = {
        "ids": torch.tensor([[1], [2], [3]]),
        "other": torch.tensor([[4], [5], [6]]),
    }
    eye = torch.eye(3)
    assert by_pairs(eye, eye, batch, 20.0) < 1e-3
    assert by_pairs(eye, eye.roll(1, 0), batch, 20.0) > 5


def test_the_same_translation_twice_is_not_held_against_a_text():
    import torch

    from modelmill.tasks.feature_extraction.training import by_pairs

    one = torch.eye(3)[[0, 0, 1]]
    batch = {
        "ids": torch.tensor([[1], [1], [3]]),
        "other": torch.tensor([[4], [4], [6]]),
    }
    assert by_pairs(one, one, batch, 20.0) < 1e-3


def test_the_loss_of_labels_falls_when_like_texts_lie_together():
    import torch

    from modelmill.tasks.feature_extraction.training import by_labels

    vectors = torch.eye(2)[[0, 0, 1, 1]]
    good, bad = (
        by_labels(vectors, torch.tensor(label), 20.0)
        for label in ([0, 0, 1, 1], [0, 1, 0, 1])
    )
    assert good < 1e-3 < 5 < bad
    assert (
        by_labels(vectors, torch.arange(4), 20.0) == 0
    )  # nobody has a like one


def test_the_loss_of_scores_is_about_their_order():
    import torch

    from modelmill.tasks.feature_extraction.training import by_scores

    cosines = torch.tensor([0.9, 0.5, 0.1])
    good, bad = (
        by_scores(cosines, torch.tensor(score), 20.0)
        for score in ([5.0, 3.0, 1.0], [1.0, 3.0, 5.0])
    )
    assert good < 0.01 < 5 < bad


@pytest.mark.parametrize(
    ("made", "figure"),
    [(scored_table, "spearman"), (text_table, "recall_at_1")],
)
def test_a_model_is_learnt_from_scores_and_from_labels(tmp_path, made, figure):
    folder = tmp_path / "job"
    folder.mkdir()
    settings = {
        "epochs": "8",
        "batch_size": "32",
        "width": "32",
        "layers": "1",
        "learning_rate": "0.01",
    }
    spec = JobSpec(
        job=1,
        kind="train",
        folder=str(folder),
        threads=1,
        name="near",
        task="feature-extraction",
        recipe="encoder",
        dataset=dataset(
            made(tmp_path / "set"), "feature-extraction", tmp_path / "store"
        ),
        settings=settings,
        cache=str(tmp_path / "cache"),
    )
    with (
        warnings.catch_warnings(),
        closing(Events(folder / "events.jsonl")) as events,
    ):
        warnings.simplefilter("ignore")  # as in a job's process
        metrics = train_version(spec, events, going())["metrics"]
    assert metrics[figure] > 0.5
    card = (folder / "bundle" / "README.md").read_text()
    assert f'"type": "{figure}", "value": {round(metrics[figure], 4)}' in card
