"""Which published model a generator's tensors belong to, and the configuration that they decide (equations 12, 15).

Names tell the models apart, shapes tell the widths, levels and depths: a file may be older than the published source.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from portrait360.config import PRESETS, DiscriminatorConfig, ModelConfig, RenderConfig, SynthesisConfig
from portrait360.official.pickle_data import Thing
from portrait360.official.snapshot import constructor_arguments, rendering_options

Family = Literal["original", "panohead", "pyramid"]
TITLES: dict[Family, str] = {
    "original": "3DPortraitGAN",
    "panohead": "PanoHead",
    "pyramid": "3DPortraitGAN_pyramid",
}
_SUPERRESOLUTION = {"8XDC": 512, "4X": 256, "2X": 128}
"""Ending of the published class of super-resolution, and the side of its images."""
_EXPECTED = {
    "decoder_activation": "none", "use_torgb_raw": True, "superresolution_noise_mode": "none", "decoder_lr_mul": 1,
    "clamp_mode": "softplus", "disparity_space_sampling": False, "sr_antialias": True,
}  # fmt: skip
"""Options that published files have only these values of; networks with others are not computed here."""


def family_of(g: Mapping[str, Tensor]) -> Family:
    """The model that a generator's tensors belong to.

    Raises:
        ValueError: to none of them, or to several.
    """
    # What each model has of its own.
    if not any(name.startswith("backbone.synthesis.b4.") for name in g):
        raise ValueError("there is no tri-grid generator among its tensors")
    has = {
        "pyramid": any(name.startswith("backbone.synthesis.b3d") for name in g),
        "translation": any(name.startswith("t_mapping.") for name in g),
        "pose": any(name.startswith("pose_branch.") for name in g),
    }

    # Which combination this is.
    if has["translation"] and (has["pyramid"] or has["pose"]):
        other = "3DPortraitGAN_pyramid's b3d blocks" if has["pyramid"] else "3DPortraitGAN's pose branch"
        raise ValueError(f"PanoHead's camera translation (t_mapping) is mixed with {other}")
    if has["translation"]:
        return "panohead"
    if not has["pose"]:
        raise ValueError(
            "the generator has neither 3DPortraitGAN's pose branch nor PanoHead's camera translation: EG3D's, perhaps"
        )
    return "pyramid" if has["pyramid"] else "original"


def without_leading_axis(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same with learned constants [1, C, 4, 4], as the pyramid stores them, as [C, 4, 4]."""
    return {k: v[0] if k.endswith(".b4.const") and v.dim() == 4 and len(v) == 1 else v for k, v in tensors.items()}


def model_config(
    generator: Thing, g: Mapping[str, Tensor], d: Mapping[str, Tensor] | None, family: Family = "original"
) -> ModelConfig:
    """The configuration that the tensors of a generator and a discriminator belong to.

    Args:
        generator: for what the tensors do not tell.
        g: tensors of the generator, `without_leading_axis`.
        d: tensors of the discriminator; None keeps the preset's.
        family: of the generator.

    Raises:
        ValueError: parts that do not fit each other, or options that no published file has.
    """
    # The preset with the same super-resolution.
    arguments, options = constructor_arguments(generator), rendering_options(generator)
    ending = str(options["superresolution_module"]).rsplit("Hybrid", 1)[-1]
    if ending not in _SUPERRESOLUTION:
        raise ValueError(f"unknown super-resolution {options['superresolution_module']}")
    _check_options(arguments, options)
    base = PRESETS[f"original-{_SUPERRESOLUTION[ending]}"].model
    assert base.superresolution is not None

    # Shapes of the tensors.
    sr_channels = (len(g["superresolution.block0.conv1.bias"]), len(g["superresolution.block1.conv1.bias"]))
    w_dim = len(g["backbone.mapping.w_avg"])
    features = g["decoder.net.0.weight"].shape[1]
    depth, rest = divmod(len(g["backbone.synthesis.b4.torgb.bias"]), 3 * features)
    if rest:
        raise ValueError(f"tri-grids of {len(g['backbone.synthesis.b4.torgb.bias'])} channels for {features} features")
    model = dataclasses.replace(
        base,
        resolution=int(arguments["img_resolution"]),
        raw_resolution=int(generator.state.get("neural_rendering_resolution", base.raw_resolution)),
        z_dim=g["backbone.mapping.fc0.weight"].shape[1] - w_dim,
        w_dim=w_dim,
        mapping_layers=_count(g, "backbone.mapping.fc{}.weight"),
        conditioning_scale=float(options.get("c_scale", 1.0)) or 1.0,
        synthesis=_synthesis(g, "backbone.synthesis"),
        background=_synthesis(g, "bcg_synthesis") if "bcg_synthesis.b4.const" in g else None,
        superresolution=dataclasses.replace(base.superresolution, channels=sr_channels),
        plane_features=features,
        plane_depth=depth,
        decoder_hidden=g["decoder.net.0.weight"].shape[0],
        features=g["decoder.net.2.weight"].shape[0] - 1,
        pose_hidden=_hidden(g),
        thickness=float(arguments.get("thickness", base.thickness)),
        render=_render(base.render, options, 0.1),
        discriminator=base.discriminator if d is None else _discriminator(base.discriminator, d),
    )
    if family == "panohead":
        return _panohead(model, g, options)
    return _pyramid(model, g, options) if family == "pyramid" else model


def is_unconditioned(options: Mapping[str, Any], family: Family) -> bool:
    """Whether the mapping network gets zeros instead of the labels (equations 15.1)."""
    if family == "original":
        return False  # refused there by the published code itself
    return bool(options.get("c_gen_conditioning_zero", False)) or float(options.get("c_scale", 0.0)) == 0.0


def _check_options(arguments: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    for name, expected in _EXPECTED.items():
        if name in options and options[name] != expected:
            raise ValueError(f"the option {name} is {options[name]!r}, not {expected!r}")
    if arguments.get("architecture", "skip") != "skip":
        raise ValueError(f"the architecture is {arguments['architecture']!r}, not 'skip'")


def _panohead(model: ModelConfig, g: Mapping[str, Tensor], options: Mapping[str, Any]) -> ModelConfig:
    """No body, PanoHead's cameras, and a network for their translation."""
    if _count(g, "t_mapping.fc{}.weight") != model.mapping_layers:
        raise ValueError("the mapping of the camera translation has another number of layers than that of the style")
    suffix = "" if model.plane_depth == 3 else f"-depth-{model.plane_depth}"
    preset = PRESETS["panohead-512"].model
    camera = dataclasses.replace(preset.camera, radius=float(options.get("avg_camera_radius", preset.camera.radius)))
    return dataclasses.replace(
        model,
        name=f"panohead-{model.resolution}{suffix}",
        deformation="none",
        camera=camera,
        camera_translation=True,
        original_bugs=preset.original_bugs,
    )


def _pyramid(model: ModelConfig, g: Mapping[str, Tensor], options: Mapping[str, Any]) -> ModelConfig:
    """A pyramid of tri-grids from the first resolution that has one, and a margin of the crop that scales."""
    sides = [4 * 2**i for i in range(len(model.synthesis.channels))]
    levels = [side for side in sides if f"backbone.synthesis.b3d{side}.block.conv0.weight" in g]
    if not levels or levels != sides[sides.index(levels[0]) :]:
        raise ValueError(f"the pyramid has levels at {levels} of the resolutions {sides}")
    return dataclasses.replace(
        model,
        name=f"pyramid-{model.resolution}",
        synthesis=dataclasses.replace(model.synthesis, pyramid_from=levels[0]),
        render=_render(model.render, options, 0.1 * float(options["box_warp"])),
    )


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """How many of pattern 0, 1, 2, ... are there."""
    n = 0
    while pattern.format(n) in tensors:
        n += 1
    return n


def _hidden(tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Widths of a pose branch's hidden layers; none without one."""
    layers = _count(tensors, "pose_branch.net.{}.weight")
    return tuple(len(tensors[f"pose_branch.net.{i}.bias"]) for i in range(layers - 1))


def _sides(tensors: Mapping[str, Tensor], prefix: str) -> list[int]:
    """Resolutions of the blocks prefix4, prefix8, ..."""
    sides = []
    side = 4
    while any(name.startswith(f"{prefix}{side}.") for name in tensors):
        sides.append(side)
        side *= 2
    return sides


def _synthesis(tensors: Mapping[str, Tensor], prefix: str) -> SynthesisConfig:
    return SynthesisConfig(tuple(len(tensors[f"{prefix}.b{s}.conv1.bias"]) for s in _sides(tensors, f"{prefix}.b")))


def _render(base: RenderConfig, options: Mapping[str, Any], margin: float) -> RenderConfig:
    """`margin`: of the box, beyond which |x| and |z| are cropped."""
    half = float(options["box_warp"]) / 2.0
    return dataclasses.replace(
        base,
        samples=int(options["depth_resolution"]),
        importance_samples=int(options["depth_resolution_importance"]),
        near=float(options["ray_start"]),
        far=float(options["ray_end"]),
        box_half=(half, half, half),
        crop=half - margin,
    )


def _discriminator(base: DiscriminatorConfig, d: Mapping[str, Tensor]) -> DiscriminatorConfig:
    sides = _sides(d, "b")[::-1]
    channels = [len(d[f"b{side}.conv0.bias"]) for side in sides[:-1]] + [len(d["b4.conv.bias"])]
    return dataclasses.replace(
        base, channels=tuple(channels), mapping_layers=_count(d, "mapping.fc{}.weight"), pose_hidden=_hidden(d)
    )
