"""Presets that are small enough for tests to train. `register` lets commands find them by name, as users' presets."""

from __future__ import annotations

import dataclasses
from typing import Any

from portrait360.config import (
    PRESETS,
    DiscriminatorConfig,
    Preset,
    RenderConfig,
    SuperResolutionConfig,
    SynthesisConfig,
    register_preset,
)


def _tiny(name: str, **changes: Any) -> Preset:
    """The shape of `cpu-64` with every optional part."""
    base = PRESETS["cpu-64"]
    model = dataclasses.replace(
        base.model,
        name=name,
        resolution=32,
        raw_resolution=16,
        z_dim=16,
        w_dim=32,
        conditioning_scale=1.0,
        synthesis=SynthesisConfig((16, 16, 16, 16), "box", noise=True, first_output=4),
        background=SynthesisConfig((16, 16, 8), "box", noise=True),
        plane_features=8,
        symmetric_features=4,
        decoder_hidden=16,
        features=8,
        render=dataclasses.replace(base.model.render, feature_activation="none", samples=12, inference_samples=None),
        superresolution=SuperResolutionConfig(16, (8, 8), clamp=None, resample="box"),
        discriminator=DiscriminatorConfig(
            (8, 16, 16, 16), "box", mapping_layers=2, pose_hidden=(16,), clamp=None, mirror_once=True
        ),
        pose_hidden=(16,),
    )
    training = dataclasses.replace(
        base.training, total_kimg=1.0, batch=4, lr_decay_kimg=0.0, density_noise=1.0, bf16=False
    )
    return Preset(dataclasses.replace(model, **changes), training)


TINY = _tiny("tiny")
TINY_ORIGINAL = _tiny(
    "tiny-original",
    render=RenderConfig(samples=6, importance_samples=6),
    synthesis=SynthesisConfig((16, 16, 16)),
    background=SynthesisConfig((16, 16, 8)),
    decoder_activation="softplus",
    symmetric_features=0,
    superresolution=SuperResolutionConfig(16, (8, 8), filter_buffer=True),
    discriminator=DiscriminatorConfig((8, 16, 16, 16), mapping_layers=2, pose_hidden=(16,)),
    deformation="exact",
)
"""The published networks' parts, in small."""
TINY_SHOWN = _tiny(
    "tiny-shown",
    resolution=16,
    synthesis=SynthesisConfig((16, 16, 16, 16), "box", noise=False, first_output=8),
    background=None,
    superresolution=None,
    # the sizes of the packaged model, for which kernels are compiled anyway
    plane_features=16,
    decoder_hidden=32,
    features=3,
    render=dataclasses.replace(PRESETS["cpu-64"].model.render, samples=12, inference_samples=24, density_shift=-8.0),
    discriminator=DiscriminatorConfig((8, 16, 16), "box", mapping_layers=2, pose_hidden=(16,), mirror_once=True),
)
"""Rendered colours are the image: what web pages can show. Mostly air, as people are."""
TINY_HEAD = _tiny(
    "tiny-head",
    **{
        name: getattr(TINY_ORIGINAL.model, name)
        for name in ("render", "synthesis", "background", "decoder_activation", "superresolution", "discriminator")
    },
    symmetric_features=0,
    pose_hidden=(),
    deformation="none",
    camera=PRESETS["panohead-512"].model.camera,
    camera_translation=True,
)
"""Heads without a body pose, with cameras of their own."""
TINY_PYRAMID = _tiny(
    "tiny-pyramid",
    **{
        name: getattr(TINY_ORIGINAL.model, name)
        for name in ("background", "decoder_activation", "superresolution", "discriminator", "deformation")
    },
    render=dataclasses.replace(PRESETS["pyramid-512"].model.render, samples=6, importance_samples=6),
    synthesis=SynthesisConfig((108, 108, 108), pyramid_from=4),
    plane_features=12,
    symmetric_features=0,
)
"""A pyramid of tri-grids whose features are no multiple of eight."""
OWN = {preset.model.name: preset for preset in (TINY, TINY_ORIGINAL, TINY_SHOWN, TINY_HEAD, TINY_PYRAMID)}
ALL_PRESETS = {**PRESETS, **OWN}
"""Those that users can name, and these."""
TRAINABLE = {name: preset for name, preset in ALL_PRESETS.items() if preset.model.posable}
"""Training needs body poses."""


def register() -> None:
    """For this process, as conftest does for the tests' own."""
    for preset in OWN.values():
        register_preset(preset)
