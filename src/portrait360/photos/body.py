"""An SMPL body in place of the packaged one: laid over it, so that images, cameras and faces keep their places.

A dataset's world is the packaged body's: its neck joint is the origin, the top of its skull is 0.165 units above. An
SMPL file comes in metres about another neck joint. It is scaled and moved, not turned, so that the surfaces of the two
heads meet best; its neck and head then turn about SMPL's own joints. So body poses are in SMPL's terms, while crops and
cameras are those of every other dataset. Assumed, not measured: both heads rest upright and look ahead, and the face on
SMPL's head is where it is on the packaged one, as are the shoulders.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from scipy.optimize import least_squares
from scipy.spatial import KDTree
from torch import Tensor

from portrait360.encoder.network import HEAD
from portrait360.geometry.body import BODY_BONES, BODY_PARENTS, BodyTemplate, bone_transforms
from portrait360.official import smpl
from portrait360.photos.user_files import UserFile
from portrait360.types import AssetError

_OF_HEAD = 0.5
"""Weight of the head from which a vertex counts as its own."""
_FEWEST_VERTICES = 20
_MIDDLE = (0.0, 0.08, 0.03)
"""Of the head at rest, between the ears."""
_STEP = 1e-4
_ROUNDS = 40
_KEPT = 0.9
"""Share of the pairs of nearest vertices that are used: there are no ears, or no insides, on the other body."""
_MOST_APART = 0.008
"""Distance of the surfaces, root mean square in world units (11 mm), up to which they are two heads that look the same
way. Those of one head, stretched by 5 to 15 %, are 0.002 apart; turned by 90 or 180 degrees, 0.009 to 0.012."""
_PLACE_ERROR, _TURN_ERROR, _POSE_ERROR = 0.004, 0.02, 0.15
"""Where an attitude is taken over: how near it comes to the place of the head, world units, to its direction, radians,
and to the other body's neck and head, radians. The last two are what is known of the pose that is taken over."""


@dataclass(frozen=True)
class Placed:
    """An SMPL body laid over the packaged one: world = scale · SMPL + shift, SMPL in metres about its neck joint."""

    body: BodyTemplate
    """With the packaged body's bones: neck01 turns as SMPL's neck, the rest of the neck follows it."""
    scale: float
    shift: tuple[float, float, float]
    apart: float
    """Distance of the two heads' surfaces, root mean square, world units."""


def load_user_body(file: UserFile, packaged: BodyTemplate) -> Placed:
    """The body of an SMPL file (`read_smpl`), laid over the packaged one.

    Raises:
        AssetError: no SMPL file, refused, or of something without a head like that of a human.
        InputError: the file has changed.
    """
    path = file.check()
    try:
        return place(smpl.read_smpl(path), packaged)
    except ValueError as error:
        raise AssetError(
            f"{path} cannot stand for the packaged body: {error}.",
            "Give SMPL's neutral, male or female body as it is published: Y up, looking along Z.",
        ) from error


def place(body: BodyTemplate, packaged: BodyTemplate) -> Placed:
    """Lay an SMPL body (`official.smpl`) over the packaged one. Raises ValueError when their heads do not meet."""
    # Scale and move it so that its head meets the packaged one.
    own = body.vertices[body.weights[:, smpl.HEAD] > _OF_HEAD].double().numpy()
    head = packaged.vertices[packaged.weights[:, BODY_BONES.index("head")] > _OF_HEAD].double().numpy()
    if len(own) < _FEWEST_VERTICES:
        raise ValueError(f"only {len(own)} of its vertices are the head's")
    scale, shift, apart = _laid_over(own, head)
    if not apart <= _MOST_APART:
        raise ValueError(f"its head does not look like one, the surfaces are {apart:.3g} units apart")
    move = torch.from_numpy(shift).float()
    vertices, joints = (scale * points + move for points in (body.vertices, body.joints))
    neck, top = joints[smpl.NECK], joints[smpl.HEAD]
    if not top[1] > neck[1]:
        raise ValueError("its head is below its neck")

    # Give it the packaged body's bones.
    weights = body.weights
    bones = {"neck01": weights[:, smpl.NECK], "head": weights[:, smpl.HEAD]}
    bones["torso"] = weights.sum(1) - bones["neck01"] - bones["head"]
    none = torch.zeros_like(bones["head"])
    drive = {"neck01": ("neck", 1.0), "head": ("head", 1.0)}
    placed = replace(
        body,
        vertices=vertices,
        joints=torch.stack([joints[0], neck, neck, neck, top]),
        weights=torch.stack([bones.get(name, none) for name in BODY_BONES], dim=1),
        parents=BODY_PARENTS,
        drive=tuple(drive.get(name) for name in BODY_BONES),
        pose_shapes=None if body.pose_shapes is None else scale * body.pose_shapes,
        metres_to_world=scale,
    )
    x, y, z = shift.tolist()
    return Placed(placed, scale, (x, y, z), apart)


def _laid_over(own: Float[ndarray, "N 3"], head: Float[ndarray, "M 3"]) -> tuple[float, Float[ndarray, " 3"], float]:
    """Scale and shift that lay the points `own` over `head`, and the root mean square distance that is left.

    By iterated closest points, both ways: with those of one side alone, the smaller the better.
    """
    scale = float(np.ptp(head[:, 1]) / max(np.ptp(own[:, 1]), 1e-9))
    shift = (head.max(0) + head.min(0)) / 2.0 - scale * (own.max(0) + own.min(0)) / 2.0
    tree, apart = KDTree(head), np.inf
    for _ in range(_ROUNDS):
        # Pairs of nearest points, from either side.
        moved = scale * own + shift
        forth, there = (np.asarray(found) for found in tree.query(moved))
        back, here = (np.asarray(found) for found in KDTree(moved).query(head))
        kept, kept_back = (distance <= np.quantile(distance, _KEPT) for distance in (forth, back))
        source = np.concatenate([own[kept], own[here[kept_back]]])
        target = np.concatenate([head[there[kept]], head[kept_back]])

        # The scale and shift that bring them closest, by weighted least squares.
        weight = np.repeat([1.0 / kept.sum(), 1.0 / kept_back.sum()], [kept.sum(), kept_back.sum()])[:, None] / 2.0
        apart = float(np.sqrt((weight * (scale * source + shift - target) ** 2).sum()))
        last = scale, shift
        middle, aim = (weight * source).sum(0), (weight * target).sum(0)
        spread = (weight * (source - middle) ** 2).sum()
        scale = float((weight * (source - middle) * (target - aim)).sum() / max(spread, 1e-12))
        shift = aim - scale * middle
        if np.allclose([*last[1], last[0]], [*shift, scale], rtol=1e-6, atol=1e-6):
            break
    return scale, shift, apart


def same_attitude(pose: Float[ndarray, " 6"], of: BodyTemplate, body: BodyTemplate) -> Float[ndarray, " 6"]:
    """The pose with which the head of `body` is where that of the body `of` is with `pose`.

    Its direction can be met, its place nearly, with a neck of another length; what is left open stays as it was.
    """
    goal = _head(of, torch.from_numpy(pose)[None])

    def residuals(numbers: Float[Tensor, "B 6"]) -> Float[Tensor, "B R"]:
        near = (numbers - torch.from_numpy(pose)) / _POSE_ERROR
        return torch.cat([_head(body, numbers) - goal, near], dim=1)

    def value(numbers: Float[ndarray, " 6"]) -> Float[ndarray, " R"]:
        return residuals(torch.from_numpy(numbers)[None])[0].numpy()

    def slope(numbers: Float[ndarray, " 6"]) -> Float[ndarray, "R 6"]:
        steps = torch.eye(6, dtype=torch.float64) * _STEP
        here = torch.from_numpy(numbers)
        values = residuals(torch.cat([here + steps, here - steps]))
        return ((values[:6] - values[6:]) / (2.0 * _STEP)).T.numpy()

    return least_squares(value, pose, jac=slope, ftol=1e-6).x  # pyright: ignore[reportArgumentType]


def _head(body: BodyTemplate, pose: Float[Tensor, "B 6"]) -> Float[Tensor, "B 12"]:
    """Direction and place of the head, in units of the errors above."""
    motion = bone_transforms(body, pose)[:, HEAD]
    turn, middle = motion[:, :, :3], torch.tensor(_MIDDLE, dtype=pose.dtype)
    # entries of rotations change by up to the angle
    return torch.cat([turn.flatten(1) / _TURN_ERROR, (turn @ middle + motion[:, :, 3]) / _PLACE_ERROR], dim=1)
