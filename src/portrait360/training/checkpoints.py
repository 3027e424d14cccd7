"""Training checkpoints: safetensors files that hold everything that exact resuming needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

import portrait360
from portrait360.config import ModelConfig, Preset
from portrait360.runtime.tensors import FORMAT, from_json, metadata_json, read_tensors, to_json, write_tensors
from portrait360.types import CheckpointError


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
