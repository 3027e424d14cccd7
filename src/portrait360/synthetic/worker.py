"""The processes that draw synthetic portraits, and the part files in which they keep them.

Each worker is a process of its own with a pipe to the parent (`job_processes`): chunk numbers come in, messages go
out. A part file (`job_files`) holds one chunk.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

from portrait360.data import layout
from portrait360.data.store import open_store
from portrait360.runtime.job_files import has_parts, part_file, write_part
from portrait360.runtime.job_processes import send, settle_in_child
from portrait360.types import DatasetError, Portrait360Error

_PART_LABELS = "labels.json"


@runtime_checkable
class Sample(Protocol):
    """One drawn portrait; arrays as in `layout`, `body_pose` exact, `depth` 0 in the background."""

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
"""Makes the source inside a worker; a picklable callable (a class or function at the top of a module)."""


@dataclass(frozen=True)
class Job:
    """What is drawn, and where its parts lie."""

    parts: Path
    count: int
    resolution: int
    seed: int
    depth: bool
    chunk_size: int

    @property
    def chunks(self) -> int:
        return -(-self.count // self.chunk_size)

    def indices(self, chunk: int) -> range:
        """The pictures of a chunk."""
        return range(chunk * self.chunk_size, min((chunk + 1) * self.chunk_size, self.count))

    def part(self, chunk: int) -> Path:
        """The part file of a chunk."""
        return part_file(self.parts, chunk)

    def has_parts(self) -> bool:
        """Whether any chunk is finished."""
        return has_parts(self.parts)


@dataclass(frozen=True)
class EncodedSample:
    """One picture as it goes into the dataset."""

    image: bytes
    mask: bytes
    depth: bytes | None
    camera: np.ndarray
    body_pose: np.ndarray


@dataclass(frozen=True)
class Drawn:
    """A worker has drawn one more picture."""


@dataclass(frozen=True)
class Finished:
    """A worker has written the part of its chunk and waits for the next one."""


@dataclass(frozen=True)
class Failed:
    """A worker has given up; `details` is the traceback, empty for errors that the user can mend."""

    message: str
    hint: str
    kind: type[Portrait360Error]
    details: str


Message = Drawn | Finished | Failed


def work(connection: Connection, job: Job, source_factory: SourceFactory) -> None:
    """Main function of a drawing process: draw the chunks that come, until the parent hangs up."""
    settle_in_child()
    index = None
    try:
        source = source_factory()
        while True:
            chunk = connection.recv()
            members: dict[str, bytes] = {}
            labels = []
            for index in job.indices(chunk):
                sample = source.draw(job.seed, index, job.resolution, depth=job.depth)
                members.update(_encode(job, index, sample))
                labels.append([sample.camera.tolist(), sample.body_pose.tolist()])
                connection.send(Drawn())
            members[_PART_LABELS] = json.dumps(labels).encode()
            write_part(job.part(chunk), members)
            connection.send(Finished())
    except (EOFError, BrokenPipeError):
        return
    except Portrait360Error as error:
        send(connection, Failed(error.message, error.hint, type(error), ""))
    except Exception as error:
        doing = "preparing to draw" if index is None else f"drawing picture {index} (seed {job.seed})"
        message = f"{doing} failed: {type(error).__name__}: {error}"
        send(connection, Failed(message, "", DatasetError, traceback.format_exc()))


def _encode(job: Job, index: int, sample: Sample) -> dict[str, bytes]:
    """Check one picture and encode its files."""
    size = (job.resolution, job.resolution)
    if sample.image.shape != (*size, 3) or sample.mask.shape != size:
        raise DatasetError(f"the source drew an image {sample.image.shape} and a mask {sample.mask.shape}, not {size}.")
    if not (np.isfinite(sample.camera).all() and np.isfinite(sample.body_pose).all()):
        raise DatasetError(f"the source drew picture {index} with a label that is not finite.")
    files = {
        layout.image_name(index): layout.encode_image(sample.image),
        layout.mask_name(index): layout.encode_mask(sample.mask),
    }
    if job.depth:
        if sample.depth is None:
            raise DatasetError("the source drew no depth.", "Leave the depth out.")
        files[layout.depth_name(index)] = layout.encode_depth(sample.depth)
    return files


def is_whole(job: Job, chunk: int) -> bool:
    """Whether the part of a chunk is there and holds its pictures."""
    try:
        store = open_store(job.part(chunk))
    except DatasetError:
        return False
    names = set(store.names())
    expected = {_PART_LABELS}
    for index in job.indices(chunk):
        expected |= {layout.image_name(index), layout.mask_name(index)}
        if job.depth:
            expected.add(layout.depth_name(index))
    return names == expected


def read_part(job: Job, chunk: int) -> Iterator[EncodedSample]:
    """The pictures of a part, in order.

    Raises:
        DatasetError: the part is broken.
    """
    store = open_store(job.part(chunk))
    labels = json.loads(store.read(_PART_LABELS))
    for index, (camera, body_pose) in zip(job.indices(chunk), labels, strict=True):
        yield EncodedSample(
            image=store.read(layout.image_name(index)),
            mask=store.read(layout.mask_name(index)),
            depth=store.read(layout.depth_name(index)) if job.depth else None,
            camera=np.asarray(camera, np.float32),
            body_pose=np.asarray(body_pose, np.float32),
        )
