"""Vectors are measured by what each item finds among the others."""

import numpy as np
import pytest

from modelmill.tasks.base import Measured, TrainSettings, task_named
from modelmill.tasks.evaluation import retrieval

TASK = task_named("image-feature-extraction")


def measured(vectors, truths):
    unit = np.asarray(vectors, float)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    show = lambda rows: [TASK.example() for _ in rows]  # noqa: E731
    return Measured(
        outputs=unit.tolist(),
        truths=truths,
        labels=sorted(set(truths)),
        show=show,
    )


def test_recall_and_precision_are_those_of_the_ranking():
    # By rising distance they find: b a b, b b a, a a b, a b a.
    angles = {"a": [0.0, 0.45], "b": [0.2, 0.8]}
    vectors = [
        [np.cos(angle), np.sin(angle)]
        for pair in angles.values()
        for angle in pair
    ]
    found = retrieval.evaluate(measured(vectors, ["a", "a", "b", "b"])).metrics
    assert found["recall_at_1"] == 0
    assert found["recall_at_5"] == 1
    assert found["map"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 3 + 1 / 2) / 4)
    assert (found["items"], found["queries"], found["classes"]) == (4, 4, 2)


def test_what_lies_together_is_found_and_shown():
    rng = np.random.default_rng(0)
    vectors = np.repeat(
        rng.normal(size=(5, 16)), 6, axis=0
    ) + 0.01 * rng.normal(size=(30, 16))
    found = retrieval.evaluate(
        measured(vectors, [f"class {row // 6} of $5" for row in range(30)])
    )
    assert [
        found.metrics[name] for name in ("recall_at_1", "recall_at_5", "map")
    ] == [
        1,
        1,
        1,
    ]
    assert found.pictures.keys() == {"neighbours.png", "similarities.png"}


def test_an_item_without_a_like_one_does_not_search_but_is_searched():
    found = retrieval.evaluate(
        measured([[1, 0], [0.9, 0.1], [1, 0.01]], ["a", "a", "lonely"])
    ).metrics
    assert (found["items"], found["queries"]) == (3, 2)
    assert found["recall_at_1"] == 0
    alone = retrieval.evaluate(measured([[1, 0], [0, 1]], ["a", "b"])).metrics
    assert (alone["queries"], alone["recall_at_1"], alone["map"]) == (0, 0, 0)


def test_many_items_search_in_parts(monkeypatch):
    rng = np.random.default_rng(0)
    vectors, truths = (
        rng.normal(size=(60, 4)),
        [str(row % 7) for row in range(60)],
    )
    whole = retrieval.evaluate(measured(vectors, truths)).metrics
    monkeypatch.setattr(retrieval, "AT_ONCE", 7)
    assert retrieval.evaluate(
        measured(vectors, truths)
    ).metrics == pytest.approx(whole)
    monkeypatch.setattr(retrieval, "QUERIES", 10)
    assert (
        retrieval.evaluate(measured(vectors, truths)).metrics["queries"] == 10
    )


def angles(margin=0.0):
    """A network of two numbers for three classes, whose body gives back what it gets."""
    import torch

    from modelmill.tasks.image_feature_extraction.training import (
        CosineClassifier,
    )

    network = CosineClassifier(torch.nn.Identity(), 2, 3, 10.0, margin)
    network.classes.data = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])
    return network


def test_a_margin_lowers_the_logit_of_the_right_class_alone():
    import torch

    from modelmill.tasks.image_feature_extraction.training import loss

    batch = {"image": torch.tensor([[3.0, 0.0]]), "label": torch.tensor([0])}
    plain, strict = (
        angles(margin).logits(angles()(batch["image"]), batch["label"])
        for margin in (0.0, 0.2)
    )
    assert plain.tolist() == [[10, 0, -10]]
    assert strict.tolist() == [[8, 0, -10]]
    easy, hard = (
        loss(angles(margin), batch, TrainSettings()).item()
        for margin in (0.0, 0.2)
    )
    assert easy < hard


def test_an_item_that_is_alone_in_its_batch_is_judged_by_its_class():
    import torch

    from modelmill.tasks.image_feature_extraction.training import validate

    pairs = {
        "image": torch.tensor([[1.0, 0.1], [1.0, 0.0], [0.0, 1.0], [0.1, 1.0]]),
        "label": torch.tensor([0, 0, 1, 1]),
    }
    found = validate(angles(), pairs, TrainSettings())
    assert found["recall_at_1"] == 1
    assert found["margin"] > 0.8
    alone = {
        "image": torch.tensor([[1.0, 0.1], [0.1, 1.0], [1.0, 0.0]]),
        "label": torch.tensor([0, 1, 2]),
    }
    assert validate(angles(), alone, TrainSettings())[
        "recall_at_1"
    ] == pytest.approx(1 / 3)
