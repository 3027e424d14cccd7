"""From a snapshot of the published training codes to this project's weights (equations 12, 15).

3DPortraitGAN, PanoHead and 3DPortraitGAN_pyramid are told apart by their tensors (`family`). The configuration is read
off the tensors' shapes and the generator's options; tensors keep their names and values (float32). Tensors of the
licensed body model are left out: the deformation is driven by the packaged body, or by an SMPL file that the user
holds. PanoHead's discriminator, which predicts no poses, is left out too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from portrait360.config import ModelConfig
from portrait360.model.discriminator import Discriminator
from portrait360.model.generator import Generator
from portrait360.model.mapping import MappingNetwork
from portrait360.official.family import TITLES, Family, family_of, is_unconditioned, model_config, without_leading_axis
from portrait360.official.pickle_data import Thing
from portrait360.official.smpl import LICENCE, read_smpl
from portrait360.official.snapshot import read_snapshot, rendering_options, state_tensors
from portrait360.portrait.weights import save_weights
from portrait360.runtime.tensors import file_sha256, fill_module
from portrait360.types import CheckpointError, InputError

_LEFT_OUT = ("renderer.", "dataset_label_std")
AUTHORS_LICENCE = (
    "The authors of {title} license it for non-commercial use only. Converted weights, and what is made with them, stay"
    " under their licence: read it where the original file came from."
)
"""What is said at conversion and in everything that is made with converted weights."""


@dataclass(frozen=True)
class Converted:
    """What a conversion found."""

    model: ModelConfig
    title: str
    """Of the published model."""
    licence: str
    """What its authors allow."""
    has_discriminator: bool
    """Whether `portrait360 pose` can use the weights."""


def convert_snapshot(path: Path, out: Path, smpl: Path | None = None) -> Converted:
    """Write `out` (.safetensors: averaged generator, discriminator, configuration) from a snapshot.

    With `smpl`, an SMPL file, the body made of it is stored too and drives the deformation wherever `out` is used;
    `out` then falls under the licence of SMPL.

    Raises:
        CheckpointError: not a snapshot, refused (see `read_snapshot`), of networks that are not these, or of parts of
            several.
        AssetError: `smpl` is no SMPL file (see `read_smpl`).
        InputError: `out` is one of the files to read, or cannot be written; `smpl` for heads without a body.
    """
    # Read the files.
    if any(given is not None and Path(given).resolve() == Path(out).resolve() for given in (path, smpl)):
        raise InputError(f"`out` {out} is one of the files to read.", "Name another file, which may be new.")
    body = None if smpl is None else read_smpl(smpl)
    content = read_snapshot(path)
    found = _read_networks(content, path)
    if body is not None and not found.model.posable:
        raise InputError(f"{path} is of {TITLES[found.family]}, whose heads know no body.", "Leave out `body`.")

    # Fill the networks.
    generator = Generator(found.model, body)
    fill_module(generator, {f"G_ema/{k}": v.float() for k, v in found.generator.items()}, "G_ema", path)
    if is_unconditioned(found.options, found.family):
        mapping = generator.backbone.mapping
        assert isinstance(mapping, MappingNetwork)
        with torch.no_grad():
            mapping.embed.weight.zero_()
    discriminator = None
    if found.discriminator is not None:
        discriminator = Discriminator(found.model)
        fill_module(discriminator, {f"D/{k}": v.float() for k, v in found.discriminator.items()}, "D", path)

    # Write them.
    title = TITLES[found.family]
    licence = AUTHORS_LICENCE.format(title=title)
    about: dict[str, Any] = {"converted_from": Path(path).name, "sha256": file_sha256(path), "licence": licence}
    if smpl is not None:
        about["body"] = {"made_from": Path(smpl).name, "sha256": file_sha256(smpl), "licence": LICENCE}
    save_weights(out, found.model, generator, discriminator, about, exact=True)
    return Converted(found.model, title, licence, discriminator is not None)


@dataclass(frozen=True)
class _Networks:
    """The networks of a snapshot and what they are."""

    family: Family
    model: ModelConfig
    options: dict[str, Any]
    generator: dict[str, Tensor]
    discriminator: dict[str, Tensor] | None


def _read_networks(content: Mapping[str, Any], path: Path) -> _Networks:
    """The averaged generator and the discriminator that predicts poses, of one family."""
    module, g = _network(content, ("G_ema", "G"), path)
    try:
        # The generators must be of one family
        family = family_of(g)
        for name in ("G", "G_ema"):
            if isinstance(content.get(name), Thing) and (other := family_of(_tensors(content[name]))) != family:
                raise ValueError(f"its averaged generator is of {TITLES[family]}, {name} of {TITLES[other]}")

        # PanoHead's discriminator is of no use; a pyramid may come without one
        d = None
        present = any(isinstance(content.get(name), Thing) for name in ("D_ema", "D"))
        if family == "original" or (family == "pyramid" and present):
            d = _network(content, ("D_ema", "D"), path)[1]
            if "mapping.embed.weight" in d and not any(name.startswith("pose_branch.") for name in d):
                raise ValueError(f"its generator is of {TITLES[family]}, but its discriminator predicts no poses")
        model = model_config(module, g, d, family)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else str(error)
        raise CheckpointError(
            f"{path} holds networks of another kind, or parts of several ({reason}).",
            f"Snapshots of {', '.join(TITLES.values())} can be converted.",
        ) from error
    return _Networks(family, model, rendering_options(module), g, d)


def _network(content: Mapping[str, Any], names: tuple[str, ...], path: Path) -> tuple[Thing, dict[str, Tensor]]:
    """The first of the named networks that the snapshot holds, and its tensors without the body model's."""
    for name in names:
        module = content.get(name)
        if isinstance(module, Thing):
            return module, _tensors(module)
    raise CheckpointError(
        f"{path} holds no network {' or '.join(names)}.",
        "A whole snapshot is needed, with generator and discriminator.",
    )


def _tensors(module: Thing) -> dict[str, Tensor]:
    tensors = state_tensors(module)
    return without_leading_axis({k: v for k, v in tensors.items() if not k.startswith(_LEFT_OUT)})
