"""How good exported meshes are: drawn with their textures against the volume rendering, posed by their joints against
the re-rendered portrait, and what they cost. Everything is read back from the bytes of the .glb file.

    python -m tools.mesh_report --out docs/measurements/mesh.json
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy import ndimage
from torch import Tensor

import portrait360 as p3
from portrait360.geometry.cameras import camera_label, project
from portrait360.geometry.rig import joint_rotations
from portrait360.media.texture import barycentric, covering_faces
from portrait360.portrait.solid import METRES_PER_UNIT
from portrait360.runtime.files import write_json
from portrait360.runtime.precision import processor_name
from portrait360.runtime.script import run_script
from tools.glb_reader import GlbMesh, read_glb

YAWS = tuple(45.0 * k for k in range(8))
"""Of the views in which textures are compared, degrees."""
POSE_YAWS = (0.0, 90.0, 180.0, 225.0)
"""Of the views in which silhouettes are compared."""
_FINER = 2
"""Samples per pixel and axis of drawn meshes."""


def turned_poses(degrees: float = 25.0) -> Float[Tensor, "12 6"]:
    """Neck and head turned by so much about each axis, both ways."""
    turns = torch.cat([torch.eye(6), -torch.eye(6)])
    return turns * math.radians(degrees)


def draw(
    mesh: GlbMesh, vertices: Float[ndarray, "W 3"], camera: Float[Tensor, " 25"], side: int
) -> tuple[Float[ndarray, "R R 3"], Float[ndarray, "R R"]]:
    """The mesh with its texture and no light, sRGB in [0, 1] on grey, and the share that it covers of each pixel.

    `vertices`: of the mesh, metres, as its joints move them.
    """
    # Onto the screen.
    finer = side * _FINER
    points = torch.from_numpy(vertices / METRES_PER_UNIT)
    uv, depth = project(camera[None].double(), points[None])
    screen = np.column_stack([uv[0].numpy() * finer, depth[0].numpy()])
    face = covering_faces(screen, mesh.faces, finer, perspective=True)
    sample = np.flatnonzero(face >= 0)

    # Where in the texture each sample lies, with perspective.
    corners = mesh.faces[face[sample]]
    centre = np.stack([sample % finer + 0.5, sample // finer + 0.5], axis=1)
    shares = barycentric(centre, screen[corners, :2]) / screen[corners, 2]
    shares /= shares.sum(axis=1, keepdims=True)
    texel = (mesh.uv[corners] * shares[..., None]).sum(axis=1) * len(mesh.texture) - 0.5

    # Its colour, and the mean over each pixel.
    image, covered = np.full((finer * finer, 3), 0.5), (face >= 0).astype(np.float64)
    for channel in range(3):
        plane = mesh.texture[..., channel].astype(np.float32) / 255.0
        image[sample, channel] = ndimage.map_coordinates(plane, texel.T[::-1], order=1, mode="nearest")
    blocks = image.reshape(side, _FINER, side, _FINER, 3), covered.reshape(side, _FINER, side, _FINER)
    return blocks[0].mean(axis=(1, 3)), blocks[1].mean(axis=(1, 3))


def psnr(image: ndarray, reference: ndarray, mask: Bool[ndarray, "R R"]) -> float:
    """Peak signal-to-noise ratio inside a mask, decibels."""
    return -10.0 * math.log10(float(np.square(image - reference)[mask].mean()))


def texture_psnr(renderer: Any, mesh: GlbMesh, side: int, yaws: tuple[float, ...] = YAWS) -> list[float]:
    """The mesh at rest against the volume rendering, inside the latter's mask, view by view."""
    found = []
    for yaw in yaws:
        camera = camera_label(math.radians(yaw))
        with torch.no_grad():
            out = renderer.render(camera, None, side)
        reference = ((out.image[0].permute(1, 2, 0) + 1.0) / 2.0).clamp(0.0, 1.0).double().numpy()
        image, _ = draw(mesh, mesh.posed({}), camera[0], side)
        found.append(psnr(image, reference, (out.mask[0, 0] > 0.5).numpy()))
    return found


def silhouette_overlap(
    renderer: Any, mesh: GlbMesh, poses: Float[Tensor, "P 6"], side: int, yaws: tuple[float, ...] = POSE_YAWS
) -> Float[ndarray, "P V"]:
    """Intersection over union of the file's mesh, posed by its joints, and the re-rendered portrait."""
    found = np.zeros((len(poses), len(yaws)))
    for row, pose in enumerate(poses):
        _, neck, head = joint_rotations(pose)
        vertices = mesh.posed({"neck": neck, "head": head})
        for column, yaw in enumerate(yaws):
            camera = camera_label(math.radians(yaw))
            with torch.no_grad():
                wanted = (renderer.render(camera, pose[None], side).mask[0, 0] > 0.5).numpy()
            covered = draw(mesh, vertices, camera[0], side)[1] > 0.5
            found[row, column] = (covered & wanted).sum() / max((covered | wanted).sum(), 1)
    return found


@dataclass(frozen=True)
class Measured:
    """Of one person's file."""

    seed: int
    triangles: int
    charts: int
    coverage: float
    kilobytes: float
    cpu_seconds: float
    psnr: list[float]
    overlap: list[list[float]]


def measure(person: p3.Portrait, *, side: int = 512, posed: bool = True) -> Measured:
    """Export a person and measure the file."""
    start = time.process_time()
    solid = person.mesh()
    data = solid.to_glb()
    spent, mesh = time.process_time() - start, read_glb(data)
    overlap = silhouette_overlap(person.renderer, mesh, turned_poses(), side // 2) if posed else np.zeros((0, 0))
    return Measured(
        seed=person.record.seed or 0,
        triangles=len(mesh.faces),
        charts=solid.textured.flat.charts,
        coverage=solid.textured.flat.coverage,
        kilobytes=len(data) / 1000.0,
        cpu_seconds=spent,
        psnr=texture_psnr(person.renderer, mesh, side),
        overlap=overlap.tolist(),
    )


def main(out: Path, *, weights: Path | None = None, seeds: int = 8, posed: int = 3, side: int = 512) -> None:
    """Write how good the meshes of many people are.

    Args:
        out: JSON with the table and every value.
        weights: a weights file; the packaged ones when None.
        seeds: people, from seed 0 on.
        posed: how many of them are posed.
        side: of the views, pixels; silhouettes have half of it.
    """
    model = p3.PortraitModel.from_pretrained(weights)
    model.sample(0).mesh()  # compiles the kernels
    people = []
    for seed in range(seeds):
        people.append(measure(model.sample(seed), side=side, posed=seed < posed))
        print(people[-1], flush=True)
    overlaps = np.array([person.overlap for person in people[:posed]])
    rows = [
        [
            str(p.seed),
            f"{np.mean(p.psnr):.1f} dB",
            f"{min(p.psnr):.1f} dB",
            f"{np.mean(p.overlap):.3f}" if p.overlap else "",
            f"{p.triangles:,}",
            str(p.charts),
            f"{100 * p.coverage:.0f} %",
            f"{p.kilobytes:.0f} kB",
        ]
        for p in people
    ]
    rows.append(["mean", f"{np.mean([p.psnr for p in people]):.1f} dB", "", f"{overlaps.mean():.3f}", "", "", "", ""])
    write_json(
        out,
        {
            "about": {
                "machine": f"{processor_name()}, {torch.get_num_threads()} threads",
                "command": f"python -m tools.mesh_report --out {out} --seeds {seeds} --posed {posed} --side {side}",
                "model": model.info.model,
                "weights": model.info.sha256,
                "date": date.today().isoformat(),
                "views": f"8 yaws, {side} pixels, inside the mask of the volume rendering",
                "poses": "neck and head by 25 degrees about each axis, both ways, in 4 views of half the pixels",
                "least overlap of one pose and view": float(overlaps.min()),
                "CPU seconds": [round(p.cpu_seconds, 1) for p in people],
            },
            "columns": ["seed", "PSNR, mean", "worst view", "overlap when posed", "triangles", "charts", "texture used",
                        "file"],
            "rows": rows,
        },
    )  # fmt: skip


if __name__ == "__main__":
    run_script(main)
