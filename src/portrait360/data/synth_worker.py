"""The processes that draw synthetic portraits, and the part files in which they keep them.

Each worker is a process of its own with a pipe to the parent: chunk numbers come in, messages go out. A part
file is a small zip of one chunk that appears whole or not at all: a killed run loses only chunks under way.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import threading
import traceback
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

from portrait360.data import layout
from portrait360.data.store import open_store
from portrait360.data.writer import add_member
from portrait360.files import atomic_write
from portrait360.types import DatasetError, Portrait360Error

_PART_LABELS = "labels.json"
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


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
        return self.parts / f"part-{chunk:06d}.zip"

    def has_parts(self) -> bool:
        """Whether any chunk is finished."""
        return any(self.parts.glob("part-*.zip"))


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


class Worker:
    """Parent's side of a drawing process."""

    def __init__(self, job: Job, source_factory: SourceFactory) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.chunk: int | None = None
        self.process = context.Process(target=_work, args=(theirs, job, source_factory), daemon=True)
        with _child_settings():
            self.process.start()
        theirs.close()

    def give(self, chunk: int) -> None:
        """Let it draw a chunk."""
        self.chunk = chunk
        with contextlib.suppress(BrokenPipeError):  # it has just died; its sentinel tells
            self.connection.send(chunk)

    def stop(self) -> None:
        """End the process now. What it has not written is lost; parts stay whole."""
        self.process.kill()
        self.process.join()
        self.process.close()
        self.connection.close()


def _work(connection: Connection, job: Job, source_factory: SourceFactory) -> None:
    """Main function of a drawing process: draw the chunks that come, until the parent hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
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
            _write_part(job.part(chunk), members)
            connection.send(Finished())
    except (EOFError, BrokenPipeError):
        return
    except Portrait360Error as error:
        _send(connection, Failed(error.message, error.hint, type(error), ""))
    except Exception as error:
        doing = "preparing to draw" if index is None else f"drawing picture {index} (seed {job.seed})"
        message = f"{doing} failed: {type(error).__name__}: {error}"
        _send(connection, Failed(message, "", DatasetError, traceback.format_exc()))


def _send(connection: Connection, message: Message) -> None:
    with contextlib.suppress(BrokenPipeError):
        connection.send(message)


def _die_with_parent() -> None:
    """Wait for the end of the parent, however it comes (also by kill -9), and end this process."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


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


def _write_part(path: Path, members: dict[str, bytes]) -> None:
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            add_member(archive, name, content)


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


@contextlib.contextmanager
def _child_settings() -> Iterator[None]:
    """Settings for processes started inside.

    One thread each, as there is a process per core; and deaf to Ctrl-C, which reaches the whole group of
    processes while only the parent shall answer.
    """
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main_thread else None
    try:
        yield
    finally:
        if in_main_thread:
            signal.signal(signal.SIGINT, handler)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
