"""From an image to a first style in one pass: a regression on the features of the portrait encoder.

It is trained on generated portraits with the portrait encoder's photo augmentations (`tools/inversion_start.py`), so it
belongs to the weights that it was trained with.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from portrait360.encoder.network import PortraitEncoder
from portrait360.runtime.tensors import FORMAT, in_float32, read_tensors, write_tensors
from portrait360.types import CheckpointError

_KIND = "inversion-start"
_CLIP = 6.0
"""Standardised inputs are clipped here: photos have features that no generated portrait has."""
_POOLED = 8
"""Side of the pooled early feature map."""


@dataclass(frozen=True)
class StartRegressor:
    """A perceptron with one hidden layer beside a linear map, from encoder features to a whitened style."""

    weights_sha256: str
    """Of the weights whose styles it predicts."""
    mean: Float[Tensor, " F"]
    scale: Float[Tensor, " F"]
    linear: Float[Tensor, "S F"]
    hidden: Float[Tensor, "H F"]
    hidden_bias: Float[Tensor, " H"]
    output: Float[Tensor, "S H"]
    bias: Float[Tensor, " S"]

    def __call__(self, features: Float[Tensor, "B F"]) -> Float[Tensor, "B S"]:
        """Whitened styles of encoder features."""
        inputs = ((features - self.mean) / self.scale).clamp(-_CLIP, _CLIP)
        hidden = F.leaky_relu(F.linear(inputs, self.hidden, self.hidden_bias), 0.2)
        return F.linear(inputs, self.linear, self.bias) + F.linear(hidden, self.output)


def start_features(encoder: PortraitEncoder, images: Float[Tensor, "B 3 R R"]) -> Float[Tensor, "B F"]:
    """The encoder's feature maps as a vector: what is where, and means; images on a grey background."""
    maps = [encoder.stem(images.contiguous(memory_format=torch.channels_last))]
    for stage in encoder.stages:
        maps.append(stage(maps[-1]))
    means = torch.cat([values.mean(dim=(2, 3)) for values in maps[2:]], dim=1)
    places = encoder.squeeze(maps[-1]).flatten(1)
    colours = F.adaptive_avg_pool2d(images, _POOLED).flatten(1)
    early = F.adaptive_avg_pool2d(maps[1], _POOLED).mean(dim=1)
    return torch.cat([places, means, colours, early.flatten(1)], dim=1)


def start_path() -> Path:
    """The packaged regressor's file."""
    return Path(str(files("portrait360") / "assets" / "inversion_start.safetensors"))


def save_start(path: Path, regressor: StartRegressor) -> None:
    """Write a regressor, matrices in float16."""
    tensors = {name: value for name, value in vars(regressor).items() if isinstance(value, Tensor)}
    halved = {name: value.half() if value.dim() == 2 else value for name, value in tensors.items()}
    write_tensors(path, halved, {"format": FORMAT, "kind": _KIND, "weights_sha256": regressor.weights_sha256})


def load_start(weights_sha256: str, path: Path | None = None) -> StartRegressor | None:
    """The regressor for these weights; None where it is for others, or where there is no file.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = start_path() if path is None else path
    if not path.exists():
        return None
    tensors, metadata = read_tensors(path)
    names = set(StartRegressor.__dataclass_fields__) - {"weights_sha256"}
    if metadata.get("kind") != _KIND or set(tensors) != names:
        raise CheckpointError(f"{path} is no regressor of styles.", "Install the package again.")
    if metadata.get("weights_sha256") != weights_sha256:
        return None
    return StartRegressor(weights_sha256, **in_float32(tensors))
