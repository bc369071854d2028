"""Training pictures are changed as far as they are told to, and the same way for the same seed."""

import msgspec
import pytest
import torch

from modelmill.data.augment import Augment, augment, augment_with_masks, mix

NONE = Augment(
    flip=False,
    rotate=0,
    scale_min=1,
    scale_max=1,
    aspect=0,
    crop=0,
    brightness=0,
    contrast=0,
    saturation=0,
    erase=0,
)


def pictures(count=6, height=10, width=12, channels=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(
        0,
        256,
        (count, height, width, channels),
        dtype=torch.uint8,
        generator=generator,
    )


def with_only(**changed):
    return msgspec.structs.replace(NONE, **changed)


@pytest.mark.parametrize(
    "shape", [(6, 10, 12, 3), (1, 28, 28, 1), (3, 1, 1, 1), (2, 7, 3, 3)]
)
@pytest.mark.parametrize(
    "how",
    [Augment(), Augment(noise=30, erase=1, rotate=180, flip_vertical=True)],
)
def test_shape_and_range_stay(shape, how):
    changed = augment(pictures(*shape), how)
    assert changed.shape == shape
    assert changed.dtype == torch.float32
    assert 0 <= changed.min() <= changed.max() <= 255
    assert not changed.isnan().any()


def test_all_at_zero_changes_nothing():
    x = pictures()
    torch.testing.assert_close(augment(x, NONE), x.float(), atol=0.05, rtol=0)


def test_the_input_is_left_alone():
    x = pictures()
    before = x.clone()
    augment(x, Augment(erase=1, noise=20))
    assert torch.equal(x, before)


@pytest.mark.parametrize(("name", "axis"), [("flip", 2), ("flip_vertical", 1)])
def test_flip_only_flips(name, axis):
    torch.manual_seed(0)
    x = pictures(32)
    seen = set()
    for before, after in zip(
        x.float(), augment(x, with_only(**{name: True})), strict=True
    ):
        mirrored = before.flip(axis - 1)
        same = torch.allclose(after, before, atol=0.1)
        assert same or torch.allclose(after, mirrored, atol=0.1)
        seen.add(same)
    assert seen == {True, False}


def test_brightness_only_scales():
    x = torch.full((8, 4, 4, 3), 100, dtype=torch.uint8)
    changed = augment(x, with_only(brightness=0.5))
    assert 50 <= changed.min() <= changed.max() <= 150
    assert len(changed[:, 0, 0, 0].unique()) > 1
    torch.testing.assert_close(
        changed, changed[:, :1, :1, :1].expand_as(changed)
    )


def test_saturation_leaves_grey_alone():
    x = pictures(channels=1)
    grey = x.expand(-1, -1, -1, 3)
    torch.testing.assert_close(
        augment(grey, with_only(saturation=1)), grey.float(), atol=0.1, rtol=0
    )


def test_erasing_paints_grey_boxes():
    torch.manual_seed(0)
    x = torch.zeros(40, 20, 20, 1, dtype=torch.uint8)
    share = (augment(x, with_only(erase=1)) == 127.5).float().mean((1, 2, 3))
    assert 0.01 < share.mean() < 0.25
    assert not augment(x, with_only(erase=0)).any()


def test_the_same_seed_gives_the_same_pictures():
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(augment(pictures(), Augment(noise=10)))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_mixing_keeps_the_sum_of_labels():
    torch.manual_seed(0)
    x = pictures().float()
    mixed, shares = mix(x, torch.tensor([0, 1, 2, 0, 1, 2]), 3, 0.4)
    assert mixed.shape == x.shape
    assert shares.shape == (6, 3)
    torch.testing.assert_close(shares.sum(1), torch.ones(6))
    assert 0 <= mixed.min() <= mixed.max() <= 255


def test_masks_move_with_their_pictures_and_keep_their_values():
    mask = torch.zeros(8, 40, 60, dtype=torch.uint8)
    mask[:, 10:30, 20:50] = 7
    mask[:, 30:] = 255
    pictures = mask.unsqueeze(3).expand(-1, -1, -1, 3)
    how = Augment(
        rotate=30, scale_min=0.5, brightness=0, contrast=0, saturation=0
    )
    changed, moved = augment_with_masks(pictures, mask, how)
    assert moved.dtype == torch.uint8
    assert set(moved.unique().tolist()) <= {0, 7, 255}
    assert (moved != mask).any()
    # Away from borders, which are blurred
    inside = (changed[..., 0] - changed[..., 0].round()).abs() < 1e-3
    assert (
        changed[..., 0].round()[inside] == moved[inside]
    ).float().mean() > 0.97


def test_pictures_that_are_only_mirrored_and_shifted_keep_their_pixels():
    pictures = torch.randint(0, 255, (64, 12, 10, 3), dtype=torch.uint8)
    how = msgspec.structs.replace(NONE, flip=True, crop=0.25)
    changed = augment(pictures, how)
    assert how.upright
    assert torch.allclose(changed, changed.round(), atol=1e-3)
    kept = [
        set(one.flatten().tolist())
        >= set(new.round().byte().flatten().tolist())
        for one, new in zip(pictures, changed, strict=True)
    ]
    assert all(kept)
    assert not torch.allclose(changed, pictures.float(), atol=1)
