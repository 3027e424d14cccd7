"""Faces compared by an independent face recognition network: found at all, different people, like the data's.

dlib's detector and its network of 128 numbers (King 2017; weights in the package `face_recognition_models`) take two
faces for one person when their descriptors are nearer than 0.6. The network was trained on
photographs, so it finds differences that the project's own encoder, which was trained on its renderings, does not. Both
packages come with the extra `faces`.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor

from portrait360.config import ModelConfig
from portrait360.data.dataset import PortraitDataset
from portrait360.evaluation.metrics import frechet_distance
from portrait360.evaluation.sampler import PortraitSampler
from portrait360.geometry.cameras import yaw_pitch
from portrait360.types import InputError

SAME = 0.6
"""Distance of descriptors below which two faces count as one person, the threshold of the network's author."""
FRONTAL = np.radians(30.0)
"""Faces are compared in images taken from within this yaw."""
LEAST_SIDE = 256
"""Images with fewer pixels show faces too small to be recognised."""
TRUNCATION = 0.7
"""The stronger truncation that is measured, beside none."""
_BOX = (0.22, 0.10, 0.78, 0.68)
"""Part of the image that shows the head: left, top, right, bottom."""
_SIDES = (400, 414)
"""Pixels of that part for the detector, width and height."""
_SIZE = 128
HINT = "Install it with: pip install 'portrait360[faces]'"


@runtime_checkable
class Describer(Protocol):
    """What turns a portrait into the numbers by which faces are compared."""

    def describe(self, image: UInt8[ndarray, "H H 3"]) -> Float[ndarray, " 128"] | None:
        """The descriptor of the face in a portrait; None if there is none."""
        ...


class FaceNetwork:
    """dlib's face detector and face recognition network, loaded on first use."""

    def __init__(self) -> None:
        missing = [name for name in ("dlib", "face_recognition_models") if importlib.util.find_spec(name) is None]
        if missing:
            raise InputError(f"recognising faces needs the package {missing[0]}, which is not installed.", HINT)

    @cached_property
    def _networks(self) -> tuple[Any, Any, Any]:
        dlib: Any = importlib.import_module("dlib")
        # found without importing the package, which needs pkg_resources
        spec = importlib.util.find_spec("face_recognition_models")
        assert spec is not None
        assert spec.origin is not None
        folder = Path(spec.origin).parent / "models"
        predictor = dlib.shape_predictor(str(folder / "shape_predictor_5_face_landmarks.dat"))
        network = dlib.face_recognition_model_v1(str(folder / "dlib_face_recognition_resnet_model_v1.dat"))
        return dlib.get_frontal_face_detector(), predictor, network

    def describe(self, image: UInt8[ndarray, "H H 3"]) -> Float[ndarray, " 128"] | None:
        """The descriptor of the largest face in the centre of a portrait; None if no face is found."""
        detector, predictor, network = self._networks
        side = image.shape[0]
        left, top, right, bottom = (round(edge * side) for edge in _BOX)
        head = Image.fromarray(image).crop((left, top, right, bottom))
        part = np.asarray(head.resize(_SIDES, Image.Resampling.LANCZOS))
        found = detector(part, 1)
        if not found:
            return None
        largest = max(found, key=lambda face: face.area())
        return np.array(network.compute_face_descriptor(part, predictor(part, largest)))


@dataclass(frozen=True)
class Faces:
    """Descriptors of the faces found in N images of different people."""

    images: int
    descriptors: Float[ndarray, "F 128"]

    @property
    def distances(self) -> Float[ndarray, "F F"]:
        """Between all pairs; infinite between a face and itself."""
        squares = np.square(self.descriptors).sum(1)
        products = self.descriptors @ self.descriptors.T
        out = np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * products, 0.0))
        np.fill_diagonal(out, np.inf)
        return out

    @staticmethod
    def of(images: Iterable[UInt8[ndarray, "H H 3"]], network: Describer, advance: Callable[[int], None]) -> Faces:
        """The faces of some images, each of another person."""
        found, count = [], 0
        for image in images:
            count += 1
            descriptor = network.describe(image)
            if descriptor is not None:
                found.append(descriptor)
            advance(1)
        return Faces(count, np.array(found).reshape(len(found), _SIZE))


def face_measures(real: Faces, generated: Faces, suffix: str = "") -> dict[str, float]:
    """The measures of a set of faces against the data's; keys as in `measures.MEASURES`, with `suffix` at their end.

    A copy is a generated person whose nearest generated neighbour is nearer than any two people of the data.
    """
    values = {f"faces_found{suffix}": len(generated.descriptors) / max(generated.images, 1)}
    if min(len(generated.descriptors), len(real.descriptors)) < 2:
        return values
    distances = generated.distances
    pairs = distances[np.triu_indices(len(distances), 1)]
    return values | {
        f"same_person{suffix}": float((pairs < SAME).mean()),
        f"face_copies{suffix}": float((distances.min(1) < real.distances.min()).mean()),
        f"frechet_recognition{suffix}": frechet_distance(real.descriptors, generated.descriptors),
    }


# ---- the data's faces ----


def frontal_rows(cameras: Float[Tensor, "N 25"]) -> Int[Tensor, " M"]:
    """Images taken from the front, `FRONTAL` to either side."""
    front: Bool[Tensor, " N"] = yaw_pitch(cameras)[0].abs() < FRONTAL
    return front.nonzero()[:, 0]


def data_faces(
    data: PortraitDataset,
    rows: Int[Tensor, " M"],
    model: ModelConfig,
    network: Describer,
    advance: Callable[[int], None],
) -> Faces:
    """Faces in images of a dataset, on the model's plain background if it has no other."""

    images = (on_plain(data.image(row), data.mask(row), model) for row in rows.tolist())
    return Faces.of(images, network, advance)


def on_plain(
    image: UInt8[ndarray, "H H 3"], mask: UInt8[ndarray, "H H"], model: ModelConfig
) -> UInt8[ndarray, "H H 3"]:
    """An image on the model's plain background, or as it is if the model makes backgrounds."""
    if model.background is not None:
        return image
    share = mask[..., None].astype(np.float32) / 255.0
    grey = (model.plain_background + 1.0) * 127.5
    return np.round(image * share + grey * (1.0 - share)).astype(np.uint8)


# ---- generated faces ----


@torch.no_grad()
def generated_faces(
    sampler: PortraitSampler,
    count: int,
    seed: int,
    network: Describer,
    advance: Callable[[int], None],
    *,
    truncation_psi: float = 1.0,
    side: int = LEAST_SIDE,
) -> Faces:
    """Faces of new portraits, in poses of the pose branch, from frontal cameras of the data at `side` pixels."""
    draws = torch.Generator().manual_seed(seed)
    generator = sampler.generator
    frontal = PortraitSampler(generator, sampler.cameras[frontal_rows(sampler.cameras)])
    resolution = None if generator.config.superresolution is not None else side

    def image() -> UInt8[ndarray, "H H 3"]:
        person = frontal.portraits(1, draws, truncation_psi=truncation_psi)
        out = generator.render(person.scene, person.camera, person.body_pose, resolution=resolution, draws=person.draws)
        pixels = (out.image[0].permute(1, 2, 0).clamp(-1.0, 1.0) + 1.0) * 127.5
        return pixels.round().byte().cpu().numpy()

    return Faces.of((image() for _ in range(count)), network, advance)
