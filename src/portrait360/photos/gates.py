"""Which persons are good enough to learn from: one table of gates, and what a user may change of it.

Each field of `PhotoLimits` is a gate (`Gate`): what is measured, in which direction the limit counts, the reason for
which a person is rejected and its sentence, and the values that the limit may have. Everything else, here
and in the report, is derived from these.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from portrait360.runtime.files import explain_os_error
from portrait360.types import InputError

REASONS: dict[str, str] = {
    "not an image": "The file is no image in a format that can be read.",
    "unreadable": "The file is broken, cut off, may not be opened, or needs a plugin.",
    "too large": "The image has more pixels than can be read safely.",
    "no person": "Nobody was found in the photo.",
    "not upright": "The photo may lie on its side or stand on its head.",
    "too small": "The person covers too few pixels of the photo.",
    "blurred": "The person is out of focus or moved.",
    "duplicate": "The same image was accepted already.",
    "truncated": "The photo ends within the head or the shoulders.",
    "little margin": "Head and shoulders are whole, but the photo ends too close to them.",
    "occluded": "Something hides too much of the person, or the mask misses it.",
    "several heads": "Other heads reach into the crop of this person.",
    "several people": "Somebody else is in the mask, or it is unclear who is meant.",
    "low confidence": "It is too unsure where the parts of the body are.",
    "bad fit": "No camera and body pose explain what was found.",
    "exposure": "Too much of the person is black or white.",
    "not a person": "It is a drawing, an animal or a thing.",
    "low quality": "The quality network gave too low a mark.",
}
"""The report's sentence about each reason."""


@dataclass(frozen=True)
class Gate:
    """How a limit decides. A person whose measure is missing passes; one whose measure is NaN fails."""

    reason: str
    """One of REASONS."""
    measure: str = ""
    """Its name in the report; empty for what depends on the whole folder (`dedup`)."""
    direction: Literal["least", "most"] = "most"
    """Whether the limit is the least or the greatest value of the measure that passes."""
    sentence: str = ""
    """With {value} and {limit}; empty where the gate decides only together with another, or not here."""
    highest: float = 1.0
    """The greatest value that the limit may have; the least is 0."""
    any_sign: bool = False
    """Whether the limit may be any number."""
    only_with: str = ""
    """Another limit that must fail too; its {other_value} and {other_limit} are in the sentence."""

    def fails(self, measures: Mapping[str, float], limit: float | None) -> bool:
        """Whether the measure is beyond the limit; None is no limit."""
        if limit is None or self.measure not in measures:
            return False
        value = measures[self.measure]
        return not (value >= limit if self.direction == "least" else value <= limit)


def _limit(default: Any, **gate: Any) -> Any:
    """A field of `PhotoLimits`."""
    return dataclasses.field(default=default, metadata={"gate": Gate(**gate)})


@dataclass(frozen=True)
class PhotoLimits:
    """The limits of the gates, which are tried in this order. "Share" is from 0 to 1."""

    smallest_side: float = _limit(
        128.0,
        measure="side",
        direction="least",
        reason="too small",
        sentence="the crop is {value:.0f} pixels wide; at least {limit:.0f} must be.",
        highest=math.inf,
    )
    """Least side of the square crop, in pixels of the photo."""
    least_confidence: float = _limit(
        0.5,
        measure="confidence",
        direction="least",
        reason="low confidence",
        sentence="the confidence in the landmarks is {value:.2f}; at least {limit:.2f} is needed.",
    )
    """Least confidence in the landmarks, 0 to 1."""
    largest_fit_error: float = _limit(
        0.04,
        measure="fit_error",
        reason="bad fit",
        sentence="the fitted body is off by {value:.1%} of the crop's side; at most {limit:.1%} is allowed.",
    )
    """Largest distance between landmarks and the body fitted to them, as a share of the crop's side."""
    largest_turn: float = _limit(
        60.0,
        measure="turn",
        reason="bad fit",
        sentence="neck or head would be turned by {value:.0f} degrees; at most {limit:.0f} can be.",
        highest=180.0,
    )
    """Largest angle of the fitted neck or head, degrees: more than a neck can do."""
    most_head_outside: float = _limit(
        0.1,
        measure="head_outside",
        reason="truncated",
        sentence="{value:.1%} of the head lies outside of the photo; at most {limit:.1%} may.",
    )
    """Largest share of the head's box that lies outside of the photo."""
    most_shoulders_outside: float = _limit(
        0.0,
        measure="shoulders_outside",
        reason="truncated",
        sentence="{value:.0f} of the shoulders are outside of the photo; at most {limit:.0f} may be.",
        highest=2.0,
    )
    """Largest number of shoulders (their joints) that lie outside of the photo."""
    most_outside: float = _limit(
        0.4,
        measure="outside",
        reason="little margin",
        sentence="{value:.1%} of the crop lies outside of the photo; at most {limit:.1%} may.",
    )
    """Largest share of the crop that lies outside of the photo."""
    least_upright: float = _limit(
        0.2,
        measure="upright",
        direction="least",
        reason="not upright",
        sentence="the probability that it is upright is {value:.2f}; at least {limit:.2f} is needed.",
    )
    """Least probability that the photo is the right way up; where another turn is clear, it is turned first."""
    most_overlap: float = _limit(
        0.05,
        measure="overlap",
        reason="several heads",
        sentence="other heads cover {value:.1%} of the crop's middle; at most {limit:.1%} is allowed.",
    )
    """Largest share of the crop's middle that other heads cover."""
    most_beyond: float = _limit(
        0.03,
        measure="beyond",
        reason="several people",
        sentence="{value:.1%} of the mask lies away from the fitted body; at most {limit:.1%} may.",
    )
    """Largest share of the person's mask that lies far from the fitted body (`matte.FAR`): somebody else's."""
    least_person: float = _limit(
        0.08,
        measure="person",
        direction="least",
        reason="occluded",
        sentence="the person covers {value:.1%} of the crop; at least {limit:.1%} is needed.",
    )
    """Least share of the crop that the person's mask covers."""
    most_uncovered: float = _limit(
        0.1,
        measure="uncovered",
        reason="occluded",
        sentence="the mask leaves out {value:.1%} of the body; at most {limit:.1%} may be.",
    )
    """Largest share of the fitted body that the person's mask leaves out. Good masks of synthetic persons leave out up
    to 0.05; those that leave out more than 0.1 overlap with the true ones by 0.92 at most."""
    most_covered: float = _limit(
        1.0,
        measure="covered",
        reason="occluded",
        sentence="things in front hide {value:.1%} of the person; at most {limit:.1%} may be hidden.",
    )
    """Largest share of the person that things in front hide, as the portrait encoder predicts it; 1 rejects nobody.
    Of synthetic persons 0.08 rejects those with much hidden, of real ones everybody in a suit, which the encoder was
    not trained on (docs/lab/2026-11-27-photos.md)."""
    most_dark: float = _limit(
        0.6,
        measure="dark",
        reason="exposure",
        sentence="{value:.1%} of the person is black; at most {limit:.1%} may be.",
    )
    """Largest share of the person's pixels with grey levels below 8."""
    most_bright: float = _limit(
        0.35,
        measure="bright",
        reason="exposure",
        sentence="{value:.1%} of the person is white; at most {limit:.1%} may be.",
    )
    """Largest share of the person's pixels with grey levels above 247."""
    smallest_sharpness: float = _limit(
        20.0,
        measure="sharpness",
        direction="least",
        reason="blurred",
        sentence="the variance of the Laplacian is {value:.1f}; at least {limit:.1f} is needed.",
        highest=math.inf,
    )
    """Least variance of the Laplacian of the person's grey levels (0 to 255), outline included, with the crop shrunk to
    256 pixels; crops with fewer pixels in the photo are measured at those, so that enlarging sharpens nothing. Sharp
    photos of persons measured 610 to 1910, synthetic portraits 250 to 4110. Blurred by 1 pixel of those 256 (standard
    deviation) the photos kept 52 to 133, by 1.5 pixels 19 to 41, by 2 pixels 10 to 18. Noise counts as sharpness: that
    of 4 levels alone is worth some 25."""
    most_flat: float = _limit(
        0.5,
        measure="flat",
        reason="not a person",
        sentence="it looks drawn: {value:.1%} is flat, in {other_value:.0f} colours; above {limit:.1%}, at least"
        " {other_limit:.0f} colours are needed.",
        only_with="fewest_colours",
    )
    """Largest share of the person's pixels, neither black nor white, around which (3×3 pixels, at 256 pixels or fewer)
    no channel varies by more than 2 levels; only images of few colours are rejected by it. A drawing measured 0.93, as
    JPEG 0.81; photos up to 0.34 (much sky), 0.27 as JPEG of quality 10, 0.17 out of focus; synthetic portraits 0.33."""
    fewest_colours: float = _limit(
        24.0,
        measure="colours",
        direction="least",
        reason="not a person",
        highest=4096.0,
    )
    """Colours (16 levels per channel) that 95 % of the person's pixels have, below which flat images are drawings.
    Drawings measured 4 to 10, colour photos 38 to 300; grey photos have few too, but are not flat."""
    least_quality: float | None = _limit(
        None,
        measure="quality",
        direction="least",
        reason="low quality",
        sentence="the mark is {value:.3g}; at least {limit:.3g} is needed.",
        highest=math.inf,
        any_sign=True,
    )
    """Least mark of the user's quality network; None: any."""
    duplicate_bits: int = _limit(3, reason="duplicate", highest=64.0)
    """Crops whose 64-bit hashes differ in at most so many bits are the same."""


GATES: dict[str, Gate] = {field.name: field.metadata["gate"] for field in dataclasses.fields(PhotoLimits)}
"""The gate of each limit, in the order in which they are tried."""


def rejection(measures: Mapping[str, float], limits: PhotoLimits) -> tuple[str, str] | None:
    """The first gate that a person fails, as (reason, sentence with number and limit); None when all are passed."""
    for name, gate in GATES.items():
        limit = getattr(limits, name)
        if not gate.sentence or not gate.fails(measures, limit):
            continue
        words = {"value": measures[gate.measure], "limit": limit}
        if gate.only_with:
            other, other_limit = GATES[gate.only_with], getattr(limits, gate.only_with)
            if not other.fails(measures, other_limit):
                continue
            words |= {"other_value": measures[other.measure], "other_limit": other_limit}
        return gate.reason, gate.sentence.format(**words)
    return None


# ---- limits from a JSON file: any of the fields, the others keep their defaults ----

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
    """A limit's value, of the type that its field has."""
    if name not in GATES:
        near = difflib.get_close_matches(name.lower().replace("-", "_"), GATES, 1)
        hint = f"Perhaps you meant {near[0]}." if near else f"There are {', '.join(GATES)}."
        raise InputError(f"{path}: there is no limit {name[:80]!r}.", hint)
    default, gate = getattr(PhotoLimits(), name), GATES[name]
    if value is None and default is None:
        return None

    # Numbers only, of the right kind.
    where, hint = f"{path}: {name}", "docs/photos.md says what the limits are."
    is_whole = isinstance(default, int)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"{where} must be a number, not {_short(value)}.", hint)
    if is_whole and not isinstance(value, int):
        raise InputError(f"{where} must be a whole number, not {_short(value)}.", hint)

    # Within the range.
    if not abs(value) < 1e300:
        raise InputError(f"{where} must be a finite number, not {_short(value)}.", hint)
    if not gate.any_sign and not 0 <= value <= gate.highest:
        span = "at least 0" if math.isinf(gate.highest) else f"from 0 to {gate.highest:g}"
        raise InputError(f"{where} must be {span}, not {_short(value)}.", hint)
    return value if is_whole else float(value)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:40]}..."
