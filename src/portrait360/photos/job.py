"""From a folder of photos to a dataset: many processes, one result, and a report on every photo.

The same folder gives the same bytes whatever the number of workers, whichever engine reads, and however often the run
was interrupted: what became of a photo depends on the photo only, it is kept in part files beside the output, and the
zip is put together in order at the end, where pictures that came before are found.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL
from PIL import features

import portrait360
from portrait360.data import layout
from portrait360.data.shards import is_shards, write_shards
from portrait360.data.store import open_store
from portrait360.data.writer import DatasetWriter, open_writer
from portrait360.geometry.body import load_body
from portrait360.photos.dedup import decide
from portrait360.photos.detect import no_mediapipe
from portrait360.photos.folder import find_photos
from portrait360.photos.gates import PhotoLimits
from portrait360.photos.local_engine import read_locally
from portrait360.photos.ray_engine import check_ray, read_with_ray
from portrait360.photos.records import (
    LONGEST_READING,
    KeptPhoto,
    PhotoFile,
    PhotoJob,
    WorkerFactory,
    is_whole,
    read_photos,
)
from portrait360.photos.report import Report, open_report, read_report, report_files
from portrait360.photos.user_files import open_user_files
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
from portrait360.runtime.progress import Progress, show_progress
from portrait360.types import DatasetError, InputError

_RESOLUTIONS = range(16, 2049)
_MOST_REPEATS = 100
_GENERATOR = "portrait360 dataset photos"


def process_folder(
    folder: Path,
    out: Path,
    *,
    resolution: int,
    limits: PhotoLimits | None = None,
    workers: int | None = None,
    balance: int | None = None,
    matting: Path | None = None,
    quality: Path | None = None,
    body: Path | None = None,
    worker_factory: WorkerFactory | None = None,
    engine: str = "local",
    shards: Path | None = None,
    longest_reading: float = LONGEST_READING,
    progress: bool = True,
) -> Report:
    """Read every photo below `folder` and write the dataset `out` and its report.

    A run that was stopped or killed continues when it is called again with the same arguments; its parts lie
    in the folder `OUT.parts`, which goes when the zip is complete. A zip that was made of exactly these photos
    already is left as it is.

    Args:
        folder: photos, also in folders below.
        out: the zip to write (see `layout`); FILE.report.json and FILE.report.html lie beside it.
        resolution: side of the pictures in pixels, 16 to 2048.
        limits: when to reject; the package's own when None.
        workers: processes; one per available core when None, with Ray as many as it has cores.
        balance: show persons from rare sides up to so many times: each repeat is one more entry, with files of
            its own, as tools that read this layout expect one file per label. None or 1 repeats nobody.
        matting: an ONNX network in place of mediapipe's segmentation (`networks.UserMatting`).
        quality: a network that gives marks (`networks.UserQuality`); `limits.least_quality` says what is
            enough, and without that limit marks are in the report only.
        body: an SMPL file, in whose terms body poses are then (`body`).
        worker_factory: makes the reader of photos in each process, in place of a `PhotoWorker` with these files.
        engine: "local" reads with processes of this machine, "ray" with those of a Ray cluster, whose machines
            must see the folder under the same path.
        shards: also pack the dataset into WebDataset shards in this folder.
        longest_reading: seconds; a photo that takes longer, twice, is unreadable.
        progress: show photos done, per second and time left on standard error.

    Returns:
        The totals of the report.

    Raises:
        InputError: an argument is out of range, a package is missing, a network is refused, or the disk is full (what
            was read is kept).
        AssetError, CheckpointError: `body` is no SMPL file, or `quality` no network.
        DatasetError: `out` is something else, nobody can be used (the report says why), or a process failed.
        KeyboardInterrupt: after saying how to continue.
    """
    limits = limits or PhotoLimits()
    _check_arguments(out, resolution, workers, balance, engine, shards)
    if engine == "ray":
        check_ray()
    given = open_user_files(matting, quality, body)
    parts = parts_folder(out)
    files = tuple(file for file in find_photos(folder) if not _is_ours(file, out, parts))
    if not files:
        raise InputError(f"{folder} holds no photos.", "Name the folder that holds them.")
    job = PhotoJob(parts, files, resolution, limits, given, longest_reading)
    factory = worker_factory or _photo_worker(job)
    asked = _asked(job)
    if out.exists():
        report = _finished(out, asked, balance)
        shutil.rmtree(parts, ignore_errors=True)  # left when the run was killed at its very end
    else:
        report = _make(job, out, asked, workers, balance, factory, engine, progress)
    if shards is not None and not is_shards(shards):
        write_shards(out, shards, progress=progress)
    return report


def _make(
    job: PhotoJob,
    out: Path,
    asked: dict[str, Any],
    workers: int | None,
    balance: int | None,
    factory: WorkerFactory,
    engine: str,
    progress: bool,
) -> Report:
    made = make_folder(job.parts)
    try:
        with locked(job.parts, "reading photos"), nothing_left_when_empty(job.parts, made):
            check_same_job(job.parts, asked)
            with show_progress("reading", len(job.files), "photos", visible=progress) as bar:
                missing = _missing(job, bar)
                if engine == "ray":
                    read_with_ray(job, missing, workers, factory, bar)
                else:
                    read_locally(job, missing, workers or cores(), factory, bar)
            report = _assemble(job, out, asked, balance)
            shutil.rmtree(job.parts, ignore_errors=True)
    except KeyboardInterrupt:
        done = sum(len(job.chunk(number).files) for number in range(job.chunks) if job.part(number).exists())
        kept = f"{done} of {len(job.files)} photos are kept in {job.parts}" if done else "Nothing was finished yet"
        print(f"\nStopped. {kept}; run the same command again to continue.", file=sys.stderr)
        raise
    if not report.accepted:
        given = ", ".join(f"{count} {reason}" for reason, count in report.reasons.items())
        raise DatasetError(
            f"nobody in the {report.photos} photos can be used: {given}.",
            f"{report_files(out)[1]} says why, photo by photo.",
        )
    return report


def _check_arguments(
    out: Path, resolution: int, workers: int | None, balance: int | None, engine: str, shards: Path | None
) -> None:
    if resolution not in _RESOLUTIONS:
        raise InputError(
            f"the resolution must be a side of 16 to 2048 pixels, not {resolution}.",
            "Give for instance `resolution=512`.",
        )
    if workers is not None and workers < 1:
        raise InputError(f"there must be at least 1 worker, not {workers}.", "Leave `workers` out for one per core.")
    if balance is not None and not 1 <= balance <= _MOST_REPEATS:
        raise InputError(
            f"balancing can show a person 1 to {_MOST_REPEATS} times, not {balance}.", "Try `balance=4`."
        )  # fmt: skip
    if engine not in ("local", "ray"):
        raise InputError(f"there is no engine {engine}.", "Choose local or ray.")
    if out.suffix != ".zip":
        raise InputError(f"the output must be a zip, not {out}.", "Give a name that ends in .zip.")
    if out.is_dir():
        raise InputError(f"{out} is a folder.", "Give the name of a zip file.")
    if shards is not None and is_shards(shards) and not out.exists():
        raise InputError(f"{shards} already holds shards.", "Choose another folder.")


def _photo_worker(job: PhotoJob) -> WorkerFactory:
    """The package's own reader, with what the user gave. Raises Portrait360Error when it cannot work here or so."""
    if importlib.util.find_spec("mediapipe") is None:
        raise no_mediapipe()
    from portrait360.photos.body import load_user_body
    from portrait360.photos.networks import UserMatting, UserQuality
    from portrait360.photos.worker import PhotoWorker

    options: dict[str, Any] = {}
    if job.given.matting is not None:
        options["matting"] = UserMatting(job.given.matting, job.resolution)
        options["matting"].check()
    if job.given.quality is not None:
        options["quality"] = UserQuality(job.given.quality, job.resolution)
        options["quality"].check()
    elif job.limits.least_quality is not None:
        raise InputError("there is a limit least_quality, but no quality network.", "Give one with `quality`.")
    if job.given.body is not None:
        options["body"] = job.given.body
        load_user_body(job.given.body, load_body())
    return functools.partial(PhotoWorker, **options)


def _is_ours(file: PhotoFile, out: Path, parts: Path) -> bool:
    """Whether a file of the folder is what this very run writes."""
    path = Path(os.path.abspath(file.path))
    ours = [Path(os.path.abspath(name)) for name in (out, parts, *report_files(out))]
    return path in ours or ours[1] in path.parents


def _asked(job: PhotoJob) -> dict[str, Any]:
    """What tells whether parts, or a finished zip, are those asked for."""
    digest = hashlib.sha256()
    for file in job.files:
        try:
            state = file.path.stat()
            what = (file.name, state.st_size, state.st_mtime_ns)
        except OSError:
            what = (file.name, -1, -1)
        digest.update(repr(what).encode())
    asked = {
        "photos": len(job.files),
        "resolution": job.resolution,
        **{f"limit_of_{name}": value for name, value in dataclasses.asdict(job.limits).items()},
        **job.given.asked(),
        "versions": _versions(),
        "listing_of_the_folder": digest.hexdigest()[:16],
    }
    return json.loads(json.dumps(asked))  # as it comes back from a file


def _versions() -> dict[str, str]:
    versions = {
        "portrait360": portrait360.__version__,
        "Pillow": PIL.__version__,
        "libwebp": str(features.version("webp")),
    }
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        versions["mediapipe"] = importlib.metadata.version("mediapipe")
    return versions


def _finished(out: Path, asked: dict[str, Any], balance: int | None) -> Report:
    """The report of an output that exists, only when it is this very dataset."""
    hint = "Delete it or choose another name."
    try:
        meta = json.loads(open_store(out).read(layout.META_FILE))
        report, there = read_report(out)
    except (DatasetError, ValueError) as error:
        raise DatasetError(f"{out} exists already and is no complete dataset of photos.", hint) from error
    if meta.get("generator") != _GENERATOR:
        raise DatasetError(f"{out} exists already and was not made of photos.", hint)
    different = difference({**there, "balance": meta.get("balance")}, {**asked, "balance": balance or 1})
    if different:
        raise DatasetError(f"{out} exists already with {different}.", hint)
    return report


def _missing(job: PhotoJob, bar: Progress) -> list[int]:
    """The chunks that have no part yet."""
    missing = []
    for number in range(job.chunks):
        if is_whole(job, number):
            bar.skip(len(job.chunk(number).files))
        else:
            missing.append(number)
    remove_leftovers(job.parts)
    return missing


def _assemble(job: PhotoJob, out: Path, asked: dict[str, Any], balance: int | None) -> Report:
    """Put the parts together; when nobody can be used, only the report. The zip appears last, as it ends the job."""
    decisions = decide(job, balance)
    report = decisions.report
    about = {
        "resolution": job.resolution,
        "limits": dataclasses.asdict(job.limits),
        "given": job.given.about(),
        "versions": asked["versions"],
        "balance": balance or 1,
    }
    meta = {
        "generator": _GENERATOR,
        "label_kind": "estimated",
        "photos": report.photos,
        "photos_used": report.photos_used,
        "persons": report.people,
        "persons_accepted": report.accepted,
        "rejected": report.reasons,
        layout.YAW_BEFORE: list(report.yaw_before),
        **about,
    }
    whole = job.parts / "dataset.zip"  # not beside `out`, where a killed run would leave a stray file
    with contextlib.ExitStack() as stack:
        report_writer = stack.enter_context(open_report(out, report, about, asked))
        writer = None
        if report.accepted:
            writer = stack.enter_context(open_writer(whole, resolution=job.resolution, meta=meta))
        for number, kept in enumerate(read_photos(job)):
            photo = decisions.decided(number, kept.outcome)
            pictures: list[list[str]] = []
            small: list[bytes | None] = []
            for index, person in enumerate(photo.people):
                pictures.append([])
                small.append(None)
                if person.reason is None:
                    assert writer is not None
                    small[-1] = kept.thumbnail(index)
                    pictures[-1] += _add(writer, kept, index, decisions.repeats[number, index])
            report_writer.add(photo, pictures, small)
    if report.accepted:
        with explained_os_errors(out):
            os.replace(whole, out)
    return report


def _add(writer: DatasetWriter, kept: KeptPhoto, index: int, times: int) -> Iterator[str]:
    """Append a person `times` times, one after the other; the names in the dataset."""
    image, mask = kept.picture(index)
    person = kept.outcome.people[index]
    assert person.camera is not None
    assert person.body_pose is not None
    for _ in range(times):
        yield layout.image_name(len(writer))
        writer.add_encoded(image, mask, person.camera, person.body_pose)
