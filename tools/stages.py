"""What is compared with golden numbers, stage by stage, from the mapping network to the losses (equations 2-10).

Everything runs with gradients enabled, so that nothing takes a short cut that rounds differently.
"""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch import Tensor

from portrait360.geometry.cameras import is_left, mirror_camera, rays
from portrait360.geometry.deformation import carry, kept_faces
from portrait360.geometry.nearest import nearest_triangles, triangle_distances
from portrait360.model.discriminator import Discriminator, DiscriminatorInput
from portrait360.model.generator import Generator, Scene
from portrait360.model.rendering import Deform, Rendered, bound_rays, importance_depths, query, render_original
from portrait360.training.losses import generator_loss, gradient_penalties, pose_loss
from tools.comparison import DENSITY, EXACT, LOGIT, NORM, PLAIN, RENDER, TIE, TRI_GRID, Comparison, Slack, Tolerance
from tools.golden import Networks, parse_part

PSI = 0.7
"""Truncation of every golden image."""
_HEAD_ABOVE = 0.06
BORDER = 1e-6
"""World units from a hard switch within which rounding decides: four float32 steps of a distance along a ray."""


def compare_small(comparison: Comparison, networks: Networks) -> None:
    """Every output of a small file."""
    # Styles and scene.
    golden, generator = comparison.golden, networks.generator
    z, camera, pose = (golden.tensor(f"out/{name}") for name in ("z", "c", "pose"))
    _poses_and_styles(comparison, generator, z, camera, pose)
    scene = _scene(comparison, generator, z, camera, pose)
    _points(comparison, generator, scene)

    # Images, and variants that some files hold.
    for side in (32, 64):
        _images(comparison, generator, scene, camera, side)
    if "out/nodef32_wsbcg_swapped/image_raw" in golden:
        swapped = generator.scene(scene.w, scene.w.flip(0))
        raw = generator.render(swapped, camera, resolution=32, plain=True).raw
        comparison.check("background of another style", "nodef32_wsbcg_swapped/image_raw", raw, RENDER)

    # Deformation and discriminator.
    if "out/mesh/faces" in golden:
        _deformation(comparison, generator, scene, camera)
    if "out/D_in/image" in golden:
        _discriminator(comparison, networks, camera, pose)
        _gradients_of_generator(comparison, networks, z, camera, pose)


def _poses_and_styles(comparison: Comparison, generator: Generator, z: Tensor, camera: Tensor, pose: Tensor) -> None:
    check = comparison.check
    check("left or right view", "is_left", is_left(camera)[:, None], EXACT)
    check("pose branch of G", "G_pose_params", generator.pose_branch(z, camera), PLAIN)
    check("pose branch of G", "G_pose_params_flipped_c", generator.pose_branch(z, mirror_camera(camera)), PLAIN)
    full, truncated = generator.map(z, camera, pose), generator.map(z, camera, pose, PSI)
    check("mapping", "ws_psi1", full, PLAIN)
    check("mapping", "ws_psi07", truncated, PLAIN)
    check("mapping", "ws_psi07_cut7_layers_6_7", torch.stack([truncated, full], dim=1), PLAIN)
    check("mapping", "ws_pose_none_psi1", generator.map(z, camera), PLAIN)


def _scene(comparison: Comparison, generator: Generator, z: Tensor, camera: Tensor, pose: Tensor) -> Scene:
    scene = generator.scene(generator.map(z, camera, pose, PSI))
    planes = scene.tri_grid.flatten(1, 3)  # (plane, feature, slice) as the original counts channels
    comparison.check("tri-grid", "planes_sub", planes, TRI_GRID, part=parse_part("3::16,5::16"))
    comparison.check("tri-grid", "planes_absmean", planes.abs().mean(dim=(2, 3)), TRI_GRID)
    if scene.background is not None:
        part = parse_part("1::4,2::4")
        comparison.check("background", "nodef32/bcg_feature64_sub", scene.background, PLAIN, part=part)
    return scene


def _points(comparison: Comparison, generator: Generator, scene: Scene) -> None:
    if "out/points" not in comparison.golden:
        return
    points = comparison.golden.tensor("out/points")
    density, features = query(scene.tri_grid, generator.decoder, points, generator.config.render, crop=False)
    comparison.check("decoder: densities", "points_sigma", density, DENSITY)
    comparison.check("decoder: features", "points_rgb", features, PLAIN)


def cast(
    generator: Generator, scene: Scene, camera: Tensor, side: int, deform: Deform | None = None
) -> tuple[Rendered, dict[str, Tensor]]:
    trace: dict[str, Tensor] = {}
    config = generator.config.render
    bounded = bound_rays(*rays(camera, side), config)
    return render_original(scene.tri_grids, generator.decoder, bounded, config, deform=deform, trace=trace), trace


CROP = f"a sample there lies within {BORDER:.0e} of the border of the crop, and rounding decides on which side"
DEPTH = "depths of rays of hardly any opacity A move by 6e-8 / A when one float32 step of an alpha does, or " + CROP


def ray_slack(generator: Generator, camera: Tensor, side: int, trace: dict[str, Tensor]) -> Tensor:
    """[B, M, 1]: infinite for rays with a sample on the border of the crop (equations 5.5), a hard switch; else 0."""
    origins, directions = rays(camera, side)
    t = torch.cat([trace["depths_coarse"], trace["depths_fine"]], dim=2)
    x, _, z = (origins[:, :, None] + t * directions[:, :, None]).abs().unbind(dim=-1)
    crop = generator.config.render.crop
    assert crop is not None
    undecided = (((x - crop).abs() < BORDER) | ((z - crop).abs() < BORDER)).any(dim=2, keepdim=True)
    return torch.where(undecided, torch.inf, 0.0)


def depth_slack(generator: Generator, rendered: Rendered, slack: Tensor) -> Tensor:
    """[B, M, 1]: what one float32 step in an alpha does to a mean over the ray's length."""
    config = generator.config.render
    step = torch.finfo(torch.float32).eps / 2
    return slack + torch.where(rendered.opacity > 0, step * (config.far - config.near) / rendered.opacity, 0.0)


def image_slack(slack: Tensor, side: int, image_side: int) -> Tensor:
    """[B, 1, H, H]: the slack of rays spread as far as super-resolution carries colours."""
    near = torch.nn.functional.max_pool2d(as_image(slack, side), 11, stride=1, padding=5)
    return torch.nn.functional.interpolate(near, size=(image_side, image_side), mode="nearest")


def as_image(v: Tensor, side: int) -> Tensor:
    return v.transpose(1, 2).unflatten(2, (side, side))


def _images(comparison: Comparison, generator: Generator, scene: Scene, camera: Tensor, side: int) -> None:
    """Rays, marcher, raw image, super-resolution, mask and depth of the canonical body."""
    # Samples along rays, and weights.
    golden, check, at = comparison.golden, comparison.check, f"nodef{side}/"
    rendered, trace = cast(generator, scene, camera, side)
    check("sampling distances", at + "depths_coarse", trace["depths_coarse"], PLAIN)
    check("marcher: coarse weights", at + "weights_coarse", trace["weights_coarse"], RENDER)
    check_importance(comparison, at)
    check("importance samples in a render", at + "depths_fine", trace["depths_fine"], RENDER)

    # Features, distances and opacities of rays.
    per_ray = ray_slack(generator, camera, side, trace)
    per_depth = depth_slack(generator, rendered, per_ray)
    check("marcher: features", at + "renderer_rgb", rendered.features, RENDER, slack=Slack(per_ray, CROP))
    check("marcher: depth", at + "renderer_depth", rendered.distance, RENDER, slack=Slack(per_depth, DEPTH))
    check("marcher: opacity", at + "renderer_weights", rendered.opacity, RENDER, slack=Slack(per_ray, CROP))

    # The composited images.
    out = generator.compose(scene, rendered, side)
    of_rays = Slack(as_image(per_ray, side), CROP)
    of_depths = Slack(as_image(per_depth, side), DEPTH)
    of_pixels = Slack(image_slack(per_ray, side, out.image.shape[-1]), CROP)
    sparse = parse_part("1::4,2::4")
    assert out.features is not None
    assert out.background is not None

    # Compare them, those of hard switches with slack.
    check("composited features", at + "feature_image_to_sr", out.features, RENDER, slack=of_rays)
    check("composited features", at + "feature_image_to_sr_sub", out.features, RENDER, part=sparse, slack=of_rays)
    part = () if side == 32 else parse_part("::4,::4")
    check("background image", at + "image_background", out.background, PLAIN, part=part)
    check("raw image", at + "image_raw_before_sr", out.raw, RENDER, slack=of_rays)

    # The original's fault in the raw image, and the final images.
    faithful = with_bugs(generator, raw_overwritten=True).compose(scene, rendered, side)
    near = Slack(image_slack(per_ray, side, side), CROP)
    check("raw image, overwritten (7.5)", at + "image_raw_returned", faithful.raw, RENDER, slack=near)
    check("image", at + "image", out.image, RENDER, slack=of_pixels)
    check("image", at + "image_sub", out.image, RENDER, part=sparse, slack=of_pixels)
    check("mask", at + "image_mask", out.mask, RENDER, slack=of_rays)
    check("depth", at + "image_depth", out.depth, RENDER, slack=of_depths)

    # Super-resolution by itself, of golden features.
    given = [f"out/{at}{name}" for name in ("image_raw_before_sr", "feature_image_to_sr", "image")]
    if all(name in golden and not golden.part(name) for name in given[:2]) and given[2] in golden:
        image = generator.superresolution(golden.tensor(given[0]), golden.tensor(given[1]), scene.w)
        check("super-resolution of golden features", at + "image", image, RENDER)


def check_importance(comparison: Comparison, at: str) -> None:
    """Fine samples from golden coarse weights: the stage by itself (equations 5.7)."""
    golden = comparison.golden
    names = [f"out/{at}{name}" for name in ("depths_coarse", "weights_coarse", "depths_fine")]
    if all(name in golden for name in names):
        depths, weights, fine = (golden.tensor(name) for name in names)
        u = torch.linspace(0.0, 1.0, fine.shape[2]).expand(*fine.shape[:3])
        found = importance_depths(depths, weights, u)
        comparison.check_stored("importance samples of golden weights", at + "depths_fine", found, PLAIN)


def with_bugs(generator: Generator, **bugs: bool) -> Generator:
    """The same network with faults of the original switched on."""
    twin = copy.copy(generator)
    faults = dataclasses.replace(generator.config.original_bugs, **bugs)
    twin.config = dataclasses.replace(generator.config, original_bugs=faults)
    return twin


# ---- deformation ----


def _deformation(comparison: Comparison, generator: Generator, scene: Scene, camera: Tensor) -> None:
    """Transfer between the file's two meshes (6), free points and a render."""
    # The two meshes, and the faces that take part.
    golden, check = comparison.golden, comparison.check
    names = ("shaped_vertices", "posed_vertices", "faces")
    vertices, posed_vertices, faces = (golden.tensor(f"out/mesh/{name}") for name in names)
    kept = kept_faces(vertices, faces)
    check("deformation: faces that take part", "mesh/face_mask", kept, EXACT)
    behind = (vertices[:, 1] > _HEAD_ABOVE) & (vertices[:, 2] < 0)  # stored by the original, used nowhere
    check("deformation: faces that take part", "mesh/head_face_mask", behind[faces].all(-1), EXACT)
    rest, posed = vertices[faces[kept]], posed_vertices[:, faces[kept]]

    # Points carried by the golden choice of triangles.
    def moved(points: Tensor, name: str, tie: Tolerance = TIE) -> Tensor:
        """By the golden choice of triangles; where ours is another one, it must be as near."""
        chosen = golden.tensor(f"out/{name}")
        distances = torch.stack([triangle_distances(p, t[i]) for p, t, i in zip(points, posed, chosen, strict=True)])
        found = [nearest_triangles(p, t) for p, t in zip(points, posed, strict=True)]
        other = torch.stack([f[0] for f in found]) != chosen
        gaps = (distances - torch.stack([f[2] for f in found]))[other]
        note = f"{int(other.sum())} of {other.numel()} choices differ; errors are gaps of distance"
        comparison.add_error("deformation: nearest triangle", name, gaps.tolist(), tie, note)
        return carry(points, rest, posed, chosen, distances, generator.config.thickness)

    # Free points, then the samples of a render.
    if "out/def/points" in golden:
        canonical = moved(golden.tensor("out/def/points"), "def/face_index_in_masked_faces")
        check("deformation: golden triangles", "def/points_out", canonical, PLAIN)
    if "out/def16/face_index_coarse" in golden:
        # fine samples lie elsewhere by rounding, and so may their nearest triangle
        steps = iter((("coarse", TIE), ("fine", Tolerance(1e-4))))

        def deform(points: Tensor) -> Tensor:
            name, tie = next(steps)
            return moved(points, f"def16/face_index_{name}", tie)

        rendered, trace = cast(generator, scene, camera, 16, deform)
        out = generator.compose(scene, rendered, 16)
        check("deformed render: importance samples", "def16/depths_fine", trace["depths_fine"], RENDER)
        check("deformed render: features", "def16/renderer_rgb", rendered.features, RENDER)
        check("deformed render: depth", "def16/image_depth", out.depth, RENDER)
        check("deformed render: mask", "def16/image_mask", out.mask, RENDER)
        check("deformed render: raw image", "def16/image_raw", out.raw, RENDER)


# ---- discriminator, penalties, losses ----


def _discriminator(comparison: Comparison, networks: Networks, camera: Tensor, pose: Tensor) -> None:
    """Logits and poses of the whole batch and of single images, gradient penalties, loss (equations 8, 10.8, 10.9)."""
    # The whole batch.
    golden, check, d = comparison.golden, comparison.check, networks.discriminator
    images = DiscriminatorInput(*(golden.tensor(f"out/D_in/{name}") for name in ("image", "image_raw", "image_mask")))
    left = is_left(camera)
    mirrored = images.map(lambda t: torch.where(left[:, None, None, None], t.flip(3), t))
    check("D: features", "D/flatten_feature_pose_pass", d.trunk(mirrored), LOGIT)
    logits, predicted = _logits_and_poses(comparison, networks, images, camera, "D/pose")
    check("D: logits", "D/logits", logits, LOGIT)
    check("D: logits", "D/logits_gt_pose", d(images, camera, pose)[0], LOGIT)

    # Single images.
    for i in range(len(camera)):
        at = f"D_single{i}/"
        if f"out/{at}logits" not in golden:
            continue
        one, c = images.map(lambda t, i=i: t[i : i + 1]), camera[i : i + 1]
        check("D: logits", at + "logits", _logits_and_poses(comparison, networks, one, c, at + "pose")[0], LOGIT)
        if networks.has_pose_head:
            mirrored = d.predict_pose(one.map(lambda t: t.flip(3)), mirror_camera(c))
            check("D: poses", at + "pose_from_mirrored_input", mirrored, LOGIT)

    # Penalties, loss and gradients.
    d.requires_grad_(True).zero_grad()
    leaves = images.map(lambda t: t.clone().requires_grad_(True))
    logits, predicted = _logits_and_poses(comparison, networks, leaves, camera, "D/pose", report=False)
    inputs = leaves.tensors()
    penalties = gradient_penalties(logits, inputs)
    for name, penalty in zip(("image", "image_raw", "mask"), penalties, strict=True):
        check("R1 penalties", f"R1/{name}", penalty, PLAIN)
    (gradient,) = torch.autograd.grad(logits.sum(), inputs[:1], retain_graph=True)
    check("R1 gradient at the image", "R1/grad_image_sub", gradient, PLAIN, part=parse_part("1::8,2::8"))
    loss = generator_loss("nonsaturating", logits, logits) + pose_loss(predicted, pose)
    loss = loss + 0.5 * torch.stack(penalties).sum(dim=0).mean()
    check("D: loss", "D_loss_real_pose_r1", loss, PLAIN)
    if networks.has_pose_head:
        loss.backward()
        _norms(comparison, d, "D")
    d.requires_grad_(False)


def _logits_and_poses(
    comparison: Comparison,
    networks: Networks,
    images: DiscriminatorInput,
    camera: Tensor,
    stored: str,
    *,
    report: bool = True,
) -> tuple[Tensor, Tensor]:
    """Logits and poses. Without a pose head in the file, its stored poses take the place of the predicted ones."""
    if networks.has_pose_head:
        logits, predicted = networks.discriminator(images, camera)
        if report:
            comparison.check("D: poses", stored, predicted, LOGIT if stored.startswith("D") else PLAIN)
        return logits, predicted
    given = comparison.golden.tensor(f"out/{stored}")
    return networks.discriminator(images, camera, given)[0], given


def _gradients_of_generator(
    comparison: Comparison, networks: Networks, z: Tensor, camera: Tensor, pose: Tensor
) -> None:
    """The generator's loss and gradients through rendering and discriminator (equations 10.7)."""
    if "out/G_loss" not in comparison.golden:
        return
    generator = networks.generator.requires_grad_(True)
    generator.zero_grad()
    scene = generator.scene(generator.map(z, camera, pose))
    out = generator.render(scene, camera, resolution=32, plain=True)
    images = DiscriminatorInput(out.image, out.raw, out.mask)
    logits, predicted = _logits_and_poses(comparison, networks, images, camera, "DG/pose", report=False)
    if networks.has_pose_head:
        comparison.check("D on generated images", "DG/pose", predicted, PLAIN)
    comparison.check("D on generated images", "DG/logits", logits, PLAIN)
    loss = generator_loss("nonsaturating", logits, logits)
    comparison.check("G: loss", "G_loss", loss, PLAIN)
    loss.backward()
    _norms(comparison, generator, "G")
    generator.requires_grad_(False)


def _norms(comparison: Comparison, module: Generator | Discriminator, name: str) -> None:
    """Relative errors of the norms of all gradients, and gradients that should not be there."""
    meta = comparison.golden.meta()
    norms: dict[str, float] = meta.get(f"{name}_grad_norms", {})
    found = {n: 0.0 if p.grad is None else p.grad.norm().item() for n, p in module.named_parameters()}
    if norms:
        errors = {n: abs(found[n] - norm) / (abs(norm) + 1e-6) for n, norm in norms.items()}
        worst = max(errors, key=lambda n: errors[n])
        note = f"{len(errors)} tensors, relative; the worst is {worst}"
        comparison.add_error(f"{name}: norms of gradients", f"{name}_grad_norms", errors.values(), NORM, note)
    if f"{name}_params_without_grad" in meta:
        absent = meta[f"{name}_params_without_grad"]
        note = f"{len(absent)} tensors"
        comparison.add_error(
            f"{name}: no gradient", f"{name}_params_without_grad", (found[n] for n in absent), EXACT, note
        )


# ---- released sizes ----


def compare_full_size(comparison: Comparison, networks: Networks, scene: Scene | None = None) -> Scene:
    """Every output of a full-size file. Returns the scene, which serves for files of the same weights and inputs."""
    # Styles and scene.
    golden, check, generator = comparison.golden, comparison.check, networks.generator
    z, camera, pose = (golden.tensor(f"in/{name}") for name in ("z", "c", "pose"))
    check("pose branch of G", "G_pose", generator.pose_branch(z, camera), PLAIN)
    w = generator.map(z, camera, pose, PSI)
    check("mapping", "ws", w, PLAIN)
    scene = generator.scene(w) if scene is None else scene
    check("tri-grid", "planes", scene.tri_grid.flatten(1, 3), TRI_GRID)

    # Images at every number of rays.
    for side in golden.ray_sides:
        at = f"nrr{side}/"
        rendered, trace = cast(generator, scene, camera, side)
        out = generator.compose(scene, rendered, side)
        per_ray = ray_slack(generator, camera, side, trace)
        of_rays = Slack(as_image(per_ray, side), CROP)
        of_depths = Slack(as_image(depth_slack(generator, rendered, per_ray), side), DEPTH)
        of_pixels = Slack(image_slack(per_ray, side, out.image.shape[-1]), CROP)
        check("raw image", at + "raw_before_sr", out.raw, RENDER, slack=of_rays)
        first = out.image.shape[-1] // 2 - 16
        middle = (slice(first, first + 32), slice(first, first + 32))
        check("image", at + "image", out.image, RENDER, slack=of_pixels)
        check("image", at + "image_centre32", out.image, RENDER, part=middle, slack=of_pixels)
        check("mask", at + "mask", out.mask, RENDER, slack=of_rays)
        check("depth", at + "depth", out.depth, RENDER, slack=of_depths)

    # The discriminator.
    if "in/D_low" not in golden:
        return scene
    low, mask, camera = (golden.tensor(f"in/D_{name}") for name in ("low", "mask", "c"))
    check("left or right view", "D_is_left", is_left(camera)[:, None], EXACT)

    def enlarged(side: int) -> Tensor:
        return torch.nn.functional.interpolate(low, size=(side, side), mode="nearest").clamp(-1.0, 1.0)

    images = DiscriminatorInput(enlarged(networks.discriminator.resolution), enlarged(64), mask)
    logits, predicted = networks.discriminator(images, camera)
    check("D: logits", "D_logits", logits, LOGIT)
    check("D: poses", "D_pose", predicted, LOGIT)
    return scene
