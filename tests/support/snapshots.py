"""Snapshots as the published training codes pickle them, with networks of a few channels."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from portrait360.config import PRESETS, DiscriminatorConfig, ModelConfig, OriginalBugs, SynthesisConfig
from portrait360.model.discriminator import Discriminator
from portrait360.model.generator import Generator
from support.hostile import PERSISTENT, Reduce, named, storage_bytes, tensor

SUPERRESOLUTION = {512: "SuperresolutionHybrid8XDC", 256: "SuperresolutionHybrid4X", 128: "SuperresolutionHybrid2X"}


def narrow(resolution: int) -> ModelConfig:
    """The published layout of blocks with a few channels each."""
    base = PRESETS[f"original-{resolution}"].model
    assert base.background is not None
    assert base.superresolution is not None
    blocks = len(base.discriminator.channels)
    return dataclasses.replace(
        base,
        raw_resolution=128,
        z_dim=12,
        w_dim=20,
        synthesis=SynthesisConfig((6, 6, 6, 5, 5, 4, 4)),
        background=SynthesisConfig((6, 6, 5, 5, 4, 4)[: len(base.background.channels)]),
        superresolution=dataclasses.replace(base.superresolution, channels=(6, 4)),
        render=dataclasses.replace(base.render, samples=7, importance_samples=9, near=2.2, far=3.4),
        discriminator=DiscriminatorConfig((3, 4, 5, 6, 7, 8, 8, 8)[:blocks], mapping_layers=3, pose_hidden=(10, 9)),
        pose_hidden=(11, 5),
    )


def pickled_tensor(value: torch.Tensor) -> Reduce:
    raw = value.detach().contiguous().numpy().tobytes()
    return tensor(tuple(value.shape), value.contiguous().stride(), data=storage_bytes(count=value.numel(), data=raw))


def pickled_module(module: nn.Module, class_name: str, **extra: Any) -> Reduce:
    """As the original's persistent classes pickle, source text included."""
    state = {
        "_parameters": {k: pickled_tensor(v) for k, v in module.named_parameters(recurse=False)},
        "_buffers": {k: pickled_tensor(v) for k, v in module.named_buffers(recurse=False)},
        "_modules": {k: pickled_module(v, type(v).__name__) for k, v in module.named_children()},
        "training": False,
        **extra,
    }
    meta = {"type": "class", "version": 6, "module_src": "raise SystemExit", "class_name": class_name, "state": state}
    return Reduce(PERSISTENT, meta)


def snapshot_of(
    model: ModelConfig, generator: Generator, discriminator: Discriminator, **options: Any
) -> dict[str, Any]:
    """`options`: more of the rendering options."""
    body = nn.Module()
    body.register_buffer("shaped_smpl", torch.zeros(2, 3, 3))
    generator.renderer = body  # the licensed body's data, which must not come along
    generator.register_buffer("dataset_label_std", torch.zeros(25))
    render = model.render
    rendering = {
        "superresolution_module": f"training.superresolution.{SUPERRESOLUTION[model.resolution]}",
        "triplane_depth": model.plane_depth, "box_warp": 2.0 * render.box_half[0], "depth_resolution": render.samples,
        "depth_resolution_importance": render.importance_samples, "ray_start": render.near, "ray_end": render.far,
    }  # fmt: skip
    arguments = {
        "img_resolution": model.resolution,
        "rendering_kwargs": rendering | options,
        "thickness": model.thickness,
    }
    g = pickled_module(
        generator, "TriPlaneGenerator", _init_kwargs=arguments, neural_rendering_resolution=model.raw_resolution
    )
    d = pickled_module(discriminator, "PoseShapeAwareDualDiscriminator")
    return {"training_set_kwargs": {"path": "x"}, "G": g, "D": d, "G_ema": g, "D_ema": d, "augment_pipe": None}


def networks(model: ModelConfig) -> tuple[Generator, Discriminator]:
    """Random ones, biases and averages included."""
    torch.manual_seed(3)
    generator, discriminator = Generator(model), Discriminator(model)
    for module in (generator, discriminator):
        for p in module.parameters():
            nn.init.normal_(p)
    return generator, discriminator


# ---- the relatives ----


def narrow_panohead(depth: int = 3) -> ModelConfig:
    """PanoHead's layout of blocks with a few channels each."""
    preset = PRESETS["panohead-512"].model
    return dataclasses.replace(
        narrow(128),
        name="panohead-128" + ("" if depth == 3 else f"-depth-{depth}"),
        raw_resolution=16,
        plane_features=8,
        plane_depth=depth,
        decoder_hidden=16,
        pose_hidden=(),
        deformation="none",
        camera=preset.camera,
        camera_translation=True,
        original_bugs=OriginalBugs(),
        discriminator=PRESETS["original-128"].model.discriminator,
    )


def narrow_pyramid(first: int = 4) -> ModelConfig:
    """The pyramid's layout of blocks with a few features each; `first`: resolution with the coarsest tri-grid."""
    base = narrow(128)
    return dataclasses.replace(
        base,
        name="pyramid-128",
        raw_resolution=16,
        synthesis=SynthesisConfig((36,) * 4, pyramid_from=first),
        plane_features=4,
        decoder_hidden=16,
        render=dataclasses.replace(
            base.render, near=2.385, far=3.12, box_half=(0.35, 0.35, 0.35), crop=0.35 - 0.1 * 0.7
        ),
    )


def snapshot_of_panohead(model: ModelConfig, generator: Generator, **options: Any) -> dict[str, Any]:
    """With a discriminator of another kind, no averaged one, and a renderer without a body."""
    whole = snapshot_of(model, generator, nn.Linear(2, 2), c_scale=1.0, avg_camera_radius=2.7, **options)  # pyright: ignore
    del whole["D_ema"]
    return whole


def snapshot_of_pyramid(model: ModelConfig, generator: Generator, discriminator: Discriminator) -> dict[str, Any]:
    """Constants have a leading axis, and shapes of planes are stored."""
    blocks = [generator.backbone.synthesis.get_submodule("b4"), generator.bcg_synthesis.get_submodule("b4")]
    for block in blocks:
        block.const = nn.Parameter(block.const.detach()[None])
    shapes = {8: Reduce(named("torch", "Size"), (4, 3, 12, 8, 8))}
    return snapshot_of(model, generator, discriminator, c_scale=1.0, radius_scale=0.7) | {"plane_shapes": shapes}
