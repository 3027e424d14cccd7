"""Faces of synthetic people: shapes that differ from person to person, and the expressions of a photograph."""

from __future__ import annotations

import numpy as np

from portrait360.synthetic.body import AnnyBody

PARTS = ("cheek", "chin", "ear", "eye", "eyebrows", "forehead", "head", "mouth", "neck", "nose")
"""Which of the body's local changes make a face."""
SPREAD = 0.38
"""Standard deviation of a local change; none goes beyond `LARGEST`."""
LARGEST = 0.85
_SPREADS = {
    "chin-cleft": 0.2,
    "ear-": 0.25,
    "eye-bag": 0.22,
    "eye-push": 0.24,
    "eyebrows-angle": 0.2,
    "head-": 0.2,
    "head-angle": 0.28,
    "head-fat": 0.34,
    "head-scale-horiz": 0.3,
    "head-scale-vert": 0.3,
    "mouth-angles": 0.2,
    "mouth-trans-forward": 0.2,
    "neck-": 0.15,
    "neck-double": 0.12,
    "nose-": 0.42,
    "nose-trans-forward": 0.2,
}
"""Deviations that differ from `SPREAD`, by the beginning of a change's name; the longest that fits counts."""
_MEANS = {"mouth-angles-up": 0.45, "eyebrows-angle-up": 0.38, "eyebrows-trans-up": 0.15}
"""The template's mouth corners hang and its brows are drawn together; people at ease look friendlier."""


def sample_shape(rng: np.random.Generator, body: AnnyBody) -> dict[str, float]:
    """Local changes of face, head, ears and neck, nearly equal on both sides; names of `body.local_labels`."""
    local: dict[str, float] = {}
    for label in body.local_labels:
        plain = label[2:] if label[:2] in ("l-", "r-") else label
        if plain.split("-")[0] not in PARTS or label.startswith("r-") or "age" in label:
            continue
        if plain == label and "trans-out" in label:  # would move a part of the face sideways
            continue
        spread = _spread(plain)
        value = float(np.clip(rng.normal(_MEANS.get(plain, 0.0), spread), -LARGEST, LARGEST))
        local[label] = value
        if label.startswith("l-"):
            local["r-" + plain] = value + float(rng.normal(0, 0.2 * spread))
    return local


def _spread(plain: str) -> float:
    fitting = [start for start in _SPREADS if plain.startswith(start)]
    return _SPREADS[max(fitting, key=len)] if fitting else SPREAD


def sample_expression(rng: np.random.Generator) -> dict[str, float]:
    """Facial actions in [0, 1]: mostly at ease or smiling, mouths mostly closed; some laugh, frown or look surprised.

    Names are those of `AnnyBody.facial_labels`.
    """
    face: dict[str, float] = {}

    def both(name: str, value: float) -> None:
        for side in ("Left", "Right"):
            face[name + side] = max(value * float(rng.uniform(0.88, 1.12)), 0.0)

    # Brows at ease.
    kind, strength = rng.random(), float(rng.uniform(0, 1))
    both("browOuterUp", float(rng.uniform(0.0, 0.12)))
    face["browInnerUp"] = float(rng.uniform(0.1, 0.4))

    # Mouth, cheeks and brows by the kind of expression.
    if kind < 0.40:  # at ease
        both("mouthSmile", 0.08 + 0.17 * strength)
    elif kind < 0.72:  # a smile, lips closed
        both("mouthSmile", 0.25 + 0.35 * strength)
        both("cheekSquint", 0.15 + 0.35 * strength)
        both("mouthDimple", 0.3 * float(rng.random()))
    elif kind < 0.84:  # laughter, teeth show
        both("mouthSmile", 0.5 + 0.35 * strength)
        both("cheekSquint", 0.4 + 0.3 * strength)
        both("eyeSquint", 0.1 + 0.25 * strength)
        both("mouthUpperUp", 0.15 + 0.25 * strength)
        face["jawOpen"] = 0.06 + 0.2 * float(rng.random())
    elif kind < 0.90:  # lips apart, as in speech
        both("mouthSmile", 0.2 * strength)
        face["jawOpen"] = 0.05 + 0.15 * float(rng.random())
    elif kind < 0.94:  # serious
        both("mouthFrown", 0.3 * strength)
        both("browDown", 0.2 + 0.35 * strength)
        face["browInnerUp"] = 0.0
    elif kind < 0.97:  # raised brows
        both("browOuterUp", 0.4 + 0.4 * strength)
        face["browInnerUp"] = 0.4 + 0.4 * strength
        both("eyeWide", 0.2 + 0.3 * strength)
    else:
        face["mouthPucker"] = 0.2 + 0.4 * strength

    # Lids and gaze.
    both("eyeBlink", 1.0 if rng.random() < 0.02 else float(rng.uniform(0.0, 0.18)))
    aside, up = rng.normal(0, 0.16, 2)
    towards = ("OutLeft", "InRight") if aside > 0 else ("InLeft", "OutRight")
    face.update({f"eyeLook{side}": abs(float(aside)) for side in towards})
    both("eyeLookUp" if up > 0 else "eyeLookDown", abs(float(up)))
    return {name: float(min(value, 1.0)) for name, value in face.items()}
