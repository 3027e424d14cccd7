"""Which way up a photo of a person is.

Messengers, scanners and screenshots lose the note that cameras write about it, and detectors take a head that is upside
down for the back of an upright one. A small network that is trained on synthetic portraits in all four turns
(`tools/upright_network.py`) tells them apart.
"""

from __future__ import annotations

import math
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor, nn

from portrait360.photos.matte import on_grey
from portrait360.runtime.tensors import read_tensors, write_tensors
from portrait360.types import CheckpointError

SIDE = 64
"""Pixels of what the network sees."""
TURNS = (0, 90, 180, 270)
"""Degrees counter-clockwise that make an image upright, in the order of the network's answers."""
_WIDTHS = (32, 64, 128, 128)
_FACE_ERROR, _FACE_WEIGHT, _MOST_FACE = 0.015, 6.0, 4.0
"""Error of a face mesh's fit that speaks neither for upright nor against it; logarithm of the odds per logarithm of the
error; and what faces may add to the logarithm of the odds at most."""
_LEAST = 1e-6
_FORMAT = {"format": "portrait360", "kind": "upright"}


class UprightNetwork(nn.Module):
    """Crops of a person in [-1, 1] to logits of the turns that make them upright."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, width in zip((3, *_WIDTHS), _WIDTHS, strict=False):
            layers += [nn.Conv2d(before, width, 3, 2, 1), nn.LeakyReLU(0.1)]
        self.features = nn.Sequential(*layers)
        self.answer = nn.Linear(_WIDTHS[-1] * (SIDE >> len(_WIDTHS)) ** 2, len(TURNS))

    def forward(self, images: Float[Tensor, "B 3 64 64"]) -> Float[Tensor, "B 4"]:
        """Logits, in the order of `TURNS`."""
        return self.answer(self.features(images).flatten(1))


@torch.no_grad()
def turn_probabilities(
    network: UprightNetwork, image: UInt8[ndarray, "H H 3"], mask: UInt8[ndarray, "H H"] | None = None
) -> Float[ndarray, " 4"]:
    """How likely each of `TURNS` makes an image upright.

    By the image, and with a mask (255 where the person is) by the person on grey too; each with its mirror image.
    """
    shown = [image] if mask is None else [image, on_grey(image, mask.astype(np.float32) / 255.0)]
    small = [np.asarray(Image.fromarray(one).resize((SIDE, SIDE), Image.Resampling.BOX)) for one in shown]
    straight = torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    # the mirror image of one that lies on its left lies on its right
    logits = torch.cat([network(straight), network(straight.flip(3))[:, [0, 3, 2, 1]]])
    return logits.mean(dim=0).softmax(dim=0).double().numpy()


def with_face(probability: float, fit_error: float) -> float:
    """How likely a person is upright whose face mesh was found and fits an upright body with this error.

    Meshes of upright faces fit to about 0.01 of the crop's side; those that were taken for the hair of heads upside
    down, to 0.02 at best.
    """
    odds = math.log(max(probability, _LEAST) / max(1.0 - probability, _LEAST))
    face = _FACE_WEIGHT * math.log(_FACE_ERROR / max(fit_error, _LEAST))
    return 1.0 / (1.0 + math.exp(-odds - min(max(face, -_MOST_FACE), _MOST_FACE)))


def turned(photo: UInt8[ndarray, "H W 3"], degrees: int) -> UInt8[ndarray, "h w 3"]:
    """A photo turned counter-clockwise by quarter turns."""
    return np.ascontiguousarray(np.rot90(photo, degrees // 90))


def save_upright(path: Path, network: UprightNetwork) -> None:
    """Write a network for `load_upright`, in float16."""
    write_tensors(path, {name: value.half().contiguous() for name, value in network.state_dict().items()}, _FORMAT)


def load_upright(path: Path | None = None) -> UprightNetwork:
    """The packaged network, or that of a file, for use.

    Raises:
        CheckpointError: a missing, broken or foreign file.
    """
    path = Path(str(files("portrait360") / "assets" / "upright.safetensors")) if path is None else path
    tensors, metadata = read_tensors(path)
    network = UprightNetwork()
    wanted = {name: value.shape for name, value in network.state_dict().items()}
    is_one = all(metadata.get(key) == value for key, value in _FORMAT.items())
    if not is_one or {name: value.shape for name, value in tensors.items()} != wanted:
        raise CheckpointError(f"{path} does not tell which way up photos are.", "Leave it out for the packaged one.")
    network.load_state_dict({name: value.float() for name, value in tensors.items()})
    return network.eval().requires_grad_(False)
