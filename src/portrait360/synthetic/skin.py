"""Skin and eyes of synthetic people: complexion, the reds of cheeks, nose, ears and lips, gloss, iris colours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from portrait360.synthetic.body import EYE_VERTICES, SKIN_VERTICES

_COMPLEXIONS = np.array(
    [[236, 200, 180], [226, 181, 155], [209, 158, 126], [182, 128, 95], [141, 94, 68], [101, 65, 48], [70, 45, 35]]
)
"""Mean colours of skin, sRGB bytes, from the lightest to the darkest: place 0 to 6."""
_PLACES = {"caucasian": 0.9, "asian": 1.7, "african": 4.9}
"""Mean places in `_COMPLEXIONS` of people of one ancestry; mixed ones lie between."""
_PLACE_SPREAD = 0.7
_IRISES = (
    ((0.030, 0.014, 0.008), 5.0),
    ((0.070, 0.032, 0.015), 4.0),
    ((0.130, 0.070, 0.028), 1.6),
    ((0.105, 0.095, 0.045), 1.0),
    ((0.100, 0.130, 0.110), 0.8),
    ((0.090, 0.140, 0.210), 1.6),
    ((0.150, 0.190, 0.220), 0.8),
)
"""Linear colours of irises, brown to grey, and how common they are among light complexions."""


SPOTS = 14
"""Broad spots of the face that are darker or lighter on some people than on others."""


@dataclass(frozen=True)
class Complexion:
    """Linear colours of a face.

    `skin` (3,) is its mean. Factors (3,) on it: `blush` (cheeks, nose, ears, chin), `lips`, `lids`, `circles` (below
    the eyes). `mottle` (SPOTS, 3) are logarithms of the factors of its spots. `gloss` scales reflections of skin;
    `iris` and `sclera` (3,) are the eyes'.
    """

    skin: np.ndarray
    blush: np.ndarray
    lips: np.ndarray
    lids: np.ndarray
    circles: np.ndarray
    mottle: np.ndarray
    gloss: float
    iris: np.ndarray
    sclera: np.ndarray

    @property
    def luminance(self) -> float:
        """Of the skin, linear."""
        return float(self.skin @ np.array([0.21, 0.72, 0.07]))


def sample_complexion(rng: np.random.Generator, male: bool, age: str, ancestry: dict[str, float]) -> Complexion:
    """Colours that go together; `age` is a word of `names`, `ancestry` holds shares of its ancestries."""
    place = sum(share * _PLACES[name] for name, share in ancestry.items()) + rng.normal(0, _PLACE_SPREAD)
    place = float(np.clip(place, 0.0, len(_COMPLEXIONS) - 1.0))
    at = int(min(place, len(_COMPLEXIONS) - 1.001))
    between = _COMPLEXIONS[at] + (place - at) * (_COMPLEXIONS[at + 1] - _COMPLEXIONS[at])
    skin = (between / 255.0) ** 2.2 * np.exp(rng.normal(0, [0.08, 0.06, 0.09]))
    darkness = place / (len(_COMPLEXIONS) - 1)

    # red shows on light skin, dark skin blushes darker and warmer
    flush = rng.uniform(0.25, 1.0) * (1.0 - 0.6 * darkness)
    blush = 1.0 - flush * np.array([0.05, 0.30, 0.24])
    made_up = not male and age != "child" and rng.random() < 0.4
    depth = rng.uniform(0.5, 1.0) * (1.25 if made_up else 0.8)
    pigment = np.array([0.10, 0.46, 0.36]) if darkness < 0.55 else np.array([0.18, 0.36, 0.26])
    if made_up:
        pigment = pigment * np.exp(rng.normal(0, [0.5, 0.12, 0.25]))
    lips = 1.0 - np.clip(depth * pigment, 0.0, 0.75)

    # shadows about the eyes grow with age; made-up lids have any colour
    shadow = rng.uniform(0.0, 0.8 if age in ("middleage", "old") else 0.45)
    circles = 1.0 - shadow * np.array([0.20, 0.26, 0.22])
    lids = 0.4 + 0.6 * circles
    if made_up:
        lids = lids * rng.uniform(0.45, 0.9) * np.exp(rng.normal(0, 0.12, 3))

    # dark eyes are the rule but among light complexions
    weights = np.array([w for _, w in _IRISES])
    weights[2:] *= max(ancestry["caucasian"], 0.01) ** 2
    iris = np.array(_IRISES[int(rng.choice(len(weights), p=weights / weights.sum()))][0])
    white = rng.uniform(0.5, 0.68) * np.array([1.0, rng.uniform(0.93, 0.98), rng.uniform(0.88, 0.96)])
    return Complexion(
        skin=np.clip(skin, 0.01, 0.9),
        blush=blush,
        lips=lips,
        lids=np.clip(lids, 0.2, 1.1),
        circles=circles,
        mottle=rng.normal(0, 0.12, (SPOTS, 1)) + rng.normal(0, 0.03, (SPOTS, 3)),
        gloss=float(np.exp(rng.normal(-0.15, 0.4))),
        iris=iris * np.exp(rng.normal(0, 0.15)),
        sclera=white,
    )


class SkinRegions:
    """Where a face is redder, or darker, than the rest: shares in [0, 1] of each skin vertex (13380,).

    `body` (19158,3) is the neutral rest body, metres; vertices keep their places on every face. `painted` (13380,3) are
    the linear colours of a painted skin there: its lips are where it is reddest around the mouth.
    """

    def __init__(self, body: np.ndarray, painted: np.ndarray) -> None:
        eyes = body[EYE_VERTICES].mean(0)
        skin = body[:SKIN_VERTICES] - eyes
        x, y, z = np.abs(skin[:, 0]), skin[:, 1], skin[:, 2]

        def spot(cx: float, cy: float, rx: float, ry: float) -> np.ndarray:
            return np.exp(-(((x - cx) / rx) ** 2) - ((y - cy) / ry) ** 2)

        front = np.clip((z + 0.045) / 0.02, 0, 1)
        nose = np.exp(-((x / 0.016) ** 2) - ((y + 0.043) / 0.014) ** 2) * np.clip((z - 0.012) / 0.01, 0, 1)
        cheeks = spot(0.043, -0.043, 0.021, 0.018) * front
        chin = spot(0.0, -0.112, 0.02, 0.012) * front
        ears = np.clip((x - 0.068) / 0.006, 0, 1) * np.clip(1 - np.abs(y + 0.02) / 0.05, 0, 1) * (z < -0.05)
        self.blush = np.clip(cheeks + 0.85 * nose + 0.7 * ears + 0.3 * chin, 0, 1).astype(np.float32)
        mouth = np.clip((1.6 - (x / 0.031) ** 2 - ((y + 0.0755) / 0.0125) ** 2) / 0.3, 0, 1) * front
        redness = painted[:, 0] / np.maximum(painted[:, 1], 1e-3)
        pale, red = np.quantile(redness[mouth > 0.5], [0.1, 0.9])
        self.lips = (mouth * np.clip((redness - pale) / max(red - pale, 1e-3), 0, 1)).astype(np.float32)
        self.circles = (spot(0.031, -0.017, 0.014, 0.006) * front).astype(np.float32)
        self.lids = (spot(0.031, 0.008, 0.016, 0.006) * front).astype(np.float32)

        # spots: the same places on both sides of the face, by the golden angle over an ellipse
        i = np.arange(SPOTS) + 0.5
        radius, turn = np.sqrt(i / SPOTS), i * 2.4
        sx, sy = 0.07 * radius * np.abs(np.sin(turn)), -0.035 + 0.085 * radius * np.cos(turn)
        self.spots = (
            np.exp(-(((x[:, None] - sx) / 0.016) ** 2) - ((y[:, None] - sy) / 0.016) ** 2) * front[:, None]
        ).astype(np.float32)

    def tone(self, complexion: Complexion) -> np.ndarray:
        """Factors on the skin's colour (13380, 3) float32."""
        out = 1.0 + self.blush[:, None] * (complexion.blush - 1.0)
        out = out * (1.0 + self.lips[:, None] * (complexion.lips - 1.0))
        out = out * np.exp(self.spots @ complexion.mottle)
        out = out * (1.0 + self.circles[:, None] * (complexion.circles - 1.0))
        return (out * (1.0 + self.lids[:, None] * (complexion.lids - 1.0))).astype(np.float32)
