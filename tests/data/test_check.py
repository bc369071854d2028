"""The check finds what is wrong with a data set and says it once, in words."""

import json

import msgspec
import numpy as np
import pytest

from modelmill.data.base import Item
from modelmill.data.check import Index, examine
from modelmill.errors import Cancelled, MillError

from .conftest import check, kinds, make_folder, png, text_print


def texts(*rows):
    return [
        Item(f"row {at}", label, data, split)
        for at, (data, label, split) in enumerate(rows)
    ]


def run(items, fingerprint=text_print):
    return examine(items, fingerprint, lambda done: None)


def many(label, count, split=None, start=0):
    return [
        (f"{label} {number}", label, split)
        for number in range(start, start + count)
    ]


def test_a_sound_set_has_nothing_to_report():
    index, report = run(texts(*many("a", 20), *many("b", 30)))
    assert report.findings == []
    assert (report.items, report.sound, report.classes) == (
        50,
        50,
        {"a": 20, "b": 30},
    )
    assert report.splits == {"train": 40, "val": 5, "test": 5}
    assert report.lines() == [
        "50 items, 50 sound, 2 classes (train 40, val 5, test 5)"
    ]
    assert (index.labels, index.splits) == (
        ["a", "b"],
        ["train", "val", "test"],
    )


def test_the_index_lines_up_with_the_items_and_marks_the_dropped(tmp_path):
    rows = texts(*many("10", 9), (" \t", "10", None), *many("9", 9))
    rows[3].problem = "not UTF-8"
    index, report = run(rows)
    index.save(tmp_path / "index")
    index = Index.load(tmp_path / "index")
    assert index.labels == ["9", "10"], "numbers in order of their value"
    assert (
        index.label_array().tolist()
        == [1] * 3 + [-1] + [1] * 5 + [-1] + [0] * 9
    )
    assert np.flatnonzero(index.split_array() == -1).tolist() == [3, 9]
    assert int(text_print(rows[0])[:16], 16) == index.print_array()[0]
    assert len(index) == 19
    assert kinds(report) == {"unreadable-row": 1, "empty": 1}
    assert {finding.severity for finding in report.findings} == {"dropped"}
    assert report.lines()[1:] == [
        "dropped: unreadable-row: left out 1 item that could not be read (such as row 3: not "
        "UTF-8)",
        "dropped: empty: left out 1 item without content (such as row 9)",
    ]


def test_a_damaged_index_is_not_loaded(tmp_path):
    with pytest.raises(MillError, match="reading the index"):
        Index.load(tmp_path / "nothing")
    (tmp_path / "index").write_bytes(b"\x00")
    with pytest.raises(MillError, match="damaged"):
        Index.load(tmp_path / "index")
    Index(["a"], ["train"], b"1234", b"12", b"").save(tmp_path / "index")
    with pytest.raises(MillError, match="disagree"):
        Index.load(tmp_path / "index")


def test_duplicate_contents_are_findings_by_their_kind():
    rows = [
        *many("a", 10, "train"),
        *many("b", 10, "train"),
        *many("a", 5, "test", 50),
        *many("b", 5, "test", 50),
        ("a 0", "a", "train"),
        ("a 0 ", "a", "train"),
        ("a 1", "a", "test"),
        ("a 2", "b", "train"),
    ]
    found = {finding.kind: finding for finding in run(texts(*rows))[1].findings}
    assert {kind: finding.count for kind, finding in found.items()} == {
        "duplicates": 2,
        "duplicates-across-splits": 1,
        "conflicting-labels": 1,
    }
    assert found["duplicates"].examples == ["row 0 = row 30", "row 0 = row 31"]
    assert found["duplicates-across-splits"].examples == ["row 1 = row 32"]
    assert found["conflicting-labels"].examples == ["row 2 (a) = row 33 (b)"]


def test_classes_that_are_few_small_or_uneven():
    assert kinds(run(texts(*many("a", 9)))[1]) == {"one-class": 1}
    assert kinds(run([])[1]) == {"one-class": 0}
    index, report = run(texts(*many("a", 9), *many("b", 4), ("", "c", None)))
    assert kinds(report) == {"empty": 1, "few-items": 2, "imbalance": 1}
    assert report.classes == {"a": 9, "b": 4, "c": 0}
    assert index.labels == ["a", "b"]
    (imbalance,) = (
        finding for finding in report.findings if finding.kind == "imbalance"
    )
    assert (
        imbalance.message
        == "the largest class has 2.2 times the items of the smallest: a 9, b 4"
    )


def test_declared_splits_without_test():
    rows = texts(*many("a", 9, "train"), *many("b", 9, "train"))
    assert kinds(run(rows)[1]) == {"no-test-split": 1}


def test_a_declared_val_measures_where_no_test_is_declared():
    rows = texts(
        *many("a", 10, "train"),
        *many("b", 10, "train"),
        *many("a", 9, "val", 50),
        *many("b", 9, "val", 50),
    )
    report = run(rows)[1]
    assert report.splits == {"train": 18, "val": 2, "test": 18}
    (finding,) = report.findings
    assert (finding.kind, finding.count) == ("val-as-test", 18)
    assert finding.message == (
        "no test items are declared: 18 items of val measure instead, and a tenth of train "
        "becomes val"
    )


def test_examples_are_at_most_five_and_safe_to_print():
    rows = texts(*many("a", 20), *many("b", 20))
    for row in rows[:8]:
        row.name = f"evil\n\x1b[31m{row.name}\udcff"
        row.problem = "odd"
    report = run(rows)[1]
    assert report.findings[0].count == 8
    assert len(report.findings[0].examples) == 5
    assert all(line.isprintable() for line in report.lines())
    json.loads(msgspec.json.encode(report))


def test_progress_is_reported_and_a_cancellation_ends_the_check():
    told = []
    examine(texts(*many("a", 600)), text_print, told.append)
    assert told == [256, 512, 600]

    def cancel(item):
        raise Cancelled("stop")

    with pytest.raises(Cancelled):
        run(texts(*many("a", 2)), cancel)


def test_pictures_that_are_broken_or_misnamed(tmp_path):
    files = {
        f"{label}/{number}.png": png(number + 100 * (label == "b"))
        for label in "ab"
        for number in range(6)
    }
    files |= {
        "a/x.png": b"garbage",
        "a/y.png": png(5000)[:60],
        "b/z.png": b"",
        "b/w.jpg": png(5001),
        "b/n.txt": b"t",
    }
    report = check(make_folder(tmp_path / "set", files), "image")[1]
    found = {finding.kind: finding for finding in report.findings}
    assert {kind: finding.count for kind, finding in found.items()} == {
        "undecodable": 2,
        "empty": 1,
        "unreadable-row": 1,
        "mislabelled-extension": 1,
    }
    assert found["mislabelled-extension"].examples == ["b/w.jpg is png"]
    assert found["unreadable-row"].examples == ["b/n.txt: not a picture file"]
    assert report.sound == 13


def test_trashnet_has_three_photos_with_two_labels(shared):
    index, report = check(shared("trashnet/trashnet_192x256.zip"), "image")
    found = {finding.kind: finding for finding in report.findings}
    assert {kind: finding.count for kind, finding in found.items()} == {
        "conflicting-labels": 3,
        "duplicates-across-splits": 1,
        "imbalance": 1,
    }
    told = " ".join(found["conflicting-labels"].examples)
    for name in (
        "metal91",
        "glass115",
        "glass176",
        "plastic152",
        "glass389",
        "plastic332",
    ):
        assert f"/{name}.jpg" in told
    (leak,) = found["duplicates-across-splits"].examples
    assert sorted(leak.split(" = ")) == [
        "test/metal/metal91.jpg",
        "train/glass/glass115.jpg",
    ]
    assert "paper 594" in found["imbalance"].message
    assert "trash 137" in found["imbalance"].message
    assert report.splits == {"train": 1769, "val": 379, "test": 379}
    assert len(index) == report.sound == 2527


def test_hotel_reviews_have_an_empty_one_and_more_praise(shared):
    report = check(shared("chnsenticorp_htl"), "text")[1]
    assert kinds(report) == {"empty": 1, "imbalance": 1}
    assert report.classes == {"0": 2443, "1": 5322}


def test_film_reviews_repeat_only_when_case_and_punctuation_are_ignored(shared):
    def letters(item):
        kept = "".join(char for char in item.data.lower() if char.isalnum())
        return text_print(Item(item.name, item.label, kept))

    exact = check(shared("rt_polarity"), "text")[1]
    assert kinds(exact) == {}
    assert exact.classes == {"neg": 5331, "pos": 5331}
    assert kinds(check(shared("rt_polarity"), "text", letters)[1]) == {
        "duplicates": 2
    }


def test_mnist_is_sound(shared):
    report = check(shared("mnist"), "image")[1]
    assert report.findings == []
    assert report.splits["test"] == 10_000
    assert report.splits["train"] + report.splits["val"] == 60_000
    assert report.classes["1"] == 7877


@pytest.mark.parametrize(
    ("name", "items", "classes", "some"),
    [
        ("cifar10_jpg", 9500, 10, "airplane"),
        ("omniglot_small1", 2720, 136, "Balinese/character01"),
        ("orl_faces", 400, 40, "s1"),
    ],
)
def test_picture_sets_are_read_rightly(shared, name, items, classes, some):
    report = check(shared(name), "image")[1]
    assert (report.items, report.sound, len(report.classes)) == (
        items,
        items,
        classes,
    )
    assert some in report.classes
    assert min(report.classes.values()) >= 10


def test_undecodable_samples_are_found(shared, tmp_path):
    source = shared("request_samples")
    told = {
        entry["file"]: entry["pillow13"]
        for entry in json.loads((source / "manifest.json").read_text())
    }
    pictures = [name for name in told if not name.endswith(".mp4")]
    for number, name in enumerate(
        [*pictures, "clip_short.mp4", "manifest.json"]
    ):
        make_folder(
            tmp_path / "set",
            {f"{'ab'[number % 2]}/{name}": (source / name).read_bytes()},
        )
    index, report = check(tmp_path / "set", "image")
    bad = {name for name in pictures if told[name] != "decodes"}
    assert kinds(report)["undecodable"] == len(bad) == 7
    assert kinds(report)["unreadable-row"] == 2
    assert report.sound == len(pictures) - len(bad)
    found = {finding.kind: finding for finding in report.findings}
    assert {
        example.split(":")[0][2:] for example in found["undecodable"].examples
    } <= bad
    assert "mislabelled-extension" not in found
    assert (index.split_array() == -1).sum() == len(bad) + 2
