"""Scores become labels; answers and truths become numbers that can be checked by hand."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from modelmill.errors import InvalidInput
from modelmill.tasks.base import Context, Measured, task_named
from modelmill.tasks.evaluation.classification import (
    confusion_picture,
    evaluate,
)

CLASSIFIER = task_named("text-classification")


def context(*labels):
    return Context(
        preprocessing=None, labels=list(labels), folder=Path("/nowhere")
    )


TEN = context(*"abcdefghij")
SCORES = {
    "scores": np.array(
        [0.01, 0.3, 0.02, 0.2, 0.03, 0.15, 0.04, 0.1, 0.05, 0.1], np.float32
    )
}


@pytest.mark.parametrize(
    ("parameters", "labels"),
    [
        ({}, "bdfhj"),
        ({"top_k": 1}, "b"),
        ({"top_k": 2}, "bd"),
        ({"top_k": 99}, "bdfhjigeca"),
        ({"top_k": None}, "bdfhj"),
    ],
)
def test_the_best_labels_come_first(parameters, labels):
    answer = CLASSIFIER.encode(SCORES, TEN, CLASSIFIER.parameters(parameters))
    assert [entry["label"] for entry in answer] == list(labels)
    assert [entry["score"] for entry in answer] == sorted(
        (entry["score"] for entry in answer), reverse=True
    )


def test_scores_are_plain_rounded_numbers():
    assert CLASSIFIER.encode(
        SCORES, TEN, CLASSIFIER.parameters({"top_k": 1})
    ) == [{"label": "b", "score": 0.3}]


def test_fewer_labels_than_asked_for_are_all_labels():
    assert (
        len(
            CLASSIFIER.encode(
                {"scores": np.array([0.5, 0.5])},
                context("a", "b"),
                CLASSIFIER.parameters({}),
            )
        )
        == 2
    )


@pytest.mark.parametrize("top_k", [0, -1, 1.5, "3", True, False, [1], {}])
def test_a_top_k_that_is_no_whole_number_from_one_is_refused(top_k):
    with pytest.raises(InvalidInput, match="top_k is a whole number from 1"):
        CLASSIFIER.encode(SCORES, TEN, CLASSIFIER.parameters({"top_k": top_k}))


def test_another_function_than_softmax_is_refused():
    assert CLASSIFIER.encode(
        SCORES, TEN, CLASSIFIER.parameters({"function_to_apply": "softmax"})
    )
    with pytest.raises(InvalidInput, match="function_to_apply"):
        CLASSIFIER.encode(
            SCORES, TEN, CLASSIFIER.parameters({"function_to_apply": "sigmoid"})
        )


def test_the_output_is_one_score_for_each_label():
    (spec,) = CLASSIFIER.outputs(TEN)
    assert (spec.name, spec.datatype, spec.shape) == (
        "scores",
        "FP32",
        [-1, 10],
    )


def answers(*rows, labels="ab"):
    return [
        [
            {"label": label, "score": score}
            for label, score in zip(labels, row, strict=True)
        ]
        for row in rows
    ]


def judged(outputs, truths, labels):
    return evaluate(
        Measured(outputs=outputs, truths=truths, labels=labels, show=list)
    )


def test_metrics_of_a_case_worked_out_by_hand():
    # truth a a a b; guesses a a b b
    found = judged(
        answers((0.9, 0.1), (0.8, 0.2), (0.3, 0.7), (0.4, 0.6)),
        list("aaab"),
        list("ab"),
    ).metrics
    assert found["items"] == 4
    assert found["accuracy"] == 0.75
    assert found["per_class"]["a"] == pytest.approx(
        {"precision": 1.0, "recall": 2 / 3, "f1": 0.8, "items": 3}
    )
    assert found["per_class"]["b"] == pytest.approx(
        {"precision": 0.5, "recall": 1.0, "f1": 2 / 3, "items": 1}
    )
    assert found["f1_macro"] == pytest.approx((0.8 + 2 / 3) / 2)
    assert found["f1_weighted"] == pytest.approx(0.75 * 0.8 + 0.25 * 2 / 3)
    assert found["precision_macro"] == pytest.approx(0.75)
    assert found["recall_weighted"] == pytest.approx(0.75)
    # each item is alone in its bin: |1 - 0.9| + |1 - 0.8| + |0 - 0.7| + |1 - 0.6|, a quarter each
    assert found["calibration_error"] == pytest.approx(
        (0.1 + 0.2 + 0.7 + 0.4) / 4
    )
    assert "top_5_accuracy" not in found


def test_the_calibration_error_is_zero_when_confidence_is_accuracy():
    rows = [(0.75, 0.25)] * 4
    assert judged(answers(*rows), list("aaab"), list("ab")).metrics[
        "calibration_error"
    ] == pytest.approx(0)
    certain = judged(
        answers((1.0, 0.0), (0.0, 1.0)), list("ab"), list("ab")
    ).metrics
    assert (certain["calibration_error"], certain["accuracy"]) == (0.0, 1.0)


def test_top_five_is_counted_when_there_are_more_labels():
    labels = "abcdef"
    row = (0.3, 0.25, 0.2, 0.15, 0.09, 0.01)
    found = judged(
        answers(row, row, labels=labels), list("ef"), list(labels)
    ).metrics
    assert (found["accuracy"], found["top_5_accuracy"]) == (0.0, 0.5)


def test_a_label_that_never_occurs_counts_zero_and_does_not_fail():
    found = judged(
        answers((0.9, 0.1, 0.0), labels="abc"), ["a"], list("abc")
    ).metrics
    assert found["per_class"]["c"] == {
        "precision": 0.0,
        "recall": 0.0,
        "f1": 0.0,
        "items": 0,
    }


@pytest.mark.parametrize(
    "labels",
    [
        ["a", "b"],
        ["电影", "<b>$x^2$", "_under_"],
        [f"label {i}" for i in range(30)],
    ],
)
@pytest.mark.filterwarnings("ignore:Glyph")
def test_pictures_are_png(labels):
    rows = [
        [
            {"label": label, "score": 1.0 if label == labels[0] else 0.0}
            for label in labels
        ]
    ]
    pictures = judged(rows, [labels[0]], labels).pictures
    assert pictures
    for name, data in pictures.items():
        assert name.endswith(".png")
        with Image.open(io.BytesIO(data)) as image:
            assert image.format == "PNG"


def test_a_label_that_looks_like_mathematics_does_not_break_the_picture():
    assert confusion_picture(
        np.eye(2, dtype=int), ["cheap $", "$\\frac{$"]
    ).startswith(b"\x89PNG")


@settings(max_examples=12)
@given(
    st.lists(
        st.tuples(st.floats(0, 1), st.sampled_from("ab")),
        min_size=1,
        max_size=20,
    )
)
def test_metrics_stay_within_their_range(cases):
    found = judged(
        answers(*[(p, 1 - p) for p, _ in cases]),
        [truth for _, truth in cases],
        list("ab"),
    ).metrics
    numbers = [value for value in found.values() if isinstance(value, float)]
    assert all(0 <= value <= 1 for value in numbers)
    assert sum(row["items"] for row in found["per_class"].values()) == len(
        cases
    )


def test_a_parameter_that_nothing_reads_is_refused_with_the_near_one():
    with pytest.raises(
        InvalidInput, match="unknown parameter 'topk'; did you mean 'top_k'"
    ):
        CLASSIFIER.encode(
            {"scores": np.array([0.4, 0.6], np.float32)},
            context("a", "b"),
            CLASSIFIER.parameters({"topk": 1}),
        )
