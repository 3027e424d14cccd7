"""Where a portrait comes from, and the portrait file, which holds that and its styles: enough to make it again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

import portrait360
from portrait360.model.appearance import TINT_SHAPE, Appearance, PhotoResidual, packed, unpacked
from portrait360.runtime.tensors import FORMAT, from_json, in_float32, read_tensors, write_tensors
from portrait360.types import CheckpointError

_KIND = "portrait"
_LISTED_SUFFIXES = frozenset({".png", ".jpg", ".mp4", ".glb", ".obj", ".mtl"})
_STYLE, _LAYERS, _TUNED, _RESIDUAL, _TINT = "w", "ws", "tuned/", "residual/", "tint"


@dataclass(frozen=True)
class PhotoRecord:
    """A photo that a portrait was made from."""

    name: str
    """Of the file, without its folder."""
    camera: tuple[float, ...]
    """The crop's camera label, as it was corrected."""
    body_pose: tuple[float, ...]
    """Radians, as it was corrected."""
    crop: tuple[float, float, float]
    """Centre (right, down) and side of the crop, pixels of the upright photo."""


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
    photos: tuple[PhotoRecord, ...] = ()
    """Those that the portrait was made from, the one with the best evidence first."""
    licence: str | None = None
    """What the authors of converted weights allow."""

    def as_json(self) -> dict[str, Any]:
        """What portrait.json and the extras of a mesh begin with."""
        drawn = {"seed": self.seed, "truncation_psi": self.truncation_psi, "licence": self.licence}
        known = {name: value for name, value in drawn.items() if value is not None}
        source = {"weights": {"sha256": self.weights_sha256}, "model": self.model, "convolutions": self.convolutions}
        photos = {"photos": [asdict(photo) for photo in self.photos]} if self.photos else {}
        return known | source | photos


def posed_json(record: PortraitRecord, body_pose: Float[Tensor, " 6"]) -> dict[str, Any]:
    """The record of something rendered under a body pose (radians)."""
    return record.as_json() | {
        "body_pose": {
            "radians": body_pose.tolist(),
            "degrees": torch.rad2deg(body_pose.double()).round(decimals=4).tolist(),
        },
        "package_version": portrait360.__version__,
    }


def listed_files(folder: Path) -> set[str]:
    """Images, videos and meshes that the portrait.json of a folder lists; none where there is no such file.

    Only plain names of files that are there, so that a list from elsewhere cannot name anything beyond the folder.
    """
    try:
        names = json.loads((folder / "portrait.json").read_bytes())["files"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()
    given = names if isinstance(names, list) else []
    plain = {name for name in given if isinstance(name, str) and Path(name).name == name}
    return {name for name in plain if Path(name).suffix in _LISTED_SUFFIXES and (folder / name).is_file()}


@dataclass(frozen=True)
class PortraitTensors:
    """What a portrait is synthesized from."""

    w: Float[Tensor, "1 S"] | None = None
    """The style of portraits that have one."""
    ws: Float[Tensor, "1 N S"] | None = None
    """Styles that differ from layer to layer, of portraits from photos."""
    tuned: dict[str, Tensor] = field(default_factory=dict)
    """Tensors of the generator that were tuned for the portrait, by name, rounded to float16."""
    appearance: Appearance | None = None
    """What photos add."""


def write_portrait_file(path: Path, content: PortraitTensors, record: PortraitRecord) -> None:
    """Write portrait.safetensors: styles in float32, tuned tensors and residuals in fewer bits, the record in the
    metadata."""
    fields = asdict(record)
    if record.licence is None:
        del fields["licence"]  # most portraits have none
    about = json.dumps(fields, sort_keys=True)
    metadata = {"format": FORMAT, "kind": _KIND, "version": portrait360.__version__, "record": about}
    tensors = {}
    if content.w is not None:
        tensors[_STYLE] = content.w.float()
    if content.ws is not None:
        tensors[_LAYERS] = content.ws.float()
    tensors |= {f"{_TUNED}{name}": value.half() for name, value in content.tuned.items()}
    if content.appearance is not None:
        for number, residual in enumerate(content.appearance.residuals):
            tensors |= {f"{_RESIDUAL}{number}/{name}": value for name, value in packed(residual).items()}
        if content.appearance.tint is not None:
            tensors[_TINT] = content.appearance.tint.half()
    write_tensors(path, tensors, metadata)


def read_portrait_file(path: Path) -> tuple[PortraitTensors, PortraitRecord]:
    """Read the content and the record of a portrait file.

    Raises:
        CheckpointError: missing, damaged, or another kind of file.
    """
    # The file, and that it is a portrait
    if not path.is_file():
        raise CheckpointError(f"there is no portrait file at {path}.", "Name a portrait.safetensors.")
    tensors, metadata = read_tensors(path)
    if metadata.get("kind") != _KIND:
        raise CheckpointError(
            f"{path} is not a portrait.", "Name a portrait.safetensors; weights are loaded with `PortraitModel`."
        )
    record = from_json(PortraitRecord, metadata.get("record", ""))

    # Its tensors by kind
    finite = all(bool(torch.isfinite(value).all()) for value in tensors.values() if value.is_floating_point())
    tensors = in_float32(tensors) if finite else {}
    w, ws = tensors.pop(_STYLE, None), tensors.pop(_LAYERS, None)
    tuned = {name.removeprefix(_TUNED): tensors.pop(name) for name in list(tensors) if name.startswith(_TUNED)}
    tint, residuals = tensors.pop(_TINT, None), _residuals(tensors)
    photos = bool(residuals) and (tint is None or tint.shape == (1, 3, *TINT_SHAPE))
    one_style = w is not None and ws is None and not tuned and residuals == () and tint is None
    one_style = one_style and w is not None and w.dim() == 2 and len(w) == 1
    layered = ws is not None and w is None and photos and ws.dim() == 3 and len(ws) == 1
    if tensors or not (one_style or layered):
        raise CheckpointError(
            f"{path} does not hold one finite style w, or styles of layers and residuals.",
            "The file is damaged; save it again.",
        )
    return PortraitTensors(w, ws, tuned, Appearance(residuals, tint) if residuals else None), record


def _residuals(tensors: dict[str, Tensor]) -> tuple[PhotoResidual, ...] | None:
    """The residuals among tensors, which are taken out; None where one is incomplete or has other shapes."""
    found, number = [], 0
    while any(name.startswith(f"{_RESIDUAL}{number}/") for name in tensors):
        prefix = f"{_RESIDUAL}{number}/"
        parts = {name.removeprefix(prefix): tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}
        residual = unpacked(parts)
        if residual is None:
            return None
        found.append(residual)
        number += 1
    return tuple(found)
