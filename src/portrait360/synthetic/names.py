"""Names of the MakeHuman core parts (CC0 since September 2020) that synthetic portraits are made of."""

from __future__ import annotations

HAIR = (
    "bob01",
    "bob02",
    "Braid01",
    "afro01",
    "long01",
    "ponytail01",
    "short01",
    "short02",
    "short03",
    "short04",
)
HAIR_MALE = ("short01", "short02", "short03", "short04", "afro01", "bob02")
HAIR_FEMALE = ("bob01", "bob02", "Braid01", "long01", "ponytail01", "afro01", "short03")
ONE_SIDED_HAIR = ("bob01", "bob02", "short03", "Braid01")
"""Cuts that are not symmetric: half of the subjects wear their mirror image."""

CLOTHES_MALE = (*(f"male_casualsuit0{i}" for i in range(1, 7)), "male_elegantsuit01")
CLOTHES_FEMALE = (
    "female_casualsuit01",
    "female_casualsuit02",
    "female_elegantsuit01",
    "female_sportsuit01",
)
BROWS = tuple(f"eyebrow{i:03d}" for i in range(1, 13))
BROWS_MALE = tuple(f"eyebrow{i:03d}" for i in (1, 2, 3, 4, 5, 8, 9, 12))
BROWS_FEMALE = tuple(f"eyebrow{i:03d}" for i in (1, 2, 4, 5, 6, 8, 10, 11, 12))
"""Thin and pencilled brows are women's, bushy ones men's."""
LASHES = ("Eyelashes01", "eyelashes02", "eyelashes03", "eyelashes04")
EYES = "HighPolyEyes"
IRIS = "brownlight"
"""Of the painted eyes the one whose detail all irises have; their colours are sampled."""
TEETH = "Teeth_Base"

PROXIES = {
    "hair": HAIR,
    "clothes": CLOTHES_MALE + CLOTHES_FEMALE,
    "eyebrows": BROWS,
    "eyelashes": LASHES,
    "eyes": (EYES,),
    "teeth": (TEETH,),
}
"""Folder under `proxies/` -> names used from it."""

SKIN_AGES = ("young", "middleage", "old")
SKIN_RACES = ("african", "asian", "caucasian")
SKIN_SEXES = ("female", "male")
SKIN_FOLDERS = tuple(f"{a}_{r}_{s}" for a in SKIN_AGES for r in SKIN_RACES for s in SKIN_SEXES)
