"""What photos add to a portrait, for a page: maps in the photos' cameras, and a tint where no photo saw the surface.

`web/photos.js` reads it.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from portrait360.geometry.cameras import RADIUS
from portrait360.model.appearance import TINT_MAX, TINT_MIN, Appearance, PhotoResidual
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

MOST_PHOTOS = 3
"""The ones with the best evidence; each takes room and time in the page."""
_SIDES = {1: 512, 2: 384, 3: 320}
"""Pixels of the maps by the number of photos."""
_DEPTH_SIDE = 192
_BYTES = 260_000
"""Most bytes of all maps of colours and weights."""
_MIDDLE, _HALF = 128.0, 127.0
"""Bytes from 1 to 255 stand for colours from -1 to 1 that are added, so that 0 is exact."""


def appearance_payload(appearance: Appearance | None) -> dict[str, Any] | None:
    """The photos' maps and the tint; None for portraits that are not from photos."""
    if appearance is None:
        return None
    photos = appearance.residuals[:MOST_PHOTOS]
    side = min(_SIDES[len(photos)], *(photo.colour.shape[-1] for photo in photos))

    # Four tiles a photo: the colour's channels and the weight
    channels = []
    for photo in photos:
        colour, weight = (_resized(values, side)[0] for values in (photo.colour, photo.weight))
        channels += [_to_bytes(colour), (weight * 255.0).round().clamp(0, 255).to(torch.uint8).cpu()]
    image = encode_tiles(tiles(torch.cat(channels).numpy(), 2), _BYTES)

    # Depths as differences from the cameras' distance, for which float16 is enough
    depths = torch.cat([_resized(photo.depth, _DEPTH_SIDE) for photo in photos])[:, 0] - RADIUS
    return {
        "type": TILES_TYPE,
        "columns": 2,
        "side": side,
        "image": base64_text(image),
        "depths": array_blob(depths.half().float().cpu().numpy()),
        "radius": RADIUS,
        "cameras": [photo.camera[0].tolist() for photo in photos],
        "poses": [{"neck": pose[:3], "head": pose[3:]} for pose in (photo.body_pose[0].tolist() for photo in photos)],
        "tint": None if appearance.tint is None else _tint_payload(appearance.tint),
    }


def _resized(values: Float[Tensor, "1 C S S"], side: int) -> Float[Tensor, "1 C R R"]:
    return values if values.shape[-1] == side else F.interpolate(values, size=(side, side), mode="area")


def _to_bytes(values: Float[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
    return (values.clamp(-1.0, 1.0) * _HALF + _MIDDLE).round().to(torch.uint8).cpu()


def _from_bytes(values: UInt8[np.ndarray, "..."]) -> Tensor:
    return (torch.from_numpy(values.astype(np.float32)) - _MIDDLE) / _HALF


def _tint_payload(tint: Float[Tensor, "1 3 nz ny nx"]) -> dict[str, Any]:
    """Red, green and blue behind each other at the nodes, in bytes."""
    values = _to_bytes(tint[0].permute(1, 2, 3, 0).contiguous())
    return {"low": list(TINT_MIN), "high": list(TINT_MAX), "values": array_blob(values.numpy())}


def read_appearance(payload: dict[str, Any]) -> Appearance:
    """What the page adds; the readable twin of `web/photos.js`."""
    count = len(payload["cameras"])
    image = decode_tiles(base64.b64decode(payload["image"]))
    maps = from_tiles(image, payload["columns"], 4 * count).reshape(count, 4, payload["side"], payload["side"])
    depths = torch.from_numpy(read_array(payload["depths"]).copy()) + payload["radius"]
    residuals = []
    for index, (camera, pose) in enumerate(zip(payload["cameras"], payload["poses"], strict=True)):
        colour, weight = (
            _from_bytes(maps[index, :3])[None],
            torch.from_numpy(maps[index, 3:].astype(np.float32) / 255.0),
        )
        label, body_pose = torch.tensor([camera]), torch.tensor([pose["neck"] + pose["head"]])
        residuals.append(PhotoResidual(label, body_pose, colour, weight[None], depths[index][None, None]))
    tint = payload["tint"]
    grid = None if tint is None else _from_bytes(read_array(tint["values"])).permute(3, 0, 1, 2)[None].contiguous()
    return Appearance(tuple(residuals), grid)
