"""Persons in photos in which mediapipe's detectors find nobody: from the side and from behind.

Selfie segmentation gives the outline of what may be a person, and the portrait encoder encodes it on a grey background:
others mislead it. First crops of several sizes are corrected in a few passes. A person is accepted where all of them
end at the same crop, the predictions for it and for its mirror image agree, the encoder's mask is the segmentation's,
and its landmarks lie where the predicted body has them. Flowers, cats and jackets fail at least one of these
(docs/photos.md).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray
from PIL import Image
from skimage.measure import label

from portrait360.encoder.network import Encoded, PortraitEncoder, landmark_places
from portrait360.geometry.body import BodyTemplate
from portrait360.geometry.cameras import cam2world, camera_label
from portrait360.geometry.rotations import geodesic_angle
from portrait360.photos.crop import LARGEST_SIDE, Square
from portrait360.photos.detect import Detection
from portrait360.photos.matte import MattingModel, mirrored_opacity, on_grey
from portrait360.photos.records import PhotoError

_SIDE = 512
"""Larger side, in pixels, at which photos are segmented."""
_LEAST_AREA = 0.03
"""Share of the photo that an outline covers at least: who stands out so little is not the photo's subject."""
_HEAD_WIDTH, _HEAD_TOP = 0.42, 0.33
"""Width of a head, and how far its top lies above the middle, in units of a portrait's crop."""
_HEAD_HEIGHT = 1.25
"""Height of a head in units of its width: where an outline is that high, it is as wide as the head."""
_SIZES = (0.55, 0.8, 1.15, 1.6)
"""First crops, in units of the one that the outline suggests; they end within a few per cent of each other."""
_PASSES = 4
MOST_APART, MOST_RATIO = 0.06, 0.12
"""Distance of each crop from the median one, in units of its side, and of the logarithms of their sides."""
MOST_TURN = math.radians(15.0)
"""Angle between the cameras of a crop and of its mirror image."""
LEAST_OVERLAP = 0.9
MOST_OFF = 0.045
"""Root mean square distance of landmarks, in units of the crop's side. Persons measured 0.014 to 0.041."""
_MASK_SIDE = 64
_HEAD_LANDMARKS = 8
"""The first ones of the encoder's landmarks are the head's, from chin to skull and from ear to ear."""


def find_by_outline(
    photo: UInt8[ndarray, "H W 3"], encoder: PortraitEncoder, body: BodyTemplate, matte: MattingModel
) -> Detection | None:
    """The person who stands out, if the outline shows one.

    Args:
        photo: a photo in which no detector finds anybody.
        encoder: the portrait encoder.
        body: the body in whose terms it predicts.
        matte: which pixels are a person's.
    """
    # Segment a small copy, and where nothing comes of it its mirror image.
    small = Image.fromarray(photo)
    small.thumbnail((_SIDE, _SIDE), Image.Resampling.BOX, reducing_gap=2.0)
    image = np.asarray(small)
    person = _person_in(image, matte(image), encoder, body)
    if person is None:
        person = _person_in(image, mirrored_opacity(image, matte), encoder, body)
    if person is None:
        return None

    # Back to pixels of the photo.
    x, y, side, left, top, right, bottom = person * (max(photo.shape[:2]) / max(image.shape[:2]))
    return Detection(None, None, Square((x, y), side), (left, top, right, bottom))


def _person_in(
    image: UInt8[ndarray, "H W 3"], opacity: Float[ndarray, "H W"], encoder: PortraitEncoder, body: BodyTemplate
) -> Float[ndarray, " 7"] | None:
    """Crop (centre, side) and head (left, top, right, bottom) of the person whose outline is the largest, in pixels;
    None where the tests fail."""
    own = _largest_piece(opacity >= 0.5)
    if own.mean() < _LEAST_AREA:
        return None
    person = on_grey(image, np.where(own, opacity, 0.0))
    crops = _first_crops(own)
    try:
        # Correct crops of several sizes until they should be the same one.
        for _ in range(_PASSES):
            crops = _corrected(crops, _encoded(person, crops, encoder), own.shape)
        middle = np.median(crops, axis=0)
        apart = np.abs(crops[:, :2] - middle[:2]).max(axis=1) / middle[2]
        ratio = np.abs(np.log(crops[:, 2] / middle[2]))
        if apart.max() > MOST_APART or ratio.max() > MOST_RATIO:
            return None

        # Encode the one in the middle, and its mirror image.
        crop = crops[int(np.argmin(apart + ratio))]
        encoded = _encoded(person, crop[None], encoder, mirrored=True)
        outline = _cut(np.repeat((own * 255).astype(np.uint8)[..., None], 3, axis=2), crop, _MASK_SIDE)[..., 0]
    except PhotoError:
        return None
    if not _agrees(encoded, outline >= 128, body):
        return None
    head = crop[:2] + crop[2] * (encoded.landmarks[0, :_HEAD_LANDMARKS].numpy() - 0.5)
    return np.concatenate([crop, head.min(axis=0), head.max(axis=0)])


def _largest_piece(person: Bool[ndarray, "H W"]) -> Bool[ndarray, "H W"]:
    pieces = np.asarray(label(person))
    counts = np.bincount(pieces.ravel())
    counts[0] = 0
    return (pieces == int(counts.argmax())) & person


def _first_crops(own: Bool[ndarray, "H W"]) -> Float[ndarray, "B 3"]:
    """Centre and side of crops about the head: the top of the outline down to where it is as high as a head is."""
    rows = np.nonzero(own.any(axis=1))[0]
    below = own[rows[0] :]
    widest = np.maximum.accumulate(below.sum(axis=1))
    high = np.nonzero(np.arange(1, len(widest) + 1) >= _HEAD_HEIGHT * widest)[0]
    end = int(high[0]) + 1 if len(high) else len(widest)
    x = float(np.nonzero(below[:end])[1].mean()) + 0.5
    sides = widest[end - 1] / _HEAD_WIDTH * np.array(_SIZES)
    return np.stack([np.full(len(sides), x), rows[0] + _HEAD_TOP * sides, sides], axis=1)


def _cut(image: UInt8[ndarray, "H W 3"], crop: Float[ndarray, " 3"], side: int) -> UInt8[ndarray, "S S 3"]:
    return Square((float(crop[0]), float(crop[1])), float(crop[2])).of(image, side).image


def _encoded(
    image: UInt8[ndarray, "H W 3"],
    crops: Float[ndarray, "B 3"],
    encoder: PortraitEncoder,
    *,
    mirrored: bool = False,
) -> Encoded:
    """What the encoder predicts for crops, and after them for their mirror images."""
    cuts = np.stack([_cut(image, crop, encoder.config.resolution) for crop in crops])
    pixels = torch.from_numpy(cuts).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    return encoder.encode(torch.cat([pixels, pixels.flip(3)]) if mirrored else pixels)


def _corrected(crops: Float[ndarray, "B 3"], encoded: Encoded, shape: tuple[int, ...]) -> Float[ndarray, "B 3"]:
    """Crops that would be portraits' by what the encoder predicts; their centres stay in the image."""
    offset, scale = encoded.camera.offset.numpy(), encoded.camera.scale.clamp(0.5, 2.5).numpy()
    centres = np.clip(crops[:, :2] + offset * crops[:, 2:], 0.0, [shape[1], shape[0]])
    sides = np.clip(crops[:, 2:] * scale[:, None], 8.0, LARGEST_SIDE * max(shape))
    return np.concatenate([centres, sides], axis=1)


def _agrees(encoded: Encoded, own: Bool[ndarray, "M M"], body: BodyTemplate) -> bool:
    """Whether a crop and its mirror image, the two in `encoded`, look like the same person with this outline."""
    camera, sign = encoded.camera, torch.tensor([1.0, -1.0])
    turns = cam2world(camera_label(camera.yaw * sign, camera.pitch))[:, :3, :3]
    if float(geodesic_angle(turns[0], turns[1])) > MOST_TURN:
        return False
    masks = encoded.mask(len(own))[:, 0]
    mask = ((masks[0] + masks[1].flip(1)) / 2.0 >= 0.5).numpy()
    if (mask & own).sum() < LEAST_OVERLAP * (mask | own).sum():
        return False
    places = landmark_places(body, camera.label(), encoded.body_pose)
    off = (places - encoded.landmarks).square().sum(dim=2).mean(dim=1).sqrt() / camera.scale
    return float(off.mean()) <= MOST_OFF
