"""The generator: z, camera and body pose to a canonical tri-grid, rendered posed (official_model 2-7, 9)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from portrait360.config import ModelConfig
from portrait360.geometry.body import BodyTemplate, load_body
from portrait360.geometry.cameras import is_left, mirror_body_pose, mirror_camera, rays
from portrait360.geometry.deformation import (
    FIELD_SHAPE,
    apply_field,
    deform_exact,
    deformation_field,
    deformation_field_reference,
    field_nodes,
)
from portrait360.model.fused import can_fuse, render_fused
from portrait360.model.layers import POSE_OUTPUT_SCALE, ToRGB, perceptron, resize
from portrait360.model.mapping import MappingNetwork
from portrait360.model.rendering import Occupancy, Rendered, bound_rays, query, render_original, render_plain
from portrait360.model.superres import SuperResolution
from portrait360.model.synthesis import SynthesisNetwork
from portrait360.model.trigrid import Decoder, split_planes, symmetrize
from portrait360.model.two_pass import can_render_midpoints, render_midpoints
from portrait360.model.warp import IdentityWarp
from portrait360.types import BODY_POSE_SIZE, CAMERA_LABEL_SIZE, RenderOutput


def select(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Per sample: a where the condition [B] holds, else b."""
    return torch.where(condition.reshape(-1, *[1] * (a.dim() - 1)), a, b)


class Backbone(nn.Module):
    """Mapping and tri-grid synthesis."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels = 3 * config.plane_features * config.plane_depth
        self.synthesis = SynthesisNetwork(config.synthesis, config.w_dim, channels, config.plane_depth)
        self.mapping = MappingNetwork(
            config.z_dim,
            config.w_dim,
            config.mapping_layers,
            conditioning_scale=config.conditioning_scale,
            lr_multiplier=config.mapping_lr_multiplier,
        )


class GeneratorPoseBranch(nn.Module):
    """Predicts the body pose that goes with a latent and a camera, mirror-symmetric (official_model 9)."""

    def __init__(self, z_dim: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.net = perceptron([z_dim + CAMERA_LABEL_SIZE, *hidden, BODY_POSE_SIZE], POSE_OUTPUT_SCALE)

    def forward(self, z: Float[Tensor, "B Z"], camera: Float[Tensor, "B 25"]) -> Float[Tensor, "B 6"]:
        left = is_left(camera)
        pose = self.net(torch.cat([z, select(left, mirror_camera(camera), camera)], dim=1))
        return select(left, mirror_body_pose(pose), pose)


@dataclass(frozen=True)
class Scene:
    """What is the same for every view of one portrait: computed once, rendered often."""

    w: Float[Tensor, "L S"]
    tri_grid: Float[Tensor, "L 3 C D H W"]
    background: Float[Tensor, "L F R R"] | None
    w_background: Float[Tensor, "L S"] | None = None
    """The background's style if it is another one than w."""
    warp: Float[Tensor, "L nz ny nx 3"] | None = None
    """Displacements of canonical positions that make each person's shape (`model.warp`)."""


@dataclass(frozen=True)
class RenderDraws:
    """Random numbers of one training render; all None at inference, which is deterministic."""

    jitter: Float[Tensor, "B M"] | None = None
    density_noise: float = 0.0
    occupancy: Occupancy | None = None


class Generator(nn.Module):
    """Tensor names follow the original networks (official_model 12.6)."""

    def __init__(self, config: ModelConfig, body: BodyTemplate | None = None) -> None:
        super().__init__()
        self.config = config
        self.body = load_body() if body is None else body
        self.backbone = Backbone(config)
        self.decoder = Decoder(config.plane_features, config.decoder_hidden, config.features, config.decoder_activation)
        if config.features != 3:
            self.torgb = ToRGB(config.features, 3, config.w_dim)
        if config.superresolution is not None:
            self.superresolution = SuperResolution(config.superresolution, config.features, config.w_dim)
        if config.background is not None:
            self.bcg_synthesis = SynthesisNetwork(config.background, config.w_dim, config.features)
        if config.warp is not None:
            self.warp = IdentityWarp(config.warp, config.w_dim)
        self.pose_branch = GeneratorPoseBranch(config.z_dim, config.pose_hidden)

    # ---- from latent to scene ----

    def map(
        self,
        z: Float[Tensor, "B Z"],
        camera: Float[Tensor, "B 25"],
        body_pose: Float[Tensor, "B 6"] | None = None,
        truncation_psi: float = 1.0,
    ) -> Float[Tensor, "B S"]:
        """Style w of a latent, conditioned on camera and body pose."""
        mapping = self.backbone.mapping
        return mapping.truncate(mapping(z, camera, body_pose), truncation_psi)

    def scene(
        self,
        w: Float[Tensor, "L S"],
        w_background: Float[Tensor, "L S"] | None = None,
        noise_mode: str = "const",
    ) -> Scene:
        """Tri-grid and background of each style."""
        ws = w[:, None].expand(-1, self.backbone.synthesis.num_ws, -1)
        planes = self.backbone.synthesis(ws, noise_mode)
        background = None
        if self.config.background is not None:
            wb = w if w_background is None else w_background
            background = self.bcg_synthesis(wb[:, None].expand(-1, self.bcg_synthesis.num_ws, -1), noise_mode)
        tri_grid = symmetrize(split_planes(planes, self.config.plane_depth), self.config.symmetric_features)
        warp = None if self.config.warp is None else self.warp(w)
        return Scene(w, tri_grid, background, w_background, warp)

    # ---- from scene to pictures ----

    def cast(
        self,
        scene: Scene,
        camera: Float[Tensor, "B 25"],
        body_pose: Float[Tensor, "B 6"] | None,
        side: int,
        draws: RenderDraws,
        plain: bool,
    ) -> Rendered:
        """Rays of `side` x `side` pixels per camera through the scene; see `render`."""
        config = self.config.render
        origins, directions = rays(camera, side)
        bounded = bound_rays(origins, directions, config)
        field, deform = self.field(scene, body_pose, len(camera), plain=plain), None
        if body_pose is not None and self.config.deformation == "exact":
            deform = partial(
                deform_exact,
                body=self.body,
                pose=body_pose,
                thickness=self.config.thickness,
                first_axis_of_three=self.config.original_bugs.first_axis_of_three,
            )
        if config.quadrature == "midpoint":
            if draws.occupancy is not None and not plain and self._is_inference(scene, draws):
                if deform is not None and body_pose is not None:
                    field = deformation_field(self.body, body_pose)
                return render_midpoints(
                    scene.tri_grid, self.decoder, bounded, config, draws.occupancy.occupied, field=field
                )
            n, m = bounded.near.shape
            jitter = None if draws.jitter is None else draws.jitter[..., None, None].expand(n, m, config.samples, 1)
            if field is not None:
                deform = partial(apply_field, field)
            tri_grid = scene.tri_grid.repeat_interleave(n // scene.tri_grid.shape[0], dim=0)
            return render_original(
                tri_grid, self.decoder, bounded, config,
                deform=deform, jitter=jitter, density_noise=draws.density_noise,
            )  # fmt: skip
        training = draws.jitter is not None
        samples = config.samples if training else (config.inference_samples or config.samples)
        jitter = torch.full_like(bounded.near, 0.5) if draws.jitter is None else draws.jitter
        noise = None
        if draws.density_noise > 0:
            noise = torch.randn(*jitter.shape, samples, device=jitter.device) * draws.density_noise
        options = {
            "samples": samples, "jitter": jitter, "field": field, "noise": noise, "occupancy": draws.occupancy,
        }  # fmt: skip
        if can_fuse(scene.tri_grid, deform) and not plain:
            return render_fused(scene.tri_grid, self.decoder, bounded, config, **options)
        return render_plain(scene.tri_grid, self.decoder, bounded, config, deform=deform, **options)

    def field(
        self, scene: Scene, body_pose: Float[Tensor, "B 6"] | None, views: int, *, plain: bool = False
    ) -> Float[Tensor, "B nz ny nx 3"] | None:
        """Displacements from posed to canonical space, less what the style displaces there; None: nothing moves.

        B views, latent-major. `plain` forces the readable field.
        """
        if self.config.deformation == "exact":
            return None
        warp = self.config.warp
        shape = FIELD_SHAPE if warp is None else warp.field_shape
        if body_pose is None:
            field = None if warp is None else scene.w.new_zeros(views, *shape, 3)
        else:
            field = (deformation_field_reference if plain else deformation_field)(self.body, body_pose, shape)
        if scene.warp is None or field is None:
            return field

        # a node's canonical position, displaced by the style's warp there
        warps = scene.warp.repeat_interleave(views // len(scene.warp), dim=0)
        return field + self.warp.displace(warps, field_nodes(shape).to(field) + field)

    def _is_inference(self, scene: Scene, draws: RenderDraws) -> bool:
        """Whether the compiled two-pass renderer, which has no gradients and draws nothing, can be used."""
        random = draws.jitter is not None or draws.density_noise > 0 or torch.is_grad_enabled()
        return not random and can_render_midpoints(scene.tri_grid, self.decoder, self.config.render)

    def render(
        self,
        scene: Scene,
        camera: Float[Tensor, "B 25"],
        body_pose: Float[Tensor, "B 6"] | None = None,
        *,
        resolution: int | None = None,
        draws: RenderDraws | None = None,
        plain: bool = False,
    ) -> RenderOutput:
        """Pictures of B = L * views cameras, latent-major. No body pose means the canonical body.

        `resolution`: side of the rays (default: the config's). `plain` forces the slow readable renderer and
        the readable field.
        """
        side = self.config.raw_resolution if resolution is None else resolution
        with torch.autocast(camera.device.type, enabled=False):  # positions need all their bits
            rendered = self.cast(scene, camera, body_pose, side, draws or RenderDraws(), plain)
        return self.compose(scene, rendered, side)

    def compose(self, scene: Scene, rendered: Rendered, side: int) -> RenderOutput:
        """Pictures of rays that were cast: put over the background, coloured, super-resolved (5.9, 7)."""
        n = rendered.features.shape[0]
        views = n // scene.w.shape[0]

        def picture(v: Tensor) -> Tensor:
            return v.transpose(1, 2).reshape(n, -1, side, side)

        features, opacity, depth = picture(rendered.features), picture(rendered.opacity), picture(rendered.distance)
        w = scene.w.repeat_interleave(views, dim=0)
        background = None
        if scene.background is not None:
            behind = resize(scene.background.float(), side).repeat_interleave(views, dim=0)
            features = features + (1.0 - opacity) * behind
            w_behind = w if scene.w_background is None else scene.w_background.repeat_interleave(views, dim=0)
            background = self._colour(behind, w_behind)
        elif self.config.features == 3:
            features = features + (1.0 - opacity) * (self.config.plain_background * 0.5 + 0.5)
        raw = self._colour(features, w)
        image = raw
        if self.config.superresolution is not None:
            if self.config.superresolution.resample == "box":
                features = features.contiguous(memory_format=torch.channels_last)
            image = self.superresolution(raw, features, w).float()
            if self.config.original_bugs.raw_overwritten:
                raw = self.superresolution.overwritten_raw(raw, features, w)
        return RenderOutput(image, raw, opacity * 1.002 - 0.001, depth, background, features)

    def _colour(self, features: Tensor, w: Tensor) -> Tensor:
        if self.config.features == 3:
            return features * 2.0 - 1.0 if self.config.render.feature_activation == "sigmoid" else features
        with torch.autocast(features.device.type, enabled=False):
            return self.torgb(features, w)

    def query(self, scene: Scene, points: Float[Tensor, "L N 3"], body_pose: Float[Tensor, "L 6"] | None = None):
        """Density per world unit [L, N, 1] and colour in [0, 1] [L, N, 3] at posed points."""
        field = self.field(scene, body_pose, len(points))
        if field is not None:
            points = apply_field(field, points)
        config = self.config.render
        raw, features = query(scene.tri_grid, self.decoder, points, config)
        density = torch.nn.functional.softplus(raw + config.density_shift) * config.density_scale
        if self.config.features != 3:
            features = self.torgb(features.transpose(1, 2)[..., None], scene.w)[..., 0].transpose(1, 2)
        colour = features if config.feature_activation == "sigmoid" else features * 0.5 + 0.5
        return density, colour.clamp(0.0, 1.0)
