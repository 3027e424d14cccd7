"""Times one preset in a process of its own, so that its peak of memory is its own: `... bench.worker JOB [PRESET]`.

JOB is JSON: {"preset", "repeats", "exact"}; PRESET is one that the package does not have, as JSON too.
The result is one line of JSON on the standard output.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from portrait360.bench.scene import shape_like_body
from portrait360.config import Preset, named_preset, register_preset
from portrait360.geometry.body import load_body
from portrait360.geometry.cameras import camera_label
from portrait360.geometry.conventions import model_camera
from portrait360.geometry.deformation import deformation_field
from portrait360.model.discriminator import Discriminator, DiscriminatorInput
from portrait360.model.generator import Generator, RenderDraws, Scene
from portrait360.model.rendering import Occupancy
from portrait360.portrait.scene import SceneRenderer, find_matter
from portrait360.runtime.memory import peak_megabytes, release_freed_memory, restart_peak
from portrait360.runtime.precision import worth_bf16
from portrait360.runtime.process import settle_process
from portrait360.runtime.tensors import from_json
from portrait360.types import RenderOutput

YAW = 0.4
BODY_POSE = (0.1, 0.3, 0.0, 0.1, 0.2, 0.1)
"""The view that is timed: camera yaw and body pose in radians."""


def seconds(work: Callable[[], Any], repeats: int) -> float:
    """Shortest wall time of several runs, after one that is not counted (it compiles and allocates)."""
    work()
    shortest = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        shortest = min(shortest, time.perf_counter() - start)
    return shortest


def psnr(found: RenderOutput, exact: RenderOutput) -> float:
    """Peak signal-to-noise ratio in dB of the final images in [-1, 1] (peak to peak 2)."""
    error = (found.image.clamp(-1, 1) - exact.image.clamp(-1, 1)).square().mean()
    return float(10.0 * torch.log10(4.0 / error.clamp_min(1e-12)))


def time_preset(preset: str, repeats: int = 3, exact: bool = False, bf16: bool | None = None) -> dict[str, Any]:
    """Seconds of every stage and of whole views of a preset with random weights and a head-like density.

    `exact`: time the plain renderer with the plain layers and the exact deformation instead, once, and compare the
    fast images with its own. `bf16`: of the fast ones; None as `generate` would choose.
    """
    # The networks.
    torch.manual_seed(0)
    model = named_preset(preset).model
    generator = Generator(model).eval().requires_grad_(False)
    bf16 = worth_bf16(model) if bf16 is None else bf16
    z, camera = torch.randn(1, model.z_dim), camera_label(torch.tensor([YAW]))
    pose = torch.tensor([BODY_POSE]) if model.posable else None

    # A scene with the density of a body, and again in bf16 where that is used.
    with torch.no_grad():
        w = generator.map(z, model_camera(camera, model.camera), None, 0.7)
        exact_scene = shape_like_body(generator, generator.scene(w, gradients=False), load_body())
        scene = exact_scene
        if bf16:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                scene = generator.scene(w, gradients=False)
            scene = shape_like_body(generator, scene, load_body())  # the same fit again
        portrait = SceneRenderer(generator, scene, find_matter(generator, scene), bf16)

    # Time with fresh peaks of memory.
    release_freed_memory()
    restart_peak()
    side = portrait.default_resolution if model.superresolution is None else model.superresolution.input_resolution
    result = {"preset": preset, "resolution": model.resolution, "rays": side, "bf16": bf16}
    if exact:
        return result | _exact(portrait, exact_scene, camera, pose, side)
    return result | _fast(portrait, z, camera, pose, side, repeats)


def _fast(portrait: SceneRenderer, z: Any, camera: Any, pose: Any, side: int, repeats: int) -> dict[str, Any]:
    """Seconds of each stage and of whole views, and the peaks of memory without and with the discriminator."""
    generator = portrait.generator
    with torch.no_grad():
        # Each stage by itself.
        stages = _stages(portrait, z, camera, pose, side)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=portrait.bf16):
            times = {name: seconds(work, repeats) for name, work in stages.items()}

        # Whole views: further ones of a scene, and the first one of a new scene, posed where the model knows poses.
        views = {"further view, canonical": seconds(lambda: portrait.render(camera, None, side), repeats)}
        if pose is not None:
            views["further view, posed"] = seconds(lambda: portrait.render(camera, pose, side), repeats)
        first = "first view, canonical" if pose is None else "first view, posed"
        views[first] = seconds(lambda: _first_view(portrait, z, camera, pose, side), repeats)
        peak = peak_megabytes()
        if pose is None:
            return {"stages": times, "views": views, "peak_mib": peak}

        # The discriminator, at the model's size.
        discriminator = Discriminator(generator.config).eval().requires_grad_(False)
        out = portrait.render(camera, pose, side)
        images = DiscriminatorInput(out.image, out.raw if generator.config.superresolution else None, out.mask)
        size = generator.config.resolution
        if out.image.shape[-1] != size:
            images = images.map(lambda t: torch.nn.functional.interpolate(t, size=(size, size), mode="area"))
        times["discriminator"] = seconds(lambda: discriminator(images, camera), repeats)
    return {"stages": times, "views": views, "peak_mib": peak, "peak_with_discriminator_mib": peak_megabytes()}


def _stages(portrait: SceneRenderer, z: Any, camera: Any, pose: Any, side: int) -> dict[str, Callable[[], Any]]:
    """What to run for each stage of a view."""
    # Networks.
    generator, scene = portrait.generator, portrait.scene
    synthesis = generator.backbone.synthesis
    w = generator.map(z, model_camera(camera, generator.config.camera), None, 0.7)
    ws = w[:, None].expand(-1, synthesis.num_ws, -1)
    own = model_camera(camera, generator.config.camera)
    stages: dict[str, Callable[[], Any]] = {}
    stages["mapping"] = lambda: generator.map(z, own, None, 0.7)
    stages["tri-grid"] = lambda: generator.tri_grids(ws, gradients=False)
    if generator.config.background is not None:
        stages["background"] = lambda: generator.bcg_synthesis(ws, "const", gradients=False)

    # Rendering.
    stages["occupancy"] = lambda: find_matter(generator, scene)
    if pose is not None:
        stages["deformation"] = lambda: deformation_field(generator.body, pose)
    draws = RenderDraws(occupancy=None if portrait.occupied is None else Occupancy(portrait.occupied), gradients=False)
    stages["rendering, canonical"] = lambda: generator.cast(scene, own, None, side, draws, plain=False)
    if pose is not None:
        stages["rendering, posed"] = lambda: generator.cast(scene, own, pose, side, draws, plain=False)
    if generator.config.superresolution is not None:
        raw = torch.randn(1, 3, side, side)
        features = torch.randn(1, generator.config.features, side, side)
        stages["super-resolution"] = lambda: generator.superresolution(raw, features, w, gradients=False)
    return stages


def _first_view(portrait: SceneRenderer, z: Any, camera: Any, pose: Any, side: int) -> RenderOutput:
    """Everything from the latent to the image. The new scene has no head, but its densities take the same time."""
    generator = portrait.generator
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=portrait.bf16):
        own = model_camera(camera, generator.config.camera)
        new = generator.scene(generator.map(z, own, None, 0.7), gradients=False)
    find_matter(generator, new)
    new = dataclasses.replace(new, tri_grid=portrait.scene.tri_grid, coarser=portrait.scene.coarser)
    return SceneRenderer(generator, new, portrait.occupied, portrait.bf16).render(camera, pose, side)


def _exact(portrait: SceneRenderer, scene: Scene, camera: Any, pose: Any, side: int) -> dict[str, Any]:
    """The plain twins: with gradients, layers do not fold."""
    # The plain renderer, and fast images to compare with.
    generator = portrait.generator
    own = model_camera(camera, generator.config.camera)
    views, quality = {}, {}
    poses = {"canonical": None} if pose is None else {"canonical": None, "posed": pose}

    def plain(body_pose: Any) -> RenderOutput:
        draws = RenderDraws()
        return generator.render(scene, own, body_pose, resolution=side, draws=draws, plain=True)

    with torch.no_grad():
        fast = {name: portrait.render(camera, p, side) for name, p in poses.items()}

    # Time it once for each view.
    with torch.enable_grad():
        for name, body_pose in poses.items():
            start = time.perf_counter()
            exact = plain(body_pose)
            views[f"further view, {name}"] = time.perf_counter() - start
            quality[name] = psnr(fast[name], exact)
        start = time.perf_counter()
        w = generator.map(torch.randn(1, generator.config.z_dim), own, None, 0.7)
        generator.scene(w)
        last = next(reversed(poses))
        views[f"first view, {last}"] = time.perf_counter() - start + views[f"further view, {last}"]
    return {"views": views, "psnr_db": quality, "peak_mib": peak_megabytes()}


if __name__ == "__main__":
    settle_process()
    for own in sys.argv[2:]:
        register_preset(from_json(Preset, own))
    print(json.dumps(time_preset(**json.loads(sys.argv[1]))))
