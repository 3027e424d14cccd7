"""Weights and checkpoints: safetensors files with JSON in their metadata, written atomically.

Nothing here executes code from a file. A weights file holds the averaged generator (`G_ema/...`) and the
discriminator (`D/...`, for its pose head), and where the deformation follows a body other than the packaged one, that
body (`body/...`); a checkpoint holds everything that exact resuming needs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

import portrait360
from portrait360.config import ModelConfig, Preset
from portrait360.config_json import from_json, to_json
from portrait360.files import atomic_write
from portrait360.geometry.body import BodyTemplate, body_from_tensors, body_tensors
from portrait360.model.calibration import PoseCalibration, calibration_from, calibration_tensors
from portrait360.model.discriminator import Discriminator
from portrait360.model.encoder import EncoderConfig, PortraitEncoder
from portrait360.model.generator import Generator
from portrait360.types import CheckpointError

FORMAT = "portrait360"
_BODY = "body/"
_CALIBRATION = "pose_calibration"
"""One map, as files had it that knew only whole pictures; or a folder of `calibration_tensors`."""
_SCALE = ":scale"
M = TypeVar("M", bound=nn.Module)
DEFAULT_WEIGHTS = Path(__file__).parent / "assets" / "default.safetensors"
DEFAULT_ENCODER = Path(__file__).parent / "assets" / "encoder.safetensors"


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file under a temporary name, then rename it."""
    data = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, metadata=metadata)
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        CheckpointError: missing, not a safetensors file, damaged, or not written by this project.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no weights file at {path}.", "Check the path.")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a readable safetensors file ({error}).",
            "Weights of this project end in .safetensors; a damaged file must be copied again.",
        ) from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} holds tensors, but was not written by portrait360.",
            "Give a file that `portrait360 train` wrote.",
        )
    return tensors, metadata


def metadata_json(metadata: dict[str, str], key: str, path: Path) -> Any:
    """The JSON entry `key` of a file's metadata."""
    try:
        return json.loads(metadata[key])
    except (KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} lacks a readable entry {key!r}.", "The file is damaged or too old.") from error


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- modules ----


def module_tensors(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Parameters and buffers under `prefix/name`."""
    return {f"{prefix}/{k}": v for k, v in module.state_dict().items()}


def fill_module(module: nn.Module, tensors: dict[str, Tensor], prefix: str, path: Path) -> None:
    """Load `prefix/...` into the module; every name and shape must match.

    Raises:
        CheckpointError: a tensor is missing, unknown, of another shape, or not finite.
    """
    wanted = module.state_dict()
    given = {k[len(prefix) + 1 :]: v for k, v in tensors.items() if k.startswith(prefix + "/")}
    for name in sorted(set(wanted) ^ set(given)):
        what = "lacks" if name in wanted else "has an unknown"
        raise CheckpointError(f"{path} {what} tensor {prefix}/{name}.", "It belongs to another model.")
    for name, value in given.items():
        if value.shape != wanted[name].shape:
            raise CheckpointError(
                f"{path}: tensor {prefix}/{name} is {list(value.shape)}, expected {list(wanted[name].shape)}.",
                "It belongs to another model.",
            )
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise CheckpointError(f"{path}: tensor {prefix}/{name} is not finite.", "Use an earlier checkpoint.")
    module.load_state_dict(given)


def _halved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convolutions and matrices in float16, all else as it is."""
    return {k: v.half() if v.dtype == torch.float32 and v.dim() >= 2 else v for k, v in tensors.items()}


def _unhalved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Everything that is not whole numbers in float32."""
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}


def row_bytes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convolutions and matrices as whole numbers from -127 to 127, all else as it is.

    Each row (what makes one output channel) has a factor of its own, `NAME:scale`: its largest magnitude / 127.
    """
    stored = {}
    for name, value in tensors.items():
        if value.dtype == torch.float32 and value.dim() >= 2:
            scale = value.flatten(1).abs().amax(dim=1).clamp_min(1e-12) / 127.0
            rows = (value.flatten(1) / scale[:, None]).round().to(torch.int8)
            stored[name], stored[name + _SCALE] = rows.view_as(value), scale
        else:
            stored[name] = value
    return stored


def from_row_bytes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `row_bytes`: factors are multiplied in; whole numbers that lack theirs are left out."""
    plain = dict(tensors)
    for name, value in tensors.items():
        scale = tensors.get(name + _SCALE)
        if scale is not None and scale.shape == value.shape[:1]:
            plain[name] = (value.flatten(1).float() * scale[:, None]).view_as(value)
            del plain[name + _SCALE]
        elif value.dtype == torch.int8:
            del plain[name]
    return plain


# ---- weights for use ----


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
    `calibration`: of the discriminator's poses of real pictures (`model.calibration`).
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
    """What corrects the discriminator's poses of real pictures (`model.calibration`); None: nothing does."""


def load_weights(path: Path | None = None) -> Weights:
    """The networks of a weights file (default: the packaged one), in eval mode on the CPU.

    A body that the file holds drives the generator's deformation, else the packaged one.

    Raises:
        CheckpointError: see `read_tensors` and `fill_module`.
    """
    path = DEFAULT_WEIGHTS if path is None else Path(path)
    tensors, info, body = read_weights_file(path)
    generator = _filled(Generator(info["model"], body), tensors, "G_ema", path)
    discriminator = _filled(Discriminator(info["model"]), tensors, "D", path)
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
    return _filled(Generator(info["model"], body), tensors, "G_ema", path), _described(info, path)


def _filled(module: M, tensors: dict[str, Tensor], prefix: str, path: Path) -> M:
    fill_module(module, tensors, prefix, path)
    return module.eval().requires_grad_(False)


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
    return _unhalved(tensors), info, body


# ---- portrait encoder ----


def save_encoder(path: Path, encoder: PortraitEncoder, about: dict[str, Any]) -> None:
    """A portrait encoder; its convolutions and matrices in 8 bits per weight, `row_bytes`."""
    tensors = row_bytes(module_tensors(encoder, "encoder"))
    metadata = {
        "format": FORMAT,
        "kind": "encoder",
        "version": portrait360.__version__,
        "config": to_json(encoder.config),
        "about": json.dumps(about, sort_keys=True),
    }
    write_tensors(path, tensors, metadata)


def load_encoder(path: Path | None = None) -> tuple[PortraitEncoder, dict[str, Any]]:
    """The portrait encoder of a file (default: the packaged one), in eval mode on the CPU; `path`, `sha256`, `about`.

    Raises:
        CheckpointError: missing, damaged, or not a portrait encoder.
    """
    path = DEFAULT_ENCODER if path is None else Path(path)
    tensors, metadata = read_tensors(path)
    if metadata.get("kind") != "encoder":
        raise CheckpointError(f"{path} is not a portrait encoder.", "Leave the option out to use the packaged one.")
    encoder = PortraitEncoder(from_json(EncoderConfig, metadata.get("config", "")))
    encoder = _filled(encoder, _unhalved(from_row_bytes(tensors)), "encoder", path)
    info = {"path": str(path), "sha256": file_sha256(path), "about": metadata_json(metadata, "about", path)}
    return encoder, info


# ---- training checkpoints ----


def checkpoint_path(run: Path, images: int) -> Path:
    return Path(run) / f"checkpoint-{images:010d}.safetensors"


def checkpoints(run: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    return sorted(Path(run).glob("checkpoint-*.safetensors"))


def save_checkpoint(path: Path, preset: Preset, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
    """A training checkpoint; `progress` is plain JSON (images, step, seed, data)."""
    metadata = {
        "format": FORMAT,
        "kind": "checkpoint",
        "version": portrait360.__version__,
        "preset": to_json(preset),
        "progress": json.dumps(progress, sort_keys=True),
    }
    write_tensors(path, tensors, metadata)


def load_checkpoint(path: Path) -> tuple[ModelConfig, dict[str, Tensor], dict[str, Any]]:
    """Model, tensors and progress of a checkpoint. Training goes on with the recipe given now, whatever was saved.

    Raises:
        CheckpointError: not a checkpoint of this project.
    """
    tensors, metadata = read_tensors(path)
    if metadata.get("kind") != "checkpoint":
        raise CheckpointError(f"{path} is not a training checkpoint.", "Name a file like checkpoint-0000010000.")
    preset = metadata_json(metadata, "preset", path)
    model = preset.get("model") if isinstance(preset, dict) else None
    return from_json(ModelConfig, json.dumps(model)), tensors, metadata_json(metadata, "progress", path)
