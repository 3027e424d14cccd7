"""From synthetic portraits to images like photos."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from portrait360.encoder.augment import (
    CLUTTERED,
    MIN_BLUR,
    PhotoRanges,
    other_crops_and_colours,
    photo_batch,
    untouched_batch,
)
from portrait360.encoder.clutter import SHAPES, THINGS, bystanders, clouds, shapes, things
from portrait360.geometry.cameras import camera_label, yaw_pitch

NOTHING = PhotoRanges(
    plain_crop=1.0,
    plain_background=0.0,
    other_background=0.0,
    grey=0.0,
    colour=0.0,
    shrink=0.0,
    blur=0.0,
    noise=0.0,
    jpeg=0.0,
    cover=0.0,
)


def portraits(count: int = 8, side: int = 32):
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, side, side), generator=g, dtype=torch.uint8)
    masks = torch.zeros(count, 1, side, side, dtype=torch.uint8)
    masks[:, :, 8:24, 8:24] = 255
    return images, masks, camera_label(torch.linspace(-3, 3, count), 0.1)


def changed(seed: int = 0, **ranges):
    images, masks, cameras = portraits()
    recipe = dataclasses.replace(NOTHING, **ranges)
    return images, masks, photo_batch(images, masks, cameras, torch.Generator().manual_seed(seed), recipe)


def test_without_changes_images_stay():
    images, masks, photos = changed()
    # tested off the border of the mask: colours there pass through the mask twice
    assert torch.allclose(photos.image, images / 127.5 - 1.0, atol=1e-4)
    assert torch.allclose(photos.mask, masks / 255.0, atol=1e-5)
    assert torch.allclose(photos.camera.label(), portraits()[2], atol=1e-5)
    assert torch.allclose(photos.blur, torch.full((8,), MIN_BLUR))


def test_crops_and_colours_alone_are_those_of_whole_changes():
    """Where nothing else happens. They draw fewer numbers, so that colours are others where they are drawn."""
    images, masks, cameras = portraits()
    ranges = dataclasses.replace(NOTHING, plain_crop=0.0)
    whole = photo_batch(images, masks, cameras, torch.Generator().manual_seed(0), ranges)
    pairs = images / 127.5 - 1.0, masks / 255.0
    image, mask, crop = other_crops_and_colours(*pairs, cameras, torch.Generator().manual_seed(0), ranges)
    inside = whole.mask > 0.999
    torch.testing.assert_close(image * inside, whole.image * inside, atol=1e-4, rtol=0)
    assert torch.equal(mask, whole.mask)
    assert torch.equal(crop.label(), whole.camera.label())
    ranges = dataclasses.replace(ranges, colour=1.0)
    other, mask, crop = other_crops_and_colours(*pairs, cameras, torch.Generator().manual_seed(0), ranges)
    assert torch.equal(mask, whole.mask)
    assert float((other - image).abs().mean(dim=(1, 2, 3)).min()) > 0.01


def test_untouched_images_stay_in_their_places():
    images, masks, cameras = portraits(64)
    ranges = dataclasses.replace(CLUTTERED, plain_crop=0.0, colour=1.0, untouched=0.5)
    photos = photo_batch(images, masks, cameras, torch.Generator().manual_seed(0), ranges)
    whole = untouched_batch(images, masks, cameras)
    same = torch.tensor([torch.equal(a, b) for a, b in zip(photos.image, whole.image, strict=True)])
    assert 20 < same.sum() < 44
    for values, others in zip(photos.tensors(), whole.tensors(), strict=True):
        assert torch.equal(values[same], others[same])
    assert torch.equal(photos.camera.yaw, whole.camera.yaw)  # changed ones as well lie where they lay
    assert (photos.camera.scale[~same] != 1.0).all()
    assert torch.equal(whole.camera.label(), camera_label(*yaw_pitch(cameras)))
    everyone = photo_batch(images, masks, cameras, torch.Generator(), dataclasses.replace(CLUTTERED, untouched=1.0))
    assert torch.equal(everyone.image, whole.image)


def test_the_generator_decides_everything():
    everything = {f.name: getattr(CLUTTERED, f.name) for f in dataclasses.fields(PhotoRanges)}
    first, again, other = (changed(seed, **everything)[2] for seed in (1, 1, 2))
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.camera.label(), again.camera.label())
    assert not torch.equal(first.image, other.image)
    assert first.image.abs().max() <= 1.0


@pytest.mark.parametrize(
    "ranges",
    [
        {"plain_crop": 0.0},
        {"colour": 1.0},
        {"grey": 1.0, "colour": 1.0},
        {"shrink": 1.0},
        {"blur": 1.0},
        {"noise": 1.0},
        {"jpeg": 1.0},
        {"cover": 1.0},
        {"thing": 1.0},
        {"plain_background": 1.0},
        {"other_background": 1.0},
        {"cluttered_background": 1.0},
    ],
)
def test_every_change_changes_images(ranges):
    images, _, photos = changed(**ranges)
    assert ((photos.image - (images / 127.5 - 1.0)).abs().amax(dim=(1, 2, 3)) > 0.01).float().mean() > 0.7


@pytest.mark.parametrize("name", ["plain_background", "other_background", "cluttered_background", "bystander"])
def test_backgrounds_leave_the_person_alone(name):
    images, masks, photos = changed(**{name: 1.0})
    person = (masks == 255).expand_as(images)
    assert torch.allclose(photos.image[person], (images / 127.5 - 1.0)[person], atol=1e-4)


def test_blur_is_known():
    _, _, sharp = changed()
    _, _, soft = changed(blur=1.0)
    spread = (soft.image.std(dim=(1, 2, 3)), sharp.image.std(dim=(1, 2, 3)))
    assert (soft.blur > sharp.blur).all()
    strong = soft.blur > 1.0
    assert strong.any()
    assert (spread[0] < 0.8 * spread[1])[strong].all()
    _, _, small = changed(shrink=1.0)
    assert (small.blur > sharp.blur).all()


def test_clouds_have_the_spectrum_of_photos():
    """Amplitude falls with the frequency, at rates between those that are drawn."""
    images = clouds(16, 64, torch.Generator().manual_seed(0))
    assert images.abs().max() <= 1.0
    amplitude = torch.fft.rfft2(images).abs().mean(dim=(0, 1))
    low, high = amplitude[1:4, 1:4].mean(), amplitude[8:32, 8:32].mean()
    # frequencies of about 3 and 28: between (28 / 3)^0.7 and (28 / 3)^1.6 times as strong
    assert 4.0 < low / high < 40.0
    assert images.mean(dim=(2, 3)).std() > 0.2


def test_shapes_have_hard_edges_and_leave_some_of_what_is_behind():
    grey = torch.zeros(32, 3, 48, 48)
    images = shapes(grey, torch.Generator().manual_seed(0))
    untouched = (images == 0.0).all(dim=1).float().mean(dim=(1, 2))
    assert untouched.max() > 0.9
    assert 0.1 < untouched.mean() < 0.8
    colours = [len(torch.unique(p.flatten(1), dim=1).T) for p in images]
    assert max(colours) > 4
    assert max(colours) <= 1 + 2 * SHAPES
    again = shapes(grey, torch.Generator().manual_seed(0))
    assert torch.equal(images, again)


def test_bystanders_are_the_next_image_s_person():
    person = torch.linspace(-0.9, 0.9, 8)[:, None, None, None].expand(8, 3, 40, 40).contiguous()
    mask = torch.zeros(8, 1, 40, 40)
    mask[:, :, 5:35, 10:30] = 1.0
    nothing = torch.full((8, 3, 40, 40), -1.0)
    images = bystanders(nothing, person, mask, torch.Generator().manual_seed(1))
    for image, colour in zip(images, person.roll(1, dims=0)[:, 0, 0, 0], strict=True):
        seen = image[0][image[0] != -1.0]
        assert len(seen) > 20
        assert seen.max() <= colour + 1e-5
        assert (seen - colour).abs().median() < 1e-4


def test_things_stand_before_the_chosen_people_only():
    image, mask = torch.full((32, 3, 48, 48), 0.25), torch.zeros(32, 1, 48, 48)
    mask[:, :, 20:40, 16:32] = 1.0
    chosen = torch.arange(32) % 2 == 0
    images, where = things(image, mask, chosen, torch.Generator().manual_seed(0))
    changed_pixels = (images != image).any(dim=1, keepdim=True)
    assert not where[~chosen].any()
    assert (changed_pixels <= where).all()
    assert changed_pixels.sum() > 0.95 * where.sum()
    # the middle of each is on the person
    assert (where & (mask > 0)).any(dim=(1, 2, 3))[chosen].all()
    shares = where[chosen].float().mean(dim=(1, 2, 3))
    assert 0.0 < shares.min() < 0.05
    assert 0.1 < shares.max() < THINGS * 0.25
    images, where = things(image, mask, torch.zeros(32, dtype=torch.bool), torch.Generator().manual_seed(0))
    assert torch.equal(images, image)
    assert not where.any()


def test_the_hidden_share_of_the_person_is_known():
    images, masks, photos = changed(thing=1.0, cover=1.0)
    differs = (photos.image - (images / 127.5 - 1.0)).abs().amax(dim=1, keepdim=True) > 1e-3
    person = masks > 0
    seen = (differs & person).sum(dim=(1, 2, 3)) / person.sum(dim=(1, 2, 3))
    assert torch.allclose(photos.covered, seen, atol=0.03)
    assert photos.covered.std() > 0.05
    assert torch.equal(changed()[2].covered, torch.zeros(8))
