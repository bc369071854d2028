"""Detection: boxes in the coordinates of the picture that was sent, COCO's figures, and a detector
that learns.
"""

import warnings
from contextlib import closing

import numpy as np
import pytest
from PIL import Image

from modelmill import predictor
from modelmill.data.base import Box, Item
from modelmill.errors import InvalidInput
from modelmill.jobs.process import Events
from modelmill.jobs.train import train_version
from modelmill.tasks.base import Context, Measured, task_named
from modelmill.tasks.decoding import image_decoder
from modelmill.tasks.decoding.image_decoder import Preprocessing
from modelmill.tasks.object_detection import metrics
from modelmill.types import JobSpec
from tests.helpers.datasets import box_folder, dataset
from tests.helpers.pictures import encoded, png
from tests.helpers.workers import going

TASK = task_named("object-detection")
LABELS = ["cat", "dog"]
FITS = ["stretch", "pad", "crop"]
SIZES = [(64, 64), (48, 96), (96, 48), (61, 97), (200, 31)]


def context(fit="pad", height=64, width=96, labels=LABELS):
    how = Preprocessing(
        height=height,
        width=width,
        color="rgb",
        fit=fit,
        mean=(0.5,) * 3,
        std=(0.2,) * 3,
    )
    return Context(preprocessing=how, labels=labels, folder=None)


def answer_of(decoded, boxes, given, scores=None, classes=None, **parameters):
    """What `encode` makes of boxes in 0..1 of the frame, padded to 100."""
    padded = np.zeros((100, 4), np.float32)
    padded[: len(boxes)] = np.reshape(boxes, (-1, 4))
    ranked, kinds = np.zeros(100, np.float32), np.zeros(100, np.int64)
    ranked[: len(boxes)] = (
        np.linspace(0.9, 0.5, len(boxes)) if scores is None else scores
    )
    kinds[: len(boxes)] = 0 if classes is None else classes
    arrays = decoded | {"boxes": padded, "scores": ranked, "classes": kinds}
    return TASK.encode(arrays, given, TASK.parameters(parameters))


def corners(entry):
    return [entry["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")]


# ---- geometry


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", SIZES)
def test_the_frame_holds_a_picture_where_it_is_said_to(fit, size):
    """A white rectangle is found again, in the frame's pixels, where `placed` moves its corners."""
    height, width = size
    pixels = np.zeros((height, width, 3), np.uint8)
    top = height // 4
    bottom = height * 3 // 4
    left = width // 4
    right = width * 3 // 4
    pixels[top:bottom, left:right] = 255
    how = context(fit).preprocessing
    rows, columns = np.nonzero(image_decoder.decode(pixels, how)[:, :, 0] > 127)
    place = image_decoder.placed(size, how)
    wanted = [
        max(0, place.left + left / width * place.width),
        max(0, place.top + top / height * place.height),
        min(how.width, place.left + right / width * place.width),
        min(how.height, place.top + bottom / height * place.height),
    ]
    np.testing.assert_allclose(
        [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1],
        wanted,
        atol=1.01,
    )


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", SIZES)
def test_what_is_trained_on_comes_back_as_it_was_annotated(fit, size):
    height, width = size
    box = Box(
        "dog", width // 2 - 8, height // 2 - 9, width // 2 + 10, height // 2 + 7
    )
    item = Item("1", "dog", png(np.zeros((height, width, 3))), target=[box])
    given = context(fit)
    arrays, targets = TASK.sample(item, given)
    assert arrays.keys() == {"image"}
    assert targets["classes"][:2].tolist() == [1, -1]
    assert ((targets["boxes"] >= 0) & (targets["boxes"] <= 1)).all()
    (entry,) = answer_of(
        TASK.decode(item.data, given), targets["boxes"][:1], given, classes=[1]
    )
    assert entry["label"] == "dog"
    np.testing.assert_allclose(
        corners(entry), [box.xmin, box.ymin, box.xmax, box.ymax], atol=1
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_are_those_of_the_upright_picture(orientation):
    """The same scene, stored turned in each way that EXIF knows, is answered with the same box."""
    upright = Image.fromarray(np.full((40, 80, 3), 128, np.uint8))
    undo = {
        2: "FLIP_LEFT_RIGHT",
        3: "ROTATE_180",
        4: "FLIP_TOP_BOTTOM",
        5: "TRANSPOSE",
        6: "ROTATE_90",
        7: "TRANSVERSE",
        8: "ROTATE_270",
    }
    stored = (
        upright.transpose(Image.Transpose[undo[orientation]])
        if orientation in undo
        else upright
    )
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, "JPEG", exif=exif)
    assert image_decoder.size_of(data) == (40, 80)
    given = context("pad", 64, 64)
    (entry,) = answer_of(
        TASK.decode(data, given), [[0.25, 0.375, 0.5, 0.75]], given
    )
    assert corners(entry) == [20, 10, 40, 40]
    _, targets = TASK.sample(
        Item("1", "cat", data, target=[Box("cat", 20, 10, 40, 40)]), given
    )
    np.testing.assert_allclose(
        targets["boxes"][0], [0.25, 0.375, 0.5, 0.75], atol=1e-6
    )


def test_boxes_are_whole_pixels_within_the_picture():
    given = context("pad", 64, 64)
    decoded = TASK.decode(png(np.zeros((30, 60, 3))), given)
    (entry,) = answer_of(decoded, [[0, 0, 1, 1]], given)
    assert entry == {
        "label": "cat",
        "score": 0.9,
        "box": {"xmin": 0, "ymin": 0, "xmax": 60, "ymax": 30},
    }
    assert (
        answer_of(decoded, [[0, 0, 1, 0.2]], given) == []
    )  # all of it lies in the padding


# ---- answers


def test_the_threshold_is_asked_for_or_three_tenths():
    given = context()
    decoded = TASK.decode(TASK.example(), given)
    boxes = [[0.1, 0.1, 0.3, 0.5], [0.4, 0.1, 0.6, 0.5], [0.7, 0.1, 0.9, 0.5]]
    scores = [0.8, 0.3, 0.05]
    assert [
        round(one["score"], 2)
        for one in answer_of(decoded, boxes, given, scores)
    ] == [0.8, 0.3]
    for least, count in ((0, 3), (0.05, 3), (0.5, 1), (1, 0), (None, 2)):
        assert (
            len(answer_of(decoded, boxes, given, scores, threshold=least))
            == count
        )
    assert (
        len(
            answer_of(
                decoded,
                boxes,
                given,
                scores,
                threshold=TASK.full_parameters(LABELS).threshold,
            )
        )
        == 3
    )


@pytest.mark.parametrize("least", [-0.1, 1.5, "0.5", True, [], float("nan")])
def test_a_threshold_that_is_none_is_refused(least):
    given = context()
    with pytest.raises(InvalidInput, match="threshold is a number from 0 to 1"):
        answer_of(
            TASK.decode(TASK.example(), given), [], given, threshold=least
        )


def test_an_unknown_parameter_is_refused_with_the_one_that_there_is():
    given = context()
    with pytest.raises(InvalidInput, match="threshold"):
        answer_of(TASK.decode(TASK.example(), given), [], given, treshold=0.5)


def test_of_two_boxes_of_one_object_the_better_stays():
    given = context("stretch")
    decoded = TASK.decode(TASK.example(), given)
    boxes = [
        [0.1, 0.1, 0.5, 0.5],
        [0.11, 0.1, 0.5, 0.52],
        [0.1, 0.1, 0.5, 0.5],
        [0.4, 0.1, 0.8, 0.5],
    ]
    answer = answer_of(
        decoded, boxes, given, [0.5, 0.9, 0.8, 0.7], [0, 0, 1, 0]
    )
    assert [(one["label"], round(one["score"], 1)) for one in answer] == [
        ("cat", 0.9),
        ("dog", 0.8),
        ("cat", 0.7),
    ]


def test_answers_are_alike_but_for_what_rounding_does():
    one = {
        "label": "cat",
        "score": 0.8,
        "box": {"xmin": 10, "ymin": 10, "xmax": 60, "ymax": 50},
    }
    weak = one | {"score": 0.3001}
    moved = one | {"box": one["box"] | {"xmin": 11}}
    assert TASK.same_answer([one], [one], 2e-3)
    assert TASK.same_answer(
        [one, weak], [one], 2e-3
    )  # a box at the threshold may come or go
    assert TASK.same_answer([moved], [one], 2e-3)
    for other in (
        one | {"label": "dog"},
        one | {"score": 0.7},
        one | {"box": {"xmin": 20, "ymin": 10, "xmax": 70, "ymax": 50}},
    ):
        assert not TASK.same_answer([one], [other], 2e-3)
    assert not TASK.same_answer([one], [], 2e-3)
    assert not TASK.same_answer([], [one], 2e-3)


# ---- targets


def test_ignored_boxes_are_marked_and_no_box_is_no_target():
    data = png(np.zeros((64, 96, 3)))
    boxes = [Box("cat", 0, 0, 9, 9), Box("dog", 0, 0, 50, 50, ignored=True)]
    _, targets = TASK.sample(Item("1", "cat", data, target=boxes), context())
    assert targets["classes"][:3].tolist() == [
        -2,
        0,
        -1,
    ]  # the larger one first
    _, targets = TASK.sample(Item("1", "", data, target=[]), context())
    assert (targets["classes"] == -1).all()


def test_of_too_many_boxes_the_largest_are_kept():
    boxes = [
        Box("cat", x, y, x + 1 + (x + y) / 200, y + 1)
        for x in range(15)
        for y in range(15)
    ]
    _, targets = TASK.sample(
        Item("1", "cat", png(np.zeros((64, 96, 3))), target=boxes), context()
    )
    assert (targets["classes"] == 0).sum() == len(targets["classes"]) == 128
    areas = (targets["boxes"][:, 2:] - targets["boxes"][:, :2]).prod(1)
    assert areas.min() > 1 / (64 * 96)


def test_prepare_takes_the_usual_shape_in_multiples_of_32(tmp_path):
    samples = [png(np.zeros((300, 500, 3)))] * 3 + [png(np.zeros((80, 80, 3)))]
    how = TASK.prepare(samples, Preprocessing(max_side=256), tmp_path)
    assert (how.height, how.width) == (160, 256)
    how = TASK.prepare(
        samples, Preprocessing(max_side=256, height=100), tmp_path
    )
    assert (how.height, how.width) == (100, 256)


# ---- figures


def measured(answers, truths, labels=LABELS):
    size = np.zeros((100, 100, 3), np.uint8)
    return metrics.evaluate(
        Measured(
            outputs=answers,
            truths=truths,
            labels=labels,
            show=lambda rows: [size] * len(rows),
        )
    )


def found(xmin, ymin, xmax, ymax, score=0.9, label="cat"):
    return {
        "label": label,
        "score": score,
        "box": {"xmin": xmin, "ymin": ymin, "xmax": xmax, "ymax": ymax},
    }


TRUE = Box("cat", 10, 10, 50, 50)


@pytest.mark.parametrize(
    ("answers", "truths", "map", "ap50", "ap75"),
    [
        ([[found(10, 10, 50, 50)]], [[TRUE]], 1.0, 1.0, 1.0),
        ([[]], [[TRUE]], 0.0, 0.0, 0.0),
        ([[found(10, 10, 50, 50)]], [[]], 0.0, 0.0, 0.0),
        ([[found(60, 60, 90, 90)]], [[TRUE]], 0.0, 0.0, 0.0),
        # 32 of 40 columns: IoU 0.8 counts at 0.5, 0.55, ... 0.8, seven of ten
        ([[found(10, 10, 42, 50)]], [[TRUE]], 0.7, 1.0, 1.0),
        # a better-scored wrong box halves the precision at every recall
        (
            [[found(60, 60, 90, 90, 0.95), found(10, 10, 50, 50)]],
            [[TRUE]],
            0.5,
            0.5,
            0.5,
        ),
        # a worse-scored one costs nothing
        (
            [[found(60, 60, 90, 90, 0.1), found(10, 10, 50, 50)]],
            [[TRUE]],
            1.0,
            1.0,
            1.0,
        ),
        # one of two objects: precision 1 up to recall 0.5, which is 51 of 101 points
        (
            [[found(10, 10, 50, 50)], []],
            [[TRUE], [TRUE]],
            51 / 101,
            51 / 101,
            51 / 101,
        ),
        # the second box on one object is wrong
        (
            [[found(10, 10, 50, 50), found(10, 10, 50, 50, 0.8)], []],
            [[TRUE], [TRUE]],
            51 / 101,
            51 / 101,
            51 / 101,
        ),
        # the wrong class finds nothing, and takes nothing from a class without objects
        ([[found(10, 10, 50, 50, label="dog")]], [[TRUE]], 0.0, 0.0, 0.0),
    ],
)
def test_average_precision_of_cases_made_by_hand(
    answers, truths, map, ap50, ap75
):
    metrics = measured(answers, truths).metrics
    assert [metrics[name] for name in ("map", "ap50", "ap75")] == pytest.approx(
        [map, ap50, ap75], abs=1e-6
    )
    assert metrics["items"] == len(truths)
    assert (
        metrics["objects"]
        == metrics["per_class"]["cat"]["objects"]
        == sum(map_ is TRUE for t in truths for map_ in t)
    )


def test_ignored_objects_are_neither_right_nor_wrong():
    hard = Box("cat", 60, 60, 90, 90, ignored=True)
    for answer in (
        [found(10, 10, 50, 50)],
        [found(60, 60, 90, 90, 0.95), found(10, 10, 50, 50)],
    ):
        metrics = measured([answer], [[TRUE, hard]]).metrics
        assert (metrics["map"], metrics["objects"]) == (pytest.approx(1), 1)


def test_figures_are_given_per_class_with_pictures():
    truths = [[TRUE, Box("dog", 60, 60, 90, 90)]]
    judged = measured(
        [[found(10, 10, 50, 50), found(60, 60, 90, 81, label="dog")]], truths
    )
    assert judged.metrics["per_class"]["cat"] == {
        "ap": 1.0,
        "ap50": 1.0,
        "ap75": 1.0,
        "objects": 1,
    }
    assert judged.metrics["per_class"]["dog"]["ap"] == pytest.approx(0.5)
    assert judged.metrics["map"] == pytest.approx(0.75)
    assert judged.pictures.keys() == {"precision_recall.png", "samples.png"}
    assert all(data.startswith(b"\x89PNG") for data in judged.pictures.values())


def test_odd_labels_are_drawn_as_they_are():
    label = "$x^ _"
    truths = [[Box(label, 10, 10, 50, 50)], [Box("dog", 1, 1, 5, 5)]]
    judged = measured(
        [[found(10, 10, 50, 50, label=label)], []], truths, [label, "dog"]
    )
    assert judged.metrics["per_class"][label]["ap"] == 1


# ---- the network's parts


def test_boxes_move_with_the_pictures():
    """A bright rectangle is where its box says, however the picture was changed."""
    import torch

    from modelmill.tasks.object_detection.augment import changed
    from modelmill.tasks.object_detection.settings import BoxAugment

    torch.manual_seed(0)
    pictures = torch.zeros(32, 64, 96, 3, dtype=torch.uint8)
    boxes, classes = torch.zeros(32, 5, 4), torch.full((32, 5), -1)
    for number in range(32):
        left, top = 10 + number, 10 + number // 2
        pictures[number, top : top + 24, left : left + 30] = 255
        boxes[number, 3] = torch.tensor(
            [left / 96, top / 64, (left + 30) / 96, (top + 24) / 64]
        )
        classes[number, 3] = number % 2
    how = BoxAugment(
        flip_vertical=True, brightness=0, contrast=0, saturation=0, mosaic=0.5
    )
    x, moved, kinds = changed(pictures, boxes, classes, how)
    assert (kinds >= 0).sum() > 16
    for picture, row, kind in zip(x, moved, kinds, strict=True):
        inside = torch.zeros(64, 96, dtype=torch.bool)
        for (left, top, right, bottom), one in zip(
            row.tolist(), kind.tolist(), strict=True
        ):
            if one != -1:
                inside[
                    round(top * 64) : round(bottom * 64),
                    round(left * 96) : round(right * 96),
                ] = True
        bright = picture[:, :, 0] > 127
        # Edges may differ by a pixel; the areas may not.
        assert (bright ^ inside).sum() <= 2 * (inside.sum() ** 0.5) * 4 + 12


def test_a_perfect_network_loses_nothing_and_its_peaks_are_the_objects():
    import torch

    from modelmill.tasks.object_detection.training import objective, peaks

    boxes = torch.tensor([[[0.1, 0.2, 0.4, 0.6], [0.5, 0.5, 0.95, 0.9]]])
    classes = torch.tensor([[1, 0]])
    heat, reach = torch.full((1, 2, 16, 16), -12.0), torch.zeros(1, 4, 16, 16)
    cells = (torch.arange(16) + 0.5) / 16
    for box, kind in zip(boxes[0], classes[0], strict=True):
        row, column = (int((box[at] + box[at + 2]) / 2 * 16) for at in (1, 0))
        heat[0, kind, row, column] = 12.0
        rows = slice(max(row - 3, 0), row + 4)
        columns = slice(max(column - 3, 0), column + 4)
        x, y = cells[None, columns], cells[rows, None]
        sides = [
            x - box[0] + 0 * y,
            y - box[1] + 0 * x,
            box[2] - x + 0 * y,
            box[3] - y + 0 * x,
        ]
        reach[0, :, rows, columns] = (
            torch.stack(sides).clamp(min=1e-3).mul(4).log()
        )
    assert objective(heat, reach, boxes, classes).item() < 0.05
    assert objective(-heat, reach, boxes, classes).item() > 10
    assert objective(heat, reach + 1, boxes, classes).item() > 1
    scores, places, kinds = peaks(heat, reach)
    assert scores.shape == (1, 100)
    assert (scores[0] > 0.5).sum() == 2
    for place, kind in zip(places[0, :2], kinds[0, :2], strict=True):
        np.testing.assert_allclose(
            place, boxes[0, (classes[0] == kind).int().argmax()], atol=1e-3
        )


def test_cells_of_ignored_objects_are_no_background():
    import torch

    from modelmill.tasks.object_detection.training import objective

    heat, reach = torch.full((1, 1, 16, 16), -12.0), torch.zeros(1, 4, 16, 16)
    heat[0, 0, 4:12, 4:12] = 12.0
    box = torch.tensor([[[0.25, 0.25, 0.75, 0.75]]])
    assert objective(
        heat, reach, box, torch.tensor([[-2]])
    ).item() == pytest.approx(0, abs=1e-3)
    assert objective(heat, reach, box, torch.tensor([[-1]])).item() > 100


# ---- the whole way


def test_a_detector_learns_coloured_rectangles(tmp_path):
    """A short training finds what it was shown, and says so where the picture was sent larger and
    turned.
    """
    import torch

    folder = tmp_path / "job"
    folder.mkdir()
    data = dataset(
        box_folder(tmp_path / "tiny", 80),
        "object-detection",
        tmp_path / "store",
    )
    spec = JobSpec(
        job=1,
        kind="train",
        folder=str(folder),
        threads=1,
        name="tiny",
        task="object-detection",
        dataset=data,
        recipe="centernet",
        settings={
            "epochs": "20",
            "channels": "12",
            "blocks": "1",
            "neck": "32",
        },
        cache=str(tmp_path / "cache"),
    )
    threads = torch.get_num_threads()
    with (
        warnings.catch_warnings(),
        closing(Events(folder / "events.jsonl")) as events,
    ):
        warnings.simplefilter("ignore")  # as in a job's process
        metrics = train_version(spec, events, going())["metrics"]
    torch.set_num_threads(threads)
    assert metrics["ap50"] > 0.8
    pixels = np.full((300, 200, 3), 90, np.uint8)
    pixels[60:160, 50:140] = (220, 40, 40)
    exif = Image.Exif()
    exif[0x0112] = 6
    sent = encoded(
        Image.fromarray(pixels).transpose(Image.Transpose.ROTATE_90),
        "JPEG",
        exif=exif,
    )
    best = predictor.load(folder / "bundle").predict(
        [sent], {"threshold": 0.1}
    )[0][0]
    assert best["label"] == "red"
    np.testing.assert_allclose(corners(best), [50, 60, 140, 160], atol=25)
