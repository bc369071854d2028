"""image-to-image: what goes in and comes out, tiles without seams, damage that can be repeated, and
its measures.
"""

import io
import warnings
from base64 import b64decode, b64encode

import numpy as np
import pytest
from PIL import Image

from modelmill.errors import InvalidInput, TooLarge
from modelmill.tasks import image_to_image as module
from modelmill.tasks.base import Context, Item, Measured, plan, recipe_named
from modelmill.tasks.image_to_image import measures, preprocessing, tiling
from modelmill.tasks.image_to_image.preprocessing import Preprocessing
from tests.helpers.pictures import encoded, png

task = module.TASK

GREY = Preprocessing(color="grey", multiple=2)
RGB = Preprocessing(color="rgb", multiple=2)
FILLED = Preprocessing(repair="inpaint", color="rgb", multiple=8)
LARGER = Preprocessing(repair="super-resolution", color="grey", scale=3)


def context(how, tmp_path):
    return Context(preprocessing=how, labels=[], folder=tmp_path)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def nothing(arrays):
    """A network that leaves pictures as they are."""
    return {module.REPAIRED: arrays["image"] / np.float32(255)}


def threefold(arrays):
    """A network that repeats pixels."""
    return {
        module.REPAIRED: arrays["image"].repeat(3, 1).repeat(3, 2)
        / np.float32(255)
    }


def through(data, context, run=nothing):
    """A picture through decode, infer and encode, as pixels."""
    arrays = task.decode(data, context)
    notes = {name: array for name, array in arrays.items() if name != "image"}
    answer = task.infer({"": run}, {"image": arrays["image"][None]}, context)
    document = task.encode(
        {module.REPAIRED: answer[module.REPAIRED][0], **notes},
        context,
        task.parameters({}),
    )
    with Image.open(io.BytesIO(b64decode(document["image"]))) as image:
        return np.asarray(image)


# ---- in and out


@pytest.mark.parametrize(
    "shape", [(1, 1), (2, 3), (37, 41), (700, 33), (601, 1301)]
)
@pytest.mark.parametrize("how", [GREY, RGB])
def test_pictures_of_any_size_come_out_as_they_went_in(tmp_path, shape, how):
    pixels = noise(*shape)
    found = through(png(pixels), context(how, tmp_path))
    assert np.array_equal(
        found, pixels if how is GREY else np.stack([pixels] * 3, -1)
    )


def test_colours_pass_through_a_model_of_luminance(tmp_path):
    pixels = noise(40, 50, 3) // 2 + 64
    found = through(png(pixels), context(GREY, tmp_path))
    assert found.shape == pixels.shape
    assert (
        np.abs(found.astype(int) - pixels).max() <= 3
    )  # the rounding of YCbCr
    dark = through(
        png(pixels),
        context(GREY, tmp_path),
        lambda arrays: {module.REPAIRED: arrays["image"] * 0.5 / 255},
    )
    for one, other in ((dark, 0.5), (found, 1.0)):
        grey = np.asarray(Image.fromarray(pixels).convert("L")).astype(float)
        assert np.asarray(
            Image.fromarray(one).convert("L")
        ).mean() == pytest.approx(grey.mean() * other, abs=1.5)


def test_a_grey_picture_saved_as_colour_has_no_colours_to_keep(tmp_path):
    arrays = task.decode(
        png(np.stack([noise(8, 8)] * 3, -1)), context(GREY, tmp_path)
    )
    assert list(arrays) == ["image"]


@pytest.mark.parametrize("shape", [(20, 31), (20, 31, 3)])
def test_an_enlarged_picture_has_the_scale_times_the_sides(tmp_path, shape):
    assert through(
        png(noise(*shape)), context(LARGER, tmp_path), threefold
    ).shape == (
        60,
        93,
        *shape[2:],
    )


def test_the_orientation_of_a_photograph_is_applied(tmp_path):
    image = Image.fromarray(noise(10, 20, 3))
    exif = image.getexif()
    exif[0x0112] = 6
    assert through(
        encoded(image, "JPEG", exif=exif), context(RGB, tmp_path)
    ).shape == (
        20,
        10,
        3,
    )


def test_what_would_become_too_large_is_refused_before_any_work(tmp_path):
    huge = encoded(Image.new("L", (3000, 2000)))
    with pytest.raises(TooLarge, match="54,000,000 pixels"):
        task.decode(huge, context(LARGER, tmp_path))
    assert task.decode(huge, context(GREY, tmp_path))["image"].shape == (
        2000,
        3000,
        1,
    )


def test_an_empty_tensor_and_an_unknown_parameter_are_refused(tmp_path):
    with pytest.raises(InvalidInput, match="0x5 pixels is empty"):
        task.infer(
            {"": nothing},
            {"image": np.zeros((1, 0, 5, 1), np.uint8)},
            context(GREY, tmp_path),
        )
    with pytest.raises(InvalidInput, match="strength"):
        task.encode(
            {module.REPAIRED: np.zeros((2, 2, 1))},
            context(GREY, tmp_path),
            task.parameters({"strength": 1}),
        )


def test_a_prompt_is_ignored_by_a_model_without_one(tmp_path):
    white = {module.REPAIRED: np.ones((2, 2, 1))}
    one, other = (
        task.encode(white, context(GREY, tmp_path), task.parameters(told))
        for told in ({}, {"prompt": "make it blue"})
    )
    assert one == other


def test_what_is_transparent_is_what_is_filled_in(tmp_path):
    pixels = noise(20, 30, 4)
    pixels[:, :, 3] = 255
    pixels[5:9, 10:20, 3] = 0
    arrays = task.decode(png(pixels), context(FILLED, tmp_path))
    assert arrays["image"].shape == (20, 30, 4)
    assert np.array_equal(arrays["image"][:, :, 3] == 255, pixels[:, :, 3] == 0)
    assert np.array_equal(arrays["image"][:5, :, :3], pixels[:5, :, :3])
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6
    turned = task.decode(encoded(image, exif=exif), context(FILLED, tmp_path))[
        "image"
    ]
    assert np.array_equal(turned, np.rot90(arrays["image"], -1))


def test_a_picture_that_does_not_say_what_is_missing_is_refused(tmp_path):
    for data in (
        png(noise(8, 8, 3)),
        encoded(Image.fromarray(noise(8, 8, 3)), "JPEG"),
        noise(8, 8, 3),
    ):
        with pytest.raises(
            InvalidInput, match="alpha channel, transparent where"
        ):
            task.decode(data, context(FILLED, tmp_path))


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 3)])
def test_a_mask_says_what_is_filled_in(tmp_path, shape):
    pixels, hole = noise(*shape), np.zeros((20, 30), bool)
    hole[5:9, 10:20] = True
    white = png(np.where(hole, 255, 0))
    clear = png(np.dstack([noise(20, 30, 3), np.where(hole, 0, 255)]))
    for mask in (white, clear):
        for text in (
            b64encode(mask).decode(),
            f"data:image/png;base64,{b64encode(mask).decode()}",
        ):
            arrays = task.decode(
                png(pixels),
                context(FILLED, tmp_path),
                task.parameters({"mask": text}),
            )
            assert np.array_equal(arrays["image"][:, :, 3] == 255, hole)
    both = np.dstack([noise(20, 30, 3), np.full((20, 30), 255)])
    assert np.array_equal(
        task.decode(
            png(both),
            context(FILLED, tmp_path),
            task.parameters({"mask": text}),
        )["image"][:, :, 3]
        == 255,
        hole,
    )


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (7, "mask wants a picture as base64"),
        ("&&&", "mask wants a picture as base64"),
        (b64encode(b"hello").decode(), "mask: "),
        (
            b64encode(png(np.zeros((4, 5)))).decode(),
            "mask is 5x4, the picture 8x8",
        ),
    ],
)
def test_a_mask_that_is_none_is_refused(tmp_path, mask, says):
    with pytest.raises(InvalidInput, match=says):
        task.decode(
            png(noise(8, 8, 3)),
            context(FILLED, tmp_path),
            task.parameters({"mask": mask}),
        )


def test_only_what_is_filled_in_takes_a_mask(tmp_path):
    with pytest.raises(InvalidInput, match="unknown parameter 'mask'"):
        task.decode(
            png(noise(8, 8)),
            context(GREY, tmp_path),
            task.parameters({"mask": "x"}),
        )
    with pytest.raises(InvalidInput, match="did you mean 'mask'"):
        task.decode(
            png(noise(8, 8, 4)),
            context(FILLED, tmp_path),
            task.parameters({"mesk": "x"}),
        )


# ---- tiles


@pytest.mark.parametrize(
    ("height", "width", "scale"), [(97, 300, 1), (1000, 193, 1), (260, 130, 3)]
)
def test_tiles_leave_no_seams(height, width, scale):
    pictures = noise(2, height, width, 1).astype(np.float32)
    seen = []

    def network(part):
        seen.append(part.shape)
        return part.repeat(scale, 1).repeat(scale, 2)

    found = tiling.repaired(network, pictures, 128, scale, 2)
    np.testing.assert_allclose(
        found, pictures.repeat(scale, 1).repeat(scale, 2), atol=1e-3
    )
    assert max(max(shape[1:3]) for shape in seen) <= 128


def test_the_edges_of_tiles_are_cut_off():
    def network(part):
        part = part.copy()
        part[:, :8], part[:, -8:], part[:, :, :8], part[:, :, -8:] = (
            255,
            255,
            255,
            255,
        )
        return part

    found = tiling.repaired(
        network, np.zeros((1, 500, 500, 1), np.float32), 128, 1, 2
    )
    assert found[0, 8:-8, 8:-8].max() == 0


@pytest.mark.parametrize("length", [96, 100, 132, 160, 192, 196, 500, 4004])
@pytest.mark.parametrize("scale", [1, 3])
def test_the_weights_of_all_tiles_sum_to_one(length, scale):
    spans = tiling.spans(length, 96, 4)
    assert (spans[0][0], spans[-1][1]) == (0, length)
    assert all(start % 4 == 0 for start, _ in spans)
    total = np.zeros(length * scale)
    for (start, end), weights in zip(
        spans, tiling.ramps(spans, length, scale), strict=True
    ):
        assert weights.min() >= 0
        total[start * scale : end * scale] += weights
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_a_large_photograph_needs_no_more_memory_than_its_answer_and_a_tile(
    tmp_path,
):
    import tracemalloc

    pixels = np.zeros((1, 3000, 4000, 1), np.uint8)
    tracemalloc.start()
    found = task.infer(
        {"": nothing}, {"image": pixels}, context(GREY, tmp_path)
    )[module.REPAIRED]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.shape == pixels.shape
    assert peak < 2.2 * found.nbytes


def test_small_pictures_share_a_run():
    runs = []

    def network(part):
        runs.append(len(part))
        return part.astype(np.float32)

    tiling.repaired(network, noise(10, 64, 64, 1), 128, 1, 2)
    assert runs == [4, 4, 2]


# ---- training and measuring


def test_damage_is_always_the_same_for_the_same_picture_and_differs_between_pictures():
    one, other = (
        np.full((64, 64), 128, np.uint8),
        np.full((64, 64), 129, np.uint8),
    )
    assert np.array_equal(
        preprocessing.damaged(one, GREY),
        preprocessing.damaged(one.copy(), GREY),
    )
    first, second = (
        preprocessing.damaged(pixels, GREY).astype(float)
        for pixels in (one, other)
    )
    assert first.std() == pytest.approx(25, abs=1.5)
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.1


@pytest.mark.parametrize("shape", [(30, 31), (2, 90, 3), (1, 1)])
def test_a_picture_to_be_enlarged_is_made_smaller(shape):
    small = preprocessing.damaged(noise(*shape), LARGER)
    assert small.shape[:2] == tuple(max(1, side // 3) for side in shape[:2])
    assert (
        preprocessing.unrepaired(small, LARGER).shape
        == preprocessing.cut(noise(*shape), LARGER).shape
    )


@pytest.mark.parametrize("shape", [(48, 72), (100, 20), (5, 300, 3)])
def test_training_keeps_a_part_of_each_picture_that_is_always_the_same(
    tmp_path, shape
):
    how = task.prepare([png(noise(50, 90))], Preprocessing(), tmp_path)
    assert (how.color, how.height, how.width) == ("grey", 48, 72)
    item = Item("a", "", png(noise(*shape)))
    (one, targets), (other, _) = (
        task.sample(item, context(how, tmp_path)) for _ in range(2)
    )
    assert one["image"].shape == (48, 72, 1)
    assert np.array_equal(one["image"], other["image"])
    assert targets == {}


@pytest.mark.parametrize("how", [GREY, LARGER])
@pytest.mark.parametrize("shape", [(40, 60), (300, 200), (20, 400)])
def test_training_keeps_the_same_part_of_both_pictures_of_a_pair(
    tmp_path, how, shape
):
    how = task.prepare([png(noise(96, 96))], how, tmp_path)
    sent = noise(*shape)
    clean = sent.repeat(how.scale, 0).repeat(how.scale, 1)
    item = Item("a", "", png(sent), target=png(clean))
    inputs, targets = task.sample(item, context(how, tmp_path))
    assert targets["clean"].shape == (96, 96, 1)
    assert np.array_equal(
        inputs["image"].repeat(how.scale, 1).repeat(how.scale, 0),
        targets["clean"],
    )
    assert np.array_equal(task.measured_by(item, context(how, tmp_path)), sent)


def test_pairs_that_do_not_fit_a_model_are_refused_with_what_would(tmp_path):
    pair = Item("a", "", png(noise(96, 96)), target=png(noise(192, 192)))
    for how, says in (
        (LARGER, "set scale=2"),
        (GREY, "another recipe"),
        (FILLED, "not pairs"),
    ):
        how = task.prepare([png(noise(96, 96))], how, tmp_path)
        with pytest.raises(InvalidInput, match=says):
            task.sample(pair, context(how, tmp_path))


def test_an_answer_to_a_pair_is_compared_with_what_should_come_out(tmp_path):
    sent, clean = noise(48, 60), noise(48, 60, seed=1)
    truth = task.expected(Item("a", "", png(sent), target=png(clean)))
    answer = {"image": b64encode(png(clean)).decode()}
    known = context(GREY, tmp_path)
    found = module.metrics(
        Measured(
            outputs=[answer],
            truths=[truth],
            labels=[],
            show=lambda rows: [],
            context=known,
        )
    )
    assert found.metrics["psnr"] == 100
    assert found.metrics["psnr_baseline"] == pytest.approx(
        measures.psnr(sent, clean)
    )


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_patches_of_pairs_are_cut_at_the_same_place_and_turned_alike(scale):
    torch = pytest.importorskip("torch")
    from modelmill.tasks.image_to_image.networks import patches

    sent = torch.from_numpy(noise(5, 48, 96, 1))
    clean = sent.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    small, large = patches([sent, clean], 48, 24)
    assert large.shape == (5, 48, 48, 1)
    assert torch.equal(
        small.repeat_interleave(scale, 1).repeat_interleave(scale, 2), large
    )


def test_psnr_by_hand():
    zero, ten = np.zeros((4, 4, 1), np.uint8), np.full((4, 4, 1), 10, np.uint8)
    assert measures.psnr(zero, ten) == pytest.approx(
        28.1308, abs=1e-4
    )  # 20 log10(255 / 10)
    assert measures.psnr(zero, zero) == 100


def test_ssim_by_hand():
    one = np.full((16, 16, 1), 100, np.uint8)
    other = np.full((16, 16, 1), 150, np.uint8)
    near = (0.01 * 255) ** 2
    wanted = (2 * 100 * 150 + near) / (
        100**2 + 150**2 + near
    )  # two flat pictures differ in luminance alone
    assert measures.ssim(one, other) == pytest.approx(wanted, abs=1e-9)
    assert measures.ssim(noise(20, 20, 3), noise(20, 20, 3)) == pytest.approx(1)
    assert abs(measures.ssim(noise(64, 64, 1), noise(64, 64, 1, seed=1))) < 0.05
    assert measures.ssim(noise(3, 3, 1), noise(3, 3, 1)) == pytest.approx(1)


@pytest.mark.parametrize("how", [GREY, RGB, LARGER, FILLED])
def test_an_answer_that_is_what_was_sent_reaches_the_baseline(tmp_path, how):
    truths = [png(noise(48, 60, seed=seed) // 4 + 90) for seed in range(3)]
    known = context(how, tmp_path)
    sent = [
        preprocessing.unrepaired(
            task.measured_by(Item("", "", truth), known), how
        )
        for truth in truths
    ]
    answers = [{"image": b64encode(png(pixels)).decode()} for pixels in sent]
    found = module.metrics(
        Measured(
            outputs=answers,
            truths=truths,
            labels=[],
            show=lambda rows: [],
            context=known,
        )
    )
    assert found.metrics["items"] == 3
    assert found.metrics["psnr"] == pytest.approx(
        found.metrics["psnr_baseline"]
    )
    assert found.metrics["ssim"] == pytest.approx(
        found.metrics["ssim_baseline"]
    )
    assert found.pictures["repaired.png"].startswith(b"\x89PNG")
    if how in (GREY, RGB):
        assert found.metrics["psnr"] == pytest.approx(
            20.2, abs=0.4
        )  # 20 log10(255 / 25)


def test_answers_are_alike_up_to_rounding():
    pixels = noise(64, 64) // 2 + 60
    one, near, far = (
        {"image": b64encode(png(other)).decode()}
        for other in (pixels, pixels + noise(64, 64, seed=1) // 250, pixels + 8)
    )
    assert task.same_answer(one, near, 2e-3)
    assert not task.same_answer(one, far, 2e-3)
    assert task.same_answer(
        one, {"image": b64encode(png(pixels + 2)).decode()}, 5e-2
    )


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        (
            "denoise",
            {"scale": "2"},
            "only super-resolution makes a picture larger",
        ),
        ("super-resolution", {"scale": "1"}, "it wants 2, 3 or 4"),
        ("denoise", {"sigma_min": "60"}, "sigma_min=60 is above sigma_max=55"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    recipe, overrides, message
):
    with pytest.raises(InvalidInput, match=message):
        plan(recipe_named("image-to-image", recipe), overrides)


def test_bicubic_enlargement_is_that_of_pillow():
    torch = pytest.importorskip("torch")
    from modelmill.tasks.image_to_image.networks import Bicubic

    for scale in (2, 3, 4):
        pixels = noise(20, 30)
        image = Image.fromarray(pixels.astype(np.float32), "F")
        wanted = np.asarray(
            image.resize((30 * scale, 20 * scale), Image.Resampling.BICUBIC)
        )
        found = Bicubic(scale)(torch.from_numpy(pixels)[None, None].float())[
            0, 0
        ].numpy()
        inner = slice(2 * scale, -2 * scale)
        np.testing.assert_allclose(
            found[inner, inner], wanted[inner, inner], atol=0.01
        )


@pytest.mark.parametrize("recipe", ["denoise", "super-resolution", "inpaint"])
def test_a_network_of_colours_is_converted_and_leaves_a_picture_as_it_is_before_it_has_learnt(
    tmp_path, recipe
):
    pytest.importorskip("torch")
    from modelmill.engines.onnx import ENGINE
    from modelmill.exporters.onnx import convert
    from modelmill.tasks.base import Signature
    from modelmill.tasks.image_to_image.training import deployed

    module = recipe_named("image-to-image", recipe)
    chosen = plan(module, {"color": "rgb", "channels": "8"})
    known = context(chosen.input, tmp_path)
    signature = Signature(
        inputs=task.inputs(known), classes=0, preprocessing=chosen.input
    )
    network = module.network(chosen.network, signature)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in a job's process
        convert(
            deployed(network, signature),
            task.inputs(known),
            task.outputs(known),
            tmp_path,
        )
    session = ENGINE.open(tmp_path, 1)
    pixels = np.asarray(
        Image.fromarray(noise(9, 11, 3)).resize(
            (51, 37), Image.Resampling.BICUBIC
        )
    )
    if recipe == "inpaint":
        pixels = preprocessing.damaged(pixels, chosen.input)
    found = through(png(pixels), known, session.run)
    wanted = preprocessing.unrepaired(pixels, chosen.input)
    assert measures.psnr(found[4:-4, 4:-4], wanted[4:-4, 4:-4]) > 45
