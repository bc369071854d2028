"""What `modelmill predict` prints for the answers of a detector, and draws."""

import pytest
from PIL import Image

from modelmill.cli import screen, serving
from modelmill.tasks.kinds import output_kinds

BOX = {"xmin": 3, "ymin": 40, "xmax": 27, "ymax": 58}


def found(label="circle", score=0.75):
    return {"label": label, "score": score, "box": dict(BOX)}


def test_nothing_found_names_the_threshold_and_a_lower_one(capsys):
    screen.predictions([{"input": "1.jpg", "output": []}], 0.5)
    said = capsys.readouterr().out
    assert "1.jpg: nothing found above the threshold 0.5" in said
    assert "lower it with --set threshold=0.1" in said


@pytest.mark.parametrize("threshold", [0.0, 0.01, None])
def test_what_is_lowest_already_is_not_to_be_lowered(capsys, threshold):
    screen.predictions([{"input": "1.jpg", "output": []}], threshold)
    said = capsys.readouterr().out
    assert "nothing found" in said
    assert "lower it" not in said


def test_every_box_is_shown_with_its_corners(capsys):
    rows = [
        {"input": "1.jpg", "output": [found(), found("square", 0.5)]},
        {"input": "2.jpg", "output": []},
    ]
    screen.predictions(rows, 0.3)
    nothing, head, *boxes = capsys.readouterr().out.splitlines()
    assert nothing.startswith("2.jpg: nothing found")
    assert head.split() == [
        "input",
        "label",
        "score",
        "xmin",
        "ymin",
        "xmax",
        "ymax",
    ]
    assert [line.split() for line in boxes] == [
        ["1.jpg", "circle", "0.750", "3", "40", "27", "58"],
        ["1.jpg", "square", "0.500", "3", "40", "27", "58"],
    ]


def test_the_threshold_in_force_is_the_one_given_or_the_detectors_own():
    nothing = [{"input": "1.jpg", "output": []}]
    assert serving._threshold(nothing, {"threshold": 0.5}) == 0.5
    assert serving._threshold(nothing, {}) == 0.3
    assert (
        serving._threshold([{"input": "1.jpg", "output": [found()]}], {})
        is None
    )


def test_boxes_are_drawn_on_the_picture(tmp_path):
    picture = tmp_path / "1.png"
    Image.new("RGB", (64, 64), "white").save(picture)
    rows = [{"input": str(picture), "output": [found()]}]
    serving._save_pictures(rows, tmp_path / "out")
    drawn = Image.open(rows[0]["output"][0]["file"])
    assert drawn.size == (64, 64)
    assert drawn.getpixel((3, 50)) == (255, 0, 0)
    assert drawn.getpixel((26, 50)) == (255, 0, 0)
    assert drawn.getpixel((40, 20)) == (255, 255, 255)


def test_where_nothing_was_found_nothing_is_drawn(tmp_path):
    serving._save_pictures([{"input": "1.png", "output": []}], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def printed(capsys, output, shown):
    screen.predictions([{"input": "1", "output": output}], shown=shown)
    return [line.split() for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("kind", output_kinds(), ids=lambda kind: kind.name)
def test_the_example_of_every_kind_is_shown(capsys, kind):
    (head, row) = printed(capsys, kind.example(), kind.shown)
    assert head[0] == "input"
    assert row[0] == "1"
    assert len(row) > 1


@pytest.mark.parametrize(
    ("output", "shown", "said"),
    [
        ({"grade": 0.75}, "json", '{"grade": 0.75}'),
        (
            {"classes": ["a"], "mask": "x"},
            "masks",
            '{"classes": ["a"], "mask": "x"}',
        ),
        (
            {"embedding": [0.5], "tokens": 2},
            "vector",
            '{"embedding": [0.5], "tokens": 2}',
        ),
        ("AAAA", "vector", '"AAAA"'),
    ],
)
def test_an_answer_in_another_form_is_shown_as_json(
    capsys, output, shown, said
):
    assert printed(capsys, output, shown) == [
        ["input", "answer"],
        ["1", *said.split()],
    ]


def test_several_files_of_pictures_are_all_named(capsys):
    rows = printed(capsys, {"files": ["a.png", "b.png"]}, "picture")
    assert rows == [["input", "answer"], ["1", "a.png,", "b.png"]]
