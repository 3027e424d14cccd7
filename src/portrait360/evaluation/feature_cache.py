"""Predictions for the dataset's images, kept in the user's cache for the next evaluation of the same data."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from portrait360.evaluation.faces import FaceNetwork, Faces, data_faces, frontal_rows
from portrait360.evaluation.samples import SampleSet
from portrait360.evaluation.setup import Setup
from portrait360.runtime.cache import cache_folder
from portrait360.runtime.tensors import read_tensors, write_tensors
from portrait360.types import Portrait360Error

_CACHED = (
    "features",
    "identity",
    "encoder_yaw",
    "encoder_pitch",
    "encoder_pose",
    "head_features",
    "face_features",
    "further_features",
)
"""Fields of a `SampleSet` that do not depend on the measured model."""


def real_samples(setup: Setup, pool: Int[Tensor, " M"], advance: Callable[[int], None]) -> SampleSet:
    """Predictions for the pool of real images; the encoder's come from the cache if they are there."""
    path = _place(setup.cache_key)
    known = None
    if path.exists():
        with contextlib.suppress(Portrait360Error):  # a damaged cache is made anew
            known = read_tensors(path)[0]
    real = setup.real.predict(pool, setup.predictors, advance, known)
    if known is None:
        _write(path, {name: getattr(real, name) for name in _CACHED if getattr(real, name) is not None})
    return real


def real_faces(setup: Setup, network: FaceNetwork, advance: Callable[[int], None]) -> tuple[Faces, Faces]:
    """Two halves of the data's faces; their descriptors come from the cache if they are there."""
    data, count = setup.real.data, setup.plan.faces
    rows = frontal_rows(data.cameras)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    path = _place(f"faces-{setup.cache_key}-{count}")
    if path.exists():
        with contextlib.suppress(Portrait360Error, KeyError):  # a damaged cache is made anew
            kept = read_tensors(path)[0]
            advance(2 * count)
            return Faces(count, kept["here"].numpy()), Faces(count, kept["there"].numpy())
    here, there = (
        data_faces(data, some, setup.weights.generator.config, network, advance)
        for some in (rows[:count], rows[count : 2 * count])
    )
    _write(path, {"here": torch.from_numpy(here.descriptors), "there": torch.from_numpy(there.descriptors)})
    return here, there


def _place(name: str) -> Path:
    return cache_folder() / "evaluation" / f"{name}.safetensors"


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    with contextlib.suppress(Portrait360Error):  # no room or no permission: then without
        write_tensors(path, tensors, {"format": "portrait360", "kind": "evaluation-cache"})
