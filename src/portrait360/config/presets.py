"""The presets that users can name, and where they come from."""

from __future__ import annotations

import dataclasses

from portrait360.config.model import (
    CameraConfig,
    DiscriminatorConfig,
    ModelConfig,
    OriginalBugs,
    RenderConfig,
    SuperResolutionConfig,
    SynthesisConfig,
    WarpConfig,
)
from portrait360.config.training import Preset, ReconstructionConfig, TrainingConfig, original_recipe


def stylegan_channels(base: int, maximum: int, resolution: int) -> tuple[int, ...]:
    """min(base / r, maximum) at r = 4, 8, ..., resolution (equations 3.7)."""
    sides = []
    side = 4
    while side <= resolution:
        sides.append(side)
        side *= 2
    return tuple(min(base // s, maximum) for s in sides)


def _original(resolution: int, background: int, superresolution: SuperResolutionConfig) -> Preset:
    model = ModelConfig(
        name=f"original-{resolution}",
        resolution=resolution,
        raw_resolution=64,
        synthesis=SynthesisConfig(stylegan_channels(32768, 512, 256)),
        background=SynthesisConfig(stylegan_channels(16384, 512, background)),
        superresolution=superresolution,
        discriminator=DiscriminatorConfig(stylegan_channels(32768, 512, resolution)[::-1]),
        deformation="exact",
        original_bugs=OriginalBugs(camera_unmirrored=True),
    )
    return Preset(model, original_recipe(model))


_PORTRAIT_RENDER = RenderConfig(
    samples=48,
    importance_samples=0,
    quadrature="point",
    box_centre=(0.0, -0.025, 0.015),
    box_half=(0.20, 0.235, 0.155),
    ray_boxes=(
        ((-0.14, -0.05, -0.13), (0.14, 0.21, 0.165)),
        ((-0.20, -0.26, -0.125), (0.20, 0.0, 0.15)),
    ),
    crop=None,
    density_scale=40.0,
    density_shift=-1.0,
    inference_samples=96,
)

_SMALL_TRAINING = TrainingConfig(
    total_kimg=1000.0,
    batch=16,
    views_per_latent=2,
    loss="relativistic",
    g_lr=0.002,
    d_lr=0.002,
    lr_decay_kimg=30.0,
    r1_gamma=0.02,
    r1_gamma_mask=0.02,
    r1_interval=16,
    ema_kimg=4.0,
    swap_fade_kimg=100.0,
    blur_sigma=2.0,
    blur_fade_kimg=8.0,
    density_noise=0.0,
    density_noise_fade_kimg=0.0,
    pose_loss_weight=10.0,
    pose_preg_kimg=100.0,
    coarse_pose_probability=0.5,
    pose_refine_kimg=160.0,
    pose_match_weight=0.3,
    style_average_decay=0.995,
    zoom_probability=0.67,
    face_zoom_probability=0.5,
    occupancy=True,
    bf16=True,
    cuda_graphs=True,
)


_SMALL_MODEL = ModelConfig(
    name="",
    resolution=64,
    raw_resolution=64,
    # Latents and styles: the person does not depend on the camera
    z_dim=128,
    w_dim=256,
    mapping_lr_multiplier=0.1,
    conditioning_scale=0.0,
    # The tri-grid and what is read from it
    synthesis=SynthesisConfig((208, 208, 176, 112, 80, 56), "box", noise=False, first_output=16),
    plane_features=16,
    plane_depth=3,
    decoder_hidden=32,
    decoder_activation="lrelu",
    features=16,
    render=_PORTRAIT_RENDER,
    # The discriminator and the generator's pose branch
    discriminator=DiscriminatorConfig(
        (80, 128, 160, 208, 208), "box", mapping_layers=2, pose_hidden=(256, 64), clamp=None, mirror_once=True
    ),
    pose_hidden=(64, 32),
)
"""What this project's own presets have in common."""


def _portrait_256() -> Preset:
    """With super-resolution and a background network of its own."""
    model = dataclasses.replace(
        _SMALL_MODEL,
        name="portrait-256",
        resolution=256,
        background=SynthesisConfig((96, 96, 64, 48, 32), "box", noise=False, first_output=16),
        superresolution=SuperResolutionConfig(64, (64, 32), up_first=True, clamp=None, resample="box"),
        discriminator=dataclasses.replace(_SMALL_MODEL.discriminator, channels=(24, 48, 80, 128, 160, 208, 208)),
    )
    return Preset(model, dataclasses.replace(_SMALL_TRAINING, total_kimg=5000.0, ema_kimg=10.0))


def _cpu_64() -> Preset:
    """Small enough for two cores: narrower, partly symmetric, and rendered colours are the image."""
    model = dataclasses.replace(
        _SMALL_MODEL,
        name="cpu-64",
        z_dim=64,
        w_dim=128,
        synthesis=SynthesisConfig((192, 192, 128, 96, 64, 32), "box", noise=False, first_output=16),
        symmetric_features=8,
        features=3,
        render=dataclasses.replace(_PORTRAIT_RENDER, feature_activation="sigmoid"),
        discriminator=dataclasses.replace(
            _SMALL_MODEL.discriminator, channels=(32, 64, 128, 192, 192), pose_hidden=(128, 64)
        ),
    )
    return Preset(model, dataclasses.replace(_SMALL_TRAINING, lr_decay_kimg=50.0, r1_gamma=0.05, r1_gamma_mask=0.05))


def _portrait_128() -> Preset:
    """`cpu-64` at twice its side, its tri-grid twice as fine; a run can start from its weights (`train --init`)."""
    base = _cpu_64()
    synthesis, discriminator = base.model.synthesis, base.model.discriminator
    model = dataclasses.replace(
        base.model,
        name="portrait-128",
        resolution=128,
        raw_resolution=128,
        synthesis=dataclasses.replace(synthesis, channels=(*synthesis.channels, 32)),
        discriminator=dataclasses.replace(discriminator, channels=(32, *discriminator.channels)),
    )
    training = dataclasses.replace(base.training, total_kimg=5000.0, ema_kimg=10.0, r1_gamma=0.1, r1_gamma_mask=0.1)
    return Preset(model, training)


def _portrait_identity() -> Preset:
    """`cpu-64` with a wider last block, a warp for each person's shape, and an auto-decoder; it starts from weights."""
    base = _cpu_64()
    synthesis = base.model.synthesis
    model = dataclasses.replace(
        base.model,
        name="portrait-identity",
        mapping_styles=512,
        synthesis=dataclasses.replace(synthesis, channels=(*synthesis.channels[:-1], 64)),
        warp=WarpConfig(scale=0.05),
    )
    training = dataclasses.replace(
        base.training,
        total_kimg=5000.0,
        batch=8,
        views_per_latent=4,
        g_lr=0.002,
        ema_kimg=0.3,
        lr_decay_kimg=6.0,
        reconstruction=ReconstructionConfig(people=500),
    )
    return Preset(model, training)


HEAD_CAMERA = CameraConfig(focal=4.2647, look_at=(0.0, 0.0, 0.0), origin=(0.0, 0.081, 0.025), scale=3.1)
"""PanoHead's cameras. Where its heads lie is not published: origin and scale follow from how its photos were cropped,
for the eyes and the mouth of the packaged body (equations 15.1)."""


def _panohead(name: str, plane_depth: int) -> Preset:
    """Heads from all sides without shoulders or a body pose, and cameras that follow the latent."""
    base = _original(512, 128, _SR_512).model
    model = dataclasses.replace(
        base,
        name=name,
        plane_depth=plane_depth,
        pose_hidden=(),
        deformation="none",
        camera=HEAD_CAMERA,
        camera_translation=True,
        original_bugs=OriginalBugs(),
    )
    return Preset(model, original_recipe(model))


def _pyramid() -> Preset:
    """The published 512 network with a pyramid of tri-grids in a smaller box, and a narrower discriminator."""
    base = _original(512, 128, _SR_512).model
    features, depth, box = 12, 3, 0.7
    model = dataclasses.replace(
        base,
        name="pyramid-512",
        synthesis=SynthesisConfig((3 * features * depth,) * 7, pyramid_from=4),
        background=SynthesisConfig(stylegan_channels(32768, 512, 128)),
        plane_features=features,
        plane_depth=depth,
        decoder_hidden=32,
        render=RenderConfig(
            near=2.385, far=3.12, box_half=(box / 2.0, box / 2.0, box / 2.0), crop=box / 2.0 - 0.1 * box
        ),
        discriminator=DiscriminatorConfig(stylegan_channels(18432, 144, 512)[::-1]),
    )
    return Preset(model, original_recipe(model))


_SR_512 = SuperResolutionConfig(128, (256, 128), up_first=True)
_SR_256 = SuperResolutionConfig(128, (128, 64), resize="smaller", filter_buffer=True)
_SR_128 = SuperResolutionConfig(64, (128, 64), filter_buffer=True)

PRESETS: dict[str, Preset] = {
    preset.model.name: preset
    for preset in (
        _original(512, 128, _SR_512),
        _original(256, 128, _SR_256),
        _original(128, 64, _SR_128),
        _panohead("panohead-512", 3),
        _panohead("panohead-512-depth-1", 1),
        _pyramid(),
        _portrait_256(),
        _portrait_128(),
        _portrait_identity(),
        _cpu_64(),
    )
}
"""Presets that users can name. `original-*`, `panohead-*` and `pyramid-*` are published networks; the others are this
project's."""

_registered: dict[str, Preset] = {}


def register_preset(preset: Preset) -> None:
    """Let `named_preset` find a preset of one's own by its model's name, in this process; for experiments and tests.

    `PRESETS` stays as it is.

    Raises:
        ValueError: a preset of the package has that name.
    """
    if preset.model.name in PRESETS:
        raise ValueError(f"{preset.model.name} is the name of a preset of the package")
    _registered[preset.model.name] = preset


def named_preset(name: str) -> Preset:
    """A preset of `PRESETS`, or one that was registered.

    Raises:
        InputError: there is none of this name.
    """
    from portrait360.errors import InputError

    found = PRESETS.get(name) or _registered.get(name)
    if found is None:
        raise InputError(f"there is no preset {name!r}.", f"Known presets: {', '.join(PRESETS)}.")
    return found
