"""A synthetic subject: body, expression, pose, hair, clothes, colours and light, sampled from one seed.

Everything here is a plain description; `scene` turns it into meshes.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from portrait360.kernels.raster import MATERIAL_FIELDS
from portrait360.synthetic import names
from portrait360.synthetic.body import AnnyBody
from portrait360.synthetic.face import sample_expression, sample_shape
from portrait360.synthetic.library import PartsLibrary, SkinTexture
from portrait360.synthetic.light import Lighting, sample_lighting
from portrait360.synthetic.skin import Complexion, sample_complexion
from portrait360.types import InputError

OVERRIDES = ("yaw", "pitch", "neck", "head", "hair", "clothes", "gender", "age")
"""What `overrides` may fix: yaw and pitch (radians), neck and head (3 radians each), hair (name or None),
clothes (name), gender ("male" or "female"), age ("child", "young", "middleage", "old")."""

_HAIR_COLOURS = (
    ((0.013, 0.011, 0.010), 4.0),
    ((0.030, 0.020, 0.014), 4.0),
    ((0.065, 0.036, 0.020), 3.5),
    ((0.120, 0.068, 0.034), 2.5),
    ((0.250, 0.160, 0.080), 1.8),
    ((0.400, 0.290, 0.160), 1.2),
    ((0.160, 0.050, 0.020), 0.9),
    ((0.200, 0.190, 0.180), 0.10),
    ((0.480, 0.460, 0.430), 0.05),
)
"""Linear colours from black to blond, red, grey and white, and how common they are among light complexions."""
_GREYS = slice(7, 9)
_DYED = 0.05
"""How common light and red hair is among people of dark hair, relative to light complexions."""
_HAIR_LIKING = {
    ("bob02", True): 0.35,
    ("afro01", True): 0.7,
    ("bob01", False): 0.8,
    ("bob02", False): 0.8,
    ("short03", False): 0.8,
    ("afro01", False): 0.6,
    ("long01", False): 1.3,
    ("ponytail01", False): 1.3,
}
"""How often a cut is worn, by (name, male); 1 unless listed."""
_HIDDEN_EYES = 0.1
"""Share of subjects who wear their hair as the part was cut, which hangs over an eye in three of ten."""
BEARDS = ("full", "goatee", "moustache")
_VIEW_STREAM = 0x76696577
"""Fourth word of the random seed of further views: keeps them apart from what is sampled from [seed, index]."""
_NECK_SPREAD, _HEAD_SPREAD = (8.0, 10.0, 6.0), (8.0, 12.0, 6.0)
"""Standard deviations of nod, turn and tilt, degrees; none goes beyond two of them."""
_SHARED_TURNS = (0.5, 0.8, 0.7)
"""How neck and head go together in nod, turn and tilt, as correlations: who looks aside turns both. Least in nods,
because chins are also pushed forward and drawn in."""


@dataclass
class HairStyle:
    """Hair of a subject. `name` None is bald; `stubble` tints the bald scalp. Lengths in metres at rest.

    `fringe` is how far hair in front of the eyes is swept aside: 0 as cut, 1 clear of the eye. `beard` is one of
    BEARDS, painted with `beard_cover` (0 none, up to 0.4 stubble, up to 0.9 full).
    """

    name: str | None
    mirrored: bool
    colour: np.ndarray
    beard_colour: np.ndarray
    stubble: float
    length: float
    volume: float
    curl: float
    curl_waves: float
    curl_phase: float
    fringe: float
    beard: str
    beard_cover: float


@dataclass
class Garment:
    """Clothes and the shader fields of their material (see `kernels.raster.MATERIAL_FIELDS`)."""

    name: str
    fields: np.ndarray


@dataclass
class Subject:
    """One person in one pose under one light, with the camera angles of its image (radians)."""

    male: bool
    age: str
    race_mix: dict[str, float]
    phenotype: dict[str, float]
    local: dict[str, float]
    facial: dict[str, float]
    skin: SkinTexture
    complexion: Complexion
    hair: HairStyle
    brow: str
    brow_colour: np.ndarray
    lash: str
    garment: Garment
    neck: np.ndarray
    head: np.ndarray
    arms: np.ndarray
    yaw: float
    pitch: float
    lighting: Lighting
    exposure: float
    noise: float
    background_seed: int
    noise_seed: int
    info: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Person:
    """Who a subject is. `race_mix`: shares of the ancestries of `names.SKIN_RACES`."""

    male: bool
    age: str
    race_mix: dict[str, float]

    @property
    def race(self) -> str:
        """The largest share."""
        return max(self.race_mix, key=lambda name: self.race_mix[name])


def sample_subject(
    seed: int, index: int, body: AnnyBody, parts: PartsLibrary, overrides: Mapping[str, Any] | None = None
) -> Subject:
    """Sample subject `index` of `seed`. Overrides (see OVERRIDES) change nothing but what they name.

    Raises InputError for an unknown override.
    """
    # Independent streams, so that fixing one property leaves the others of the subject alone.
    fixed = _checked(overrides)
    who, shape, face, pose, wear, colours, light, view, comb = np.random.default_rng([seed, index]).spawn(9)

    # The person: body, hair, clothes and colours.
    person = _sample_person(who, fixed)
    male, age, race_mix = person.male, person.age, person.race_mix
    hair = _sample_hair(wear, comb, parts, male, age, race_mix["caucasian"])
    complexion = sample_complexion(colours, male, age, race_mix)
    if "hair" in fixed:
        hair.name = _known_hair(fixed["hair"], parts)
    garment = _sample_garment(wear, parts, male, fixed.get("clothes"))
    skin = _sample_skin(colours, parts, male, age, person.race)
    brow = str(colours.choice(parts.available("eyebrows", names.BROWS_MALE if male else names.BROWS_FEMALE)))
    lash = str(colours.choice(parts.available("eyelashes", names.LASHES)))

    # The view: pose, camera and light.
    neck, head, arms = _sample_pose(pose)
    yaw, pitch = _sample_view(view)
    lighting = sample_lighting(light, yaw)
    subject = Subject(
        male=male,
        age=age,
        race_mix=race_mix,
        phenotype=_sample_phenotype(shape, male, age, race_mix),
        local=sample_shape(shape, body),
        facial=sample_expression(face),
        skin=skin,
        complexion=complexion,
        hair=hair,
        brow=brow,
        brow_colour=_brow_colour(hair.colour, complexion),
        lash=lash,
        garment=garment,
        neck=np.asarray(fixed["neck"], np.float64) if "neck" in fixed else neck,
        head=np.asarray(fixed["head"], np.float64) if "head" in fixed else head,
        arms=arms,
        yaw=float(fixed.get("yaw", yaw)),
        pitch=float(fixed.get("pitch", pitch)),
        lighting=lighting,
        exposure=float(light.uniform(0.8, 1.2)),
        noise=float(light.uniform(0, 0.01)),
        background_seed=int(view.integers(1 << 31)),
        noise_seed=int(view.integers(1 << 31)),
    )
    return replace(subject, info=_info(subject))


def _checked(overrides: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The overrides, all of them known."""
    fixed = dict(overrides or {})
    unknown = sorted(set(fixed) - set(OVERRIDES))
    if unknown:
        raise InputError(f"Unknown override {unknown[0]!r}.", f"Use one of: {', '.join(OVERRIDES)}.")
    return fixed


def _sample_person(rng: np.random.Generator, fixed: Mapping[str, Any]) -> _Person:
    male = bool(rng.random() < 0.5)
    if "gender" in fixed:
        male = fixed["gender"] == "male"
    race_mix = {name: float(m) for name, m in zip(names.SKIN_RACES, rng.dirichlet([0.4] * 3), strict=True)}
    age = str(rng.choice(["child", "young", "middleage", "old"], p=[0.06, 0.50, 0.26, 0.18]))
    return _Person(male, str(fixed.get("age", age)), race_mix)


def _known_hair(name: str | None, parts: PartsLibrary) -> str | None:
    """A hair of the parts, or None for bald."""
    if name is not None and name not in parts.proxies.get("hair", {}):
        raise InputError(f"There is no hair named {name!r}.", f"Use one of: {', '.join(parts.proxies['hair'])}.")
    return name


def _info(subject: Subject) -> dict[str, Any]:
    """The info of a sample about its subject, plain JSON."""
    hair = subject.hair
    return {
        "gender": "male" if subject.male else "female",
        "age": subject.age,
        "ethnicity": {k: round(v, 4) for k, v in subject.race_mix.items()},
        "hair": hair.name or "none",
        "hair_mirrored": hair.mirrored,
        "hair_swept": bool(hair.name) and hair.fringe > 0,
        "beard": hair.beard if hair.beard_cover > 0.5 else ("stubble" if hair.beard_cover > 0 else "none"),
        "clothes": subject.garment.name,
        "skin": subject.skin.name,
        "iris": [round(float(v), 4) for v in subject.complexion.iris],
        "eyebrows": subject.brow,
    }


def another_view(
    subject: Subject, seed: int, index: int, view: int, overrides: Mapping[str, Any] | None = None
) -> Subject:
    """Subject `index` of `seed` again in image `view` of several: the same person, hair and clothes with another
    expression, body pose, light, background and camera. View 0 is the subject itself. What `overrides` fixes stays."""
    if view == 0:
        return subject

    # Streams of its own for what changes from view to view.
    fixed = overrides or {}
    face, pose, light, camera = np.random.default_rng([seed, index, view, _VIEW_STREAM]).spawn(4)
    neck, head, arms = _sample_pose(pose)
    yaw, pitch = _sample_view(camera)

    # What overrides fix stays as it is in view 0.
    return replace(
        subject,
        facial=sample_expression(face),
        neck=subject.neck if "neck" in fixed else neck,
        head=subject.head if "head" in fixed else head,
        arms=arms,
        yaw=subject.yaw if "yaw" in fixed else yaw,
        pitch=subject.pitch if "pitch" in fixed else pitch,
        lighting=sample_lighting(light, yaw),
        exposure=float(light.uniform(0.8, 1.2)),
        noise=float(light.uniform(0, 0.01)),
        background_seed=int(camera.integers(1 << 31)),
        noise_seed=int(camera.integers(1 << 31)),
    )


def _sample_view(rng: np.random.Generator) -> tuple[float, float]:
    """Yaw and pitch of the camera, radians."""
    return float(rng.uniform(-math.pi, math.pi)), float(np.clip(rng.normal(0, 0.2), -0.52, 0.52))


def _sample_phenotype(rng: np.random.Generator, male: bool, age: str, race_mix: dict[str, float]) -> dict[str, float]:
    spans = {"child": (0.36, 0.56), "young": (0.58, 0.72), "middleage": (0.72, 0.85), "old": (0.85, 1.0)}
    if age not in spans:
        raise InputError(f"Unknown age {age!r}.", f"Use one of: {', '.join(spans)}.")
    place = rng.random()
    return {
        "gender": float(rng.uniform(0, 0.3)) if male else float(rng.uniform(0.7, 1)),
        "age": float(spans[age][0] + place * (spans[age][1] - spans[age][0])),
        "muscle": float(rng.uniform(0.2, 0.9)),
        "weight": float(np.clip(rng.normal(0.5, 0.25), 0.05, 1)),
        "height": float(rng.uniform(0.3, 0.7)),
        "proportions": float(rng.uniform(0.4, 1)),
        "cupsize": float(rng.uniform(0.3, 0.6)),
        "firmness": 0.6,
        **race_mix,
    }


def _sample_pose(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Neck and head axis-angle (radians) and five arm numbers: lowering, swing, shrug, two elbow bends."""
    first, second = rng.normal(0, 1, 3), rng.normal(0, 1, 3)
    shared = np.asarray(_SHARED_TURNS)
    neck = np.radians(np.clip(first, -2, 2) * _NECK_SPREAD)
    head = np.radians(np.clip(shared * first + np.sqrt(1 - shared**2) * second, -2, 2) * _HEAD_SPREAD)
    # Arms are not in the label, so they vary little.
    arms = np.array(
        [
            np.radians(rng.uniform(36, 46)),
            np.radians(rng.uniform(0, 10)),
            np.radians(np.clip(rng.normal(0, 1.5), -3, 3)),
            rng.uniform(0, 0.3),
            rng.uniform(0, 0.3),
        ]
    )
    return neck, head, arms


def _sample_hair(
    rng: np.random.Generator, comb: np.random.Generator, parts: PartsLibrary, male: bool, age: str, fair: float
) -> HairStyle:
    """`fair`: the share of ancestry that has hair of all colours; other hair is dark, or dyed."""
    wanted = names.HAIR_MALE if male else names.HAIR_FEMALE
    choices = parts.available("hair", wanted)
    liking = np.array([_HAIR_LIKING.get((name, male), 1.0) for name in choices])
    name = str(rng.choice(choices, p=liking / liking.sum())) if choices else None

    # some men are bald
    bald = rng.random() < (0.16 if age == "old" else 0.07)
    if male and bald and age != "child":
        name = None

    # colour: ancestry and age decide what is common
    odds = np.array([weight for _, weight in _HAIR_COLOURS])
    odds[2:7] *= max(fair**2, _DYED * (0.4 if male else 1.5))
    if age in ("middleage", "old"):
        odds[_GREYS] *= 150 if age == "old" else 10
    if age == "child":
        odds[_GREYS] = 0
    colour = np.array(_HAIR_COLOURS[int(rng.choice(len(odds), p=odds / odds.sum()))][0])
    mirrored = bool(rng.random() < 0.5)

    # beard, and whether a fringe is swept aside
    beard = str(rng.choice(BEARDS, p=[0.65, 0.2, 0.15]))
    growth, amount = rng.random(), rng.random()
    beard_cover = 0.0
    if male and age != "child":
        beard_cover = 0.65 + 0.3 * amount if growth < 0.28 else (0.1 + 0.3 * amount if growth < 0.62 else 0.0)
    fringe = 0.0 if comb.random() < _HIDDEN_EYES else float(comb.uniform(0.8, 1.1))
    return HairStyle(
        name=name,
        mirrored=mirrored,
        colour=colour * rng.uniform(0.8, 1.25),
        beard_colour=_beard_colour(colour, fair, rng.random()),
        stubble=float(rng.uniform(0, 0.75)),
        length=float(rng.uniform(-0.35, 0.35)),
        volume=float(rng.uniform(-0.004, 0.022)),
        curl=float(rng.uniform(0, 0.007) if rng.random() < 0.5 else 0.0),
        curl_waves=float(rng.uniform(60, 140)),
        curl_phase=float(rng.uniform(0, 2 * math.pi)),
        fringe=fringe,
        beard=beard,
        beard_cover=beard_cover,
    )


def _beard_colour(hair: np.ndarray, fair: float, redness: float) -> np.ndarray:
    """Beards are darker and redder than hair; dyed hair goes with a dark beard."""
    if fair < 0.4 and float(hair.max() - hair.min()) > 0.05:
        hair = np.array(_HAIR_COLOURS[1][0])
    return hair * np.array([0.85, 0.78 - 0.12 * redness, 0.72 - 0.15 * redness])


def _colour(rng: np.random.Generator) -> np.ndarray:
    """A linear fabric colour: often muted, sometimes vivid, from black to white."""
    hue, saturation = rng.random(), rng.beta(1.2, 2.4)
    return np.array(colorsys.hsv_to_rgb(hue, saturation, rng.beta(1.3, 1.4) * 0.82 + 0.05)) ** 2.2


def _sample_garment(rng: np.random.Generator, parts: PartsLibrary, male: bool, wanted: str | None) -> Garment:
    name = str(rng.choice(parts.available("clothes", names.CLOTHES_MALE if male else names.CLOTHES_FEMALE)))
    name = wanted or name
    if name not in parts.proxies["clothes"]:
        raise InputError(f"There are no clothes named {name!r}.", f"Use one of: {', '.join(parts.proxies['clothes'])}.")
    first, second = _colour(rng), _colour(rng)
    frequency = rng.uniform(60, 350)  # radians per metre
    angle = float(rng.choice([0.0, math.pi / 2, math.pi / 2, math.pi / 4]))
    threshold, kind = rng.uniform(-0.5, 0.8), rng.random()
    weave, tint, value = rng.uniform(0, 0.25), np.exp(rng.normal(0, 0.12, 3)), np.exp(rng.normal(0.2, 0.35))
    fields = np.zeros(MATERIAL_FIELDS, np.float32)
    if name in parts.recolourable:
        fields[0:3], fields[3], fields[4], fields[5:8] = first, 1.0, 4.0, second
        fields[8], fields[9], fields[10] = frequency, math.cos(angle), math.sin(angle)
        fields[11], fields[13] = threshold, weave
        fields[12] = 0.0 if kind < 0.66 else (1.0 if kind < 0.82 else (2.0 if kind < 0.95 else 3.0))
    else:
        fields[0:3] = value * tint
    return Garment(name, fields)


def _sample_skin(rng: np.random.Generator, parts: PartsLibrary, male: bool, age: str, race: str) -> SkinTexture:
    sex, years = ("male" if male else "female"), ("young" if age == "child" else age)
    rows = [s for s in parts.skins if s.age == years and s.race == race and s.sex == sex]
    rows = rows or [s for s in parts.skins if s.sex == sex] or parts.skins
    return rows[int(rng.integers(len(rows)))]


def _brow_colour(hair: np.ndarray, complexion: Complexion) -> np.ndarray:
    """Brows are darker than the hair of the head, and always darker than the skin that they stand on."""
    brow = hair * 0.55
    most = 0.22 * complexion.luminance
    return brow * min(1.0, most / max(float(brow @ np.array([0.21, 0.72, 0.07])), 1e-4))
