"""Matting and quality networks of the user's: checked once, then loaded in each process at the first picture."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray
from PIL import Image

from portrait360.photos.onnx_network import OnnxNetwork
from portrait360.photos.quality import QualityModel, load_quality_model
from portrait360.photos.user_files import UserFile
from portrait360.types import InputError

_ONNX = ".onnx"
_SLACK = 0.1
"""Opacities may leave 0 to 1 by so much, as resizing inside of a network does."""


class UserMatting:
    """A matting network (`MattingModel`): an ONNX file whose first output is the opacity, 0 to 1, [1, 1, S, S].

    The leading ones may be missing, and the side may be any; the opacity is resized to the picture's.

    Args:
        file: the network.
        side: of the pictures that it sees, pixels, where the network leaves it open.
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
