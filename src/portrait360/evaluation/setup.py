"""What an evaluation needs: networks, data, what can be measured with them, and the facts that m.json records."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

import portrait360
from portrait360.config import ModelConfig
from portrait360.data.dataset import PortraitDataset
from portrait360.encoder.files import load_encoder
from portrait360.evaluation.faces import LEAST_SIDE, FaceNetwork, frontal_rows
from portrait360.evaluation.inception import load_inception
from portrait360.evaluation.plan import SEEDS, Plan
from portrait360.evaluation.sampler import PortraitSampler
from portrait360.evaluation.samples import WINDOWS, Extractor, Predictors, RealImages, least_side, measured_model
from portrait360.portrait.weights import Weights, load_weights
from portrait360.runtime.device import choose_device
from portrait360.runtime.precision import processor_name
from portrait360.runtime.words import counted
from portrait360.synthetic.assets import installed_makehuman_folder
from portrait360.types import DatasetError, InputError

FORMAT_VERSION = 1
FEWEST = 40
"""Fewer images than this cannot be split and compared."""
_ENCODING = "encode_both_ways"
"""How the encoder encodes images; what it predicted in another way is not taken from the cache."""


@dataclass(frozen=True)
class Setup:
    """Networks and data of an evaluation."""

    weights: Weights
    predictors: Predictors
    real: RealImages
    plan: Plan
    recognition: FaceNetwork | None
    about: dict[str, Any]
    missing: dict[str, str]
    """Measures that cannot be had, and why."""
    cache_key: str

    @property
    def sampler(self) -> PortraitSampler:
        """The measured generator, viewed from the data's cameras."""
        return PortraitSampler(self.weights.generator, self.real.data.cameras)

    @property
    def work(self) -> int:
        """Steps of the progress bar."""
        pairs = self.plan.pairs * (1 if "consistency floor" in self.missing else 2)
        faces = 0 if self.recognition is None else 4 * self.plan.faces
        return len(self.pool()) + len(SEEDS) * (self.plan.images + pairs + self.plan.meshes) + faces

    def pool(self) -> Int[Tensor, " M"]:
        """Rows of the real images in use: enough that the halves of every seed differ."""
        order = torch.randperm(len(self.real.data), generator=torch.Generator().manual_seed(0))
        return order[: 3 * self.plan.images]


def prepare(
    data: Path, weights: str | Path | None, inception: Path | None, encoder_file: Path | None, device: str, plan: Plan
) -> Setup:
    """Load networks and data, and find out what can be measured.

    Args:
        data, weights, inception, encoder_file, device: as of `evaluate`.
        plan: how much to measure; cut to what the dataset has.

    Raises:
        InputError, DatasetError, CheckpointError: as `evaluate` does.
    """
    # Networks and data, and whether they fit together.
    networks = load_weights(weights)
    encoder, encoder_info = load_encoder(encoder_file)
    dataset = PortraitDataset(data)
    _check_data(data, dataset, networks.generator.config)
    model = measured_model(networks.generator.config, dataset.resolution)
    networks.generator.config = model

    # What can be measured, and how much of it.
    missing: dict[str, str] = {}
    real = RealImages(dataset, _exact_labels(data, missing), model)
    recognition = _recognition(dataset, missing)
    _note_missing(missing, real, inception)
    frontal = len(frontal_rows(dataset.cameras))
    plan = dataclasses.replace(plan, images=min(plan.images, len(dataset) // 2), faces=min(plan.faces, frontal // 2))

    # Networks on their device.
    place = choose_device(device)
    networks.generator.to(place)
    networks.discriminator.to(place)
    further = None if inception is None else _inception(inception, place)
    predictors = Predictors(encoder.to(place), networks.discriminator, further, networks.calibration)

    info = networks.info

    # Facts for m.json, and the key of cached features.
    about = {
        "weights": {"model": info.model, "sha256": info.sha256, "about": info.about, "file": _name(weights)},
        "data": _about_data(data, dataset),
        "encoder": encoder_info["sha256"],
        "pictures": plan.images,
        "pairs": plan.pairs,
        "meshes": plan.meshes,
        "faces": 0 if recognition is None else plan.faces,
        "seeds": list(SEEDS),
        "package": portrait360.__version__,
        "machine": _about_machine(place),
    }
    inception_sha = "" if inception is None else hashlib.sha256(inception.read_bytes()).hexdigest()
    key = _cache_key(real, plan, (dataset.fingerprint(), encoder_info["sha256"], inception_sha))
    return Setup(networks, predictors, real, plan, recognition, about, missing, key)


def _check_data(data: Path, dataset: PortraitDataset, model: ModelConfig) -> None:
    if len(dataset) < FEWEST:
        raise DatasetError(
            f"{data} has {counted(len(dataset), 'image')}; measuring needs at least {FEWEST}.",
            "Render more: portrait360 dataset synth --count 4000 --resolution 256 --seed 77 --out heldout.zip",
        )
    if dataset.resolution < model.resolution:
        raise DatasetError(
            f"{data} has images of {dataset.resolution} pixels; {model.name} makes {model.resolution}.",
            "Render the dataset at a higher resolution.",
        )
    dataset.mask(0)  # raises DatasetError if there are none


def _exact_labels(data: Path, missing: dict[str, str]) -> PortraitDataset | None:
    try:
        return PortraitDataset(data, labels="exact")
    except DatasetError:
        missing["body pose, real pictures"] = "the dataset has no exact body poses"
        return None


def _recognition(dataset: PortraitDataset, missing: dict[str, str]) -> FaceNetwork | None:
    """The face recognition network, if it is installed and the data show faces."""
    if dataset.resolution < LEAST_SIDE:
        missing["faces"] = f"needs images of {LEAST_SIDE} pixels"
        return None
    if len(frontal_rows(dataset.cameras)) < FEWEST:
        missing["faces"] = f"needs {FEWEST} images from within 30 degrees of the front"
        return None
    try:
        return FaceNetwork()
    except InputError as error:
        missing["faces"] = f"{error.message} {error.hint}"
        return None


def _note_missing(missing: dict[str, str], real: RealImages, inception: Path | None) -> None:
    """Note the measures without a file of Inception weights, without enough pixels, and without synthetic parts."""
    if inception is None:
        missing["inception"] = "no --inception file was given"
    for name, window in WINDOWS.items():
        if name not in real.windows:
            missing[f"frechet_{name}"] = f"needs images of {math.ceil(least_side(real.model) / window)} pixels"
    if installed_makehuman_folder() is None:
        missing["consistency floor"] = "the synthetic parts are not installed (dataset synth fetches them)"


def _inception(path: Path, device: torch.device) -> Extractor:
    network = load_inception(path).to(device)
    return lambda images: torch.cat([network(some) for some in images.split(16)])


def _name(weights: str | Path | None) -> str:
    return "packaged" if weights is None else Path(weights).name


def _about_data(data: Path, dataset: PortraitDataset) -> dict[str, Any]:
    return {
        "file": data.name,
        "pictures": len(dataset),
        "resolution": dataset.resolution,
        "label_kind": dataset.label_kind,
        "fingerprint": dataset.fingerprint(),
    }


def _about_machine(device: torch.device) -> dict[str, Any]:
    return {
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _cache_key(real: RealImages, plan: Plan, content: tuple[str, str, str]) -> str:
    """A name for the features of these images: `content` are the hashes of dataset, encoder and Inception weights."""
    model = real.model
    parts = (
        FORMAT_VERSION,
        _ENCODING,
        sorted(WINDOWS.items()),
        sorted(real.windows.items()),
        plan.images,
        *content,
        model.resolution,
        model.background is None,
        model.plain_background,
        model.discriminator.mirror_once,
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
