"""Weights: safetensors files with JSON in their metadata, written atomically.

Nothing here executes code from a file. A weights file holds the averaged generator (`G_ema/...`) and the
discriminator (`D/...`, for its pose head), and where the deformation follows a body other than the packaged one, that
body (`body/...`).
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import portrait360
from portrait360.config import ModelConfig
from portrait360.geometry.body import BodyTemplate, body_from_tensors, body_tensors, is_packaged
from portrait360.model.discriminator import Discriminator
from portrait360.model.generator import Generator
from portrait360.poses.calibration import PoseCalibration, calibration_from, calibration_tensors
from portrait360.runtime.files import atomic_write
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

_GENERATOR, _DISCRIMINATOR = "G_ema", "D"
_BODY = "body/"
_CALIBRATION = "pose_calibration/"
DEFAULT_WEIGHTS = Path(__file__).parents[1] / "assets" / "default.safetensors"
"""The weights that come with the package."""
WEIGHTS_NAME = "weights.safetensors"
"""The weights file of a run folder, and of a folder that `PortraitModel.save_pretrained` wrote."""


# ---- writing ----


def _halved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convolutions and matrices in float16, all else as it is."""
    return {k: v.half() if v.dtype == torch.float32 and v.dim() >= 2 else v for k, v in tensors.items()}


def save_weights(
    path: Path,
    model: ModelConfig,
    generator: Generator,
    discriminator: Discriminator | None,
    about: dict[str, Any],
    *,
    exact: bool = False,
    calibration: PoseCalibration | None = None,
) -> None:
    """Write generator and discriminator as one file; float16 where a tensor loses nothing that images show.

    A generator's body is written too unless it is the packaged one.

    Args:
        path: the .safetensors file.
        model: what the networks were made of.
        generator: the averaged one.
        discriminator: None leaves it out, for converted weights that have none.
        about: JSON about the training, for `WeightsInfo.about`.
        exact: keep float32 everywhere.
        calibration: of the discriminator's predicted poses (`poses.calibration`).
    """
    tensors = module_tensors(generator, _GENERATOR)
    if discriminator is not None:
        tensors |= module_tensors(discriminator, _DISCRIMINATOR)
    if not exact:
        tensors = _halved(tensors)
    metadata = {
        "format": FORMAT,
        "kind": "weights",
        "version": portrait360.__version__,
        "model": to_json(model),
        "about": json.dumps(about, sort_keys=True),
    }

    # Parts that only some weights have
    if calibration is not None:
        parts = calibration_tensors(calibration)
        tensors |= {f"{_CALIBRATION}{name}": value for name, value in parts.items()}
    if not is_packaged(generator.body):
        parts, info = body_tensors(generator.body)
        tensors |= {f"{_BODY}{name}": part for name, part in parts.items()}
        metadata["body"] = json.dumps(info)
    write_tensors(path, tensors, metadata)


def copy_weights(source: WeightsInfo, generator: Generator, path: Path) -> None:
    """Write the weights file that `generator` was loaded from anew, with the generator's present tensors.

    Raises:
        CheckpointError: the source has gone or changed since.
    """
    tensors, metadata = read_tensors(source.path)
    if file_sha256(source.path) != source.sha256:
        raise CheckpointError(
            f"{source.path} has changed since these weights were loaded.", "Load it again, then save it."
        )
    present = module_tensors(generator, _GENERATOR)
    present = {name: tensor.to("cpu", tensors[name].dtype) for name, tensor in present.items()}
    if all(torch.equal(tensor, tensors[name]) for name, tensor in present.items()):
        with atomic_write(path) as temporary:  # the same bytes: portraits know their weights by the hash
            shutil.copyfile(source.path, temporary)
    else:
        write_tensors(path, tensors | present, metadata)


# ---- reading ----


@dataclass(frozen=True)
class WeightsInfo:
    """What a weights file says of itself."""

    path: Path
    sha256: str
    model: str
    """Name of the preset."""
    version: str
    """Of the package that wrote it."""
    about: dict[str, Any]
    """JSON about the training: images shown, data, recipe ...; of converted weights their source and licence."""

    @property
    def licence(self) -> str | None:
        """What the authors of converted weights allow; None: nothing is known that differs from the package's."""
        stated = self.about.get("licence") if isinstance(self.about, dict) else None
        return stated if isinstance(stated, str) else None


@dataclass(frozen=True)
class Weights:
    """The networks of a weights file."""

    generator: Generator
    discriminator: Discriminator
    info: WeightsInfo
    calibration: PoseCalibration | None = None
    """What corrects the discriminator's predicted poses (`poses.calibration`); None: nothing does."""


@dataclass(frozen=True)
class WeightsFile:
    """The content of a weights file before networks are made of it."""

    path: Path
    tensors: dict[str, Tensor]
    """In float32, by the names of the file."""
    model: ModelConfig
    version: str
    about: dict[str, Any]
    body: BodyTemplate | None
    """What drives the deformation, if not the packaged body."""

    def generator(self) -> Generator:
        """The generator in eval mode, on the CPU."""
        return filled(Generator(self.model, self.body), self.tensors, _GENERATOR, self.path)

    def discriminator(self) -> Discriminator | None:
        """The discriminator in eval mode, on the CPU; None if the file holds none."""
        if not any(name.startswith(f"{_DISCRIMINATOR}/") for name in self.tensors):
            return None
        return filled(Discriminator(self.model), self.tensors, _DISCRIMINATOR, self.path)

    def info(self) -> WeightsInfo:
        """What the file says of itself."""
        return WeightsInfo(self.path, file_sha256(self.path), self.model.name, self.version, self.about)


def find_weights(source: str | Path | None) -> Path:
    """The weights file that is meant: the packaged one (None), a file, or that of a run folder.

    Raises:
        CheckpointError: a folder without weights.
    """
    if source is None:
        return DEFAULT_WEIGHTS
    path = Path(source)
    if not path.is_dir():
        return path
    if not (path / WEIGHTS_NAME).is_file():
        raise CheckpointError(
            f"there is no weights file in the folder {path}.", f"A run folder holds {WEIGHTS_NAME}; check the path."
        )
    return path / WEIGHTS_NAME


def load_weights(source: str | Path | None = None) -> Weights:
    """Load the networks of a weights file in eval mode on the CPU.

    A body that the file holds drives the generator's deformation, else the packaged one.

    Args:
        source: a file or a run folder; the packaged weights when None.

    Raises:
        CheckpointError: see `read_tensors` and `fill_module`; also for weights without a discriminator.
    """
    file = read_weights_file(find_weights(source))
    discriminator = file.discriminator()
    if discriminator is None:
        raise CheckpointError(
            f"{file.path} ({file.model.name}) holds no discriminator, which predicts body poses.",
            "Such weights make portraits; for body poses use those of another model.",
        )
    return Weights(file.generator(), discriminator, file.info(), _calibration(file.tensors, file.path))


def _calibration(tensors: dict[str, Tensor], path: Path) -> PoseCalibration | None:
    found = {k.removeprefix(_CALIBRATION): v for k, v in tensors.items() if k.startswith(_CALIBRATION)}
    if not found:
        return None
    try:
        return calibration_from(found)
    except ValueError as error:
        raise CheckpointError(
            f"{path} holds a damaged pose calibration: {error}.", "Use an earlier checkpoint."
        ) from error


def load_generator(source: str | Path | None = None) -> tuple[Generator, WeightsInfo]:
    """Load the generator of a weights file alone, and what the file says of itself.

    The discriminator, as large again in the original's weights, is not made.

    Args:
        source: a file or a run folder; the packaged weights when None.

    Raises:
        CheckpointError: missing, damaged, or not this project's weights.
    """
    file = read_weights_file(find_weights(source))
    return file.generator(), file.info()


def read_weights_file(path: Path) -> WeightsFile:
    """Read the tensors and the metadata of a weights file.

    Raises:
        CheckpointError: see `read_tensors`; also a training checkpoint or a portrait, or metadata or a body that
            cannot be read.
    """
    tensors, metadata = read_tensors(path)
    kind = metadata.get("kind")
    if kind == "portrait":
        raise CheckpointError(f"{path} is a portrait, not weights.", "Load it with `Portrait.load`.")
    if kind != "weights":
        raise CheckpointError(f"{path} is a training checkpoint, not weights.", f"Use {WEIGHTS_NAME} beside it.")
    model = from_json(ModelConfig, metadata.get("model", ""))
    about = metadata_json(metadata, "about", path)
    parts = {k.removeprefix(_BODY): tensors.pop(k) for k in list(tensors) if k.startswith(_BODY)}
    body = None
    if parts or "body" in metadata:
        try:
            body = body_from_tensors(parts, metadata_json(metadata, "body", path))
        except ValueError as error:
            raise CheckpointError(f"{path} holds a damaged body: {error}.", "Convert the original again.") from error
    return WeightsFile(path, in_float32(tensors), model, metadata.get("version", ""), about, body)
