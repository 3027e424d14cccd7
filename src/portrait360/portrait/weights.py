"""Weights: safetensors files with JSON in their metadata, written atomically.

Nothing here executes code from a file. A weights file holds the averaged generator (`G_ema/...`) and the
discriminator (`D/...`, for its pose head), and where the deformation follows a body other than the packaged one, that
body (`body/...`).
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import portrait360
from portrait360.config import ModelConfig
from portrait360.geometry.body import BodyTemplate, body_from_tensors, body_tensors
from portrait360.model.discriminator import Discriminator
from portrait360.model.generator import Generator
from portrait360.poses.calibration import PoseCalibration, calibration_from, calibration_tensors
from portrait360.runtime.tensors import (
    FORMAT,
    file_sha256,
    filled,
    from_json,
    in_float32,
    metadata_json,
    module_tensors,
    read_tensors,
    to_json,
    write_tensors,
)
from portrait360.types import CheckpointError

_BODY = "body/"
_CALIBRATION = "pose_calibration"
"""One map, as files had it that knew only whole pictures; or a folder of `calibration_tensors`."""
DEFAULT_WEIGHTS = Path(__file__).parents[1] / "assets" / "default.safetensors"


def _halved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convolutions and matrices in float16, all else as it is."""
    return {k: v.half() if v.dtype == torch.float32 and v.dim() >= 2 else v for k, v in tensors.items()}


def save_weights(
    path: Path,
    model: ModelConfig,
    generator: Generator,
    discriminator: Discriminator,
    about: dict[str, Any],
    *,
    exact: bool = False,
    body: BodyTemplate | None = None,
    calibration: PoseCalibration | None = None,
) -> None:
    """Generator and discriminator as one file; float16 where a tensor loses nothing that pictures show.

    `exact` keeps float32 everywhere. `body`: what drives the deformation of these weights instead of the packaged body.
    `calibration`: of the discriminator's poses of real pictures (`poses.calibration`).
    """
    tensors = module_tensors(generator, "G_ema") | module_tensors(discriminator, "D")
    if not exact:
        tensors = _halved(tensors)
    if calibration is not None:
        parts = calibration_tensors(calibration)
        tensors |= {f"{_CALIBRATION}/{name}": value for name, value in parts.items()}
    metadata = {
        "format": FORMAT,
        "kind": "weights",
        "version": portrait360.__version__,
        "model": to_json(model),
        "about": json.dumps(about, sort_keys=True),
    }
    if body is not None:
        parts, info = body_tensors(body)
        tensors |= {f"{_BODY}{name}": part for name, part in parts.items()}
        metadata["body"] = json.dumps(info)
    write_tensors(path, tensors, metadata)


@dataclasses.dataclass(frozen=True)
class Weights:
    generator: Generator
    discriminator: Discriminator
    info: dict[str, Any]
    """`path`, `sha256`, `model` (preset name), `version`, `about`."""
    calibration: PoseCalibration | None = None
    """What corrects the discriminator's poses of real pictures (`poses.calibration`); None: nothing does."""


def load_weights(path: Path | None = None) -> Weights:
    """The networks of a weights file (default: the packaged one), in eval mode on the CPU.

    A body that the file holds drives the generator's deformation, else the packaged one.

    Raises:
        CheckpointError: see `read_tensors` and `fill_module`.
    """
    path = DEFAULT_WEIGHTS if path is None else Path(path)
    tensors, info, body = read_weights_file(path)
    generator = filled(Generator(info["model"], body), tensors, "G_ema", path)
    discriminator = filled(Discriminator(info["model"]), tensors, "D", path)
    return Weights(generator, discriminator, _described(info, path), _calibration(tensors, path))


def _calibration(tensors: dict[str, Tensor], path: Path) -> PoseCalibration | None:
    prefix = f"{_CALIBRATION}/"
    found = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    if _CALIBRATION in tensors:
        found |= {"windows": torch.ones(1), "0": tensors[_CALIBRATION]}
    if not found:
        return None
    try:
        return calibration_from(found)
    except ValueError as error:
        raise CheckpointError(
            f"{path} holds a damaged pose calibration: {error}.", "Use an earlier checkpoint."
        ) from error


def load_generator(path: Path | None = None) -> tuple[Generator, dict[str, Any]]:
    """The generator of a weights file alone, and the file's `info`, as `load_weights` gives them.

    The discriminator, as large again in the original's weights, is not made.

    Raises:
        CheckpointError: missing, damaged, or not this project's weights.
    """
    path = DEFAULT_WEIGHTS if path is None else Path(path)
    tensors, info, body = read_weights_file(path)
    return filled(Generator(info["model"], body), tensors, "G_ema", path), _described(info, path)


def _described(info: dict[str, Any], path: Path) -> dict[str, Any]:
    return info | {"path": str(path), "sha256": file_sha256(path), "model": info["model"].name}


def read_weights_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], BodyTemplate | None]:
    """The networks' tensors of a weights file in float32; its `model` (config), `version` and `about`; its body if any.

    Raises:
        CheckpointError: see `read_tensors`; also a training checkpoint, or metadata or a body that cannot be read.
    """
    tensors, metadata = read_tensors(path)
    if metadata.get("kind") != "weights":
        raise CheckpointError(f"{path} is a training checkpoint, not weights.", "Use weights.safetensors beside it.")
    info = {
        "model": from_json(ModelConfig, metadata.get("model", "")),
        "version": metadata.get("version", ""),
        "about": metadata_json(metadata, "about", path),
    }
    parts = {k.removeprefix(_BODY): tensors.pop(k) for k in list(tensors) if k.startswith(_BODY)}
    body = None
    if parts or "body" in metadata:
        try:
            body = body_from_tensors(parts, metadata_json(metadata, "body", path))
        except ValueError as error:
            raise CheckpointError(f"{path} holds a damaged body: {error}.", "Convert the original again.") from error
    return in_float32(tensors), info, body
