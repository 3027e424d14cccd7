"""Any preset made small enough for a test, with all of its parts kept."""

from __future__ import annotations

import dataclasses

from portrait360.config import Preset, SynthesisConfig


def _narrow(config: SynthesisConfig | None, steps: int, width: int = 8) -> SynthesisConfig | None:
    if config is None:
        return None
    return dataclasses.replace(config, channels=tuple(width for _ in config.channels[:steps]), first_output=4)


def shrunken(preset: Preset) -> Preset:
    """32-pixel images from 16-pixel rays (or 32 without super-resolution), 8 channels, few samples.

    Planes and decoders have few sizes in all, as kernels are compiled for each: 8 channels, or the 16 of the packaged
    weights' preset where images are rendered without super-resolution.
    """
    model = preset.model
    features = 16 if model.features == 3 else 8
    sr = model.superresolution
    if sr is not None:
        sr = dataclasses.replace(sr, input_resolution=8 if sr.up_first else 16, channels=(8, 8))
    side = 32
    small = dataclasses.replace(
        model,
        resolution=side,
        raw_resolution=side if sr is None else sr.input_resolution,
        synthesis=_narrow(model.synthesis, 3, 8 if model.synthesis.pyramid_from is None else 9 * features),
        background=_narrow(model.background, 3 if sr is None or sr.input_resolution == 16 else 2),
        superresolution=sr,
        discriminator=dataclasses.replace(model.discriminator, channels=(8, 8, 8, 8), pose_hidden=(8,)),
        z_dim=16,
        w_dim=16,
        plane_features=features,
        decoder_hidden=32 if model.features == 3 else 16,
        features=3 if model.features == 3 else 8,
        pose_hidden=(8,),
        render=dataclasses.replace(
            model.render,
            samples=4,
            importance_samples=4 if model.render.importance_samples else 0,
            inference_samples=None,
        ),
    )
    training = dataclasses.replace(preset.training, batch=4, bf16=False, r1_interval=1)
    return Preset(small, training)
