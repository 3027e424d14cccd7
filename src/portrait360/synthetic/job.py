"""Render a synthetic dataset: many processes, one result.

The same seed gives the same bytes whatever the number of workers and however often the run was interrupted: every image
depends on (seed, index) only, `runtime.jobs` keeps them in part files beside the output, and the zip is put together in
order at the end.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import PIL
from PIL import features

import portrait360
from portrait360.data import layout
from portrait360.data.store import open_store
from portrait360.data.writer import open_writer
from portrait360.errors import DatasetError
from portrait360.runtime.files import explained_os_errors
from portrait360.runtime.job_files import difference, has_parts, parts_folder
from portrait360.runtime.job_processes import cores
from portrait360.runtime.jobs import run_job
from portrait360.runtime.words import counted, rough_time
from portrait360.synthetic.arguments import WORTH_SAYING, check_synth_arguments, rendering_seconds
from portrait360.synthetic.label_noise import BIAS_NOD_DEGREES, SHRINK, coarse_body_poses
from portrait360.synthetic.worker import SourceFactory, SynthJob, read_samples


def render_dataset(
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
) -> bool:
    """Render `count` portraits into the zip `out` (see `layout`).

    A run that was stopped or killed continues when it is called again with the same arguments; its parts lie
    in the folder `OUT.parts`, which goes when the zip is complete. A zip that holds exactly this dataset
    already is left as it is.

    Args:
        out: the zip to write; its folder is made when missing.
        count: number of images.
        resolution: side in pixels, 16 to 2048.
        seed: at least 0.
        label_noise: degrees of noise of the coarse body poses that training reads (`label_noise.py`); None or 0 writes
            exact ones only.
        workers: processes; one per available core when None.
        depth: also write 16-bit depth images.
        views: images of each person, one after the other, as `source_factory` renders them; noted in meta.json.
        source_factory: makes the source of the images in each process.
        progress: show roughly how long it will take, then images done, per second and time left, on standard error.

    Returns:
        Whether images were rendered; False where `out` held them already.

    Raises:
        InputError: an argument is out of range, or the disk is full (finished parts are kept).
        DatasetError: `out` is something else, or a process failed (finished parts are kept).
        KeyboardInterrupt: after saying how to continue.
    """
    # Check what was asked.
    check_synth_arguments(
        out, count=count, resolution=resolution, seed=seed, label_noise=label_noise, workers=workers, views=views
    )

    # Render what is not there yet.
    job = SynthJob(parts_folder(out), count, resolution, seed, depth, source_factory)
    meta = _meta(job, label_noise, views)
    if out.exists():
        _check_finished(out, meta)
        shutil.rmtree(job.parts, ignore_errors=True)  # left when the run was killed at its very end
        return False
    if progress and not has_parts(job.parts):
        _say_how_long(count, resolution, workers or cores())
    run_job(job, meta, lambda: _assemble(out, job, meta), workers=workers, progress=progress)
    return True


def _say_how_long(count: int, resolution: int, processes: int) -> None:
    """Before anything of this machine has been measured; the progress line is more exact."""
    seconds = rendering_seconds(count, resolution, processes)
    if seconds >= WORTH_SAYING:
        print(
            f"{count} images of {resolution}x{resolution} pixels take about {rough_time(seconds)} on"
            f" {counted(processes, 'core')}; Ctrl-C keeps what is done.",
            file=sys.stderr,
            flush=True,
        )


def _meta(job: SynthJob, label_noise: float | None, views: int) -> dict[str, Any]:
    """meta.json; it also distinguishes a job or a finished zip from others."""
    meta: dict[str, Any] = {
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


def _check_finished(out: Path, meta: dict[str, Any]) -> None:
    """Accept an existing output only when it is this very dataset."""
    hint = "Delete it or choose another name."
    try:
        there = json.loads(open_store(out).read(layout.META_FILE))
    except (DatasetError, ValueError) as error:
        raise DatasetError(f"{out} exists already and is no complete dataset.", hint) from error
    different = difference(there, meta)
    if different:
        raise DatasetError(f"{out} exists already with {different}.", hint)


def _assemble(out: Path, job: SynthJob, meta: dict[str, Any]) -> None:
    """Put the parts together; the zip appears last, as it ends the job."""
    whole = job.parts / "dataset.zip"  # not beside `out`, where a killed run would leave a stray file
    with open_writer(whole, resolution=job.resolution, meta=meta) as writer:
        for sample in read_samples(job):
            writer.add_encoded(sample.image, sample.mask, sample.camera, sample.body_pose, sample.depth)
        if meta["label_kind"] == "coarse":
            exact = writer.body_poses()
            writer.set_training_poses(coarse_body_poses(exact, meta["label_noise"], job.seed))
    with explained_os_errors(out):
        os.replace(whole, out)
