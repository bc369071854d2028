"""An evaluation shows the pictures that were named wrongly, the surest errors first."""

import io

import numpy as np
import pytest
from PIL import Image

from modelmill.tasks import image_classification
from modelmill.tasks.base import Measured
from modelmill.tasks.evaluation import sample_sheet
from tests.helpers.pictures import encoded, png


def answer(label, score):
    other = "dog" if label == "cat" else "cat"
    return [
        {"label": label, "score": score},
        {"label": other, "score": round(1 - score, 4)},
    ]


def judged(outputs, truths, asked):
    def show(rows):
        asked.append(list(rows))
        return [png(np.full((20, 30, 3), 9 * row)) for row in rows]

    return image_classification.metrics(
        Measured(
            outputs=outputs, truths=truths, labels=["cat", "dog"], show=show
        )
    ).pictures


def test_the_surest_errors_come_first(monkeypatch):
    told, asked = [], []
    usual = sample_sheet.sheet
    monkeypatch.setattr(
        sample_sheet,
        "sheet",
        lambda *given: told.append(given) or usual(*given),
    )
    outputs = [
        answer("cat", 0.6),
        answer("dog", 0.9),
        answer("dog", 0.7),
        answer("cat", 0.99),
    ]
    pictures = judged(outputs, ["dog", "dog", "cat", "dog"], asked)
    assert asked == [[3, 2, 0]]
    title, _, captions = told[0]
    assert title.startswith("3 of 4 misclassified")
    assert captions[0].splitlines() == ["true: dog", "found: cat 0.99"]
    with Image.open(io.BytesIO(pictures["misclassified.png"])) as image:
        assert min(image.size) > 100
    assert "confusion.png" in pictures


def test_without_an_error_there_is_no_sheet():
    asked = []
    assert "misclassified.png" not in judged(
        [answer("cat", 0.6)] * 2, ["cat", "cat"], asked
    )
    assert asked == []


def test_of_many_errors_only_the_worst_are_shown():
    asked = []
    judged(
        [answer("cat", 0.5 + n / 400) for n in range(100)], ["dog"] * 100, asked
    )
    assert asked == [list(range(99, 99 - image_classification.WORST, -1))]


@pytest.mark.parametrize("count", [1, 5, 13])
def test_pictures_of_any_kind_make_a_sheet(count):
    kinds = [
        np.zeros((9, 4), np.uint8),
        encoded(Image.new("RGB", (300, 200)), "JPEG"),
        png(np.zeros((5, 5))),
    ]
    captions = [
        f"true: a very long name of a class ${number}\nfound: x"
        for number in range(count)
    ]
    data = sample_sheet.sheet(
        "some", [kinds[number % 3] for number in range(count)], captions
    )
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG"
