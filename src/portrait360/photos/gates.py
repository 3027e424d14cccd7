"""Which pictures of persons are good enough to learn from: what is measured, where the limits are, and the reasons."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray
from PIL import Image
from scipy import ndimage

from portrait360.runtime.files import explain_os_error
from portrait360.types import InputError

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


# ---- limits from a JSON file: any of the fields, the others keep their defaults ----

HIGHEST: dict[str, float] = {
    "smallest_side": math.inf,
    "smallest_sharpness": math.inf,
    "duplicate_bits": 64,
    "most_head_outside": 1.0,
    "most_outside": 1.0,
    "most_shoulders_outside": 2.0,
    "most_overlap": 1.0,
    "least_confidence": 1.0,
    "largest_fit_error": 1.0,
    "largest_turn": 180.0,
    "most_dark": 1.0,
    "most_bright": 1.0,
    "least_person": 1.0,
    "most_uncovered": 1.0,
    "most_covered": 1.0,
    "most_flat": 1.0,
    "fewest_colours": 4096.0,
    "least_quality": math.inf,
}
"""What makes sense at most, for each field; the least is 0, but for marks, which may be any number."""
_MARK = "least_quality"
_MOST_BYTES = 2**20


def read_limits(path: Path) -> PhotoLimits:
    """The limits of a JSON file: an object with names of `PhotoLimits` and numbers.

    Raises:
        InputError: the file is missing or no JSON object, or a name or a value makes no sense.
    """
    path = Path(path)
    return PhotoLimits(**{name: _value(name, value, path) for name, value in _object(path).items()})


def _object(path: Path) -> dict[str, Any]:
    hint = 'Write an object, for instance {"smallest_side": 200, "most_overlap": 0.1}.'
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES + 1)
    except OSError as error:
        missing = InputError(f"there is no file of limits at {path}.", "Check the path.")
        raise explain_os_error(error, path) or missing from error
    if len(text) > _MOST_BYTES:
        raise InputError(f"{path} is too large for a file of limits.", hint)
    try:
        content = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {str(error)[:200]}.", hint) from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds {_short(content)}, not an object of limits.", hint)
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice[:80]} is in it twice")
    return dict(pairs)


def _value(name: str, value: Any, path: Path) -> Any:
    """A limit's value of the type that its field has."""
    kinds = {field.name: str(field.type) for field in dataclasses.fields(PhotoLimits)}
    if name not in kinds:
        near = difflib.get_close_matches(name.lower().replace("-", "_"), kinds, 1)
        hint = f"Perhaps you meant {near[0]}." if near else f"There are {', '.join(kinds)}."
        raise InputError(f"{path}: there is no limit {name[:80]!r}.", hint)
    if value is None and "None" in kinds[name]:
        return None
    where, hint = f"{path}: {name}", "docs/photos.md says what the limits are."
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"{where} must be a number, not {_short(value)}.", hint)
    if kinds[name] == "int" and not isinstance(value, int):
        raise InputError(f"{where} must be a whole number, not {_short(value)}.", hint)
    if not abs(value) < 1e300:
        raise InputError(f"{where} must be a finite number, not {_short(value)}.", hint)
    highest = HIGHEST[name]
    if name != _MARK and not 0 <= value <= highest:
        span = "at least 0" if math.isinf(highest) else f"from 0 to {highest:g}"
        raise InputError(f"{where} must be {span}, not {_short(value)}.", hint)
    return value if kinds[name] == "int" else float(value)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:40]}..."
