"""What a page needs to render portraits: the shared part of a model, and each person's tri-grid and occupied cells.

The format is JSON with blobs (`viewer.blobs`), versioned; `web/renderer.js` reads it.
"""

from __future__ import annotations

import base64
import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from portrait360.config import ModelConfig
from portrait360.geometry.body import BodyTemplate
from portrait360.geometry.cameras import FOCAL, LOOK_AT, RADIUS
from portrait360.geometry.deformation import FIELD_MAX, FIELD_MIN
from portrait360.geometry.weights import weight_volume
from portrait360.model.appearance import Appearance
from portrait360.model.fused import STOP_TRANSMITTANCE
from portrait360.model.generator import Generator, Scene
from portrait360.types import InputError
from portrait360.viewer.blobs import (
    TILES_TYPE,
    array_blob,
    base64_text,
    decode_tiles,
    encode_tiles,
    from_tiles,
    read_array,
    tiles,
)
from portrait360.viewer.photos import appearance_payload

FORMAT = "portrait360-page"
VERSION = 1
TRI_GRID_BYTES = 850_000
"""Most bytes of a compressed tri-grid: a page with one portrait stays below 1.5 MB."""
_MOST_COLUMNS = 12


@dataclass(frozen=True)
class PagePortrait:
    """One person of a page."""

    name: str
    scene: Scene
    occupied: UInt8[Tensor, "1 nz ny nx"]
    """Cells of the tri-grid's box that rays visit."""
    views: tuple[UInt8[np.ndarray, "H W 3"], ...]
    """Images from all around, the front first, for browsers that cannot render."""
    record: dict[str, Any]
    """JSON that says where the portrait comes from."""
    mesh: bytes | None = None
    """A GLB to be downloaded."""
    appearance: Appearance | None = None
    """What photos add to its colours."""


def check_can_show(config: ModelConfig) -> None:
    """Refuse models that a page does not render.

    Raises:
        InputError: super-resolution, a background network, the two-pass renderer, or odd sizes.
    """
    has_networks = config.superresolution is not None or config.background is not None or config.features != 3
    if has_networks or config.render.quadrature != "point" or config.deformation != "field":
        raise InputError(
            f"a page cannot render {config.name}: it has networks behind the volume or the original renderer.",
            "Use weights whose rendered colours are the image, such as the packaged ones.",
        )
    if config.plane_features % 4 or config.decoder_hidden % 4:
        raise InputError(
            f"a page cannot render {config.name}: features and decoder must be as wide as multiples of 4.",
            "Use other weights.",
        )


def can_show(config: ModelConfig) -> bool:
    """Whether a page renders a model itself."""
    try:
        check_can_show(config)
    except InputError:
        return False
    return True


# ---- the shared part ----


def model_payload(generator: Generator) -> dict[str, Any]:
    """What all portraits of a generator share: cameras, rays, decoder and body."""
    config = generator.config
    check_can_show(config)
    values = np.concatenate(
        [part.detach().cpu().numpy().reshape(-1) for part in generator.decoder.parameters_as_used()]
    )
    return {
        "name": config.name,
        "camera": {"focal": FOCAL, "radius": RADIUS, "lookAt": list(LOOK_AT)},
        "render": _render_payload(config),
        "triGrid": {
            "planes": 3,
            "depth": config.plane_depth,
            "features": config.plane_features,
            "resolution": config.synthesis.resolution,
        },
        "decoder": {
            "hidden": config.decoder_hidden,
            "softplus": config.decoder_activation == "softplus",
            "values": array_blob(values.astype(np.float32)),
        },
        "body": _body_payload(generator.body, generator.field_shape),
    }


def _render_payload(config: ModelConfig) -> dict[str, Any]:
    render = config.render
    grey = config.plain_background * 0.5 + 0.5
    sigmoid = render.feature_activation == "sigmoid"
    return {
        "boxCentre": list(render.box_centre),
        "boxHalf": list(render.box_half),
        "rayBoxes": [[list(corner) for corner in box] for box in render.ray_boxes],
        "near": render.near,
        "far": render.far,
        "samples": render.inference_samples or render.samples,
        "densityScale": render.density_scale,
        "densityShift": render.density_shift,
        "sigmoid": sigmoid,
        "stop": STOP_TRANSMITTANCE,
        # without a sigmoid, `Generator.compose` puts the grey level in [0, 1] behind features in [-1, 1]
        "background": [grey if sigmoid else 0.5 + 0.5 * grey] * 3,
    }


def _body_payload(body: BodyTemplate, field_shape: tuple[int, int, int]) -> dict[str, Any]:
    """Bones, and their weights in a canonical volume (`geometry.weights`) in 8 bits."""
    volume = weight_volume(body)
    return {
        "joints": body.joints.tolist(),
        "parents": list(body.parents),
        "drive": [None if by is None else list(by) for by in body.drive],
        "moving": list(body.moving),
        "weights": array_blob((volume.values * 255.0).round().to(torch.uint8).cpu().numpy()),
        "volumeLow": list(volume.low),
        "spacing": volume.spacing,
        "fieldLow": list(FIELD_MIN),
        "fieldHigh": list(FIELD_MAX),
        "fieldShape": list(field_shape),
    }


# ---- a person ----


def portrait_payload(portrait: PagePortrait, generator: Generator) -> dict[str, Any]:
    """A person's tri-grid, occupied cells and, where the model has one, displacements of an identity warp."""
    occupied = portrait.occupied[0].cpu().numpy()
    return {
        "name": portrait.name,
        "record": portrait.record,
        "triGrid": tri_grid_payload(portrait.scene.tri_grid),
        "cells": {"shape": list(occupied.shape), "bits": array_blob(np.packbits(occupied.reshape(-1) > 0))},
        "warp": warp_payload(generator, portrait.scene.warp),
        "photos": appearance_payload(portrait.appearance),
        "mesh": None if portrait.mesh is None else base64_text(portrait.mesh),
    }


def tri_grid_payload(tri_grid: Float[Tensor, "1 3 C D H W"], most_bytes: int = TRI_GRID_BYTES) -> dict[str, Any]:
    """A tri-grid in 8 bits per value, each channel between its least and greatest, as tiles of one image."""
    channels = tri_grid[0].transpose(1, 2).flatten(0, 2).float().cpu()  # plane slowest, then slice, then feature
    low, high = channels.amin(dim=(1, 2)), channels.amax(dim=(1, 2))
    step = ((high - low) / 255.0).clamp_min(1e-12)
    stored = ((channels - low[:, None, None]) / step[:, None, None]).round().clamp(0, 255).to(torch.uint8)
    columns = max(n for n in range(1, _MOST_COLUMNS + 1) if len(channels) % n == 0)
    image = encode_tiles(tiles(stored.numpy(), columns), most_bytes)
    return {
        "type": TILES_TYPE,
        "columns": columns,
        "image": base64_text(image),
        "low": array_blob(low.numpy()),
        "step": array_blob(step.numpy()),
    }


def warp_payload(generator: Generator, warp: Float[Tensor, "1 nz ny nx 3"] | None) -> dict[str, Any] | None:
    """The displacements of an identity warp at the nodes of its grid."""
    config = generator.config.warp
    if warp is None or config is None:
        return None
    displacements = warp[0].cpu().float().numpy()
    return {
        "low": list(config.low),
        "high": list(config.high),
        "shape": list(config.shape),
        "displacements": array_blob(_rounded(displacements)),
    }


def _rounded(values: np.ndarray) -> np.ndarray:
    """float32 with the precision of float16: the lower bits are zeros, which compress well."""
    return values.astype(np.float16).astype(np.float32)


# ---- the readable twin of what the page reads ----


def read_tri_grid(model: dict[str, Any], portrait: dict[str, Any]) -> Float[Tensor, "1 3 C D H W"]:
    """The tri-grid that the page renders."""
    sizes, stored = model["triGrid"], portrait["triGrid"]
    planes, depth, features = sizes["planes"], sizes["depth"], sizes["features"]
    image = decode_tiles(base64.b64decode(stored["image"]))
    values = from_tiles(image, stored["columns"], planes * depth * features).astype(np.float32)
    low, step = (read_array(stored[name])[:, None, None] for name in ("low", "step"))
    channels = torch.from_numpy(values * step + low)
    return channels.unflatten(0, (planes, depth, features)).transpose(1, 2)[None]


def read_scene(
    model: dict[str, Any], portrait: dict[str, Any], scene: Scene
) -> tuple[Scene, UInt8[Tensor, "1 nz ny nx"]]:
    """`scene` with what the page knows of it in place of its own, and the occupied cells."""
    shape = portrait["cells"]["shape"]
    bits = np.unpackbits(read_array(portrait["cells"]["bits"]))[: int(np.prod(shape))]
    warp = None
    if portrait["warp"] is not None:
        warp = torch.from_numpy(read_array(portrait["warp"]["displacements"]).copy())[None]
    occupied = torch.from_numpy(bits.reshape(1, *shape).copy())
    return dataclasses.replace(scene, tri_grid=read_tri_grid(model, portrait), warp=warp), occupied
