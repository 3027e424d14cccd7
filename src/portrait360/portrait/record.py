"""Where a portrait comes from, and the portrait file, which holds that and the style w: enough to make it again."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

import portrait360
from portrait360.runtime.tensors import FORMAT, from_json, read_tensors, write_tensors
from portrait360.types import CheckpointError

_KIND = "portrait"
_STYLE = "w"


@dataclass(frozen=True)
class PortraitRecord:
    """Where a portrait comes from."""

    weights_sha256: str
    """Of the weights file that renders it."""
    model: str
    """Name of the weights' preset."""
    convolutions: Literal["float32", "bf16"] = "float32"
    seed: int | None = None
    """None for styles that do not come from one."""
    truncation_psi: float | None = None
    licence: str | None = None
    """What the authors of converted weights allow."""

    def as_json(self) -> dict[str, Any]:
        """What portrait.json and the extras of a mesh begin with."""
        drawn = {"seed": self.seed, "truncation_psi": self.truncation_psi, "licence": self.licence}
        known = {name: value for name, value in drawn.items() if value is not None}
        source = {"weights": {"sha256": self.weights_sha256}, "model": self.model, "convolutions": self.convolutions}
        return known | source


def posed_json(record: PortraitRecord, body_pose: Float[Tensor, " 6"]) -> dict[str, Any]:
    """The record of something rendered under a body pose (radians)."""
    return record.as_json() | {
        "body_pose": {
            "radians": body_pose.tolist(),
            "degrees": torch.rad2deg(body_pose.double()).round(decimals=4).tolist(),
        },
        "package_version": portrait360.__version__,
    }


def write_portrait_file(path: Path, w: Float[Tensor, "1 S"], record: PortraitRecord) -> None:
    """Write portrait.safetensors: the style in float32 and the record in the metadata."""
    fields = dataclasses.asdict(record)
    if record.licence is None:
        del fields["licence"]  # most portraits have none
    about = json.dumps(fields, sort_keys=True)
    metadata = {"format": FORMAT, "kind": _KIND, "version": portrait360.__version__, "record": about}
    write_tensors(path, {_STYLE: w.float()}, metadata)


def read_portrait_file(path: Path) -> tuple[Float[Tensor, "1 S"], PortraitRecord]:
    """Read the style and the record of a portrait file.

    Raises:
        CheckpointError: missing, damaged, or another kind of file.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no portrait file at {path}.", "Name a portrait.safetensors.")
    tensors, metadata = read_tensors(path)
    if metadata.get("kind") != _KIND:
        raise CheckpointError(
            f"{path} is not a portrait.", "Name a portrait.safetensors; weights are loaded with `PortraitModel`."
        )
    record = from_json(PortraitRecord, metadata.get("record", ""))
    w = tensors.get(_STYLE)
    if w is None or len(tensors) > 1 or w.dim() != 2 or len(w) != 1 or not bool(torch.isfinite(w).all()):
        raise CheckpointError(f"{path} does not hold one finite style w.", "The file is damaged; save it again.")
    return w.float(), record
