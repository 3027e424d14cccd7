"""Matting and quality networks of the user's: checked once, then loaded in each process at the first image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor

import portrait360
from portrait360.encoder.files import load_encoder
from portrait360.encoder.network import PortraitEncoder
from portrait360.media.images import from_bytes
from portrait360.photos.onnx_network import OnnxNetwork
from portrait360.photos.user_files import UserFile
from portrait360.runtime.tensors import FORMAT, read_tensors, write_tensors
from portrait360.types import CheckpointError, InputError

_ONNX = ".onnx"
_SLACK = 0.1
"""Opacities may leave 0 to 1 by so much, as resizing inside of a network does."""


class UserMatting:
    """A matting network (`MattingModel`): an ONNX file whose first output is the opacity, 0 to 1, [1, 1, S, S].

    The leading ones may be missing, and the side may be any; the opacity is resized to the image's.

    Args:
        file: the network.
        side: of the images that it takes, pixels, where the network leaves it open.
    """

    def __init__(self, file: UserFile, side: int) -> None:
        self.file, self.side = file, side
        self._network: OnnxNetwork | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_network": None}

    def check(self) -> None:
        """Try the network out. Raises InputError for another kind of network."""
        path = self.file.path
        if path.suffix.lower() != _ONNX:
            raise InputError(f"a matting network must be an ONNX file, not {path}.", "Give a name that ends in .onnx.")
        output = OnnxNetwork(path, self.side).try_out()
        if not _is_map(output):
            raise InputError(
                f"{path} gives {list(output.shape)}; expected the opacity of each pixel, [1, 1, S, S].",
                "The opacity must be the first output (docs/photos.md).",
            )
        low, high = float(output.min()), float(output.max())
        if low < -_SLACK or high > 1.0 + _SLACK:
            raise InputError(
                f"{path} gives numbers from {low:.3g} to {high:.3g}; expected opacities from 0 to 1.",
                "Export the network with its last step, for instance a sigmoid.",
            )

    def prepare(self) -> OnnxNetwork:
        """Load the network, if that is still to do. Raises InputError when the file has changed."""
        if self._network is None:
            self._network = OnnxNetwork(self.file.check(), self.side)
        return self._network

    def __call__(self, image: UInt8[ndarray, "H W 3"], /) -> Float[ndarray, "H W"]:
        """Opacity; what is no number counts as nobody."""
        output = self.prepare()(image)
        opacity = np.nan_to_num(output.reshape(output.shape[-2:]), nan=0.0, posinf=1.0, neginf=0.0)
        if opacity.shape != image.shape[:2]:
            size = image.shape[1], image.shape[0]
            opacity = np.asarray(Image.fromarray(opacity).resize(size, Image.Resampling.BILINEAR))
        return np.clip(opacity, 0.0, 1.0).astype(np.float32)


def _is_map(output: Float[ndarray, "*shape"]) -> bool:
    """Whether an output holds one number for each place of a square."""
    shape = output.shape
    return 2 <= len(shape) <= 4 and all(n == 1 for n in shape[:-2]) and shape[-1] == shape[-2] > 1


class UserQuality:
    """A quality network (`QualityModel`): layers on the portrait encoder's features (`load_quality_model`), or an ONNX
    file whose first output is the mark, one number; higher is better. `side` as for `UserMatting`."""

    def __init__(self, file: UserFile, side: int) -> None:
        self.file, self.side = file, side
        self._network: QualityModel | OnnxNetwork | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_network": None}

    def check(self) -> None:
        """Try the network out.

        Raises:
            InputError, CheckpointError: it is another kind of network, or none.
        """
        network = self._load()
        if isinstance(network, OnnxNetwork):
            output = network.try_out()
            if output.size != 1:
                raise InputError(
                    f"{self.file.path} gives {list(output.shape)}; expected one number, the mark.",
                    "The mark must be the first output (docs/photos.md).",
                )

    def _load(self) -> QualityModel | OnnxNetwork:
        path = self.file.check()
        return OnnxNetwork(path, self.side) if path.suffix.lower() == _ONNX else load_quality_model(path)

    def prepare(self) -> QualityModel | OnnxNetwork:
        """Load the network, if that is still to do. Raises InputError when the file has changed."""
        if self._network is None:
            self._network = self._load()
        return self._network

    def __call__(self, image: UInt8[ndarray, "R R 3"]) -> float:
        mark = self.prepare()(image)
        return float(mark.reshape(())) if isinstance(mark, ndarray) else mark


# ---- a quality network of the user ----


@runtime_checkable
class QualityModel(Protocol):
    """Gives an image a mark; higher is better."""

    def __call__(self, image: UInt8[ndarray, "R R 3"]) -> float: ...


@dataclass(frozen=True)
class EncoderQuality:
    """Linear layers with ReLU between them, on the features of the portrait encoder."""

    encoder: PortraitEncoder
    weights: tuple[Tensor, ...]
    """Of each layer, (out, in)."""
    biases: tuple[Tensor, ...]

    @torch.inference_mode()
    def __call__(self, image: UInt8[ndarray, "R R 3"]) -> float:
        pixels = from_bytes(torch.from_numpy(image.copy()).permute(2, 0, 1)[None])
        x = self.encoder.encode(pixels).features
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = F.linear(F.relu(x) if index else x, weight, bias)
        return float(x)


def save_quality_model(path: Path, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
    """Write a quality network for `load_quality_model`: of each layer the weights (out, in) and the biases (out)."""
    tensors = {f"weight{i}": weight for i, weight in enumerate(weights)}
    tensors |= {f"bias{i}": bias for i, bias in enumerate(biases)}
    write_tensors(path, tensors, {"format": FORMAT, "kind": "quality", "version": portrait360.__version__})


def load_quality_model(path: Path, encoder: Path | None = None) -> EncoderQuality:
    """A quality network from a safetensors file, which cannot execute code.

    The file holds `weight0` (out, in), `bias0` (out), `weight1`, ...: layers with ReLU between them on the features of
    the portrait encoder, `Encoded.features`, of which the last gives one number. Its metadata are `format`: portrait360
    and `kind`: quality (`save_quality_model` writes it so).

    Args:
        encoder: the file of the portrait encoder; default: the packaged one.

    Raises:
        CheckpointError: missing, damaged, or not such layers.
    """
    # The names of the tensors.
    tensors, metadata = read_tensors(path)
    if metadata.get("kind") != "quality":
        raise CheckpointError(f"{path} is not a quality network.", "Write it with save_quality_model.")
    network, _ = load_encoder(encoder)
    count = len(tensors) // 2
    names = {f"{part}{index}" for part in ("weight", "bias") for index in range(count)}
    if count == 0 or set(tensors) != names:
        raise CheckpointError(
            f"{path} must hold weight0, bias0, weight1, ... and nothing else, not {', '.join(sorted(tensors)[:8])}.",
            "Write it with save_quality_model.",
        )

    # Their shapes and values, layer by layer.
    inputs = network.config.features
    for index in range(count):
        weight, bias = tensors[f"weight{index}"], tensors[f"bias{index}"]
        outputs = 1 if index == count - 1 else len(bias) if bias.dim() else 0
        if weight.shape != (outputs, inputs) or bias.shape != (outputs,) or not outputs:
            raise CheckpointError(
                f"{path}: weight{index} is {list(weight.shape)} and bias{index} {list(bias.shape)}; expected"
                f" [{outputs or 'N'}, {inputs}] and [{outputs or 'N'}].",
                f"The first layer takes {network.config.features} features; the last gives one number.",
            )
        for name, value in ((f"weight{index}", weight), (f"bias{index}", bias)):
            if not value.is_floating_point() or not torch.isfinite(value).all():
                raise CheckpointError(f"{path}: {name} is not of finite floating point numbers.", "Train it again.")
        inputs = outputs
    weights = tuple(tensors[f"weight{index}"].float() for index in range(count))
    return EncoderQuality(network, weights, tuple(tensors[f"bias{index}"].float() for index in range(count)))
