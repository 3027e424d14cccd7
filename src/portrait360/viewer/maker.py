"""The generator as data for a page, which makes people of any seed in the browser (`web/generator.js`).

Matrices and convolutions are stored in 12 bits per number with a scale per row. An identity warp has as many numbers as
all the rest together and needs fewer bits: they are as coarse as its displacements may be.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from portrait360.config import ModelConfig
from portrait360.geometry.cameras import camera_label
from portrait360.model.fused import VIEWING_CELLS, VISIBLE_DENSITY
from portrait360.model.generator import Generator
from portrait360.model.layers import FullyConnected, SynthesisBlock, SynthesisLayer, ToRGB, normalize_second_moment
from portrait360.model.mapping import MappingNetwork, StyleMixture
from portrait360.model.warp import IdentityWarp
from portrait360.types import BODY_POSE_SIZE, InputError
from portrait360.viewer.blobs import array_blob, rows_blob
from portrait360.viewer.payload import check_can_show

WARP_ERROR = 1.5e-4
"""Root mean square error of a warp's displacements, world units; a pixel of 512 is 8e-4."""
_STYLES = 1000
"""Over so many styles."""
_STILL = 1e-6
"""Share of the largest number in a warp below which it is rounding: the outermost nodes do not move."""


def check_can_make(config: ModelConfig) -> None:
    """Refuse models whose networks a page does not run.

    Raises:
        InputError: see `check_can_show`; also [1, 3, 3, 1] resampling, noise, or odd widths.
    """
    check_can_show(config)
    synthesis = config.synthesis
    if synthesis.resample != "box" or synthesis.noise or any(width % 4 for width in synthesis.channels):
        raise InputError(
            f"a page cannot run the networks of {config.name}: they filter, add noise, or have odd widths.",
            "Use weights of a preset of this project, or show portraits with `seeds`.",
        )


@torch.no_grad()
def maker_payload(generator: Generator) -> dict[str, Any]:
    """Mapping and synthesis network, identity warp, and how cells are found.

    Raises:
        InputError: a page cannot run the networks.
    """
    config = generator.config
    check_can_make(config)
    return {
        "mapping": _mapping(generator.backbone.mapping),
        "synthesis": _synthesis(generator),
        "warp": None if config.warp is None else _warp(generator),
        "cells": {"shape": list(VIEWING_CELLS), "visible": VISIBLE_DENSITY},
    }


def _numbers(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()


def _dense(weight: Tensor, bias: Tensor, *, activates: bool = False) -> dict[str, Any]:
    """A matrix and a bias; `activates`: lrelu times sqrt(2) follows."""
    return {"weight": rows_blob(_numbers(weight), 12), "bias": array_blob(_numbers(bias)), "activates": activates}


def _mapping(mapping: MappingNetwork | StyleMixture) -> dict[str, Any]:
    """The styles that latents mix, or the layers of the network."""
    average = array_blob(_numbers(mapping.w_avg))
    if isinstance(mapping, StyleMixture):
        styles = rows_blob(_numbers(mapping.styles), 12)
        return {"zDim": mapping.z_dim, "styles": styles, "share": mapping.SHARE, "average": average}
    return {"zDim": mapping.z_dim, "layers": _layers(mapping), "average": average}


def _layers(mapping: MappingNetwork) -> list[dict[str, Any]]:
    """The layers; labels (the frontal camera at rest, as for every person of a seed) go into the first one's bias."""
    layers = [mapping.get_submodule(f"fc{i}") for i in range(mapping.num_layers)]
    dense = []
    for index, layer in enumerate(layers):
        weight, bias = _effective(layer)
        if index == 0 and mapping.conditioning_scale != 0:
            labels = torch.cat([camera_label(0.0), torch.zeros(1, BODY_POSE_SIZE)], dim=1).to(weight)
            embedded = normalize_second_moment(mapping.embed(labels * mapping.conditioning_scale))[0]
            bias = bias + weight[:, mapping.z_dim :] @ embedded
            weight = weight[:, : mapping.z_dim]
        dense.append(_dense(weight, bias, activates=True))
    return dense


def _effective(layer: nn.Module) -> tuple[Tensor, Tensor]:
    assert isinstance(layer, FullyConnected)
    return layer.effective()


def _synthesis(generator: Generator) -> dict[str, Any]:
    network = generator.backbone.synthesis
    blocks = []
    for side in network.resolutions:
        block = network.get_submodule(f"b{side}")
        assert isinstance(block, SynthesisBlock)
        blocks.append(
            {
                "side": side,
                "conv0": _layer(block.conv0) if hasattr(block, "conv0") else None,
                "conv1": _layer(block.conv1),
                "toRgb": _to_rgb(block.torgb) if hasattr(block, "torgb") else None,
            }
        )
    constant = network.get_submodule(f"b{network.resolutions[0]}").const
    assert isinstance(constant, Tensor)
    return {
        "constant": rows_blob(_numbers(constant), 12),
        "blocks": blocks,
        "symmetric": generator.config.symmetric_features,
    }


def _layer(layer: SynthesisLayer) -> dict[str, Any]:
    outputs, inputs = layer.weight.shape[:2]
    return {
        "inputs": inputs,
        "outputs": outputs,
        "affine": _dense(*layer.affine.effective()),
        "weight": rows_blob(_numbers(layer.weight), 12),
        "bias": array_blob(_numbers(layer.bias)),
    }


def _to_rgb(layer: ToRGB) -> dict[str, Any]:
    outputs, inputs = layer.weight.shape[:2]
    weight, bias = layer.affine.effective()
    return {
        "inputs": inputs,
        "outputs": outputs,
        "affine": _dense(weight * layer.style_gain, bias * layer.style_gain),
        "weight": rows_blob(_numbers(layer.slices_first(layer.weight))[:, :, 0, 0], 12),
        "bias": array_blob(_numbers(layer.slices_first(layer.bias))),
    }


def _warp(generator: Generator) -> dict[str, Any]:
    """The identity warp as one matrix, fading and the removal of rigid motions included, without rows of zeros."""
    # The matrix
    warp: IdentityWarp = generator.warp
    identity = torch.eye(warp.weight.shape[1], device=warp.weight.device)
    none = torch.zeros(1, len(identity), device=identity.device)
    bias = warp(none)[0].flatten()
    weight = (warp(identity).flatten(1) - bias).T
    largest = torch.cat([weight, bias[:, None]], dim=1).abs().amax(dim=1)
    moving = (largest > _STILL * largest.max()).nonzero()[:, 0]

    # Rounding errors, uniform and independent, add up over the style's numbers
    draws = torch.Generator().manual_seed(0)
    z = torch.randn(_STYLES, generator.backbone.mapping.z_dim, generator=draws).to(weight)
    w = generator.map(z, camera_label(0.0, device=weight.device).expand(len(z), -1))
    step = WARP_ERROR * math.sqrt(12.0 / float(w.square().sum(dim=1).mean()))
    return {
        "low": list(warp.config.low),
        "high": list(warp.config.high),
        "shape": list(warp.config.shape),
        "numbers": array_blob(moving.int().cpu().numpy()),
        "weight": rows_blob(_numbers(weight[moving]), 8, step),
        "bias": array_blob(_numbers(bias[moving])),
    }
