"""Augmentation of synthetic portraits towards photos: crops, backgrounds, light, blur, noise and JPEG.

The portrait encoder is trained on synthetic portraits so changed. Every draw comes from the given generator.
"""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from portrait360.encoder.clutter import bystanders, clouds, shapes, things
from portrait360.encoder.network import CameraEstimate, crop_grid
from portrait360.geometry.cameras import yaw_pitch
from portrait360.media.images import blur

MIN_BLUR = 0.25
"""Blur, in pixels, of an image that nothing has blurred."""


@dataclass(frozen=True)
class PhotoRanges:
    """How far each change goes, and how often it comes."""

    plain_crop: float = 0.15
    """Share of images cropped exactly as the datasets are."""
    roll_degrees: float = 12.0
    smallest_scale: float = 0.7
    largest_scale: float = 2.0
    offset: float = 0.06
    plain_background: float = 0.35
    other_background: float = 0.2
    cluttered_background: float = 0.0
    bystander: float = 0.0
    grey: float = 0.05
    colour: float = 0.5
    shrink: float = 0.4
    smallest_side: float = 0.3
    blur: float = 0.35
    largest_blur: float = 2.5
    noise: float = 0.35
    largest_noise: float = 0.12
    jpeg: float = 0.35
    cover: float = 0.15
    thing: float = 0.0
    """Share of people with objects in front of them."""
    untouched: float = 0.0
    """Share of images left as the datasets have them; all other shares are of the rest."""


CLUTTERED = PhotoRanges(
    plain_background=0.25,
    other_background=0.1,
    cluttered_background=0.45,
    bystander=0.25,
    thing=0.25,
    untouched=0.5,
)
"""What encoders are trained on, for photos as well as for images of datasets and generators: cluttered backgrounds,
other people and objects in front, and half of the images as they are. The defaults are what they are measured on."""


@dataclass(frozen=True)
class PhotoBatch:
    """Augmented images and their ground truth.

    `blur` as in `Encoded`, in pixels of these images; `covered`: the share of the person that objects in front hide.
    Masks are of the whole person.
    """

    image: Float[Tensor, "B 3 R R"]
    mask: Float[Tensor, "B 1 R R"]
    camera: CameraEstimate
    blur: Float[Tensor, " B"]
    covered: Float[Tensor, " B"]

    def to(self, device: torch.device | str) -> PhotoBatch:
        """The same on another device; copies from pinned memory are not waited for."""
        return self._each(lambda values: values.to(device, non_blocking=True))

    def pin_memory(self) -> PhotoBatch:
        """The same in pinned memory; `torch.utils.data.DataLoader` calls it."""
        return self._each(Tensor.pin_memory)

    def tensors(self) -> list[Tensor]:
        """All tensors, one row per image."""
        return [*vars(self.camera).values(), self.image, self.mask, self.blur, self.covered]

    def _each(self, change: Callable[[Tensor], Tensor]) -> PhotoBatch:
        camera = CameraEstimate(**{name: change(values) for name, values in vars(self.camera).items()})
        return PhotoBatch(change(self.image), change(self.mask), camera, change(self.blur), change(self.covered))


class _Draws:
    """Random numbers from one generator of the CPU, the same on every device."""

    def __init__(self, count: int, generator: torch.Generator, device: torch.device | None = None) -> None:
        self.count, self.generator, self.device = count, generator, device

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(self.count, *shape, generator=self.generator).to(self.device)

    def normal(self, spread: float, *shape: int) -> Tensor:
        return spread * torch.randn(self.count, *shape, generator=self.generator).to(self.device)

    def chance(self, share: float) -> Tensor:
        return (torch.rand(self.count, generator=self.generator) < share).to(self.device)


def photo_batch(
    images: UInt8[Tensor, "B 3 R R"],
    masks: UInt8[Tensor, "B 1 R R"],
    cameras: Float[Tensor, "B 25"],
    generator: torch.Generator,
    ranges: PhotoRanges | None = None,
) -> PhotoBatch:
    """Turn synthetic portraits into images like photos.

    Args:
        images, masks, cameras: synthetic portraits in the plain crop, with the labels' cameras.
        generator: where every random number comes from.
        ranges: how far the changes go.
    """
    ranges = ranges or PhotoRanges()
    if ranges.untouched > 0.0:
        return _some_untouched(images, masks, cameras, generator, ranges)

    # Crop, background, colours
    draws = _Draws(len(images), generator)
    person, mask, camera = _cropped(*_as_floats(images, masks), cameras, draws, ranges)
    behind = _backgrounds(person, mask, draws, ranges)
    image = _colours(behind.mul_(1.0 - mask).add_(person.mul_(mask)), draws, ranges)

    # What is in front
    image, cover = _covers(image, draws, ranges)
    if ranges.thing > 0:
        image, more = things(image, mask, draws.chance(ranges.thing), generator)
        cover = torch.maximum(cover, more.float())
    covered = (cover * mask).sum(dim=(1, 2, 3)) / mask.sum(dim=(1, 2, 3)).clamp_min(1.0)

    # Blur, noise and JPEG
    image, amount = _blurs(image, camera, draws, ranges)
    noise = draws.uniform(0.0, ranges.largest_noise) * draws.chance(ranges.noise)
    grain = torch.randn(image.shape, generator=generator).mul_(noise[:, None, None, None])
    image = image.add_(grain).clamp_(-1.0, 1.0)
    return PhotoBatch(_jpegs(image, draws, ranges), mask, camera, amount, covered)


def other_crops_and_colours(
    images: Float[Tensor, "B 3 R R"],
    masks: Float[Tensor, "B 1 R R"],
    cameras: Float[Tensor, "B 25"],
    generator: torch.Generator,
    ranges: PhotoRanges,
) -> tuple[Float[Tensor, "B 3 R R"], Float[Tensor, "B 1 R R"], CameraEstimate]:
    """The first augmentations of `photo_batch` alone, crops and colours, on any device.

    Args:
        images, masks, cameras: as `photo_batch` takes them, but in -1 to 1 and 0 to 1.
        generator: of the CPU.
        ranges: how far they go.
    """
    draws = _Draws(len(images), generator, images.device)
    person, mask, camera = _cropped(images, masks, cameras, draws, ranges)
    return _colours(person, draws, ranges), mask, camera


def untouched_batch(
    images: UInt8[Tensor, "B 3 R R"], masks: UInt8[Tensor, "B 1 R R"], cameras: Float[Tensor, "B 25"]
) -> PhotoBatch:
    """Images as the datasets have them, for the arguments of `photo_batch`."""
    image, mask = _as_floats(images, masks)
    yaw, pitch = yaw_pitch(cameras)
    count = len(yaw)
    camera = CameraEstimate(yaw, pitch, torch.zeros(count), torch.ones(count), torch.zeros(count, 2))
    return PhotoBatch(image, mask, camera, torch.full((count,), MIN_BLUR), torch.zeros(count))


def _as_floats(images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    return (images / 127.5).sub_(1.0), masks / 255.0


def _some_untouched(
    images: Tensor, masks: Tensor, cameras: Tensor, generator: torch.Generator, ranges: PhotoRanges
) -> PhotoBatch:
    batch = untouched_batch(images, masks, cameras)
    rows = torch.nonzero(~_Draws(len(images), generator).chance(ranges.untouched))[:, 0]
    if len(rows):
        rest = dataclasses.replace(ranges, untouched=0.0)
        changed = photo_batch(images[rows], masks[rows], cameras[rows], generator, rest)
        for values, others in zip(batch.tensors(), changed.tensors(), strict=True):
            values[rows] = others
    return batch


def _cropped(
    image: Tensor, mask: Tensor, cameras: Tensor, draws: _Draws, ranges: PhotoRanges
) -> tuple[Tensor, Tensor, CameraEstimate]:
    camera = _draw_crop(cameras, draws, ranges)
    grid = crop_grid(camera, image.shape[-1])
    person = F.grid_sample(image, grid, padding_mode="border", align_corners=False)
    return person, F.grid_sample(mask, grid, align_corners=False), camera


def _draw_crop(cameras: Tensor, draws: _Draws, ranges: PhotoRanges) -> CameraEstimate:
    yaw, pitch = yaw_pitch(cameras)
    changed = (~draws.chance(ranges.plain_crop)).float()
    limit = math.radians(2.5 * ranges.roll_degrees)
    roll = draws.normal(math.radians(ranges.roll_degrees)).clamp(-limit, limit)
    scale = torch.exp(draws.uniform(math.log(ranges.smallest_scale), math.log(ranges.largest_scale)) * changed)
    # larger crops move further, so that the middle of the head, which is where cameras look, still stays inside
    offset = draws.normal(ranges.offset, 2).clamp(-2.5 * ranges.offset, 2.5 * ranges.offset)
    offset = offset * (scale.clamp_min(1.0) * changed)[:, None]
    return CameraEstimate(yaw, pitch, roll * changed, scale, offset)


def _backgrounds(person: Tensor, mask: Tensor, draws: _Draws, ranges: PhotoRanges) -> Tensor:
    """Behind the person: what was there, one colour (half the time the models' grey), another image, blurred, or
    clutter; sometimes somebody else in front of that."""
    kind = draws.uniform(0.0, 1.0)
    plain, other = ranges.plain_background, ranges.plain_background + ranges.other_background
    colour = draws.uniform(-1.0, 1.0, 3) * draws.chance(0.5)[:, None]
    behind = person.clone()
    cluttered = torch.nonzero((kind >= other) & (kind < other + ranges.cluttered_background))[:, 0]
    if len(cluttered):
        behind[cluttered] = shapes(clouds(len(cluttered), person.shape[-1], draws.generator), draws.generator)
    softened = torch.nonzero((kind >= plain) & (kind < other))[:, 0]
    if len(softened):
        soft = blur(F.avg_pool2d(person[softened - 1], 4), 1.5)
        behind[softened] = F.interpolate(soft, size=person.shape[-2:], mode="bilinear", align_corners=False)
    behind[kind < plain] = colour[kind < plain][:, :, None, None]
    if ranges.bystander > 0:
        crowd = bystanders(behind, person, mask, draws.generator)
        crowded = draws.chance(ranges.bystander)
        behind[crowded] = crowd[crowded]
    return behind


def _colours(image: Tensor, draws: _Draws, ranges: PhotoRanges) -> Tensor:
    """Exposure, gamma, contrast, colour cast and saturation; some images lose their colour."""
    on = torch.nonzero(draws.chance(ranges.colour))[:, 0]
    gamma = torch.exp(draws.normal(0.2))[on, None, None, None]
    gain = torch.exp(draws.normal(0.15)[:, None] + draws.normal(0.06, 3))[on, :, None, None]
    contrast = torch.exp(draws.normal(0.15))[on, None, None, None]
    saturation = torch.exp(draws.normal(0.25)) * (~draws.chance(ranges.grey)).float()
    saturation = saturation[on, None, None, None]
    x = image.add(1.0).mul_(0.5).clamp_(0.0, 1.0)
    if len(on):
        before = x[on]
        changed = before.pow(gamma).mul_(gain)
        middle = changed.mean(dim=(1, 2, 3), keepdim=True)
        changed.sub_(middle).mul_(contrast).add_(middle)
        luma = (changed * changed.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(dim=1, keepdim=True)
        changed.sub_(luma).mul_(saturation).add_(luma)
        x[on] = before.add_(changed.sub_(before)).clamp_(0.0, 1.0)
    return x.mul_(2.0).sub_(1.0)


def _covers(image: Tensor, draws: _Draws, ranges: PhotoRanges) -> tuple[Tensor, Tensor]:
    """A rectangle of one colour in front of some images, in place; where it is [B, 1, R, R]: hands, microphones."""
    side = image.shape[-1]
    centre, half = draws.uniform(0.0, 1.0, 2), draws.uniform(0.05, 0.18, 2)
    centres = (torch.arange(side) + 0.5) / side
    inside = ((centres[None, None] - centre[..., None]).abs() < half[..., None]).float()
    chosen = draws.chance(ranges.cover)
    cover = (inside[:, 1, :, None] * inside[:, 0, None, :] * chosen.float()[:, None, None])[:, None]
    colour = draws.uniform(-1.0, 1.0, 3)[:, :, None, None]
    image[chosen] += cover[chosen] * (colour[chosen] - image[chosen])
    return image, cover


def _blurs(
    image: Tensor, camera: CameraEstimate, draws: _Draws, ranges: PhotoRanges
) -> tuple[Tensor, Float[Tensor, " B"]]:
    """Fewer pixels and a soft lens, in place; also how much blur there is then, with that of the enlarged crop."""
    side = image.shape[-1]
    share = torch.where(draws.chance(ranges.shrink), draws.uniform(ranges.smallest_side, 1.0), torch.ones(()))
    soft = torch.where(draws.chance(ranges.blur), draws.uniform(0.0, ranges.largest_blur), torch.zeros(()))
    for place, part, sigma in zip(image.split(1), share.tolist(), soft.tolist(), strict=True):
        one, pixels = place, round(side * part)
        if pixels < side:
            small = F.interpolate(one, size=(pixels, pixels), mode="area")
            one = F.interpolate(small, size=(side, side), mode="bilinear", align_corners=False)
        # `blur` takes the width of powers of two: 2^-(i/s)^2 is a Gaussian of standard deviation s / 1.1774
        one = blur(one, sigma * math.sqrt(2.0 * math.log(2.0)))
        if one is not place:
            place.copy_(one)
    # a pixel is a box of variance 1/12, and enlarging spreads it by a tent of variance 1/6
    pixel = 0.25 * ((1.0 / share).square() - 1.0)
    enlarged = 0.25 * (camera.scale.clamp_min(1.0).square() - 1.0)
    return image, (MIN_BLUR**2 + soft.square() + pixel + enlarged).sqrt()


def _jpegs(image: Tensor, draws: _Draws, ranges: PhotoRanges) -> Tensor:
    """Compress some images as JPEG and decode them, in place."""
    on, quality = draws.chance(ranges.jpeg), draws.uniform(20.0, 95.0)
    for one, chosen, level in zip(image, on.tolist(), quality.tolist(), strict=True):
        if chosen:
            one.copy_(_jpeg(one, round(level)))
    return image


def _jpeg(image: Tensor, quality: int) -> Tensor:
    pixels = image.add(1.0).mul(127.5).round().byte().permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    decoded = np.asarray(Image.open(buffer)).transpose(2, 0, 1)
    return torch.from_numpy(decoded.astype(np.float32)) / 127.5 - 1.0
