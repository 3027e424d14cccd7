"""The generator: z, camera and body pose to a canonical tri-grid, rendered posed (equations 2-7, 9)."""

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
from portrait360.model.fused import can_fuse, can_query_fused, query_fused, render_fused
from portrait360.model.layers import POSE_OUTPUT_SCALE, ToRGB, perceptron, resize
from portrait360.model.mapping import CameraTranslation, MappingNetwork, StyleMixture, inversion_latent
from portrait360.model.pyramid import PyramidSynthesis
from portrait360.model.rendering import (
    Deform,
    Occupancy,
    Rays,
    Rendered,
    Sampling,
    TwoPassDraws,
    bound_rays,
    query,
    render_original,
    render_plain,
)
from portrait360.model.superres import SuperResolution
from portrait360.model.synthesis import SynthesisNetwork
from portrait360.model.trigrid import Decoder, TriGrid, levels_of, split_planes, symmetrize
from portrait360.model.two_pass import can_render_two_pass, render_two_pass
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
        network = SynthesisNetwork if config.synthesis.pyramid_from is None else PyramidSynthesis
        self.synthesis = network(config.synthesis, config.w_dim, channels, config.plane_depth)
        self.mapping: MappingNetwork | StyleMixture
        if config.mapping_styles:
            self.mapping = StyleMixture(config.z_dim, config.w_dim, config.mapping_styles)
        else:
            self.mapping = MappingNetwork(
                config.z_dim,
                config.w_dim,
                config.mapping_layers,
                conditioning_scale=config.conditioning_scale,
                posed=config.posable,
                lr_multiplier=config.mapping_lr_multiplier,
            )


class GeneratorPoseBranch(nn.Module):
    """Predicts the body pose that goes with a latent and a camera, mirror-symmetric (equations 9)."""

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
    """Of a pyramid, the finest one."""
    background: Float[Tensor, "L F R R"] | None
    w_background: Float[Tensor, "L S"] | None = None
    """The background's style if it is another one than w."""
    warp: Float[Tensor, "L nz ny nx 3"] | None = None
    """Displacements of canonical positions that make each person's shape (`model.warp`)."""
    coarser: tuple[Float[Tensor, "L 3 C D _h _w"], ...] = ()
    """The other levels of a pyramid, from the coarsest on."""

    @property
    def tri_grids(self) -> TriGrid:
        """What renderers read: the tri-grid, or all levels of a pyramid."""
        return (*self.coarser, self.tri_grid) if self.coarser else self.tri_grid


@dataclass(frozen=True)
class RenderDraws:
    """How one render samples its rays. Nothing is random at inference."""

    jitter: Float[Tensor, "B M"] | None = None
    """Of training: where in its interval each ray samples, 0 to 1."""
    density_noise: float = 0.0
    """Of training: standard deviation of the noise on raw densities."""
    occupancy: Occupancy | None = None
    gradients: bool = True
    """False permits the compiled forms of inference, which have no gradients."""


class Generator(nn.Module):
    """Tensor names follow the original networks (equations 12.6)."""

    def __init__(self, config: ModelConfig, body: BodyTemplate | None = None) -> None:
        super().__init__()
        self.config = config
        self.body = load_body() if body is None else body
        self.field_shape = FIELD_SHAPE if config.warp is None else config.warp.field_shape
        """Nodes of the deformation field along z, y and x."""
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
        if config.camera_translation:
            self.t_mapping = CameraTranslation(config.z_dim, config.mapping_layers, config.conditioning_scale)
        if config.posable:
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
        return self.backbone.mapping.truncated(z, camera, body_pose, truncation_psi)

    def translation(
        self, z: Float[Tensor, "B Z"], camera: Float[Tensor, "B 25"], truncation_psi: float = 1.0
    ) -> Float[Tensor, "B 3"]:
        """How far the camera of a latent is to be moved, in the model's world: for `model.camera_translation`."""
        return self.t_mapping.truncated(z, camera, None, truncation_psi)

    def inversion_translation(self, camera: Float[Tensor, "B 25"]) -> Float[Tensor, "B 3"]:
        """How far the published inversion moves cameras of a photo, which has no latent (equations 15.2); zero for
        models without `model.camera_translation`."""
        if not self.config.camera_translation:
            return camera.new_zeros(len(camera), 3)
        return self.translation(inversion_latent(self.config.z_dim).to(camera).expand(len(camera), -1), camera)

    def scene(
        self,
        w: Float[Tensor, "L S"],
        w_background: Float[Tensor, "L S"] | None = None,
        noise_mode: str = "const",
        *,
        gradients: bool = True,
    ) -> Scene:
        """Tri-grid and background of each style. `gradients` False permits the folded layers of inference."""
        ws = w[:, None].expand(-1, self.backbone.synthesis.num_ws, -1)
        return self._scene(w, ws, w_background, noise_mode, gradients)

    def layered_scene(self, ws: Float[Tensor, "L N S"], noise_mode: str = "const", *, gradients: bool = True) -> Scene:
        """Tri-grid and background of styles that differ from layer to layer (W+, Abdal et al. 2019).

        All else, the background and the warp among it, follows the mean of the layers' styles.
        """
        return self._scene(ws.mean(dim=1), ws, None, noise_mode, gradients)

    def _scene(self, w: Tensor, ws: Tensor, w_background: Tensor | None, noise_mode: str, gradients: bool) -> Scene:
        *coarser, tri_grid = self.tri_grids(ws, noise_mode, gradients=gradients)
        background = None
        if self.config.background is not None:
            wb = w if w_background is None else w_background
            ws = wb[:, None].expand(-1, self.bcg_synthesis.num_ws, -1)
            background = self.bcg_synthesis(ws, noise_mode, gradients=gradients)
        warp = None if self.config.warp is None else self.warp(w)
        return Scene(w, tri_grid, background, w_background, warp, tuple(coarser))

    def tri_grids(
        self, ws: Float[Tensor, "L N S"], noise_mode: str = "const", *, gradients: bool = True
    ) -> tuple[Float[Tensor, "L 3 C D H W"], ...]:
        """The levels of a pyramid from the coarsest on, or the one tri-grid, of the rows of styles."""
        synthesis = self.backbone.synthesis
        if isinstance(synthesis, PyramidSynthesis):
            return synthesis.levels(ws, noise_mode, gradients=gradients)
        planes = synthesis(ws, noise_mode, gradients=gradients)
        return (symmetrize(split_planes(planes, self.config.plane_depth), self.config.symmetric_features),)

    # ---- from scene to images ----

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
        bounded = bound_rays(*rays(camera, side), self.config.render)
        if self.config.render.quadrature == "midpoint":
            return self._cast_two_pass(scene, bounded, body_pose, draws, plain)
        return self._cast_one_pass(scene, bounded, body_pose, draws, plain)

    def field(
        self, scene: Scene, body_pose: Float[Tensor, "B 6"] | None, views: int, *, plain: bool = False
    ) -> Float[Tensor, "B nz ny nx 3"] | None:
        """Displacements from posed space to where the tri-grid is read, by pose and style; None: nothing moves.

        `views`: B, latent-major. `plain` forces the readable field.
        """
        if body_pose is not None:
            make = deformation_field_reference if plain else deformation_field
            field = make(self.body, body_pose, self.field_shape)
        elif scene.warp is not None:
            field = scene.w.new_zeros(views, *self.field_shape, 3)
        else:
            return None
        if scene.warp is None:
            return field

        # The style displaces the canonical position that the pose gives
        warps = scene.warp.repeat_interleave(views // len(scene.warp), dim=0)
        return field + self.warp.displace(warps, field_nodes(self.field_shape).to(field) + field)

    def _exact(self, body_pose: Tensor | None) -> Deform | None:
        """The transfer through triangles of models that have it."""
        if body_pose is None or self.config.deformation == "field":
            return None
        return partial(
            deform_exact,
            body=self.body,
            pose=body_pose,
            thickness=self.config.thickness,
            half_box=max(self.config.render.box_half),
            first_axis_of_three=self.config.original_bugs.first_axis_of_three,
        )

    def _cast_two_pass(
        self, scene: Scene, bounded: Rays, body_pose: Tensor | None, draws: RenderDraws, plain: bool
    ) -> Rendered:
        """The published renderer, or its fast twin where nothing is random and no gradients are wanted."""
        config = self.config.render
        if draws.occupancy is not None and not plain and self._is_inference(scene, draws):
            field = self.field(scene, body_pose, len(bounded.near))
            occupied = draws.occupancy.occupied
            return render_two_pass(scene.tri_grids, self.decoder, bounded, config, occupied, field=field)

        deform = self._exact(body_pose)
        field = None if deform is not None else self.field(scene, body_pose, len(bounded.near), plain=plain)
        if field is not None:
            deform = partial(apply_field, field)
        n, m = bounded.near.shape
        jitter = None if draws.jitter is None else draws.jitter[..., None, None].expand(n, m, config.samples, 1)
        views = n // len(scene.w)
        grids = tuple(level.repeat_interleave(views, dim=0) for level in levels_of(scene.tri_grids))
        tri_grid = grids if scene.coarser else grids[-1]
        random = TwoPassDraws(jitter, draws.density_noise)
        return render_original(tri_grid, self.decoder, bounded, config, deform=deform, draws=random)

    def _cast_one_pass(
        self, scene: Scene, bounded: Rays, body_pose: Tensor | None, draws: RenderDraws, plain: bool
    ) -> Rendered:
        """This project's renderer, fused where that is possible."""
        config = self.config.render
        deform = self._exact(body_pose)
        field = None if deform is not None else self.field(scene, body_pose, len(bounded.near), plain=plain)

        # Training jitters and may add noise; inference takes the middles of the intervals.
        training = draws.jitter is not None
        samples = config.samples if training else (config.inference_samples or config.samples)
        jitter = torch.full_like(bounded.near, 0.5) if draws.jitter is None else draws.jitter
        noise = None
        if draws.density_noise > 0:
            noise = torch.randn(*jitter.shape, samples, device=jitter.device) * draws.density_noise
        sampling = Sampling(samples, jitter, noise, draws.occupancy)

        if can_fuse(scene.tri_grid, deform) and not plain:
            return render_fused(scene.tri_grid, self.decoder, bounded, config, sampling, field=field)
        return render_plain(scene.tri_grid, self.decoder, bounded, config, sampling, field=field, deform=deform)

    def _is_inference(self, scene: Scene, draws: RenderDraws) -> bool:
        """Whether the compiled two-pass renderer, which has no gradients and draws nothing, can be used."""
        random = draws.jitter is not None or draws.density_noise > 0
        inference = not random and not draws.gradients
        return inference and can_render_two_pass(scene.tri_grids, self.decoder, self.config.render)

    def render(
        self,
        scene: Scene,
        camera: Float[Tensor, "B 25"],
        body_pose: Float[Tensor, "B 6"] | None = None,
        *,
        resolution: int | None = None,
        draws: RenderDraws | None = None,
        plain: bool = False,
        draft: bool = False,
    ) -> RenderOutput:
        """Images of B = L * views cameras, latent-major. No body pose means the canonical body.

        `resolution`: side of the rays (default: the config's). `plain` forces the slow readable renderer and
        the readable field. `draft` leaves the super-resolution out: the image is the rendered colours.
        """
        if body_pose is not None and not self.config.posable:
            raise ValueError(f"{self.config.name} knows no body pose")
        side = self.config.raw_resolution if resolution is None else resolution
        draws = draws or RenderDraws()
        with torch.autocast(camera.device.type, enabled=False):  # positions need all their bits
            rendered = self.cast(scene, camera, body_pose, side, draws, plain)
        return self.compose(scene, rendered, side, gradients=draws.gradients, draft=draft)

    def compose(
        self, scene: Scene, rendered: Rendered, side: int, *, gradients: bool = True, draft: bool = False
    ) -> RenderOutput:
        """Images of rays that were cast: put over the background, coloured, super-resolved (equations 5.9, 7)."""
        # Rays to images.
        n = rendered.features.shape[0]
        views = n // scene.w.shape[0]

        def to_image(v: Tensor) -> Tensor:
            return v.transpose(1, 2).reshape(n, -1, side, side)

        features, opacity, depth = to_image(rendered.features), to_image(rendered.opacity), to_image(rendered.distance)

        # Over the background.
        w = scene.w.repeat_interleave(views, dim=0)
        background = None
        if scene.background is not None:
            behind = resize(scene.background.float(), side).repeat_interleave(views, dim=0)
            features = features + (1.0 - opacity) * behind
            w_behind = w if scene.w_background is None else scene.w_background.repeat_interleave(views, dim=0)
            background = self._colour(behind, w_behind)
        elif self.config.features == 3:
            features = features + (1.0 - opacity) * (self.config.plain_background * 0.5 + 0.5)

        # Colours, and more pixels.
        raw = self._colour(features, w)
        image = raw
        if self.config.superresolution is not None and not draft:
            if self.config.superresolution.resample == "box":
                features = features.contiguous(memory_format=torch.channels_last)
            image = self.superresolution(raw, features, w, gradients=gradients).float()
            if self.config.original_bugs.raw_overwritten:
                raw = self.superresolution.overwritten_raw(raw, features, w)
        return RenderOutput(image, raw, opacity * 1.002 - 0.001, depth, background, features)

    def _colour(self, features: Tensor, w: Tensor) -> Tensor:
        if self.config.features == 3:
            return features * 2.0 - 1.0 if self.config.render.feature_activation == "sigmoid" else features
        with torch.autocast(features.device.type, enabled=False):
            return self.torgb(features, w)

    def query(
        self,
        scene: Scene,
        points: Float[Tensor, "L N 3"],
        body_pose: Float[Tensor, "L 6"] | None = None,
        *,
        gradients: bool = True,
    ):
        """Density per world unit [L, N, 1] and colour in [0, 1] [L, N, 3] at posed points.

        `gradients` False permits the compiled reader, which has none.
        """
        field = self.field(scene, body_pose, len(points))
        if field is not None:
            points = apply_field(field, points)
        config = self.config.render
        compiled = not gradients and can_query_fused(scene.tri_grids, self.decoder)
        read = query_fused if compiled else query
        raw, features = read(scene.tri_grids, self.decoder, points, config)
        density = torch.nn.functional.softplus(raw + config.density_shift) * config.density_scale
        if self.config.features != 3:
            features = self.torgb(features.transpose(1, 2)[..., None], scene.w)[..., 0].transpose(1, 2)
        colour = features if config.feature_activation == "sigmoid" else features * 0.5 + 0.5
        return density, colour.clamp(0.0, 1.0)
