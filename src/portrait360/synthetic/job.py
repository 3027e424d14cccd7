"""Draw a synthetic dataset: many processes, one result.

The same seed gives the same bytes whatever the number of workers and however often the run was interrupted:
every picture depends on (seed, index) only, workers keep them in part files beside the output, and the zip is
put together in order at the end.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections import deque
from pathlib import Path

import PIL
from PIL import features

import portrait360
from portrait360.data import layout
from portrait360.data.store import open_store
from portrait360.data.writer import open_writer
from portrait360.runtime.files import explained_os_errors, make_folder
from portrait360.runtime.job_files import (
    check_same_job,
    cores,
    difference,
    locked,
    nothing_left_when_empty,
    parts_folder,
    remove_leftovers,
)
from portrait360.runtime.job_processes import Worker, ready
from portrait360.runtime.progress import Progress, show_progress
from portrait360.synthetic.label_noise import BIAS_NOD_DEGREES, SHRINK, coarse_body_poses
from portrait360.synthetic.worker import Drawn, Failed, Finished, Job, SourceFactory, is_whole, read_part, work
from portrait360.types import DatasetError, InputError

_RESOLUTIONS = range(16, 2049)
_LARGEST_CHUNK = 64


def draw_dataset(
    out: Path,
    *,
    count: int,
    resolution: int,
    seed: int,
    label_noise: float | None = None,
    workers: int | None = None,
    depth: bool = False,
    views: int = 1,
    source_factory: SourceFactory,
    progress: bool = True,
) -> None:
    """Draw `count` portraits into the zip `out` (see `layout`).

    A run that was stopped or killed continues when it is called again with the same arguments; its parts lie
    in the folder `OUT.parts`, which goes when the zip is complete. A zip that holds exactly this dataset
    already is left as it is.

    Args:
        out: the zip to write; its folder is made when missing.
        count: number of pictures.
        resolution: side in pixels, 16 to 2048.
        seed: at least 0.
        label_noise: degrees of noise of the coarse body poses that training reads (`label_noise.py`); None or 0 writes
            exact ones only.
        workers: processes; one per available core when None.
        depth: also write 16-bit depth pictures.
        views: pictures of each person, one after the other, as `source_factory` draws them; noted in meta.json.
        source_factory: makes the source of the pictures in each worker.
        progress: show pictures done, per second and time left on standard error.

    Raises:
        InputError: an argument is out of range, or the disk is full (finished parts are kept).
        DatasetError: `out` is something else, or a worker failed (finished parts are kept).
        KeyboardInterrupt: after saying how to continue.
    """
    _check_arguments(out, count, resolution, seed, label_noise, workers, views)
    # By the count alone, as the number of workers may change on resuming.
    chunk_size = max(1, min(_LARGEST_CHUNK, count // 32))
    job = Job(parts_folder(out), count, resolution, seed, depth, chunk_size)
    meta = _meta(job, label_noise, views)
    if out.exists():
        _check_finished(out, meta)
        shutil.rmtree(job.parts, ignore_errors=True)  # left when the run was killed at its very end
        return
    made = make_folder(job.parts)
    try:
        with locked(job.parts, "drawing"), nothing_left_when_empty(job.parts, made):
            check_same_job(job.parts, meta)
            with show_progress("drawing", count, "pictures", visible=progress) as bar:
                _draw_parts(job, workers or cores(), source_factory, bar)
            _assemble(out, job, meta)
            shutil.rmtree(job.parts, ignore_errors=True)
    except KeyboardInterrupt:
        done = sum(len(job.indices(chunk)) for chunk in range(job.chunks) if job.part(chunk).exists())
        kept = f"{done} of {count} pictures are kept in {job.parts}" if done else "Nothing was finished yet"
        print(f"\nStopped. {kept}; run the same command again to continue.", file=sys.stderr)
        raise


def _check_arguments(
    out: Path, count: int, resolution: int, seed: int, label_noise: float | None, workers: int | None, views: int
) -> None:
    if count < 1:
        raise InputError(f"the count must be at least 1, not {count}.", "Give for instance `count=1000`.")
    if resolution not in _RESOLUTIONS:
        raise InputError(
            f"the resolution must be a side of 16 to 2048 pixels, not {resolution}.",
            "Give for instance `resolution=256`.",
        )
    if seed < 0:
        raise InputError(f"the seed must be at least 0, not {seed}.", "Give for instance `seed=1`.")
    if label_noise is not None and not (math.isfinite(label_noise) and 0 <= label_noise <= 90):
        raise InputError(
            f"the label noise must be 0 to 90 degrees, not {label_noise}.",
            "Give for instance `label_noise=4`.",
        )
    if workers is not None and workers < 1:
        raise InputError(f"there must be at least 1 worker, not {workers}.", "Leave `workers` out for one per core.")
    if not 1 <= views <= count:
        raise InputError(f"there must be 1 to {count} views of each person, not {views}.", "Try `views=4`.")
    if out.suffix != ".zip":
        raise InputError(f"the output must be a zip, not {out}.", "Give a name that ends in .zip.")
    if out.is_dir():
        raise InputError(f"{out} is a folder.", "Give the name of a zip file.")


def _meta(job: Job, label_noise: float | None, views: int) -> dict:
    """meta.json; it also tells whether a job or a finished zip is the same as the one asked for."""
    meta: dict = {
        "generator": "portrait360 dataset synth",
        "version": portrait360.__version__,
        "encoder": f"Pillow {PIL.__version__}, libwebp {features.version('webp')}",
        "count": job.count,
        "resolution": job.resolution,
        "seed": job.seed,
        "depth": job.depth,
        "views_per_subject": views,
        "label_kind": "exact",
        "label_noise": 0.0,
    }
    if label_noise:
        meta["label_kind"] = "coarse"
        meta["label_noise"] = float(label_noise)
        meta["label_shrink"] = SHRINK
        meta["label_bias_nod"] = BIAS_NOD_DEGREES
    if job.depth:
        meta["depth_scale"] = layout.DEPTH_SCALE
    return meta


def _check_finished(out: Path, meta: dict) -> None:
    """Accept an existing output only when it is this very dataset."""
    hint = "Delete it or choose another name."
    try:
        there = json.loads(open_store(out).read(layout.META_FILE))
    except (DatasetError, ValueError) as error:
        raise DatasetError(f"{out} exists already and is no complete dataset.", hint) from error
    different = difference(there, meta)
    if different:
        raise DatasetError(f"{out} exists already with {different}.", hint)


def _draw_parts(job: Job, count: int, source_factory: SourceFactory, bar: Progress) -> None:
    """Draw the chunks that have no part yet. Raises what failed; the other parts are kept."""
    missing = deque()
    for chunk in range(job.chunks):
        if is_whole(job, chunk):
            bar.skip(len(job.indices(chunk)))
        else:
            missing.append(chunk)
    remove_leftovers(job.parts)
    workers: list[Worker] = []

    def start_worker() -> None:
        workers.append(Worker(work, job, source_factory))
        workers[-1].give(missing.popleft())

    try:
        if missing:
            start_worker()
        while any(worker.work is not None for worker in workers):
            for worker in ready(workers):
                message = _receive(worker, job)
                if isinstance(message, Drawn):
                    bar.advance(1)
                    # One went ahead: its source may have fetched assets that the others now find.
                    while missing and len(workers) < count:
                        start_worker()
                else:
                    worker.work = None
                    if missing:
                        worker.give(missing.popleft())
    finally:
        for worker in workers:
            worker.stop()


def _receive(worker: Worker, job: Job) -> Drawn | Finished:
    """The next message of a worker. Raises what it failed with, or that it died."""
    then = "Finished pictures are kept; run the same command again to continue." if job.has_parts() else ""
    try:
        message = worker.connection.recv()
    except (EOFError, ConnectionResetError) as error:
        worker.process.join()
        raise DatasetError(
            f"a drawing process ended unexpectedly (exit code {worker.process.exitcode}).",
            f"Perhaps memory ran out; try fewer `workers`. {then}".strip(),
        ) from error
    if isinstance(message, Failed):
        failure = message.kind(message.message, f"{message.hint} {then}".strip())
        if message.details:
            failure.add_note(message.details)
        raise failure
    return message


def _assemble(out: Path, job: Job, meta: dict) -> None:
    """Put the parts together. A broken part is deleted, so that the next run draws it again."""
    whole = job.parts / "dataset.zip"  # not beside `out`, where a killed run would leave a stray file
    with open_writer(whole, resolution=job.resolution, meta=meta) as writer:
        for chunk in range(job.chunks):
            try:
                for sample in read_part(job, chunk):
                    writer.add_encoded(sample.image, sample.mask, sample.camera, sample.body_pose, sample.depth)
            except DatasetError as error:
                job.part(chunk).unlink(missing_ok=True)
                raise DatasetError(
                    f"the part {job.part(chunk)} was broken and is deleted.", "Run the same command again."
                ) from error
        if meta["label_kind"] == "coarse":
            exact = writer.body_poses()
            writer.set_training_poses(coarse_body_poses(exact, meta["label_noise"], job.seed))
    with explained_os_errors(out):
        os.replace(whole, out)
