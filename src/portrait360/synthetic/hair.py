"""Hair: the painted scalp under it, and deformations of the cards that turn ten cuts into many."""

from __future__ import annotations

import numpy as np
from scipy.spatial import KDTree

from portrait360.synthetic.body import EYE_VERTICES, SKIN_VERTICES
from portrait360.synthetic.proxies import Proxy
from portrait360.synthetic.subject import HairStyle
from portrait360.synthetic.textures import texels

_REACH = 0.02
_PARTING = 0.35
"""Where fringes part, radians around the skull, away from the middle of the face on the side without a fringe."""
_EYE_SPAN = 0.78
"""Half of the turn around the skull that both eyes take, radians."""
_SIDE = 1.45
"""Hair beyond this turn around the skull, radians, hangs at the side and stays."""


def scalp_cover(proxy: Proxy, atlas: np.ndarray, slot: int, body: np.ndarray) -> np.ndarray:
    """How much hair colour the scalp takes (13380,), 0-0.9: skin close under opaque hair, never the face.

    `body` (19158,3) is the neutral rest body in metres.
    """
    hair = proxy.fit(body)
    column, row = texels(proxy.uv.reshape(-1, 2))
    alpha = np.zeros(len(hair), np.float32)
    np.maximum.at(alpha, proxy.triangles.reshape(-1), atlas[slot, row * 512 + column, 3] / 255.0)
    opaque = hair[alpha > 0.5]
    skin = body[:SKIN_VERTICES]
    if not len(opaque):
        return np.zeros(SKIN_VERTICES, np.float32)
    distance, _ = KDTree(opaque).query(skin, distance_upper_bound=_REACH)
    cover = np.clip(1 - (np.minimum(distance, 1.0) - 0.005) / 0.008, 0, 1)
    eyes = body[EYE_VERTICES].mean(0)
    # hair that is swept aside bares temples and cheeks up to the ears
    behind = np.clip((eyes[2] - 0.055 - skin[:, 2]) / 0.015, 0, 1)
    below = np.clip((eyes[1] + 0.065 - skin[:, 1]) / 0.02, 0, 1)
    cover *= 1 - below * (1 - behind)
    cover[skin[:, 1] < eyes[1] - 0.06] = 0
    return (cover * 0.9).astype(np.float32)


def beard_cover(body: np.ndarray, style: str) -> np.ndarray:
    """How much hair colour the lower face of a beard takes (13380,), 0-1; `body` is the neutral rest body,
    metres."""
    eyes = body[EYE_VERTICES].mean(0)
    x = np.abs(body[:SKIN_VERTICES, 0])
    y = body[:SKIN_VERTICES, 1] - eyes[1]
    z = body[:SKIN_VERTICES, 2] - eyes[2]

    def above(value: np.ndarray, edge: np.ndarray | float, soft: float = 0.006) -> np.ndarray:
        return np.clip((value - edge) / soft + 0.5, 0, 1)

    lip = (x / 0.031) ** 2 + ((y + 0.074) / 0.0125) ** 2
    outside_lips = np.clip((lip - 0.9) / 0.25, 0, 1)
    moustache = above(-x, -0.034) * above(y, -0.078) * above(-y, 0.051, 0.004) * above(z, 0.0)
    # from the corner of the mouth the edge rises towards the ear
    cheek_line = np.clip(-0.066 + (x - 0.028) / 0.04 * 0.05, -0.08, -0.012)
    jaw = above(-y, -cheek_line) * above(y, -0.133, 0.012) * above(z, -0.072, 0.012)
    if style == "moustache":
        cover = moustache
    elif style == "goatee":
        cover = np.maximum(moustache, jaw * above(-x, -0.034, 0.01)) * above(z, -0.03, 0.01)
    else:
        cover = np.maximum(moustache, jaw)
    return (cover * outside_lips).astype(np.float32)


def smooth_cover(cover: np.ndarray, quads: np.ndarray, rounds: int = 2) -> np.ndarray:
    """Average a vertex cover over neighbouring faces, a few times."""
    out = cover.astype(np.float64)
    corners = quads.reshape(-1)
    count = np.maximum(np.bincount(corners, minlength=len(out)), 1)
    for _ in range(rounds):
        mean = out[quads].mean(1).repeat(4)
        out = np.bincount(corners, weights=mean, minlength=len(out)) / count
    return out.astype(np.float32)


def style_hair(
    proxy: Proxy,
    fitted: np.ndarray,
    style: HairStyle,
    body: np.ndarray,
    normals: np.ndarray,
    centre: np.ndarray,
) -> np.ndarray:
    """Change volume, length and curl of fitted hair (V,3), metres at rest; `centre` is the skull's middle.

    Volume pushes away from the skull, more the farther a point already is; length stretches what hangs below
    the ears; curl waves along the way down; a swept fringe leaves the eyes free. Points near the hairline stay, so
    that no gap opens.
    """
    # Fringe and volume.
    out = sweep_fringe(fitted, body[EYE_VERTICES].mean(0), centre, style.fringe)
    away = out - centre
    distance = np.linalg.norm(away, axis=1, keepdims=True)
    away = away / np.maximum(distance, 1e-6)
    if style.volume:
        top = np.clip((out[:, 1:2] - (centre[1] - 0.02)) / 0.08, 0, 1)
        back = np.clip((centre[2] + 0.05 - out[:, 2:3]) / 0.08, 0, 1)
        out = out + away * (style.volume * np.maximum(top, 0.5 * back) * np.maximum(back, 0.35))

    # Length of what hangs below the ears.
    if style.length and proxy.name in ("bob01", "bob02", "long01", "ponytail01", "Braid01"):
        limit = centre[1] - 0.06
        below = np.maximum(limit - out[:, 1], 0)
        # a bob cut much shorter would leave a shaved nape
        out[:, 1] -= below * (max(style.length, -0.12) if proxy.name.startswith("bob") else style.length)

    # Curls along the way down.
    if style.curl and proxy.name in ("bob01", "bob02", "long01", "ponytail01"):
        drop = np.maximum(centre[1] + 0.02 - fitted[:, 1], 0)
        amount = style.curl * np.clip(drop / 0.12, 0, 1)
        turn = np.arctan2(away[:, 0], away[:, 2])
        phase = drop * style.curl_waves + style.curl_phase + np.sin(turn * 9.0) * 1.5
        out += away * np.array([1, 0, 1], np.float32) * (amount * np.sin(phase))[:, None]
        out[:, 0] += amount * np.cos(phase) * 0.6
    return out.astype(np.float32)


def sweep_fringe(hair: np.ndarray, eyes: np.ndarray, centre: np.ndarray, amount: float) -> np.ndarray:
    """Hair (V,3), metres at rest, with what hangs before the eyes turned around the skull towards the ears (V,3).

    `eyes` (3,) is the point between the eyes, `centre` (3,) the skull's middle. Nothing above the hairline and
    nothing beside the face moves; between them the turn grows from the hairline down to the brows, as a fringe
    falls that is combed aside. `amount` 0 changes nothing, 1 clears both eyes; the side on which more hair hangs
    before the eyes takes all of it up to the parting.
    """
    out = hair.astype(np.float32)
    if amount <= 0:
        return out

    # Turn around the skull, and the side on which more hair hangs before the eyes.
    x, z = out[:, 0] - centre[0], out[:, 2] - centre[2]
    height = out[:, 1] - eyes[1]
    turn = np.arctan2(x, z)
    hanging = (np.abs(turn) < _EYE_SPAN) & (np.abs(height) < 0.03)
    side = 1.0 if np.sin(turn[hanging]).sum() >= 0 else -1.0
    turn = turn * side

    # Both parts of the hair are squeezed between their swept edge and the side of the head.
    fall = np.clip((0.065 - height) / 0.05, 0, 1)
    swept = amount * fall * fall * (3 - 2 * fall)
    edge = -_PARTING + (_EYE_SPAN + _PARTING) * swept
    other = -_PARTING - (_EYE_SPAN - _PARTING) * swept
    fringe = edge + (turn + _PARTING) * (_SIDE - edge) / (_SIDE + _PARTING)
    rest = other + (turn + _PARTING) * (other + _SIDE) / (_SIDE - _PARTING)
    moved = np.where(turn >= -_PARTING, fringe, rest)
    moved = np.where(np.abs(turn) < _SIDE, moved, turn) * side

    # Back to places.
    radius = np.hypot(x, z)
    out[:, 0] = centre[0] + radius * np.sin(moved)
    out[:, 2] = centre[2] + radius * np.cos(moved)
    return out
