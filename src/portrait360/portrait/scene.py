"""A scene in use, in tensors: computed once from a style, rendered from any camera, re-posed, queried in 3D."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from portrait360.config import CameraConfig, Vector3
from portrait360.geometry.body import BodyTemplate, bone_transforms
from portrait360.geometry.conventions import OURS, model_camera, own_camera
from portrait360.media.images import to_bytes
from portrait360.model.appearance import Appearance, coloured
from portrait360.model.fused import VIEWING_CELLS, can_fuse, occupied_cells
from portrait360.model.generator import Generator, RenderDraws, Scene
from portrait360.model.mapping import latent
from portrait360.model.rendering import Occupancy
from portrait360.model.two_pass import can_render_two_pass, cells_for_two_pass
from portrait360.types import RenderOutput

RENDER_RESOLUTION = 256
"""Rays per side of images from models without super-resolution: the field is sampled finer than in training."""
MESH_STEP = 0.0023
"""World units between the points where the mesh reads the density: about 3 mm."""
_BATCH = 8


def find_matter(generator: Generator, scene: Scene) -> UInt8[Tensor, "L nz ny nx"] | None:
    """The occupied cells of a scene, or None where no compiled renderer can use them."""
    render = generator.config.render
    if can_render_two_pass(scene.tri_grids, generator.decoder, render):
        return cells_for_two_pass(scene.tri_grids, generator.decoder, render)
    if render.quadrature == "point" and can_fuse(scene.tri_grid, None):
        return occupied_cells(scene.tri_grid, generator.decoder, render, VIEWING_CELLS)
    return None


@dataclass(frozen=True)
class SceneRenderer:
    """One person's scene, computed once and rendered as often as wanted. Deterministic.

    Networks and scene may be on a GPU; what goes in and comes out is on the CPU. Camera labels are those of this
    project, and become the model's own here; points and bounds are in the model's world (`geometry.conventions`).
    """

    generator: Generator
    scene: Scene
    occupied: UInt8[Tensor, "1 nz ny nx"] | None = None
    """Cells that rays visit, None for all of them (and for renderers that do not skip)."""
    bf16: bool = False
    """Convolutions in bf16: for original networks on processors where that is faster (`worth_bf16`)."""
    appearance: Appearance | None = None
    """What photos add to the surface's colours."""

    @classmethod
    @torch.no_grad()
    def from_seed(
        cls, generator: Generator, seed: int, truncation_psi: float = 0.7, *, bf16: bool = False
    ) -> SceneRenderer:
        """The person of a seed, mapped under the frontal camera and the canonical pose."""
        device = next(generator.parameters()).device
        z = latent(seed, generator.config.z_dim).to(device)
        front = own_camera(generator.config.camera, 0.0, device=device)
        w = generator.map(z, front, None, truncation_psi)
        return cls.from_w(generator, w, bf16=bf16)

    @classmethod
    @torch.no_grad()
    def from_w(cls, generator: Generator, w: Float[Tensor, "1 S"], *, bf16: bool = False) -> SceneRenderer:
        """The person of a style w."""
        device = next(generator.parameters()).device
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            scene = generator.scene(w.to(device), gradients=False)
        return cls(generator, scene, find_matter(generator, scene), bf16)

    @classmethod
    @torch.no_grad()
    def from_layers(
        cls,
        generator: Generator,
        ws: Float[Tensor, "1 N S"],
        appearance: Appearance | None = None,
        *,
        bf16: bool = False,
    ) -> SceneRenderer:
        """The person of styles that differ from layer to layer, with what photos add."""
        device = next(generator.parameters()).device
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            scene = generator.layered_scene(ws.to(device), gradients=False)
        return cls(generator, scene, find_matter(generator, scene), bf16, appearance)

    @property
    def device(self) -> torch.device:
        """Where the networks run."""
        return self.scene.w.device

    @property
    def body(self) -> BodyTemplate:
        """What a body pose moves: the packaged body, or one that came with the weights."""
        return self.generator.body

    @property
    def camera(self) -> CameraConfig:
        """The cameras and the world of the model."""
        return self.generator.config.camera

    @property
    def posable(self) -> bool:
        """Whether neck and head can be turned."""
        return self.generator.config.posable

    @property
    def default_resolution(self) -> int:
        """Side of the rays: the model's own with super-resolution, `RENDER_RESOLUTION` without."""
        config = self.generator.config
        return RENDER_RESOLUTION if config.superresolution is None else config.raw_resolution

    @property
    def cells(self) -> UInt8[Tensor, "1 nz ny nx"]:
        """Cells of the tri-grid's box that rays visit: all of them where no renderer skips any."""
        if self.occupied is None:
            return torch.ones(1, *VIEWING_CELLS, dtype=torch.uint8)
        return self.occupied.cpu()

    @property
    def own_side(self) -> int | None:
        """Side of the images of a model with super-resolution; None where any side can be rendered."""
        config = self.generator.config
        return None if config.superresolution is None else config.resolution

    @property
    def bounds(self) -> tuple[Float[Tensor, "3"], Float[Tensor, "3"]]:
        """Lower and upper corner of the canonical box outside of which space is empty, in the model's world."""
        config = self.generator.config.render
        centre, half = torch.tensor(config.box_centre), torch.tensor(config.box_half)
        if config.crop is not None:
            half = torch.tensor([config.crop, float(half[1]), config.crop])
        return centre - half, centre + half

    @torch.no_grad()
    def render(
        self,
        camera: Float[Tensor, "B 25"],
        body_pose: Float[Tensor, "B 6"] | None = None,
        resolution: int | None = None,
        *,
        plain: bool = False,
        draft: bool = False,
    ) -> RenderOutput:
        """Render images from B cameras.

        Args:
            camera: camera labels of this project.
            body_pose: radians; the canonical body when None.
            resolution: side of the rays; `default_resolution` when None.
            plain: the slow exact renderer, with the exact deformation where the model has it.
            draft: leave the super-resolution out.
        """
        side = self.default_resolution if resolution is None else resolution
        # every sample of every ray at once, as GPUs render them, takes gigabytes per view
        together = len(camera) if self.device.type == "cpu" else 1
        parts = []
        for start in range(0, len(camera), together):
            some = slice(start, start + together)
            poses = None if body_pose is None else body_pose[some]
            parts.append(self._render(camera[some], poses, side, plain=plain, draft=draft))
        return parts[0] if len(parts) == 1 else joined_outputs(parts)

    def _render(
        self,
        camera: Float[Tensor, "B 25"],
        body_pose: Float[Tensor, "B 6"] | None,
        side: int,
        *,
        plain: bool,
        draft: bool,
    ) -> RenderOutput:
        draws = RenderDraws(occupancy=None if self.occupied is None else Occupancy(self.occupied), gradients=False)
        pose = None if body_pose is None else body_pose.to(self.device)
        own = model_camera(camera, self.camera).to(self.device)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16 and not plain):
            out = self.generator.render(self.scene, own, pose, resolution=side, draws=draws, plain=plain, draft=draft)
        out = out if self.device.type == "cpu" else joined_outputs([out])
        if self.appearance is None:
            return out
        image = coloured(self.appearance, self.body, out, own.cpu(), body_pose, self.camera)
        # without super-resolution `raw` is the image itself
        return dataclasses.replace(out, image=image, raw=image if self.own_side is None else out.raw)

    @torch.no_grad()
    def query(
        self, points: Float[Tensor, "N 3"], body_pose: Float[Tensor, "6"] | None = None
    ) -> tuple[Float[Tensor, " N"], Float[Tensor, "N 3"]]:
        """Density per unit and colour in [0, 1] at points of posed space, in the model's world."""
        pose = None if body_pose is None else body_pose[None].to(self.device)
        density, colour = self.generator.query(self.scene, points[None].to(self.device), pose, gradients=False)
        return density[0, :, 0].cpu(), colour[0].cpu()


def joined_outputs(parts: list[RenderOutput]) -> RenderOutput:
    """Concatenate outputs along the batch, on the CPU."""

    def get(name: str) -> Tensor | None:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else torch.cat([v.cpu() for v in values])

    return RenderOutput(**{field.name: get(field.name) for field in dataclasses.fields(RenderOutput)})  # pyright: ignore


def render_bytes(
    renderer: SceneRenderer, cameras: Float[Tensor, "B 25"], body_pose: Tensor | None, side: int | None = None
) -> Iterator[UInt8[np.ndarray, "b H W 3"]]:
    """Render images in sRGB bytes, a few at a time; `side` of the rays, None: the default."""
    at_once = _BATCH if side is None else max(1, _BATCH * RENDER_RESOLUTION**2 // side**2)
    for batch in cameras.split(at_once):
        poses = None if body_pose is None else body_pose.expand(len(batch), -1)
        with torch.inference_mode():
            yield to_bytes(renderer.render(batch, poses, side).image)


def mesh_box(
    bounds: tuple[Tensor, Tensor], pose: Tensor, body: BodyTemplate, camera: CameraConfig = OURS
) -> tuple[Vector3, Vector3]:
    """The box of the posed portrait, cut at the bottom where no camera that trained the model sees anything.

    Args:
        bounds: lower and upper corner (3,) of the canonical portrait's box.
        pose: body pose (6,).
        body: what the pose moves.
        camera: the model's, in whose world the box is.
    """
    # Cut the bottom
    low, high = (corner.double().numpy().copy() for corner in bounds)
    low[1] = max(low[1], camera.look_at[1] - 0.5 * camera.radius / camera.focal)

    # Hold what neck and head are turned to; what lies below the neck joint rests
    if pose.any():
        upper = np.array(np.meshgrid(*zip(np.maximum(low, [-np.inf, 0.0, -np.inf]), high, strict=True))).reshape(3, -1)
        motions = bone_transforms(body, pose[None])[0].double().numpy()
        for motion in motions:
            moved = motion[:, :3] @ upper + motion[:, 3:]
            low[[0, 2]] = np.minimum(low, moved.min(axis=1))[[0, 2]]  # the cut stays where it is
            high = np.maximum(high, moved.max(axis=1))
    box = [(float(x), float(y), float(z)) for x, y, z in (low, high)]
    return box[0], box[1]
