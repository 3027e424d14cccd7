"""Typed configuration of models and training, and the presets that users can name.

Values only: no registries of classes, no class names. `portrait360.runtime.tensors` writes and reads them as JSON;
`fields` lists every value with its name, type and meaning, for the command line and for `train(..., batch=32)`.
Nothing here imports torch, so that `--help` is quick.
"""

from portrait360.config.model import (
    Box,
    CameraConfig,
    DiscriminatorConfig,
    ModelConfig,
    OriginalBugs,
    RenderConfig,
    Resample,
    SuperResolutionConfig,
    SynthesisConfig,
    Vector3,
    WarpConfig,
    check_model,
)
from portrait360.config.presets import PRESETS, named_preset, register_preset, stylegan_channels
from portrait360.config.training import (
    Preset,
    RawRamp,
    ReconstructionConfig,
    TrainingConfig,
    check_lengths,
    original_recipe,
)

__all__ = [
    "PRESETS",
    "Box",
    "CameraConfig",
    "DiscriminatorConfig",
    "ModelConfig",
    "OriginalBugs",
    "Preset",
    "RawRamp",
    "ReconstructionConfig",
    "RenderConfig",
    "Resample",
    "SuperResolutionConfig",
    "SynthesisConfig",
    "TrainingConfig",
    "Vector3",
    "WarpConfig",
    "check_lengths",
    "check_model",
    "named_preset",
    "original_recipe",
    "register_preset",
    "stylegan_channels",
]
