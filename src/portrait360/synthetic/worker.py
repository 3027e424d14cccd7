"""The units of work of `dataset synth`: images rendered in processes, and the part files in which they are kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

from portrait360.data import layout
from portrait360.data.store import open_store
from portrait360.runtime.jobs import Job, broken_part
from portrait360.types import DatasetError

_PART_LABELS = "labels.json"


@runtime_checkable
class Sample(Protocol):
    """One rendered portrait; arrays as in `layout`, `body_pose` exact, `depth` 0 in the background."""

    @property
    def image(self) -> UInt8[ndarray, "H W 3"]: ...
    @property
    def mask(self) -> UInt8[ndarray, "H W"]: ...
    @property
    def camera(self) -> Float[ndarray, " 25"]: ...
    @property
    def body_pose(self) -> Float[ndarray, " 6"]: ...
    @property
    def depth(self) -> Float[ndarray, "H W"] | None: ...


@runtime_checkable
class Source(Protocol):
    """Draws portraits. The sample must depend on the arguments only."""

    def draw(self, seed: int, index: int, resolution: int, *, depth: bool = False) -> Sample: ...


SourceFactory = Callable[[], Source]
"""Makes the source inside a process; a picklable callable (a class or function at the top of a module)."""


@dataclass(frozen=True)
class EncodedSample:
    """One portrait as it goes into the dataset."""

    image: bytes
    mask: bytes
    depth: bytes | None
    camera: Float[ndarray, " 25"]
    body_pose: Float[ndarray, " 6"]


@dataclass(frozen=True)
class RenderedPortrait:
    """What a process gives back: encoded files by their names in the dataset, and camera and body pose as numbers."""

    files: Mapping[str, bytes]
    label: tuple[list[float], list[float]]


@dataclass(frozen=True)
class SynthJob(Job[int, RenderedPortrait]):
    """What is rendered, and where its parts lie. Units are indices of images."""

    verb: ClassVar[str] = "rendering"
    noun: ClassVar[str] = "images"
    largest_chunk: ClassVar[int] = 64
    first_alone: ClassVar[bool] = True  # its source may fetch assets that the others then find

    parts: Path
    count: int
    resolution: int
    seed: int
    depth: bool
    source_factory: SourceFactory

    @property
    def units(self) -> range:
        return range(self.count)

    def worker(self) -> PortraitRenderer:
        return PortraitRenderer(self.source_factory, self.resolution, self.seed, self.depth)

    def members(self, results: Sequence[RenderedPortrait]) -> dict[str, bytes]:
        files = {name: content for one in results for name, content in one.files.items()}
        return {**files, _PART_LABELS: json.dumps([list(one.label) for one in results]).encode()}

    def is_whole(self, number: int) -> bool:
        try:
            names = set(open_store(self.part(number)).names())
        except DatasetError:
            return False
        return names == {_PART_LABELS}.union(*(_file_names(index, self.depth) for index in self.chunk(number)))


class PortraitRenderer:
    """Draws single images in a process of its own (`UnitWorker`)."""

    def __init__(self, source_factory: SourceFactory, resolution: int, seed: int, depth: bool) -> None:
        self._source_factory = source_factory
        self._resolution, self._seed, self._depth = resolution, seed, depth
        self._source: Source | None = None

    def prepare(self) -> None:
        self._source = self._source_factory()

    def describe(self, unit: int) -> str:
        return f"rendering image {unit} (seed {self._seed})"

    def __call__(self, unit: int) -> RenderedPortrait:
        assert self._source is not None
        sample = self._source.draw(self._seed, unit, self._resolution, depth=self._depth)
        self._check(unit, sample)
        contents = [layout.encode_image(sample.image), layout.encode_mask(sample.mask)]
        if self._depth:
            assert sample.depth is not None
            contents.append(layout.encode_depth(sample.depth))
        files = dict(zip(_file_names(unit, self._depth), contents, strict=True))
        return RenderedPortrait(files, (sample.camera.tolist(), sample.body_pose.tolist()))

    def _check(self, index: int, sample: Sample) -> None:
        """Refuse what would break the dataset: a mistake in a source."""
        size = (self._resolution, self._resolution)
        if sample.image.shape != (*size, 3) or sample.mask.shape != size:
            raise DatasetError(
                f"the source drew an image {sample.image.shape} and a mask {sample.mask.shape}, not {size}."
            )
        if not (np.isfinite(sample.camera).all() and np.isfinite(sample.body_pose).all()):
            raise DatasetError(f"the source drew image {index} with a label that is not finite.")
        if self._depth and sample.depth is None:
            raise DatasetError("the source drew no depth.", "Leave the depth out.")


def _file_names(index: int, depth: bool) -> list[str]:
    """The files of an image: image, mask, depth."""
    names = [layout.image_name(index), layout.mask_name(index)]
    return [*names, layout.depth_name(index)] if depth else names


def read_samples(job: SynthJob) -> Iterator[EncodedSample]:
    """All portraits of a job, in order. A broken part is deleted, so that the next run renders it again.

    Raises:
        DatasetError: a part is broken.
    """
    for number in range(job.chunks):
        try:
            store = open_store(job.part(number))
            labels = json.loads(store.read(_PART_LABELS))
            for index, (camera, body_pose) in zip(job.chunk(number), labels, strict=True):
                yield EncodedSample(
                    image=store.read(layout.image_name(index)),
                    mask=store.read(layout.mask_name(index)),
                    depth=store.read(layout.depth_name(index)) if job.depth else None,
                    camera=np.asarray(camera, np.float32),
                    body_pose=np.asarray(body_pose, np.float32),
                )
        except DatasetError as error:
            raise broken_part(job.part(number)) from error
