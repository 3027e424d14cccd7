"""Which pictures of persons are good enough to learn from: what is measured, where the limits are, and the reasons."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import scipy.fft
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray
from PIL import Image
from scipy import ndimage
from torch import Tensor

import portrait360
from portrait360.checkpoint import FORMAT, load_encoder, read_tensors, write_tensors
from portrait360.model.encoder import PortraitEncoder
from portrait360.pictures import from_bytes
from portrait360.types import CheckpointError

REASONS: dict[str, str] = {
    "not a picture": "The file is no picture in a format that can be read.",
    "unreadable": "The file is broken, cut off, may not be opened, or needs a plugin.",
    "too large": "The picture has more pixels than can be read safely.",
    "no person": "Nobody was found in the picture.",
    "too small": "The person covers too few pixels of the photo.",
    "blurred": "The person is out of focus or moved.",
    "duplicate": "The same picture was accepted already.",
    "truncated": "The photo ends within the head or the shoulders.",
    "occluded": "Something hides too much of the person, or the mask misses it.",
    "several heads": "Other heads reach into the picture of this person.",
    "low confidence": "It is too unsure where the parts of the body are.",
    "bad fit": "No camera and body pose explain what was found.",
    "exposure": "Too much of the person is black or white.",
    "not a person": "It is a drawing, an animal or a thing.",
    "low quality": "The quality network gave too low a mark.",
}
"""What the report says about each reason, one sentence each."""


@dataclass(frozen=True)
class PhotoLimits:
    """The gates that pictures of persons must pass. "Share" is from 0 to 1."""

    smallest_side: float = 128.0
    """Least side of the square crop, in pixels of the photo."""
    smallest_sharpness: float = 20.0
    """Least variance of the Laplacian of the person's grey levels (0 to 255), outline included, with the crop shrunk to
    256 pixels; crops with fewer pixels in the photo are measured at those, so that enlarging sharpens nothing. Sharp
    photos of persons measured 610 to 1910, synthetic portraits 250 to 4110. Blurred by 1 pixel of those 256 (standard
    deviation) the photos kept 52 to 133, by 1.5 pixels 19 to 41, by 2 pixels 10 to 18. Noise counts as sharpness: that
    of 4 levels alone is worth some 25."""
    duplicate_bits: int = 3
    """Pictures whose 64-bit hashes differ in at most so many bits are the same."""
    most_head_outside: float = 0.1
    """Largest share of the head's box that lies outside of the photo."""
    most_outside: float = 0.4
    """Largest share of the crop that lies outside of the photo."""
    most_shoulders_outside: float = 0.0
    """Largest number of shoulders (their joints) that lie outside of the photo."""
    most_overlap: float = 0.05
    """Largest share of the crop's middle that other heads cover."""
    least_confidence: float = 0.5
    """Least confidence in the landmarks, 0 to 1."""
    largest_fit_error: float = 0.04
    """Largest distance between landmarks and the body fitted to them, as a share of the crop's side."""
    largest_turn: float = 60.0
    """Largest angle of the fitted neck or head, degrees: more than a neck can do."""
    most_dark: float = 0.6
    """Largest share of the person's pixels with grey levels below 8."""
    most_bright: float = 0.35
    """Largest share of the person's pixels with grey levels above 247."""
    least_person: float = 0.08
    """Least share of the crop that the person's mask covers."""
    most_uncovered: float = 0.1
    """Largest share of the fitted body that the person's mask leaves out. Good masks of synthetic persons leave out up
    to 0.05; those that leave out more than 0.1 overlap with the true ones by 0.92 at most."""
    most_covered: float = 1.0
    """Largest share of the person that things in front hide, as far as the portrait encoder can see; 1 rejects nobody.
    Of synthetic persons 0.08 rejects those with much hidden (docs/results.md), of real ones everybody in a suit, which
    the encoder has not seen."""
    most_flat: float = 0.5
    """Largest share of the person's pixels, neither black nor white, around which (3×3 pixels, at 256 pixels or fewer)
    no channel varies by more than 2 levels; only pictures of few colours are judged by it. A drawing measured 0.93, as
    JPEG 0.81; photos up to 0.34 (much sky), 0.27 as JPEG of quality 10, 0.17 out of focus; synthetic portraits 0.33."""
    fewest_colours: float = 24.0
    """Colours (16 levels per channel) that 95 % of the person's pixels have, below which flat pictures are drawings.
    Drawings measured 4 to 10, colour photos 38 to 300; grey photos have few too, but are not flat."""
    least_quality: float | None = None
    """Least mark of the user's quality network; None: whatever it says."""


# ---- measures ----

_SCALE = 256
"""Sharpness and flatness are measured at most at so many pixels."""
_DARK, _BRIGHT = 8, 247
_FLAT_LEVELS = 2


def measure_picture(
    image: UInt8[ndarray, "R R 3"], mask: UInt8[ndarray, "R R"], inside: Float[ndarray, "R R"], side: float
) -> dict[str, float]:
    """What can be told from the crop itself; the keys are among those that `judge` knows.

    Args:
        mask: 255 where the person is.
        inside: 1 where the crop shows the photo, 0 in the padding.
        side: of the crop, in pixels of the photo.
    """
    person = (mask >= 128) & (inside >= 0.5)
    grey = np.asarray(Image.fromarray(image).convert("L"))
    return {
        "side": float(side),
        "sharpness": _sharpness(grey, person, side),
        "dark": _share(grey < _DARK, person),
        "bright": _share(grey > _BRIGHT, person),
        "person": float(mask.mean() / 255.0),
        "outside": float(1.0 - inside.mean()),
        **_flatness(image, person, side),
    }


def _share(what: Bool[ndarray, "R R"], of: Bool[ndarray, "R R"]) -> float:
    """The share of the pixels `of` that are `what`; 0 when there are none."""
    return float(what[of].mean()) if of.any() else 0.0


def _at_scale(array: UInt8[ndarray, "..."], side: float, kernel: Image.Resampling) -> UInt8[ndarray, "..."]:
    """At as many pixels as the photo has, at most _SCALE."""
    pixels = max(8, int(min(side, _SCALE, len(array))))
    return np.asarray(Image.fromarray(array).resize((pixels, pixels), kernel))


def _region(person: Bool[ndarray, "R R"], side: float) -> Bool[ndarray, "S S"]:
    """The person at the scale of the measures; everything when nothing of it is left."""
    region = _at_scale(person.astype(np.uint8) * 255, side, Image.Resampling.BOX) >= 128
    return region if region.any() else np.ones_like(region)


def _sharpness(grey: UInt8[ndarray, "R R"], person: Bool[ndarray, "R R"], side: float) -> float:
    """Variance of the Laplacian over the person and its outline, which is all that bald heads have."""
    small = _at_scale(grey, side, Image.Resampling.LANCZOS).astype(np.float32)
    region = np.asarray(ndimage.binary_dilation(_region(person, side), iterations=2), bool)
    return float(ndimage.laplace(small, mode="nearest")[region].var())


def _flatness(image: UInt8[ndarray, "R R 3"], person: Bool[ndarray, "R R"], side: float) -> dict[str, float]:
    small = _at_scale(image, side, Image.Resampling.BOX)
    region = _region(person, side)
    highest, lowest = ndimage.maximum_filter(small, (3, 3, 1)), ndimage.minimum_filter(small, (3, 3, 1))
    even = (highest - lowest).max(axis=2) <= _FLAT_LEVELS
    exposed = (small.max(axis=2) >= _DARK) & (small.min(axis=2) <= _BRIGHT)
    coarse = (small[region] >> 4).astype(np.int64) @ np.array([256, 16, 1])
    counts = np.sort(np.bincount(coarse))[::-1].cumsum()
    return {
        "flat": _share(even & exposed, region),
        "colours": float(np.searchsorted(counts, 0.95 * len(coarse)) + 1),
    }


# ---- judgement ----


def judge(measures: dict[str, float], limits: PhotoLimits) -> tuple[str, str] | None:
    """The first gate that a picture fails, as (reason, sentence with number and limit); None when it passes all.

    Gates, in this order; those whose measure is missing are passed over, and those whose measure is NaN fail:
    `side` (pixels of the photo), `confidence`, `fit_error` (share of the side), `turn` (degrees), `head_outside`,
    `outside` (shares), `shoulders_outside` (how many), `overlap`, `person`, `uncovered`, `covered`, `dark`, `bright`
    (shares),
    `sharpness`, `flat` with `colours`, `quality`.
    """

    def least(key: str, limit: float) -> bool:
        return key in measures and not measures[key] >= limit

    def most(key: str, limit: float) -> bool:
        return key in measures and not measures[key] <= limit

    def percent(key: str, limit: float) -> tuple[str, str]:
        return f"{measures[key]:.1%}", f"{limit:.1%}"

    if least("side", limits.smallest_side):
        return (
            "too small",
            f"the crop is {measures['side']:.0f} pixels wide; at least {limits.smallest_side:.0f} must be.",
        )
    if least("confidence", limits.least_confidence):
        return "low confidence", (
            f"the confidence in the landmarks is {measures['confidence']:.2f}; at least {limits.least_confidence:.2f}"
            " is needed."
        )
    if most("fit_error", limits.largest_fit_error):
        found, limit = percent("fit_error", limits.largest_fit_error)
        return "bad fit", f"the fitted body is off by {found} of the crop's side; at most {limit} is allowed."
    if most("turn", limits.largest_turn):
        return "bad fit", (
            f"neck or head would be turned by {measures['turn']:.0f} degrees; at most {limits.largest_turn:.0f} can be."
        )
    if most("head_outside", limits.most_head_outside):
        found, limit = percent("head_outside", limits.most_head_outside)
        return "truncated", f"{found} of the head lies outside of the photo; at most {limit} may."
    if most("outside", limits.most_outside):
        found, limit = percent("outside", limits.most_outside)
        return "truncated", f"{found} of the crop lies outside of the photo; at most {limit} may."
    if most("shoulders_outside", limits.most_shoulders_outside):
        return "truncated", (
            f"{measures['shoulders_outside']:.0f} of the shoulders are outside of the photo; at most"
            f" {limits.most_shoulders_outside:.0f} may be."
        )
    if most("overlap", limits.most_overlap):
        found, limit = percent("overlap", limits.most_overlap)
        return "several heads", f"other heads cover {found} of the crop's middle; at most {limit} is allowed."
    if least("person", limits.least_person):
        found, limit = percent("person", limits.least_person)
        return "occluded", f"the person covers {found} of the crop; at least {limit} is needed."
    if most("uncovered", limits.most_uncovered):
        found, limit = percent("uncovered", limits.most_uncovered)
        return "occluded", f"the mask leaves out {found} of the body; at most {limit} may be."
    if most("covered", limits.most_covered):
        found, limit = percent("covered", limits.most_covered)
        return "occluded", f"things in front hide {found} of the person; at most {limit} may be hidden."
    for key, what, most_share in (("dark", "black", limits.most_dark), ("bright", "white", limits.most_bright)):
        if most(key, most_share):
            found, limit = percent(key, most_share)
            return "exposure", f"{found} of the person is {what}; at most {limit} may be."
    if least("sharpness", limits.smallest_sharpness):
        return "blurred", (
            f"the variance of the Laplacian is {measures['sharpness']:.1f}; at least {limits.smallest_sharpness:.1f}"
            " is needed."
        )
    if "colours" in measures and most("flat", limits.most_flat) and least("colours", limits.fewest_colours):
        found, limit = percent("flat", limits.most_flat)
        return "not a person", (
            f"it looks drawn: {found} is flat, in {measures['colours']:.0f} colours; above {limit}, at least"
            f" {limits.fewest_colours:.0f} colours are needed."
        )
    if limits.least_quality is not None and least("quality", limits.least_quality):
        return "low quality", f"the mark is {measures['quality']:.3g}; at least {limits.least_quality:.3g} is needed."
    return None


# ---- the same picture twice ----


def perceptual_hash(image: UInt8[ndarray, "H W 3"]) -> int:
    """64 bits that stay nearly the same when a picture is encoded again, resized or slightly brightened.

    Which of the 8×8 lowest frequencies (cosine transform of the grey picture at 64×64 pixels) are above their median.
    """
    grey = Image.fromarray(image).convert("L").resize((64, 64), Image.Resampling.BOX)
    waves = scipy.fft.dctn(np.asarray(grey, np.float64), norm="ortho")[:8, :8].ravel()  # pyright: ignore
    bits = waves > np.median(waves[1:])  # the first is the mean, far above all
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def find_duplicates(hashes: Sequence[int], bits: int) -> list[int | None]:
    """For each of the 64-bit `hashes`, the first earlier one that is kept and differs in at most `bits` bits, or None.

    Those with None are the ones that are kept. Two numbers that differ in n bits agree wholly in one of n + 1 groups of
    bits: only numbers that do are compared, so that the time grows about as the count.
    """
    if bits < 0:
        raise ValueError(f"bits must be at least 0, not {bits}")
    if bits >= 64:
        return [0 if index else None for index in range(len(hashes))]
    groups = bits + 1
    masks = [sum(1 << bit for bit in range(start, 64, groups)) for start in range(groups)]
    kept: list[dict[int, list[int]]] = [{} for _ in masks]
    repeats: list[int | None] = []
    for index, value in enumerate(map(int, hashes)):
        places = [known.setdefault(value & mask, []) for known, mask in zip(kept, masks, strict=True)]
        near = [i for i in itertools.chain(*places) if (int(hashes[i]) ^ value).bit_count() <= bits]
        repeats.append(min(near, default=None))
        if not near:
            for place in places:
                place.append(index)
    return repeats


# ---- a quality network of the user ----


@runtime_checkable
class QualityModel(Protocol):
    """Gives a picture a mark; higher is better."""

    def __call__(self, image: UInt8[ndarray, "R R 3"]) -> float: ...


@dataclass(frozen=True)
class EncoderQuality:
    """Linear layers with ReLU between them, on the features of the portrait encoder."""

    encoder: PortraitEncoder
    weights: tuple[Tensor, ...]
    """Of each layer, (out, in)."""
    biases: tuple[Tensor, ...]

    @torch.inference_mode()
    def __call__(self, image: UInt8[ndarray, "R R 3"]) -> float:
        picture = from_bytes(torch.from_numpy(image.copy()).permute(2, 0, 1)[None])
        x = self.encoder.encode(picture).features
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = F.linear(F.relu(x) if index else x, weight, bias)
        return float(x)


def save_quality_model(path: Path, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
    """Write a quality network for `load_quality_model`: of each layer the weights (out, in) and the biases (out)."""
    tensors = {f"weight{i}": weight for i, weight in enumerate(weights)}
    tensors |= {f"bias{i}": bias for i, bias in enumerate(biases)}
    write_tensors(path, tensors, {"format": FORMAT, "kind": "quality", "version": portrait360.__version__})


def load_quality_model(path: Path, encoder: Path | None = None) -> EncoderQuality:
    """A quality network from a safetensors file, which cannot execute code.

    The file holds `weight0` (out, in), `bias0` (out), `weight1`, ...: layers with ReLU between them on the features of
    the portrait encoder, `Encoded.features`, of which the last gives one number. Its metadata are `format`: portrait360
    and `kind`: quality (`save_quality_model` writes it so).

    Args:
        encoder: the file of the portrait encoder; default: the packaged one.

    Raises:
        CheckpointError: missing, damaged, or not such layers.
    """
    tensors, metadata = read_tensors(path)
    if metadata.get("kind") != "quality":
        raise CheckpointError(f"{path} is not a quality network.", "Write it with save_quality_model.")
    network, _ = load_encoder(encoder)
    count = len(tensors) // 2
    names = {f"{part}{index}" for part in ("weight", "bias") for index in range(count)}
    if count == 0 or set(tensors) != names:
        raise CheckpointError(
            f"{path} must hold weight0, bias0, weight1, ... and nothing else, not {', '.join(sorted(tensors)[:8])}.",
            "Write it with save_quality_model.",
        )
    inputs = network.config.features
    for index in range(count):
        weight, bias = tensors[f"weight{index}"], tensors[f"bias{index}"]
        outputs = 1 if index == count - 1 else len(bias) if bias.dim() else 0
        if weight.shape != (outputs, inputs) or bias.shape != (outputs,) or not outputs:
            raise CheckpointError(
                f"{path}: weight{index} is {list(weight.shape)} and bias{index} {list(bias.shape)}; expected"
                f" [{outputs or 'N'}, {inputs}] and [{outputs or 'N'}].",
                f"The first layer takes {network.config.features} features; the last gives one number.",
            )
        for name, value in ((f"weight{index}", weight), (f"bias{index}", bias)):
            if not value.is_floating_point() or not torch.isfinite(value).all():
                raise CheckpointError(f"{path}: {name} is not of finite floating point numbers.", "Train it again.")
        inputs = outputs
    weights = tuple(tensors[f"weight{index}"].float() for index in range(count))
    return EncoderQuality(network, weights, tuple(tensors[f"bias{index}"].float() for index in range(count)))
