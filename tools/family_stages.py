"""What is compared with golden numbers of PanoHead and of 3DPortraitGAN_pyramid, stage by stage (equations 15)."""

from __future__ import annotations

import copy
import dataclasses
import math

import torch
from torch import Tensor

from portrait360.geometry.cameras import rays, yaw_pitch
from portrait360.geometry.conventions import own_camera, translated
from portrait360.model.generator import Generator, Scene
from portrait360.model.layers import roll_out
from portrait360.model.mapping import INVERSION_LATENTS, INVERSION_SEED
from portrait360.model.pyramid import PyramidSynthesis
from portrait360.model.rendering import Rays, Rendered, bound_rays, march_midpoints, query, render_original
from portrait360.model.trigrid import levels_of, sample_trigrid, split_planes
from tools.comparison import DENSITY, PLAIN, Comparison, Slack, Tolerance
from tools.golden import Golden, Networks
from tools.stages import (
    CROP,
    DEPTH,
    PSI,
    as_image,
    cast,
    check_importance,
    depth_slack,
    image_slack,
    ray_slack,
    with_bugs,
)

EXACT = Tolerance(1e-6)
"""Labels, rays, roll-out and marcher by themselves."""
RENDER = Tolerance(6e-4, 2e-5)
FULL_RENDER = Tolerance(1e-4, 1e-5)
_SCRIPT_ANGLE = 3.14 / 2
"""What the published scripts have for a right angle."""
_CHUNK = 500


@dataclasses.dataclass(frozen=True)
class Shot:
    """A scene from a camera, in rays of `side` x `side`."""

    generator: Generator
    scene: Scene
    camera: Tensor
    side: int


def tensors_tolerance(value: Tensor) -> Tolerance:
    """Of planes and what is looked up in them: grows with their magnitude."""
    return Tolerance(3e-5 * max(1.0, float(value.abs().mean())))


def compare_panohead(comparison: Comparison, networks: Networks) -> None:
    """Every output of a small file of PanoHead."""
    # Styles, camera translation and cameras.
    golden, generator = comparison.golden, networks.generator
    z, camera, conditioning = (golden.tensor(f"in/{name}") for name in ("z", "c", "c_cond"))
    w = _styles(comparison, generator, z, conditioning)
    _translations(comparison, generator, z, camera, conditioning)
    _script_labels(comparison, generator)

    # Planes, lookups, the marcher by itself.
    for mode in ("none", "const"):
        scene = generator.scene(w, noise_mode=mode)
        planes = scene.tri_grid.flatten(1, 3)
        comparison.check("tri-grid", f"planes_{mode}", planes, tensors_tolerance(planes))
    scene = generator.scene(w)
    planes = scene.tri_grid.flatten(1, 3)
    comparison.check("tri-grid", "planes_const_absmean", planes.abs().mean(dim=(2, 3)), tensors_tolerance(planes))
    rows = golden.tensor("in/ws_rows")
    planes_of_rows = split_planes(generator.backbone.synthesis(rows, "const"), generator.config.plane_depth)
    check_rows = planes_of_rows.flatten(1, 3)
    comparison.check("tri-grid of distinct rows", "rows_planes_const", check_rows, tensors_tolerance(check_rows))
    _backgrounds(comparison, generator, scene, rows)
    _points(comparison, generator, scene)
    points = golden.tensor("out/points")
    one_slice = planes[:, :96].unflatten(1, (3, 32, 1))
    found = sample_trigrid(one_slice, 2.0 * points)
    comparison.check("lookup with one slice", "points_features_depth1", found, tensors_tolerance(found))
    _march(comparison, generator)

    # Rays and images.
    origins, directions = rays(camera, 8)
    comparison.check("rays", "rays8_origin", origins[:, :1], EXACT)
    comparison.check("rays", "rays8_direction", directions, EXACT)
    for side in (32, 64):
        _images(comparison, Shot(generator, scene, camera, side))

    # The module's own forward, and variants.
    forward = generator.scene(generator.map(z, camera, None, PSI))
    moved = translated(camera, generator.translation(z, camera, PSI))
    _render(comparison, "module forward", Shot(generator, forward, moved, 32), "forward32/")
    swapped = generator.scene(scene.w, scene.w.flip(0))
    _render(comparison, "background of another style", Shot(generator, swapped, camera, 32), "render32_wsbcg_swapped/")
    nearer = _with_near(generator, 2.35)
    _render(comparison, "rays that begin nearer", Shot(nearer, scene, camera, 32), "render32_start2.35/")
    _density_grid(comparison, generator, scene)


def compare_pyramid(comparison: Comparison, networks: Networks) -> None:
    """Every output of a small file of 3DPortraitGAN_pyramid."""
    # Styles and poses.
    golden, generator, check = comparison.golden, networks.generator, comparison.check
    z, pose, camera, conditioning = (golden.tensor(f"in/{name}") for name in ("z", "pose", "c", "c_cond"))
    check("pose branch of G", "G_pose_params", generator.pose_branch(z, camera), PLAIN)
    check("mapping", "w_psi1", generator.map(z, conditioning, pose), PLAIN)
    check("mapping", "w_pose_none_psi1", generator.map(z, conditioning), PLAIN)
    w = generator.map(z, conditioning, pose, PSI)
    check("mapping", "w_psi07", w, PLAIN)

    # The roll-out by itself, flat images and tri-grids.
    check("roll-out", "aware3d/out", roll_out(golden.tensor("out/aware3d/in")), EXACT)
    rows = golden.tensor("in/ws_rows")
    synthesis = generator.backbone.synthesis
    assert isinstance(synthesis, PyramidSynthesis)
    for side, image in zip(synthesis.resolutions, synthesis.images(rows, "const", None), strict=True):
        check("flat images of distinct rows", f"rows_const/image2d_{side}", image, tensors_tolerance(image))
    _levels(comparison, "tri-grids of distinct rows", "rows_const/", synthesis.levels(rows, "const"))
    scene = generator.scene(w)
    _levels(comparison, "tri-grid", "ws_const/", levels_of(scene.tri_grids))
    _levels(comparison, "tri-grid", "ws_none/", levels_of(generator.scene(w, noise_mode="none").tri_grids))

    # Background, lookups and images.
    _backgrounds(comparison, generator, scene, None)
    _points(comparison, generator, scene)
    for side in (32, 64):
        _images(comparison, Shot(generator, scene, camera, side))
    forward = generator.scene(generator.map(z, camera, None, PSI))
    _render(comparison, "module forward", Shot(generator, forward, camera, 32), "forward32_pose_none/")
    _chunks(comparison, generator, scene, camera)


def compare_full_size_relative(comparison: Comparison, networks: Networks) -> None:
    """Every output of a full-size file of PanoHead or 3DPortraitGAN_pyramid."""
    # Styles, poses, camera translation.
    golden, check, generator = comparison.golden, comparison.check, networks.generator
    z, camera, conditioning = (golden.tensor(f"in/{name}") for name in ("z", "c", "c_cond"))
    pose = golden.tensor("in/pose") if generator.config.posable else None
    w = generator.map(z, conditioning, pose, PSI)
    check("mapping", "w", w, PLAIN)
    if generator.config.camera_translation:
        check("camera translation", "delta_psi1", generator.translation(z, camera), PLAIN)
        check("camera translation", "inversion_delta", generator.inversion_translation(camera), PLAIN)
    if generator.config.posable:
        check("pose branch of G", "G_pose", generator.pose_branch(z, camera), PLAIN)

    # Tri-grids and background.
    scene = generator.scene(w)
    if scene.coarser:
        _levels(comparison, "tri-grid", "", levels_of(scene.tri_grids))
    else:
        planes = scene.tri_grid.flatten(1, 3)
        check("tri-grid", "planes", planes, tensors_tolerance(planes))
    assert scene.background is not None
    check("background", "background", scene.background, tensors_tolerance(scene.background))

    # Images at every number of rays, and those of the module's own forward.
    for side in golden.ray_sides:
        _render(comparison, "", Shot(generator, scene, camera, side), f"nrr{side}/", FULL_RENDER)
    if generator.config.camera_translation:
        forward = generator.scene(generator.map(z, camera, None, PSI))
        moved = translated(camera, generator.translation(z, camera, PSI))
        _render(comparison, "module forward", Shot(generator, forward, moved, 64), "forward_nrr64/", FULL_RENDER)


# ---- stages ----


def _styles(comparison: Comparison, generator: Generator, z: Tensor, conditioning: Tensor) -> Tensor:
    """Styles of PanoHead, truncated and not. Returns those of the renders."""
    check = comparison.check
    full, w = generator.map(z, conditioning), generator.map(z, conditioning, None, PSI)
    check("mapping", "w_psi1", full, PLAIN)
    check("mapping", "w_psi07", w, PLAIN)
    half = generator.map(z, conditioning, None, 0.5)
    check("mapping", "ws_psi05_cut3_rows_2_3", torch.stack([half, full], dim=1), PLAIN)
    drawn = torch.from_numpy(_inversion_draws(z.shape[1])).float()
    mean = generator.map(drawn, conditioning[:1].expand(len(drawn), -1)).mean(dim=0)
    check("mapping", "inversion_w_mean", mean, PLAIN)
    return w


def _inversion_draws(z_dim: int):
    import numpy as np

    return np.random.RandomState(INVERSION_SEED).randn(INVERSION_LATENTS, z_dim)[:_CHUNK]


def _translations(
    comparison: Comparison, generator: Generator, z: Tensor, camera: Tensor, conditioning: Tensor
) -> None:
    check = comparison.check
    shift = generator.translation(z, camera)
    check("camera translation", "delta_psi1", shift, PLAIN)
    check("camera translation", "c_shifted_psi1", translated(camera, shift), PLAIN)
    check("camera translation", "delta_psi07", generator.translation(z, camera, PSI), PLAIN)
    check("camera translation", "inversion_delta", generator.inversion_translation(camera[:1]), PLAIN)


def _script_labels(comparison: Comparison, generator: Generator) -> None:
    """Labels of the published scripts from this project's angles; their vertical number v is no angle (1.3)."""
    golden, camera = comparison.golden, generator.config.camera
    for name, angle in (("front_script_3.14", _SCRIPT_ANGLE), ("front_radians", math.pi / 2)):
        found = own_camera(camera, angle - math.pi / 2, math.asin(1.0 - 2.0 * angle / math.pi))
        comparison.add("labels", f"label/{name}", found, golden.tensor(f"label/{name}"), PLAIN)
    expected = golden.tensor("label/lookat_0_0_0.2")
    yaw, pitch = yaw_pitch(expected)
    found = own_camera(dataclasses.replace(camera, look_at=(0.0, 0.0, 0.2)), yaw, pitch)
    comparison.add("labels", "label/lookat_0_0_0.2", found, expected, PLAIN)


def _levels(comparison: Comparison, stage: str, at: str, levels: tuple[Tensor, ...]) -> None:
    for level in levels:
        name = f"{at}trigrid{level.shape[-1]}"
        comparison.check(stage, name, level.flatten(2, 3), tensors_tolerance(level))


def _backgrounds(comparison: Comparison, generator: Generator, scene: Scene, rows: Tensor | None) -> None:
    assert scene.background is not None
    comparison.check("background", "background_const", scene.background, tensors_tolerance(scene.background))
    if rows is not None:
        missing = generator.bcg_synthesis.num_ws - rows.shape[1]
        rows = torch.cat([rows, rows[:, -1:].expand(-1, missing, -1)], dim=1)
        found = generator.bcg_synthesis(rows, "const")
        comparison.check("background of distinct rows", "rows_background_const", found, tensors_tolerance(found))


def _points(comparison: Comparison, generator: Generator, scene: Scene) -> None:
    points, config = comparison.golden.tensor("out/points"), generator.config.render
    found = sample_trigrid(scene.tri_grids, points / config.box_half[0])
    comparison.check("lookup", "points_features", found, tensors_tolerance(found))
    density, features = query(scene.tri_grids, generator.decoder, points, config, crop=False)
    comparison.check("decoder: densities", "points_sigma", density, DENSITY)
    comparison.check("decoder: features", "points_rgb", features, tensors_tolerance(features))


def _march(comparison: Comparison, generator: Generator) -> None:
    """The marcher by itself, with empty and opaque rays (5.6)."""
    t, density, colour = (comparison.golden.tensor(f"out/march/{name}") for name in ("t", "sigma", "colour"))
    features, distance, weights = march_midpoints(colour, density, t, generator.config.render)
    for name, value in (("rgb", features), ("depth", distance), ("weights", weights)):
        comparison.check("marcher", f"march/{name}", value, EXACT)
    for name in ("t", "sigma", "colour"):  # inputs, stored among the outputs
        comparison.golden.used.add(f"out/march/{name}")


def _images(comparison: Comparison, shot: Shot) -> None:
    """Samples along rays, and everything that is made of them."""
    generator, scene, camera, side = shot.generator, shot.scene, shot.camera, shot.side

    # Samples and rays.
    check, at = comparison.check, f"render{side}/"
    rendered, trace = cast(generator, scene, camera, side)
    per_ray = ray_slack(generator, camera, side, trace)
    if side == 32:
        check("sampling distances", at + "depths_coarse", trace["depths_coarse"], PLAIN)
        check("marcher: coarse weights", at + "weights_coarse", trace["weights_coarse"], RENDER)
        check_importance(comparison, at)
        check("importance samples in a render", at + "depths_fine", trace["depths_fine"], RENDER)
        check("marcher: features", at + "renderer_rgb", rendered.features, RENDER, slack=Slack(per_ray, CROP))
        out = generator.compose(scene, rendered, side)
        assert out.features is not None
        of_rays = Slack(as_image(per_ray, side), CROP)
        check("composited features", at + "feature_image_to_sr", out.features, RENDER, slack=of_rays)
        if out.background is not None and generator.config.posable:
            assert scene.background is not None
            check("background image", at + "image_background", out.background, tensors_tolerance(scene.background))

    # Images.
    _render(comparison, "", shot, at, rendered=(rendered, per_ray))


def _render(
    comparison: Comparison,
    stage: str,
    shot: Shot,
    at: str,
    tolerance: Tolerance = RENDER,
    rendered: tuple[Rendered, Tensor] | None = None,
) -> None:
    """Whatever images of one render are stored; `stage` names them all, else each has its own."""
    # Rays, and what hard switches excuse.
    generator, scene, side = shot.generator, shot.scene, shot.side
    if rendered is None:
        found, trace = cast(generator, scene, shot.camera, side)
        rendered = found, ray_slack(generator, shot.camera, side, trace)
    found, per_ray = rendered
    of_rays = Slack(as_image(per_ray, side), CROP)
    of_depths = Slack(as_image(depth_slack(generator, found, per_ray), side), DEPTH)
    out = generator.compose(scene, found, side)
    faithful = with_bugs(generator, raw_overwritten=True).compose(scene, found, side)
    near = Slack(image_slack(per_ray, side, side), CROP)
    of_pixels = Slack(image_slack(per_ray, side, out.image.shape[-1]), CROP)
    first = out.image.shape[-1] // 2 - 16
    middle = (slice(first, first + 32), slice(first, first + 32))

    # What is stored.
    check = comparison.check
    check(stage or "raw image", at + "raw_before_sr", out.raw, tolerance, slack=of_rays)
    check(stage or "raw image", at + "image_raw_before_sr", out.raw, tolerance, slack=of_rays)
    check(stage or "raw image, overwritten (7.5)", at + "image_raw_returned", faithful.raw, tolerance, slack=near)
    check(stage or "raw image", at + "image_raw", faithful.raw, tolerance, slack=near)
    check(stage or "image", at + "image", out.image, tolerance, slack=of_pixels)
    check(stage or "image", at + "image_centre32", out.image, tolerance, part=middle, slack=of_pixels)
    for name in ("image_mask", "mask"):
        check(stage or "mask", at + name, out.mask, tolerance, slack=of_rays)
    for name in ("image_depth", "depth"):
        check(stage or "depth", at + name, out.depth, tolerance, slack=of_depths)


def _with_near(generator: Generator, near: float) -> Generator:
    twin = copy.copy(generator)
    twin.config = dataclasses.replace(generator.config, render=dataclasses.replace(generator.config.render, near=near))
    return twin


def _density_grid(comparison: Comparison, generator: Generator, scene: Scene) -> None:
    """Free densities on a grid, x slowest."""
    axis = torch.linspace(-0.5, 0.5, 9)
    points = torch.cartesian_prod(axis, axis, axis)[None]
    density, _ = query(scene.tri_grid[:1], generator.decoder, points, generator.config.render, crop=False)
    comparison.check("decoder: densities", "sample9_sigma", density, DENSITY)


def _chunks(comparison: Comparison, generator: Generator, scene: Scene, camera: Tensor) -> None:
    """Rays in chunks: depths are limited to those of their chunk (15.5)."""
    # Chunk by chunk.
    side, config = 40, generator.config.render
    whole = bound_rays(*rays(camera, side), config)
    parts = []
    for start in range(0, side * side, _CHUNK):
        some = slice(start, start + _CHUNK)
        few = Rays(whole.origins, whole.directions[:, some], whole.near[:, some], whole.far[:, some])
        parts.append(render_original(scene.tri_grids, generator.decoder, few, config))

    # The whole image.
    rendered = Rendered(*(torch.cat([getattr(p, f.name) for p in parts], dim=1) for f in dataclasses.fields(Rendered)))
    _, trace = cast(generator, scene, camera, side)
    per_ray = ray_slack(generator, camera, side, trace)
    at = f"render_planes40_chunk{_CHUNK}/"
    _render(comparison, "rays in chunks", Shot(generator, scene, camera, side), at, rendered=(rendered, per_ray))


__all__ = ["Golden", "compare_full_size_relative", "compare_panohead", "compare_pyramid"]
