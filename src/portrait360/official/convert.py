"""From a snapshot of the original training code to this project's weights (equations 12).

The configuration is read off the tensors' shapes and the generator's options; tensors keep their names and values
(float32). Tensors of the licensed body model are left out: the deformation is driven by the packaged body, or by an
SMPL file that the user holds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from portrait360.config import (
    PRESETS,
    DiscriminatorConfig,
    ModelConfig,
    RenderConfig,
    SynthesisConfig,
)
from portrait360.model.discriminator import Discriminator
from portrait360.model.generator import Generator
from portrait360.official.pickle_data import Thing
from portrait360.official.smpl import LICENCE, read_smpl
from portrait360.official.snapshot import constructor_arguments, read_snapshot, state_tensors
from portrait360.portrait.weights import save_weights
from portrait360.runtime.tensors import file_sha256, fill_module
from portrait360.types import CheckpointError, InputError

_SUPERRESOLUTION = {"8XDC": "original-512", "4X": "original-256", "2X": "original-128"}
"""Ending of the original's class of super-resolution, and the preset with the same one."""
_LEFT_OUT = ("renderer.", "dataset_label_std")


def convert_snapshot(path: Path, out: Path, smpl: Path | None = None) -> ModelConfig:
    """Write `out` (.safetensors: averaged generator, discriminator, configuration) from a snapshot.

    With `smpl`, an SMPL file, the body made of it is stored too and drives the deformation wherever `out` is used;
    `out` then falls under the licence of SMPL.

    Returns:
        The model's configuration.

    Raises:
        CheckpointError: not a snapshot, refused (see `read_snapshot`), or of networks that are not these.
        AssetError: `smpl` is no SMPL file (see `read_smpl`).
        InputError: `out` is one of the files to read, or cannot be written.
    """
    # Read the files.
    if any(given is not None and Path(given).resolve() == Path(out).resolve() for given in (path, smpl)):
        raise InputError(f"`out` {out} is one of the files to read.", "Name another file, which may be new.")
    body = None if smpl is None else read_smpl(smpl)
    content = read_snapshot(path)
    g, g_tensors = _network(content, ("G_ema", "G"), path)
    _, d_tensors = _network(content, ("D_ema", "D"), path)

    # Find the configuration that the tensors belong to.
    try:
        model = model_config(g, g_tensors, d_tensors)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path} holds networks of another kind ({type(error).__name__}: {error}).",
            "Snapshots of 3DPortraitGAN's training code can be converted.",
        ) from error

    # Fill the networks and write them.
    generator, discriminator = Generator(model, body), Discriminator(model)
    for module, tensors, prefix in ((generator, g_tensors, "G_ema"), (discriminator, d_tensors, "D")):
        fill_module(module, {f"{prefix}/{k}": v.float() for k, v in tensors.items()}, prefix, path)
    about: dict[str, Any] = {"converted_from": Path(path).name, "sha256": file_sha256(path)}
    if smpl is not None:
        about["body"] = {"made_from": Path(smpl).name, "sha256": file_sha256(smpl), "licence": LICENCE}
    save_weights(out, model, generator, discriminator, about, exact=True)
    return model


def _network(content: Mapping[str, Any], names: tuple[str, ...], path: Path) -> tuple[Thing, dict[str, Tensor]]:
    """The first of the named networks that the snapshot holds, and its tensors without the body model's."""
    for name in names:
        module = content.get(name)
        if isinstance(module, Thing):
            tensors = state_tensors(module)
            return module, {k: v for k, v in tensors.items() if not k.startswith(_LEFT_OUT)}
    raise CheckpointError(
        f"{path} holds no network {' or '.join(names)}.",
        "A whole snapshot is needed, with generator and discriminator.",
    )


def model_config(generator: Thing, g: Mapping[str, Tensor], d: Mapping[str, Tensor]) -> ModelConfig:
    """The configuration that the tensors of a generator and a discriminator belong to."""
    # The preset with the same super-resolution.
    arguments = constructor_arguments(generator)
    options = dict(arguments["rendering_kwargs"])
    ending = str(options["superresolution_module"]).rsplit("Hybrid", 1)[-1]
    if ending not in _SUPERRESOLUTION:
        raise ValueError(f"unknown super-resolution {options['superresolution_module']}")
    base = PRESETS[_SUPERRESOLUTION[ending]].model
    assert base.superresolution is not None

    # Numbers of the constructor, and shapes of the tensors.
    sr_channels = (len(g["superresolution.block0.conv1.bias"]), len(g["superresolution.block1.conv1.bias"]))
    w_dim = len(g["backbone.mapping.w_avg"])
    return dataclasses.replace(
        base,
        resolution=int(arguments["img_resolution"]),
        raw_resolution=int(generator.state.get("neural_rendering_resolution", base.raw_resolution)),
        z_dim=g["backbone.mapping.fc0.weight"].shape[1] - w_dim,
        w_dim=w_dim,
        mapping_layers=_count(g, "backbone.mapping.fc{}.weight"),
        synthesis=_synthesis(g, "backbone.synthesis"),
        background=_synthesis(g, "bcg_synthesis"),
        superresolution=dataclasses.replace(base.superresolution, channels=sr_channels),
        plane_features=g["decoder.net.0.weight"].shape[1],
        plane_depth=int(options["triplane_depth"]),
        decoder_hidden=g["decoder.net.0.weight"].shape[0],
        features=g["decoder.net.2.weight"].shape[0] - 1,
        pose_hidden=_hidden(g),
        thickness=float(arguments.get("thickness", base.thickness)),
        render=_render(base.render, options),
        discriminator=_discriminator(base.discriminator, d),
    )


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """How many of pattern 0, 1, 2, ... are there."""
    n = 0
    while pattern.format(n) in tensors:
        n += 1
    return n


def _hidden(tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Widths of a pose branch's hidden layers."""
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


def _render(base: RenderConfig, options: Mapping[str, Any]) -> RenderConfig:
    half = float(options["box_warp"]) / 2.0
    return dataclasses.replace(
        base,
        samples=int(options["depth_resolution"]),
        importance_samples=int(options["depth_resolution_importance"]),
        near=float(options["ray_start"]),
        far=float(options["ray_end"]),
        box_half=(half, half, half),
    )


def _discriminator(base: DiscriminatorConfig, d: Mapping[str, Tensor]) -> DiscriminatorConfig:
    sides = _sides(d, "b")[::-1]
    channels = [len(d[f"b{side}.conv0.bias"]) for side in sides[:-1]] + [len(d["b4.conv.bias"])]
    return dataclasses.replace(
        base, channels=tuple(channels), mapping_layers=_count(d, "mapping.fc{}.weight"), pose_hidden=_hidden(d)
    )
