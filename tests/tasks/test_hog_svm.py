"""The recipe hog-svm: true histograms of gradients, and probabilities that mean something."""

import gzip

import numpy as np
import pytest
import torch

from modelmill.errors import InvalidInput
from modelmill.tasks.base import Facts, Signature, fitted, plan, recipe_named
from modelmill.tasks.decoding.image_decoder import Look
from modelmill.tasks.image_classification.hog import Hog
from modelmill.tasks.image_classification.recipes import hog_svm
from modelmill.types import TensorSpec

RECIPE = recipe_named("image-classification", "hog-svm")


def features(pictures, **settings):
    height, width = pictures.shape[1:3]
    return hog_svm.features(
        Hog(hog_svm.Settings(**settings), height, width), pictures
    )


def trained(pictures, labels, **settings):
    spec = TensorSpec(
        name="image", datatype="UINT8", shape=[-1, *pictures.shape[1:]]
    )
    signature = Signature(
        inputs=[spec], classes=int(labels.max()) + 1, preprocessing=None
    )
    return RECIPE.fit(
        plan(RECIPE, settings),
        signature,
        {"image": pictures},
        {"label": labels},
    )


def scores(network, pictures):
    with torch.inference_mode():
        return network(torch.from_numpy(pictures.copy())).numpy()


def ramp(degrees, side=16):
    """A picture that brightens in one direction; its square roots are even."""
    rows, columns = np.mgrid[:side, :side] - (side - 1) / 2
    turn = np.deg2rad(degrees)
    along = columns * np.cos(turn) + rows * np.sin(turn)
    return np.round((7 + along * 0.4) ** 2).astype(np.uint8)[None, ..., None]


@pytest.mark.parametrize("degrees", [10, 30, 90, 150, 170])
def test_a_ramp_votes_for_its_own_direction(degrees):
    found = features(ramp(degrees), cell=4, block=1).reshape(9, -1).sum(1)
    assert found.argmax() == degrees // 20  # nine bins of 20 degrees
    assert found[degrees // 20] > 0.4 * found.sum()


def test_bright_on_dark_is_as_dark_on_bright():
    picture = ramp(40)
    both = features(
        np.concatenate([picture, picture[:, ::-1, ::-1]]), cell=8, block=1
    )
    np.testing.assert_allclose(
        both[0].reshape(9, -1).sum(1),
        both[1].reshape(9, -1).sum(1),
        rtol=0.1,
        atol=0.02,
    )


def test_blocks_are_normalised_so_that_light_and_contrast_matter_little():
    rng = np.random.default_rng(0)
    picture = rng.integers(40, 120, (1, 32, 32, 3)).astype(np.uint8)
    found = features(picture, cell=8).reshape(36, 3, 3)
    lengths = np.sqrt((found**2).sum(0))
    assert lengths == pytest.approx(1, abs=0.02)
    brighter = features((picture * 2).astype(np.uint8), cell=8).reshape(
        36, 3, 3
    )
    np.testing.assert_allclose(found, brighter, atol=0.02)


@pytest.mark.parametrize(
    "shape", [(8, 8, 1), (9, 31, 3), (28, 28, 1), (5, 5, 3), (64, 48, 3)]
)
def test_pictures_of_any_shape_have_features(shape):
    pictures = (
        np.random.default_rng(1).integers(0, 255, (3, *shape)).astype(np.uint8)
    )
    for block in (1, 2, 3):
        found = features(pictures, cell=4, block=block)
        assert np.isfinite(found).all()
        assert found.shape[0] == 3


def test_a_picture_of_one_colour_has_no_direction():
    assert (features(np.full((1, 16, 16, 3), 200, np.uint8), cell=4) == 0).all()


def test_cells_larger_than_the_picture_are_refused():
    pictures, labels = np.zeros((4, 6, 6, 1), np.uint8), np.array([0, 1, 0, 1])
    with pytest.raises(
        InvalidInput, match="cell=8 is larger than pictures of 6x6"
    ):
        trained(pictures, labels)


def test_cells_are_chosen_by_the_size_of_the_pictures():
    for side, cell in ((28, 4), (64, 8), (8, 2)):
        facts = Facts(
            counts={"train": 9},
            classes={},
            inputs=Look(height=side, width=side, grey=True),
        )
        assert fitted(RECIPE, facts, {})[0].network.cell == cell


def stripes(count, classes, noise):
    """Stripes whose direction is the class, in noise."""
    rng = np.random.default_rng(2)
    rows, columns = np.mgrid[:24, :24]
    labels = np.arange(count) % classes
    turns = np.pi * labels / classes
    phase = rng.uniform(0, 6, count)
    waves = np.sin(
        (
            columns * np.cos(turns)[:, None, None]
            + rows * np.sin(turns)[:, None, None]
        )
        + phase[:, None, None]
    )
    pictures = 127 + 60 * waves + rng.normal(0, noise, (count, 24, 24))
    return np.clip(pictures, 0, 255).astype(np.uint8)[..., None], labels


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_scores_are_probabilities_of_the_right_class(classes):
    pictures, labels = stripes(300, classes, 20)
    network, _ = trained(pictures[:200], labels[:200], cell=4)
    found = scores(network, pictures[200:])
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    assert (found.argmax(1) == labels[200:]).mean() > 0.97


def test_where_it_is_often_wrong_it_is_less_sure():
    easy, labels = stripes(600, 6, 20)
    hard, _ = stripes(600, 6, 160)
    sure = []
    for pictures in (easy, hard):
        network, _ = trained(pictures[:400], labels[:400], cell=4)
        found = scores(network, pictures[400:])
        right = (found.argmax(1) == labels[400:]).mean()
        assert found.max(1).mean() == pytest.approx(right, abs=0.12)
        sure.append(found.max(1).mean())
    assert sure[0] > sure[1] + 0.1


def test_a_handful_of_pictures_is_enough_to_train():
    pictures, labels = stripes(4, 2, 5)
    network, weights = trained(pictures, labels, cell=4)
    assert scores(network, pictures).argmax(1).tolist() == labels.tolist()
    assert weights["weight"].shape[0] == 2


def test_digits_are_named(shared):
    folder = shared("data/mnist")
    sets = {}
    for split in ("train", "t10k"):
        images = gzip.decompress(
            (folder / f"{split}-images-idx3-ubyte.gz").read_bytes()
        )
        labels = gzip.decompress(
            (folder / f"{split}-labels-idx1-ubyte.gz").read_bytes()
        )
        pictures = np.frombuffer(images, np.uint8, offset=16).reshape(
            -1, 28, 28, 1
        )
        sets[split] = (
            pictures[:2000],
            np.frombuffer(labels, np.uint8, offset=8)[:2000].astype(np.int64),
        )
    network, _ = trained(*sets["train"], cell=4)
    pictures, labels = sets["t10k"]
    found = np.concatenate(
        [scores(network, pictures[at : at + 500]) for at in range(0, 2000, 500)]
    )
    assert (found.argmax(1) == labels).mean() > 0.95
