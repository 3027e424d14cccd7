"""Three joints for other programs: the body's bones reduced to root, neck and head, with weights at any points.

A body may split the turn of its neck over several bones (Anny: three thirds). The rig turns one neck joint instead.
A vertex of a bone that follows a share s of the neck's turn gets the neck's weight s, and the neck joint lies at the
mean of the joints that share the turn: for small angles both move every point alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from portrait360.geometry.body import BodyTemplate
from portrait360.geometry.rotations import axis_angle_to_matrix
from portrait360.geometry.weights import look_up, weight_volume

JOINTS = ("root", "neck", "head")
"""From parent to child."""


@dataclass(frozen=True)
class Rig:
    """Joints at rest and the weights with which points follow them (linear blend skinning)."""

    joints: Float[ndarray, "3 3"]
    """Positions of `JOINTS` at rest, world units; their axes are the world's."""
    weights: Float[ndarray, "N 3"]
    """Of each point; they add up to 1."""


def make_rig(body: BodyTemplate, points: Float[ndarray, "N 3"]) -> Rig:
    """The rig of a body and its weights at points of canonical space.

    The weights are those of the deformation's volume (`weight_volume`): hair and collars follow the skin beneath them.
    """
    # How much of the neck's and of the head's turn each bone follows.
    neck, head = _followed(body, "neck"), _followed(body, "head")
    joints = np.stack([body.joints[0].double().cpu().numpy(), _pivot(body, "neck"), _pivot(body, "head")])

    # Weights of the moving bones at the points, summed up by what they follow.
    bones, _ = look_up(weight_volume(body), torch.from_numpy(np.ascontiguousarray(points, np.float32)))
    bones, moving = bones.double().numpy(), list(body.moving)
    with_neck, with_head = (np.clip(bones @ share[moving], 0.0, 1.0) for share in (neck, head))
    with_neck = np.maximum(with_neck, with_head)
    weights = np.stack([1.0 - with_neck, with_neck - with_head, with_head], axis=1)
    return Rig(joints.astype(np.float32), weights.astype(np.float32))


def joint_motions(joints: Float[ndarray, "3 3"], body_pose: Float[Tensor, " 6"]) -> Float[ndarray, "3 3 4"]:
    """Rigid motions of the joints from rest to posed: the neck turns, the head turns against it (radians)."""
    neck, head = axis_angle_to_matrix(body_pose.double().cpu().reshape(2, 3)).numpy()
    motions = np.zeros((3, 3, 4))
    motions[:, :, :3] = np.eye(3), neck, neck @ head
    motions[1, :, 3] = joints[1] - neck @ joints[1]
    motions[2, :, 3] = motions[1, :, 3] + neck @ (joints[2] - head @ joints[2])
    return motions


def joint_rotations(body_pose: Float[Tensor, " 6"]) -> Float[ndarray, "3 4"]:
    """Turns of the joints against their parents in a body pose (radians): unit quaternions x, y, z, w."""
    turns = np.concatenate([np.zeros((1, 3)), body_pose.double().cpu().reshape(2, 3).numpy()])
    angle = np.linalg.norm(turns, axis=1, keepdims=True)
    axis = turns / np.maximum(angle, 1e-12)
    return np.concatenate([axis * np.sin(angle / 2.0), np.cos(angle / 2.0)], axis=1)


def skinned(rig: Rig, points: Float[ndarray, "N 3"], body_pose: Float[Tensor, " 6"]) -> Float[ndarray, "N 3"]:
    """Points moved with the rig, as programs that open the file move them."""
    motions = np.einsum("nj,jab->nab", rig.weights.astype(np.float64), joint_motions(rig.joints, body_pose))
    return (motions[..., :3] @ points[..., None])[..., 0] + motions[..., 3]


def _followed(body: BodyTemplate, part: str) -> Float[ndarray, " K"]:
    """The share of a part's turn that each bone follows: its own and its ancestors'."""
    shares = np.zeros(len(body.parents))
    for bone, (parent, drive) in enumerate(zip(body.parents, body.drive, strict=True)):
        above = shares[parent] if parent >= 0 else 0.0
        shares[bone] = above + (drive[1] if drive is not None and drive[0] == part else 0.0)
    return shares


def _pivot(body: BodyTemplate, part: str) -> Float[ndarray, "3"]:
    """The mean of the joints that share a part's turn, by their shares; the first joint if nothing turns."""
    shares = np.array([drive[1] if drive is not None and drive[0] == part else 0.0 for drive in body.drive])
    joints = body.joints.double().cpu().numpy()
    return shares @ joints / shares.sum() if shares.sum() > 0 else joints[0]
