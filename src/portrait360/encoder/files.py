"""The file of a portrait encoder: its convolutions and matrices in 8 bits per weight."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import portrait360
from portrait360.encoder.network import EncoderConfig, PortraitEncoder
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

_SCALE = ":scale"
DEFAULT_ENCODER = Path(__file__).parents[1] / "assets" / "encoder.safetensors"


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
    encoder = filled(encoder, in_float32(from_row_bytes(tensors)), "encoder", path)
    info = {"path": str(path), "sha256": file_sha256(path), "about": metadata_json(metadata, "about", path)}
    return encoder, info
