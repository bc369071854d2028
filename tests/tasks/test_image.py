"""Any picture that people send becomes upright pixels, or is refused in words."""

import io
import json
import os
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from modelmill.errors import InvalidInput, MillError, TooLarge
from modelmill.tasks.decoding import image_decoder
from modelmill.tasks.decoding.image_decoder import (
    Preprocessing,
    decode,
    fingerprint,
    prepare,
    read_pixels,
    size_of,
)
from tests.helpers.pictures import encoded, png

SAMPLES = (
    Path(
        os.environ.get("MODELMILL_SHARED", Path(__file__).parents[3] / "shared")
    )
    / "data"
    / "request_samples"
)
MANIFEST = SAMPLES / "manifest.json"
ENTRIES = json.loads(MANIFEST.read_text()) if MANIFEST.exists() else []
TURNED = (5, 6, 7, 8)

if not ENTRIES:
    ENTRIES = [
        pytest.param(
            None,
            marks=pytest.mark.skip(f"needs {MANIFEST}"),
            id="request_samples",
        )
    ]


@pytest.fixture(scope="session")
def sample(shared):
    return lambda name: (shared("data/request_samples") / name).read_bytes()


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["file"])
def test_every_sample_is_decoded_upright_or_refused(entry, sample):
    data, said = sample(entry["file"]), entry["pillow13"]
    if said == "decodes":
        pixels = read_pixels(data)
        sides = (entry["height"], entry["width"])
        assert pixels.shape[:2] == (
            sides[::-1] if entry["exif_orientation"] in TURNED else sides
        )
        assert pixels.dtype == np.uint8
        assert pixels.shape[2:] in ((), (3,))
        return
    kind = TooLarge if "DecompressionBomb" in said else InvalidInput
    with pytest.raises(kind) as caught:
        read_pixels(data)
    assert type(caught.value) is kind
    assert len(caught.value.message) < 250


def small(pixels, side=(32, 32)):
    return np.asarray(
        Image.fromarray(pixels)
        .convert("RGB")
        .resize(side, Image.Resampling.BOX)
    ).astype(float)


@pytest.mark.parametrize("turn", [3, 6, 8])
def test_the_same_scene_looks_alike_however_the_camera_was_held(turn, sample):
    upright = small(read_pixels(sample("exif_orientation_1.jpg")))
    turned = small(read_pixels(sample(f"exif_orientation_{turn}.jpg")))
    # The pictures carry their orientation as a number, so they are alike and not the same.
    assert np.abs(upright - turned).mean() < 8
    assert np.abs(upright - turned[::-1, ::-1]).mean() > 20


def orientated(orientation, kind="PNG"):
    """A picture with a red, a green and a blue corner as a camera with this orientation would store
    it.
    """
    scene = np.zeros((16, 24, 3), np.uint8)
    scene[:8, :8, 0], scene[:8, 16:, 1], scene[8:, :8, 2] = 255, 255, 255
    stored = scene.swapaxes(0, 1) if orientation in TURNED else scene
    rows, columns = {
        1: (1, 1),
        2: (1, -1),
        3: (-1, -1),
        4: (-1, 1),
        5: (1, 1),
        6: (-1, 1),
        7: (-1, -1),
        8: (1, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    return scene, encoded(
        Image.fromarray(np.ascontiguousarray(stored[::rows, ::columns])),
        kind,
        exif=exif.tobytes(),
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_as_pillow_turns_it(orientation):
    from PIL import ImageOps

    _, data = orientated(orientation)
    with Image.open(io.BytesIO(data)) as image:
        wanted = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(read_pixels(data), wanted)


@pytest.mark.parametrize("orientation", [1, 3])
def test_an_upside_down_jpeg_is_upright(orientation):
    scene, data = orientated(orientation, "JPEG")
    assert np.abs(read_pixels(data).astype(int) - scene).mean() < 12


def test_red_text_in_cmyk_stays_red(sample):
    pixels = read_pixels(sample("cmyk.jpg"))
    assert pixels[0, 0].tolist() == pytest.approx(
        [255, 0, 0], abs=40
    )  # its bar
    assert pixels[50, 50].max() < 40  # black around the letters
    assert (
        (pixels[..., 0] > 200) & (pixels[..., 1:].max(axis=2) < 80)
    ).mean() > 0.05


def test_transparency_shows_white():
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:, :2, 3] = 255
    seen = read_pixels(encoded(Image.fromarray(pixels, "RGBA")))
    assert (seen[:, :2] == 0).all()
    assert (seen[:, 2:] == 255).all()
    half = np.full((2, 2, 4), (0, 0, 0, 128), np.uint8)
    assert read_pixels(encoded(Image.fromarray(half, "RGBA"))) == pytest.approx(
        127, abs=1
    )


@pytest.mark.parametrize(
    "name",
    ["transparent.png", "transparent.gif", "palette_trns.png", "rgba.png"],
)
def test_transparent_samples_show_white(name, sample):
    data = sample(name)
    with Image.open(io.BytesIO(data)) as image:
        clear = np.asarray(image.convert("RGBA"))[..., 3] == 0
    assert clear.any()
    assert (read_pixels(data)[clear] == 255).all()


def test_a_palette_with_transparency_shows_white():
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 255, 0])
    assert read_pixels(encoded(image, transparency=1)).tolist() == [
        [[255, 0, 0], [255, 255, 255]]
    ]


def test_grey_with_alpha_shows_white():
    pixels = np.array([[[0, 255], [0, 0]]], np.uint8)
    assert read_pixels(encoded(Image.fromarray(pixels, "LA"))).reshape(2, -1)[
        :, 0
    ].tolist() == [0, 255]


def test_sixteen_bits_are_scaled_to_eight():
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    assert read_pixels(encoded(Image.fromarray(values))).tolist() == [
        [0, 1, 128, 255]
    ]


@pytest.mark.parametrize(
    "name", ["grey_16bit.png", "raw16.pgm", "jpeg2000.jp2"]
)
def test_sixteen_bit_samples_are_scaled_alike(name, sample):
    data = sample(name)
    with Image.open(io.BytesIO(data)) as image:
        values = np.asarray(image).astype(float)
    assert np.abs(read_pixels(data) - values / 257).max() <= 1


@pytest.mark.parametrize(
    "name", ["animated.gif", "animated.webp", "animated_apng.png"]
)
def test_of_an_animation_the_first_frame_is_taken(name, sample):
    data = sample(name)
    with Image.open(io.BytesIO(data)) as image:
        first = image.convert("RGBA")
        white = Image.new("RGBA", first.size, "white")
        wanted = np.asarray(Image.alpha_composite(white, first).convert("RGB"))
    assert np.array_equal(read_pixels(data), wanted)


def test_a_grey_jpeg_is_grey(sample):
    assert read_pixels(sample("grey.jpg")).shape == (128, 128)


def test_black_and_white_is_grey():
    image = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    assert read_pixels(encoded(image)).tolist() == [[0, 255]]


def test_a_fast_jpeg_looks_as_pillow_shows_it(sample):
    data = sample("photo_flower.jpg")
    with Image.open(io.BytesIO(data)) as image:
        wanted = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(read_pixels(data) - wanted).mean() < 1


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"\x89PNG", "not a readable picture"),
        (b"hello", "not a readable picture"),
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
            "not a readable picture",
        ),
        (
            b"<svg xmlns='http://www.w3.org/2000/svg'/>",
            "not a readable picture",
        ),
        ("a text", "bytes of an image file"),
        (None, "bytes of an image file"),
        (np.zeros((2, 2), np.float32), "uint8"),
        (np.zeros((2, 2, 4), np.uint8), "uint8"),
        (np.zeros((0, 2), np.uint8), "empty"),
    ],
)
def test_what_is_no_picture_is_refused_in_words(data, says):
    with pytest.raises(InvalidInput, match=says):
        read_pixels(data)


def test_a_picture_over_the_limit_is_too_large(monkeypatch):
    monkeypatch.setattr(image_decoder, "MAX_PIXELS", 99)
    with pytest.raises(TooLarge, match="100 pixels"):
        read_pixels(png(np.zeros((10, 10))))
    assert read_pixels(png(np.zeros((9, 11)))).shape == (9, 11)


def pixels_or_refusal(data):
    try:
        pixels = read_pixels(data)
    except MillError:
        return
    assert pixels.dtype == np.uint8
    assert pixels.size > 0
    assert pixels.ndim == 2 or pixels.shape[2] == 3


NOISE = np.random.default_rng(0).integers(0, 255, (9, 7, 3), np.uint8)
FILES = [
    encoded(Image.fromarray(NOISE), kind)
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")
]
FILES += [
    orientated(6)[1],
    encoded(Image.fromarray(NOISE), "JPEG", progressive=True),
]


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_pixels_or_refused(data):
    pixels_or_refusal(data)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(FILES),
    st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)),
        max_size=6,
    ),
    st.floats(0, 1) | st.just(1.0),
)
def test_a_damaged_picture_is_pixels_or_refused(file, changes, kept):
    data = bytearray(file)
    for place, value in changes:
        data[int(place * len(data))] = value
    pixels_or_refusal(bytes(data[: max(1, round(kept * len(data)))]))


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("color", ["grey", "rgb"])
@pytest.mark.parametrize(
    "shape", [(8, 8), (20, 5, 3), (3, 30), (1, 1, 3), (12, 16, 3)]
)
def test_every_picture_gets_the_shape_that_the_model_wants(fit, color, shape):
    how = Preprocessing(height=12, width=16, fit=fit, color=color)
    pixels = decode(np.full(shape, 100, np.uint8), how)
    assert pixels.shape == (12, 16, 1 if color == "grey" else 3)
    assert pixels.dtype == np.uint8


def test_stretch_keeps_all_crop_the_middle_and_pad_the_ratio():
    wide = np.zeros((10, 30), np.uint8)
    wide[:, 10:20] = 255
    stretched, cropped, padded = (
        decode(wide, Preprocessing(height=30, width=30, color="grey", fit=fit))[
            ..., 0
        ].astype(float)
        for fit in ("stretch", "crop", "pad")
    )
    assert stretched.mean() == pytest.approx(255 / 3, abs=10)
    assert cropped[:, 3:-3].mean() == pytest.approx(255, abs=10)
    assert padded[:9].max() == 0
    assert padded[12:18, 15].min() > 200


def test_a_picture_of_the_right_shape_is_left_as_it_is():
    pixels = np.random.default_rng(1).integers(0, 255, (6, 5, 3), np.uint8)
    assert np.array_equal(
        decode(png(pixels), Preprocessing(height=6, width=5, color="rgb")),
        pixels,
    )


def test_the_median_filter_takes_single_wrong_pixels_away():
    pixels = np.full((9, 9), 100, np.uint8)
    pixels[4, 4] = 255
    how = Preprocessing(height=9, width=9, color="grey", denoise=3)
    assert (decode(pixels, how) == 100).all()


def test_size_colour_and_normalisation_come_from_the_data():
    rng = np.random.default_rng(2)
    grey = [png(rng.integers(0, 255, (12, 10), np.uint8)) for _ in range(5)]
    how = prepare(grey, Preprocessing())
    assert (how.height, how.width, how.color, how.channels) == (
        12,
        10,
        "grey",
        1,
    )
    assert how.mean == pytest.approx([0.5], abs=0.05)
    assert how.std == pytest.approx([0.289], abs=0.03)
    red = png(np.full((12, 10, 3), (255, 0, 0)))
    how = prepare([*grey, red], Preprocessing())
    assert (how.color, len(how.mean)) == ("rgb", 3)
    assert how.mean[0] > how.mean[1]


def test_what_is_given_is_not_taken_from_the_data():
    given = Preprocessing(
        height=4, width=4, color="rgb", mean=(0.1, 0.2, 0.3), std=(1, 1, 1)
    )
    how = prepare([png(np.zeros((9, 9)))], given)
    assert msgspec.structs.replace(how, dct_scaling=False) == given


def test_large_pictures_are_scaled_to_the_longest_side():
    how = prepare([png(np.zeros((200, 100)))], Preprocessing(max_side=64))
    assert (how.height, how.width) == (64, 32)


def test_pictures_of_one_colour_do_not_divide_by_zero():
    assert prepare([png(np.zeros((4, 4)))], Preprocessing()).std == (0.01,)


def test_as_many_means_as_channels_are_wanted():
    with pytest.raises(InvalidInput, match="3 values"):
        prepare(
            [png(np.zeros((4, 4)))],
            Preprocessing(color="rgb", mean=(0.5,), std=(0.5,)),
        )


def test_the_same_picture_has_one_fingerprint():
    pixels = np.random.default_rng(3).integers(0, 255, (6, 5, 3), np.uint8)
    same = [
        pixels,
        png(pixels),
        encoded(Image.fromarray(pixels), "BMP"),
        encoded(Image.fromarray(pixels), "TIFF"),
    ]
    assert len({fingerprint(one) for one in same}) == 1
    other = pixels.copy()
    other[0, 0, 0] ^= 1
    assert fingerprint(other) != fingerprint(pixels)
    assert fingerprint(np.zeros((2, 8), np.uint8)) != fingerprint(
        np.zeros((4, 4), np.uint8)
    )


def scene(height, width):
    """Something of everything that a photograph has: gradients, round shapes, fine grain."""
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    red = 120 + 90 * np.sin(rows / 31) * np.cos(columns / 23)
    green = 255 * columns / width
    blue = np.where(
        np.hypot(rows - height / 2, columns - width / 3) < height / 4, 220, 40
    )
    grain = np.random.default_rng(7).normal(0, 6, (height, width, 1))
    return np.clip(np.stack([red, green, blue], 2) + grain, 0, 255).astype(
        np.uint8
    )


def by_pillow(data, how):
    """The picture decoded in full and resized, as a model without DCT scaling gets it."""
    from PIL import ImageOps

    with Image.open(io.BytesIO(data)) as image:
        image = ImageOps.exif_transpose(image).convert(
            "L" if how.color == "grey" else "RGB"
        )
    size, filter = (how.width, how.height), Image.Resampling.BILINEAR
    if how.fit == "stretch":
        return np.asarray(image.resize(size, filter)).reshape(
            how.height, how.width, -1
        )
    fitted = (ImageOps.fit if how.fit == "crop" else ImageOps.pad)(
        image, size, filter
    )
    return np.asarray(fitted).reshape(how.height, how.width, -1)


def agree(data, how):
    difference = np.abs(decode(data, how).astype(int) - by_pillow(data, how))
    return difference.mean() <= 4 and np.percentile(difference, 95) <= 8


SCALED = Preprocessing(height=48, width=64, color="rgb", dct_scaling=True)


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize(
    "shape",
    [(72, 96), (150, 200), (151, 203), (399, 533), (600, 200), (90, 700)],
)
def test_a_jpeg_decoded_small_looks_as_one_decoded_in_full(
    fit, subsampling, shape
):
    data = encoded(
        Image.fromarray(scene(*shape)),
        "JPEG",
        quality=90,
        subsampling=subsampling,
    )
    assert agree(data, msgspec.structs.replace(SCALED, fit=fit))


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_decoded_small_is_upright(orientation, fit):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(
        Image.fromarray(scene(301, 507)),
        "JPEG",
        quality=90,
        exif=exif.tobytes(),
    )
    assert agree(data, msgspec.structs.replace(SCALED, fit=fit))
    assert size_of(data) == read_pixels(data).shape[:2]


@pytest.mark.parametrize("color", ["grey", "rgb"])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_grey_cmyk_and_progressive_jpegs_agree_too(mode, color, progressive):
    image = Image.fromarray(scene(240, 320)).convert(mode)
    data = encoded(image, "JPEG", quality=90, progressive=progressive)
    assert agree(data, msgspec.structs.replace(SCALED, color=color))


def test_no_more_of_a_jpeg_is_decoded_than_is_needed(monkeypatch):
    seen = []
    usual = image_decoder.simplejpeg.decode_jpeg
    monkeypatch.setattr(
        image_decoder.simplejpeg,
        "decode_jpeg",
        lambda *a, **k: seen.append(usual(*a, **k)) or seen[-1],
    )
    data = encoded(Image.fromarray(scene(720, 1280)), "JPEG")
    for changes, wanted in (
        ({"height": 224, "width": 224}, (360, 640)),
        ({"height": 64, "width": 64}, (180, 320)),
        ({"height": 32, "width": 32, "fit": "pad"}, (90, 160)),
        ({"height": 480, "width": 480}, (720, 1280)),
        ({"height": 64, "width": 64, "denoise": 3}, (720, 1280)),
        ({"height": 64, "width": 64, "dct_scaling": False}, (720, 1280)),
    ):
        decode(data, msgspec.structs.replace(SCALED, **changes))
        assert seen.pop().shape[:2] == wanted
    assert fingerprint(data)
    assert seen.pop().shape[:2] == (720, 1280)


def test_a_model_decodes_as_it_was_trained():
    data = encoded(Image.fromarray(scene(300, 400)), "JPEG")
    how = prepare([data], Preprocessing(max_side=64))
    assert how.dct_scaling
    travelled = msgspec.convert(msgspec.to_builtins(how), Preprocessing)
    assert np.array_equal(decode(data, travelled), decode(data, how))
    before = msgspec.to_builtins(how)
    del before[
        "dct_scaling"
    ]  # as the manifest of a model from before this was there
    old = msgspec.convert(before, Preprocessing)
    assert (
        np.abs(decode(data, old).astype(int) - by_pillow(data, old)).max() <= 3
    )


def test_the_size_is_known_without_decoding():
    assert size_of(png(np.zeros((5, 7)))) == (5, 7)
    assert size_of(np.zeros((5, 7, 3), np.uint8)) == (5, 7)
    cut = encoded(Image.fromarray(scene(30, 40)), "JPEG")[:700]
    assert size_of(cut) == (30, 40)
    for data, says in (
        (b"", "empty"),
        (b"hello", "not a readable picture"),
        ("text", "bytes of an image"),
    ):
        with pytest.raises(InvalidInput, match=says):
            size_of(data)


def test_a_jpeg_cut_short_is_refused_at_any_size():
    data = encoded(Image.fromarray(scene(300, 400)), "JPEG")
    with pytest.raises(InvalidInput, match="damaged"):
        decode(data[: len(data) // 2], SCALED)
