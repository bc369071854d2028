"""unconditional-image-generation: seeds, parameters, sampling, and how its pictures are
measured.
"""

import io
import re
from base64 import b64decode
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from PIL import Image

from modelmill.errors import InvalidInput
from modelmill.tasks import unconditional_image_generation as module
from modelmill.tasks.base import Context, Item, Measured
from modelmill.tasks.unconditional_image_generation import judging
from modelmill.tasks.unconditional_image_generation.judging import (
    frechet,
    precision_recall,
)
from modelmill.tasks.unconditional_image_generation.sampling import denoised
from modelmill.tasks.unconditional_image_generation.sheets import sheet
from tests.helpers.pictures import png

task = module.TASK

SIDE = 4
HOW = module.Preprocessing(
    height=SIDE, width=SIDE, color="grey", mean=(0.5,), std=(0.5,)
)


def context(tmp_path, latent=6):
    how = msgspec.structs.replace(HOW, latent=latent)
    return Context(preprocessing=how, labels=[], folder=tmp_path)


@pytest.fixture
def gan(tmp_path):
    return context(tmp_path)


@pytest.fixture
def diffusion(tmp_path):
    return context(tmp_path, latent=0)


def pixels(file):
    return np.asarray(Image.open(io.BytesIO(b64decode(file))))


def test_a_seed_says_what_is_drawn(gan):
    one, again, other = (
        task.decode(seed, gan)["latent"] for seed in ("7", " 7 ", "8")
    )
    assert one.shape == (1, 6)
    assert one.dtype == np.float32
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_the_seed_may_be_the_input_or_a_parameter(gan):
    as_input = task.decode("7", gan, task.parameters({"num_images": 2}))
    assert np.array_equal(
        as_input["latent"],
        task.decode("", gan, task.parameters({"num_images": 2, "seed": 7}))[
            "latent"
        ],
    )
    assert np.array_equal(
        as_input["latent"],
        task.decode("7", gan, task.parameters({"num_images": 2, "seed": 7}))[
            "latent"
        ],
    )


def test_without_a_seed_it_is_drawn_by_chance(gan):
    assert not np.array_equal(
        task.decode("", gan)["latent"], task.decode("", gan)["latent"]
    )


def test_the_first_pictures_of_a_seed_are_always_the_same(gan):
    few, many = (
        task.decode("7", gan, task.parameters({"num_images": count}))["latent"]
        for count in (3, 64)
    )
    assert np.array_equal(few, many[:3])


@pytest.mark.parametrize(
    ("data", "parameters", "says"),
    [
        (
            "seven",
            {},
            "the input is a seed, a whole number from 0 to 9223372036854775807, or nothing; not "
            "'seven'",
        ),
        ("-1", {}, "the input is a seed"),
        ("1.5", {}, "the input is a seed"),
        ("9" * 40, {}, "the input is a seed"),
        ("\u0667", {}, "the input is a seed"),
        (b"7", {}, "a whole number as a text"),
        (
            "7",
            {"seed": 8},
            "the input names the seed 7, the parameter seed another: 8",
        ),
        ("", {"seed": -1}, "seed is a whole number from 0"),
        ("", {"seed": True}, "seed is a whole number from 0"),
        (
            "",
            {"num_images": 0},
            "num_images is a whole number from 1 to 64, not 0",
        ),
        (
            "",
            {"num_images": 65},
            "num_images is a whole number from 1 to 64, not 65",
        ),
        ("", {"num_images": "3"}, "num_images is a whole number"),
        (
            "",
            {"num_image": 3},
            "unknown parameter 'num_image'; did you mean 'num_images'?",
        ),
        ("", {"steps": 0}, "steps is a whole number from 1 to 100, not 0"),
        (
            "",
            {"num_inference_steps": 101},
            "num_inference_steps is a whole number from 1 to 100",
        ),
    ],
)
def test_what_is_no_seed_or_parameter_is_refused_in_words(
    diffusion, data, parameters, says
):
    with pytest.raises(InvalidInput, match=re.escape(says)):
        task.decode(data, diffusion, task.parameters(parameters))


def test_steps_are_for_diffusion_models(gan, diffusion):
    assert (
        task.decode("7", diffusion, task.parameters({}))["steps"]
        == module.STEPS
    )
    assert (
        task.decode("7", diffusion, task.parameters({"steps": 9}))["steps"] == 9
    )
    assert (
        task.decode(
            "7", diffusion, task.parameters({"num_inference_steps": 9})
        )["steps"]
        == 9
    )
    with pytest.raises(InvalidInput, match="only diffusion models take steps"):
        task.decode("7", gan, task.parameters({"steps": 9}))


def known(picture):
    """The network that knows the picture: the velocity it would tell of noise mixed with it."""

    def velocity(x, time):
        angle = time.reshape(-1, 1, 1, 1) * np.pi / 2
        noise = (x - np.cos(angle) * picture) / np.maximum(np.sin(angle), 1e-6)
        return np.cos(angle) * noise - np.sin(angle) * picture

    return velocity


@pytest.mark.parametrize("steps", [1, 2, 25])
def test_sampling_finds_the_picture_that_the_network_knows(steps):
    rng = np.random.default_rng(0)
    picture = rng.uniform(-0.9, 0.9, (3, SIDE, SIDE, 1))
    noise = rng.standard_normal((3, SIDE, SIDE, 1))
    np.testing.assert_allclose(
        denoised(known(picture), noise, steps), picture, atol=1e-4
    )


def test_rows_that_want_other_numbers_of_steps_get_them(diffusion):
    calls = []

    def run(arrays):
        calls.append(len(arrays["time"]))
        return {"velocity": np.zeros_like(arrays["latent"])}

    noise = (
        np.random.default_rng(0)
        .standard_normal((3, SIDE, SIDE, 1))
        .astype(np.float32)
    )
    found = task.infer(
        {"": run}, {"latent": noise, "steps": np.array([2, 0, 2])}, diffusion
    )
    assert found["image"].shape == (3, SIDE, SIDE, 1)
    assert sorted(calls) == [1] * module.STEPS + [2] * 2
    with pytest.raises(InvalidInput, match="steps are 1 to 100"):
        task.infer(
            {"": run},
            {"latent": noise, "steps": np.array([2, 0, 200])},
            diffusion,
        )


def test_every_request_of_a_batch_runs_alone(gan):
    sizes = []

    def run(arrays):
        sizes.append(len(arrays["latent"]))
        return {
            "image": np.zeros(
                (len(arrays["latent"]), SIDE, SIDE, 1), np.float32
            )
        }

    requests = np.stack(
        [
            task.decode(seed, gan, task.parameters({"num_images": 5}))["latent"]
            for seed in "123"
        ]
    )
    assert task.infer({"": run}, {"latent": requests}, gan)["image"].shape == (
        3,
        5,
        SIDE,
        SIDE,
        1,
    )
    assert sizes == [5, 5, 5]
    assert task.infer({"": run}, {"latent": requests[0]}, gan)[
        "image"
    ].shape == (
        5,
        SIDE,
        SIDE,
        1,
    )


def test_an_answer_is_a_png_for_each_picture(gan):
    image = np.linspace(-0.1, 1.1, 2 * SIDE * SIDE, dtype=np.float32).reshape(
        2, SIDE, SIDE, 1
    )
    answer = task.encode({"image": image}, gan, task.parameters({}))
    assert [pixels(file).shape for file in answer] == [(SIDE, SIDE)] * 2
    assert pixels(answer[0])[0, 0] == 0
    assert pixels(answer[1])[-1, -1] == 255


def test_an_evaluation_requests_as_many_as_there_are_items():
    assert sum(how["num_images"] for _, how in task.questions(1000)) == 1000
    assert sum(how["num_images"] for _, how in task.questions(128)) == 128
    assert len({seed for seed, _ in task.questions(1000)}) == len(
        task.questions(1000)
    )


def test_the_distance_is_that_of_normal_distributions():
    rng = np.random.default_rng(0)
    one = rng.standard_normal((20_000, 3))
    assert frechet(one, one) == pytest.approx(0, abs=1e-6)
    assert frechet(one, one + np.array([3, 0, 4])) == pytest.approx(
        25, abs=1e-6
    )
    assert frechet(one, one * 2) == pytest.approx(3, abs=0.15)


def test_precision_is_of_what_is_made_and_recall_of_what_is_real():
    rng = np.random.default_rng(0)
    left, right = (
        rng.standard_normal((200, 4)),
        rng.standard_normal((200, 4)) + 50,
    )
    both = np.concatenate([left, right])
    assert precision_recall(both, left + 1e-3) == (1.0, 0.5)
    assert precision_recall(left, both + 1e-3) == (0.5, 1.0)


def measured(made, labelled, count=60):
    rng = np.random.default_rng(0)

    def picture(kind):
        image = rng.integers(0, 40, (8, 8), np.uint8)
        image[:, slice(0, 4) if kind == "left" else slice(4, 8)] += 180
        return png(image)

    def items(number):
        return [
            Item(str(n), kind if labelled else "", picture(kind))
            for n in range(number)
            for kind in KINDS
        ][:number]

    KINDS = ("left", "right")
    gan = SimpleNamespace(
        preprocessing=module.Preprocessing(height=8, width=8, color="grey")
    )
    images = (
        np.stack(
            [
                pixels_of(picture(kind))
                for _ in range(count // 2)
                for kind in made
            ]
        )
        / 255
    )
    return judging.evaluate(
        Measured(
            outputs=[
                task.encode(
                    {"image": images[..., None]}, gan, task.parameters({})
                )
            ],
            truths=[task.expected(item) for item in items(count)],
            labels=[],
            show=lambda rows: [],
            learn=lambda most: items(min(most, 200)),
        )
    )


def pixels_of(file):
    return np.asarray(Image.open(io.BytesIO(file)))


def test_pictures_like_the_real_ones_are_nearer_than_those_of_one_class():
    good, poor = (
        measured(("left", "right"), True),
        measured(("left", "left"), True),
    )
    assert good.metrics["features"] == "classifier"
    assert good.metrics["classifier_accuracy"] == 1.0
    assert good.metrics["class_shares"] == {"left": 0.5, "right": 0.5}
    assert (
        poor.metrics["least_class_share"],
        poor.metrics["largest_class_share"],
    ) == (
        0.0,
        1.0,
    )
    assert good.metrics["distance"] < poor.metrics["distance"] / 10
    assert poor.metrics["recall"] < 0.6 < good.metrics["recall"]
    assert good.metrics["items"] == 60
    assert {"samples.png", "real.png"} == good.pictures.keys()


def test_without_classes_the_features_are_random_and_say_so():
    good, poor = (
        measured(("left", "right"), False),
        measured(("left", "left"), False),
    )
    assert good.metrics["features"] == "random"
    assert "class_shares" not in good.metrics
    assert good.metrics["distance"] < poor.metrics["distance"] / 10
    assert good.metrics == measured(("left", "right"), False).metrics


@pytest.mark.parametrize(
    ("count", "rows", "columns"), [(1, 1, 1), (3, 2, 2), (64, 8, 8), (65, 8, 9)]
)
def test_a_sheet_shows_every_picture(count, rows, columns):
    page = sheet(np.zeros((count, 64, 60, 3), np.uint8))
    assert page.shape == (rows * 66 + 2, columns * 62 + 2, 3)
    assert int((page == 0).all(2).sum()) == count * 64 * 60
