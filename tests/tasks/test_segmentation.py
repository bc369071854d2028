"""Segmentation: masks of the size that was sent, figures that can be checked by hand, and a
training that learns.
"""

import io
import json
import warnings
from base64 import b64decode, b64encode
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from modelmill.errors import InvalidInput
from modelmill.jobs.process import Events
from modelmill.jobs.train import train_version
from modelmill.predictor import load
from modelmill.tasks.base import (
    Context,
    Item,
    Measured,
    Signature,
    TrainSettings,
    recipe_named,
    task_named,
)
from modelmill.tasks.image_segmentation import SIZE, evaluation, training
from modelmill.types import JobSpec
from tests.helpers.datasets import dataset, mask_folder
from tests.helpers.pictures import encoded, png
from tests.helpers.workers import going

TASK = task_named("image-segmentation")
HOW = TASK.PREPROCESSING(
    height=4, width=6, color="rgb", mean=(0.5,) * 3, std=(0.5,) * 3
)
CONTEXT = Context(
    preprocessing=HOW, labels=["sky", "road", "car"], folder=Path("/nowhere")
)
MASK = np.array(
    [[0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1], [1] * 6],
    np.uint8,
)


def arrays(height, width, mask=MASK, score=0.8):
    size = np.array([height, width], np.int32)
    return {
        "mask": mask,
        "scores": np.full(mask.shape, score, np.float32),
        SIZE: size,
    }


def pixels_of(text):
    return np.asarray(Image.open(io.BytesIO(b64decode(text))))


# ---- answers


def test_each_class_that_is_there_has_a_mask_of_the_size_that_was_sent():
    answer = TASK.encode(arrays(40, 60), CONTEXT, TASK.parameters({}))
    assert [(entry["label"], entry["score"]) for entry in answer] == [
        ("road", 0.8),
        ("sky", 0.8),
    ]
    road, sky = (pixels_of(entry["mask"]) for entry in answer)
    assert road.shape == sky.shape == (40, 60)
    assert set(np.unique(road)) == {0, 255}
    assert ((road == 255) != (sky == 255)).all()  # every pixel has one class
    assert sky[:8].all()
    assert road[32:].all()


@pytest.mark.parametrize("size", [(4, 6), (1, 1), (2, 3), (3, 1000), (97, 41)])
def test_any_size_is_answered_in(size):
    whole = TASK.encode(
        arrays(*size), CONTEXT, TASK.parameters({"mask_format": "classes"})
    )
    assert pixels_of(whole["mask"]).shape == size
    assert set(np.unique(pixels_of(whole["mask"]))) <= {0, 1}


def test_classes_in_one_mask():
    answer = TASK.encode(
        arrays(4, 6), CONTEXT, TASK.parameters({"mask_format": "classes"})
    )
    assert answer["classes"] == ["sky", "road", "car"]
    assert pixels_of(answer["mask"]).tolist() == MASK.tolist()


def test_borders_stay_smooth_when_a_mask_is_enlarged():
    slope = (np.arange(8)[:, None] > np.arange(8)[None, :]).astype(np.uint8)
    grown = pixels_of(
        TASK.encode(
            arrays(80, 80, slope),
            CONTEXT,
            TASK.parameters({"mask_format": "classes"}),
        )["mask"]
    )
    # Half a coarse pixel below the diagonal
    truth = np.arange(80)[:, None] > np.arange(80)[None, :] + 5
    coarse = np.kron(slope, np.ones((10, 10), np.uint8))
    assert (grown != truth).sum() < 0.6 * (coarse != truth).sum()


def test_the_score_is_the_mean_probability_of_a_class():
    given = arrays(4, 6)
    given["scores"][MASK == 1] = np.linspace(0.5, 1, (MASK == 1).sum())
    scores = {
        entry["label"]: entry["score"]
        for entry in TASK.encode(given, CONTEXT, TASK.parameters({}))
    }
    assert scores == {"road": pytest.approx(0.75), "sky": pytest.approx(0.8)}
    given["scores"][MASK == 0] = 0.1
    assert [
        entry["label"]
        for entry in TASK.encode(
            given, CONTEXT, TASK.parameters({"threshold": 0.2})
        )
    ] == ["road"]


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"mask_format": "rle"}, "mask_format is one of png, classes"),
        ({"mask_format": 3}, "mask_format"),
        ({"threshold": 2}, "threshold is a number"),
        ({"threshold": "high"}, "threshold is a number"),
        ({"threshold": True}, "threshold is a number"),
        ({"threshold": 0.5, "mask_format": "classes"}, "does not go with"),
        ({"subtask": "panoptic"}, "subtask"),
        ({"top_k": 3}, "unknown parameter 'top_k'"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(parameters, says):
    with pytest.raises(InvalidInput, match=says):
        TASK.encode(arrays(4, 6), CONTEXT, TASK.parameters(parameters))


@pytest.mark.parametrize(
    ("orientation", "size"),
    [(1, (30, 50)), (3, (30, 50)), (6, (50, 30)), (8, (50, 30))],
)
def test_the_size_is_that_of_the_upright_picture(orientation, size):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = encoded(
        Image.fromarray(np.zeros((30, 50, 3), np.uint8)), "JPEG", exif=exif
    )
    found = TASK.decode(picture, CONTEXT)
    assert found["image"].shape == (4, 6, 3)
    assert tuple(found[SIZE]) == size


def test_rounding_at_a_border_is_no_other_answer():
    big = np.zeros((50, 50), np.uint8)
    big[:, 25:] = 1
    moved, other = big.copy(), 1 - big
    moved[:10, 24] = 1
    one, near, far = (
        TASK.encode(arrays(50, 50, mask), CONTEXT, TASK.parameters({}))
        for mask in (big, moved, other)
    )
    assert TASK.same_answer(near, one, 2e-3)
    assert not TASK.same_answer(far, one, 2e-3)
    assert not TASK.same_answer(
        TASK.encode(arrays(9, 9, big), CONTEXT, TASK.parameters({})), one, 2e-3
    )


# ---- figures


def measured(truths, answers, labels=("a", "b", "c")):
    def answer(mask):
        return {"classes": list(labels), "mask": b64encode(png(mask)).decode()}

    raw = [png(np.zeros((*np.shape(mask), 3))) for mask in truths]
    return evaluation.evaluate(
        Measured(
            outputs=[answer(mask) for mask in answers],
            truths=[png(mask) for mask in truths],
            labels=labels,
            show=lambda rows: [raw[row] for row in rows],
        )
    )


def test_figures_of_a_case_worked_out_by_hand():
    # a: 3 true, 3 named, 2 right; b: 3 true, 2 named, 1 right (the ignored pixel does not count);
    # c: 0 true, 1 named
    found = measured(
        [[[0, 0, 0, 1]], [[1, 1, 255]]], [[[0, 0, 1, 2]], [[1, 0, 0]]]
    ).metrics
    assert found["items"] == 2
    assert found["pixel_accuracy"] == pytest.approx(3 / 6)
    assert found["per_class"]["a"]["iou"] == pytest.approx(2 / 4)
    assert found["per_class"]["b"]["iou"] == pytest.approx(1 / 4)
    assert found["per_class"]["c"]["iou"] == 0
    assert found["miou"] == pytest.approx((2 / 4 + 1 / 4 + 0) / 3)
    assert found["dice"] == pytest.approx((4 / 6 + 2 / 5 + 0) / 3)
    assert [row["pixels"] for row in found["per_class"].values()] == [3, 3, 0]


def test_a_class_that_is_nowhere_does_not_lower_the_mean():
    found = measured([[[0, 1]]], [[[0, 1]]]).metrics
    assert (found["miou"], found["dice"], found["pixel_accuracy"]) == (
        1.0,
        1.0,
        1.0,
    )


def test_masks_without_anything_to_measure_have_figures_too():
    found = measured([[[255, 255]]], [[[0, 1]]]).metrics
    assert (found["miou"], found["pixel_accuracy"]) == (0.0, 0.0)


@pytest.mark.parametrize(
    "labels", [("a", "b"), tuple(f"${n}_{{<b>" for n in range(60))]
)
def test_pictures_are_drawn_for_any_names(labels):
    truths = [np.full((20, 700), number % 2) for number in range(9)]
    found = measured(truths, truths, labels)
    assert {"samples.png", "iou.png"} <= found.pictures.keys()
    assert all(data.startswith(b"\x89PNG") for data in found.pictures.values())


# ---- training


def test_a_mask_is_resized_without_inventing_classes():
    mask = np.zeros((20, 30), np.uint8)
    mask[:, 15:], mask[10:] = 2, 255
    item = Item("a", "", png(np.zeros((20, 30, 3))), target=png(mask))
    inputs, targets = TASK.sample(item, CONTEXT)
    assert inputs.keys() == {"image"}
    assert (
        targets["mask"].tolist() == [[0, 0, 0, 2, 2, 2]] * 2 + [[255] * 6] * 2
    )


class Fixed(torch.nn.Module):
    """Gives the logits it holds."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.nn.Parameter(
            torch.as_tensor(logits, dtype=torch.float32)
        )

    def forward(self, image):
        return self.logits


def test_ignored_pixels_teach_nothing():
    network = Fixed(torch.zeros(1, 2, 2, 2))
    mask = torch.tensor([[[0, 1], [255, 255]]], dtype=torch.uint8)
    training.loss(
        network, {"image": torch.zeros(1), "mask": mask}, TrainSettings()
    ).backward()
    assert network.logits.grad[0, :, 0].abs().sum() > 0
    assert network.logits.grad[0, :, 1].abs().sum() == 0


def test_a_batch_of_ignored_pixels_alone_has_a_loss_of_nothing():
    network = Fixed(torch.randn(1, 2, 2, 2))
    batch = {
        "image": torch.zeros(1),
        "mask": torch.full((1, 2, 2), 255, dtype=torch.uint8),
    }
    assert training.loss(network, batch, TrainSettings()).item() == 0
    figures = training.validate(network, batch, TrainSettings())
    assert all(torch.isfinite(value) for value in figures.values())


def test_rare_classes_weigh_more():
    seen = torch.tensor([10_000.0, 2_500.0, 100.0, 0.0])
    assert training.weights(seen).tolist() == [0.5, 1.0, 5.0, 5.0]
    assert training.weights(torch.zeros(3)) is None


@pytest.mark.parametrize(
    ("height", "width", "stride"),
    [(33, 47, 1), (45, 60, 2), (8, 8, 4), (16, 1, 2)],
)
def test_the_network_names_every_pixel_of_any_size(height, width, stride):
    how = TASK.PREPROCESSING(
        height=height, width=width, color="grey", mean=(0.5,), std=(0.5,)
    )
    context = Context(
        preprocessing=how, labels=["a", "b"], folder=Path("/nowhere")
    )
    recipe = recipe_named("image-segmentation", "unet")
    settings = recipe.Settings(channels=4, depth=3, stem_stride=stride)
    signature = Signature(
        inputs=TASK.inputs(context), classes=2, preprocessing=how
    )
    network = recipe.network(settings, signature).eval()
    scores, mask = training.deployed(network, signature)(
        torch.zeros(2, height, width, 1, dtype=torch.uint8)
    )
    assert mask.shape == scores.shape == (2, height, width)
    assert mask.dtype == torch.uint8
    assert 0.5 <= scores.min() <= scores.max() <= 1


def test_a_training_on_boxes_finds_boxes(tmp_path):
    data = dataset(
        mask_folder(tmp_path / "boxes"),
        "image-segmentation",
        tmp_path / "store",
    )
    folder = tmp_path / "job"
    folder.mkdir()
    spec = JobSpec(
        job=1,
        kind="train",
        folder=str(folder),
        threads=1,
        name="boxes",
        task="image-segmentation",
        dataset=data,
        recipe="unet",
        settings={"channels": 8, "depth": 3, "epochs": 8, "ema": 0},
        cache=str(tmp_path / "cache"),
    )
    threads = torch.get_num_threads()
    with (
        warnings.catch_warnings(),
        closing(Events(folder / "events.jsonl")) as events,
    ):
        warnings.simplefilter("ignore")  # as in a job's process
        result = train_version(spec, events, going())
    torch.set_num_threads(threads)
    assert result["metrics"]["miou"] > 0.8
    assert {path.name for path in (folder / "pictures").iterdir()} >= {
        "samples.png",
        "iou.png",
        "curves.png",
    }
    scene = np.full((90, 60, 3), 30, np.uint8)
    scene[30:60, 15:45] = 180
    answer = {
        entry["label"]: entry
        for entry in load(folder / "bundle").predict([png(scene)])[0]
    }
    shape = pixels_of(answer["shape"]["mask"]) == 255
    assert shape.shape == (90, 60)
    assert (shape == (scene[..., 0] == 180)).mean() > 0.9
    assert json.loads(json.dumps(answer)) == answer
