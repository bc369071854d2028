"""What a recipe chooses for a data set: only where the user left it open, said in the log, kept in
the lineage.
"""

import json
from contextlib import closing

import numpy as np
import pytest
from PIL import Image

from modelmill.bundle import open_bundle
from modelmill.jobs.process import Events
from modelmill.jobs.train import train_version
from modelmill.tasks.base import MOST_EPOCHS, Facts, fitted, plan, recipe_named
from modelmill.tasks.decoding.image_decoder import Look, look
from modelmill.tasks.decoding.text_tokenizer import Look as Words
from modelmill.tasks.decoding.text_tokenizer import look as look_at_texts
from modelmill.types import JobSpec
from tests.helpers.datasets import dataset, picture_folder
from tests.helpers.pictures import encoded, png
from tests.helpers.workers import going

RESNET = recipe_named("image-classification", "resnet")
CNN = recipe_named("image-classification", "cnn")


def facts(train, height, width, grey=False, classes=10):
    counts = {"train": train, "val": train // 10, "test": train // 10}
    each = {str(number): train // classes for number in range(classes)}
    return Facts(
        counts=counts,
        classes=each,
        inputs=Look(height=height, width=width, grey=grey),
    )


TRASHNET = facts(1769, 192, 256, classes=6)
MNIST = facts(54_000, 28, 28, grey=True)
CIFAR = facts(8000, 32, 32)
UNET = recipe_named("image-segmentation", "unet")
EMBED = recipe_named("image-feature-extraction", "embed")
COUNTED = [
    UNET,
    EMBED,
    recipe_named("object-detection", "centernet"),
    *(
        recipe_named("unconditional-image-generation", name)
        for name in ("dcgan", "ddpm")
    ),
]
"""Recipes whose epochs are chosen by the number of items."""


@pytest.mark.parametrize(("recipe", "seen"), [(RESNET, TRASHNET), (CNN, MNIST)])
def test_where_the_defaults_fit_nothing_is_chosen(recipe, seen):
    chosen, choices = fitted(recipe, seen, {})
    assert choices == []
    assert chosen == plan(recipe, {})


@pytest.mark.parametrize(
    ("texts", "words", "epochs"),
    [(7000, 20, 30), (6000, 150, 8), (1_000_000, 20, 4)],
)
def test_a_language_is_read_as_often_as_there_is_time(texts, words, epochs):
    counts = {"train": texts, "val": 10, "test": 10}
    chosen, _ = fitted(
        recipe_named("fill-mask", "bert"),
        Facts(counts=counts, classes={}, inputs=Words(words=words)),
        {},
    )
    assert chosen.train.epochs == epochs


def test_words_are_counted_in_any_script():
    seen = look_at_texts(["one two three", "\u5fb7\u570b\u5b78\u8005", "a"])
    assert seen.words == pytest.approx((3 + 1 + 4 + 1) / 3)
    assert seen.unspaced == pytest.approx(4 / 9)


@pytest.mark.parametrize(
    "recipe", [("fill-mask", "bert"), ("text-classification", "transformer")]
)
def test_scripts_without_spaces_are_read_in_pieces_of_words(recipe):
    counts = {"train": 6000, "val": 10, "test": 10}
    for unspaced, tokenizer in ((0.9, "bpe"), (0.1, "word")):
        seen = Facts(
            counts=counts,
            classes={},
            inputs=Words(words=100, unspaced=unspaced),
        )
        assert (
            fitted(recipe_named(*recipe), seen, {})[0].input.tokenizer
            == tokenizer
        )
        assert (
            fitted(recipe_named(*recipe), seen, {"tokenizer": "char"})[
                0
            ].input.tokenizer
            == "char"
        )


def test_few_questions_are_read_more_often_by_two_readers():
    reader = recipe_named("question-answering", "reader")
    for count, members, epochs in ((3000, 2, 14), (90_000, 1, 9)):
        seen = Facts(
            counts={"train": count, "val": 10, "test": 10},
            classes={},
            inputs=Words(words=130),
        )
        chosen, _ = fitted(reader, seen, {})
        assert (chosen.network.members, chosen.train.epochs) == (
            members,
            epochs,
        )


def test_small_photographs_are_shifted_by_whole_pixels_in_large_batches():
    chosen, choices = fitted(RESNET, CIFAR, {})
    assert chosen.augment.upright
    assert chosen.augment.flip
    assert (chosen.train.batch_size, chosen.train.epochs) == (128, 40)
    assert any("32x32" in choice.why for choice in choices)


def test_small_grey_pictures_are_not_mirrored():
    chosen, _ = fitted(RESNET, MNIST, {})
    assert not chosen.augment.flip
    assert chosen.train.epochs < RESNET.TRAIN.epochs


def test_the_size_that_counts_is_the_models_own():
    assert fitted(RESNET, TRASHNET, {"max_side": 32})[0].augment.upright
    assert not fitted(RESNET, CIFAR, {"height": 64, "width": 64})[
        0
    ].augment.upright


@pytest.mark.parametrize("count", [3, 200, 900, 4000, 20_000, 10**6])
@pytest.mark.parametrize("recipe", [RESNET, CNN])
@pytest.mark.parametrize("side", [8, 32, 100, 1000])
def test_fewer_pictures_get_more_epochs(recipe, count, side):
    train = fitted(recipe, facts(count, side, side), {})[0].train
    more = fitted(recipe, facts(10 * count, side, side), {})[0].train
    assert train.epochs >= more.epochs >= 8
    assert train.batch_size <= more.batch_size


@pytest.mark.parametrize("count", [1, 200, 4000, 60_000, 10**6])
@pytest.mark.parametrize("recipe", COUNTED)
def test_larger_sets_are_passed_over_less_often(recipe, count):
    epochs, more = (
        fitted(recipe, facts(many, 64, 64), {})[0].train.epochs
        for many in (count, 10 * count)
    )
    assert 4 <= more <= epochs <= 200


def test_small_pictures_are_segmented_in_full():
    assert fitted(UNET, facts(300, 64, 80), {})[0].network.stem_stride == 1
    assert fitted(UNET, facts(300, 180, 240), {})[0].network.stem_stride == 2


def test_photographs_are_embedded_mirrored_too_but_characters_are_not():
    assert fitted(EMBED, facts(1000, 64, 64), {})[0].augment.flip
    assert not fitted(EMBED, facts(1000, 64, 64, grey=True), {})[0].augment.flip


@pytest.mark.parametrize(
    "given",
    [
        {"epochs": "3"},
        {"batch_size": 7, "rotate": 5.0},
        {"epochs": 40, "flip": False},
    ],
)
def test_what_the_user_set_stays(given):
    chosen, choices = fitted(RESNET, CIFAR, given)
    asked, flat = plan(RESNET, given).flat(), chosen.flat()
    assert all(flat[name] == asked[name] for name in given)
    assert not any(
        name in choice.settings for choice in choices for name in given
    )


def test_with_a_time_budget_no_epochs_are_chosen():
    assert fitted(RESNET, CIFAR, {"time": "10m"})[0].train.epochs == MOST_EPOCHS
    assert (
        fitted(RESNET, CIFAR, {"time": "10m", "epochs": 4})[0].train.epochs == 4
    )


def test_a_recipe_without_an_opinion_keeps_its_defaults():
    tfidf = recipe_named("text-classification", "tfidf")
    assert fitted(
        tfidf, Facts(counts={"train": 5}, classes={}), {"features": 50}
    ) == (
        plan(tfidf, {"features": 50}),
        [],
    )


def test_pictures_are_looked_at_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = encoded(
        Image.fromarray(np.zeros((10, 30, 3), np.uint8)),
        "JPEG",
        exif=exif.tobytes(),
    )
    assert look([lying]) == Look(height=30, width=10, grey=True)
    red = png(np.full((4, 4, 3), (255, 0, 0)))
    assert not look([png(np.zeros((4, 4)))] * 100 + [red] * 100).grey


@pytest.mark.filterwarnings("ignore")  # as in a job's process
def test_a_job_says_what_it_chose_and_keeps_it(tmp_path):
    folder = tmp_path / "job"
    folder.mkdir()
    data = dataset(
        picture_folder(tmp_path / "tiny"),
        "image-classification",
        tmp_path / "store",
    )
    spec = JobSpec(
        job=1,
        kind="train",
        folder=str(folder),
        threads=1,
        name="tiny",
        task="image-classification",
        dataset=data,
        recipe="cnn",
        settings={"epochs": "2", "precision": "fp32"},
        cache=str(tmp_path / "cache"),
    )
    with closing(Events(folder / "events.jsonl")) as events:
        train_version(spec, events, going())
    rows = [
        json.loads(line)
        for line in (folder / "events.jsonl").read_text().splitlines()
        if line
    ]
    told = [row["message"] for row in rows if row["event"] == "stage"]
    assert any(message.endswith(": batch_size=32") for message in told)
    settings = open_bundle(folder / "bundle").lineage.settings
    assert (settings["batch_size"], settings["epochs"]) == (32, 2)
    assert json.loads(json.dumps(plan(CNN, settings).flat())) == settings


@pytest.mark.parametrize(
    ("given", "recordings", "steps"),
    [
        ({}, 50, 20),
        ({}, 5000, 0),
        ({"epochs": 2}, 50, 0),
        ({"epoch_steps": 9}, 50, 9),
    ],
)
def test_few_recordings_get_longer_epochs_until_the_steps_are_enough(
    given, recordings, steps
):
    counts = {"train": recordings, "val": 5, "test": 5}
    recipe = recipe_named("automatic-speech-recognition", "ctc")
    chosen, _ = fitted(recipe, Facts(counts=counts, classes={}), given)
    assert chosen.train.epoch_steps == steps
    if not given and steps:
        assert chosen.train.epochs * steps >= recipe.STEPS
