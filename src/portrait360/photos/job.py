"""From a folder of photos to a dataset: many processes, one result, and a report on every photo.

The same folder gives the same bytes whatever the number of workers, whichever engine reads, and however often the run
was interrupted: what became of a photo depends on the photo only, it is kept in part files beside the output, and the
zip is put together in order at the end, where images that came before are found.
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
from portrait360.photos.records import KeptPhoto, PhotoFile
from portrait360.photos.report import Report, ShownPerson, open_report, read_report, report_files
from portrait360.photos.units import LONGEST_READING, PhotoJob, WorkerFactory, read_photos
from portrait360.photos.user_files import UserFiles, open_user_files
from portrait360.runtime.files import explained_os_errors
from portrait360.runtime.job_files import difference, parts_folder
from portrait360.runtime.job_processes import check_engine
from portrait360.runtime.jobs import run_job
from portrait360.runtime.words import counted
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
    """Read every photo below `folder` and write the dataset `out` and its report; return the report's totals.

    A run that was stopped or killed continues when it is called again with the same arguments; its parts lie
    in the folder `OUT.parts`, which goes when the zip is complete. A zip that was made of exactly these photos
    already is left as it is.

    Args:
        folder: photos, also in folders below.
        out: the zip to write (see `layout`); FILE.report.json and FILE.report.html lie beside it.
        resolution: side of the images in pixels, 16 to 2048.
        limits: when to reject; the package's own when None.
        workers: processes; one per available core when None, with Ray as many as it has cores.
        balance: repeat persons from rare sides up to so many times, each as an entry of its own; None: nobody.
        matting: an ONNX network in place of mediapipe's segmentation (`networks.UserMatting`).
        quality: a network that gives marks (`networks.UserQuality`), for the report and `limits.least_quality`.
        body: an SMPL file, in whose terms body poses are then (`body`).
        worker_factory: makes the reader of photos in each process, in place of a `PhotoWorker` with these files.
        engine: "local", or "ray" for a cluster whose machines all have the folder under the same path.
        shards: also pack the dataset into WebDataset shards in this folder.
        longest_reading: seconds; a photo that takes longer, twice, is unreadable.
        progress: show photos done, per second and time left on standard error.

    Raises:
        InputError, AssetError, CheckpointError: an argument or a file of the user's is refused, or the disk is full.
        DatasetError: `out` is something else, nobody can be used (the report names the reasons), or a process failed.
        KeyboardInterrupt: after saying how to continue.
    """
    # Check what was asked and find the photos.
    _check_arguments(out, resolution, workers, balance, engine, shards)
    given = open_user_files(matting, quality, body)
    job = _job(folder, out, resolution, limits or PhotoLimits(), given, worker_factory, longest_reading)
    dataset = _Dataset(out, job, balance or 1)

    # Read what is not read yet.
    if out.exists():
        report = dataset.finished()
        shutil.rmtree(job.parts, ignore_errors=True)  # left when the run was killed at its very end
    else:
        report = run_job(job, dataset.asked, dataset.assemble, workers=workers, engine=engine, progress=progress)
        _check_somebody(report, out)
    if shards is not None and not is_shards(shards):
        write_shards(out, shards, progress=progress)
    return report


def _job(
    folder: Path,
    out: Path,
    resolution: int,
    limits: PhotoLimits,
    given: UserFiles,
    worker_factory: WorkerFactory | None,
    longest_reading: float,
) -> PhotoJob:
    """The photos below the folder and who reads them. Raises InputError when there are none."""
    parts = parts_folder(out)
    files = tuple(file for file in find_photos(folder) if not _is_ours(file, out, parts))
    if not files:
        raise InputError(f"{folder} holds no photos.", "Name the folder that holds them.")
    factory = worker_factory or package_worker(resolution, limits, given)
    return PhotoJob(parts, files, resolution, limits, factory, given, longest_reading)


def _check_somebody(report: Report, out: Path) -> None:
    if not report.accepted:
        given = ", ".join(f"{count} {reason}" for reason, count in report.reasons.items())
        raise DatasetError(
            f"nobody in {counted(report.photos, 'photo')} can be used: {given}.",
            f"{report_files(out)[1]} names the reasons, photo by photo.",
        )


def _check_arguments(
    out: Path, resolution: int, workers: int | None, balance: int | None, engine: str, shards: Path | None
) -> None:
    """Raises InputError for what makes no sense."""
    # Numbers.
    if resolution not in _RESOLUTIONS:
        raise InputError(
            f"the resolution must be a side of 16 to 2048 pixels, not {resolution}.",
            "Give for instance `resolution=512`.",
        )
    if workers is not None and workers < 1:
        raise InputError(f"there must be at least 1 worker, not {workers}.", "Leave `workers` out for one per core.")
    if balance is not None and not 1 <= balance <= _MOST_REPEATS:
        sentence = f"balancing can show a person 1 to {_MOST_REPEATS} times, not {balance}."
        raise InputError(sentence, "Try `balance=4`.")
    check_engine(engine)

    # Places.
    if out.suffix != ".zip":
        raise InputError(f"the output must be a zip, not {out}.", "Give a name that ends in .zip.")
    if out.is_dir():
        raise InputError(f"{out} is a folder.", "Give the name of a zip file.")
    if shards is not None and is_shards(shards) and not out.exists():
        raise InputError(f"{shards} already holds shards.", "Choose another folder.")


def package_worker(resolution: int, limits: PhotoLimits, given: UserFiles) -> WorkerFactory:
    """The package's own reader, with what the user gave. Raises Portrait360Error when it cannot work here or so."""
    if importlib.util.find_spec("mediapipe") is None:
        raise no_mediapipe()
    from portrait360.photos.body import load_user_body
    from portrait360.photos.networks import UserMatting, UserQuality
    from portrait360.photos.worker import PhotoWorker

    # Try each of the user's files out here, before processes start.
    matting = None if given.matting is None else UserMatting(given.matting, resolution)
    quality = None if given.quality is None else UserQuality(given.quality, resolution)
    for network in (matting, quality):
        if network is not None:
            network.check()
    if quality is None and limits.least_quality is not None:
        raise InputError("there is a limit least_quality, but no quality network.", "Give one with `quality`.")
    if given.body is not None:
        load_user_body(given.body, load_body())
    return functools.partial(PhotoWorker, matting=matting, quality=quality, body=given.body)


def _is_ours(file: PhotoFile, out: Path, parts: Path) -> bool:
    """Whether a file of the folder is what this very run writes."""
    path = Path(os.path.abspath(file.path))
    ours = [Path(os.path.abspath(name)) for name in (out, parts, *report_files(out))]
    return path in ours or ours[1] in path.parents


def _asked(job: PhotoJob) -> dict[str, Any]:
    """What distinguishes parts, or a finished zip, from those of other jobs."""
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


class _Dataset:
    """The output of a job: the zip and its report.

    Args:
        out: the zip.
        job: where the photos are.
        balance: how often to show persons from rare sides at most.
    """

    def __init__(self, out: Path, job: PhotoJob, balance: int) -> None:
        self._out, self._job, self._balance = out, job, balance
        self.asked = _asked(job)

    def finished(self) -> Report:
        """The report of an output that exists, only when it is this very dataset."""
        hint = "Delete it or choose another name."
        try:
            meta = json.loads(open_store(self._out).read(layout.META_FILE))
            report, there = read_report(self._out)
        except (DatasetError, ValueError) as error:
            raise DatasetError(f"{self._out} exists already and is no complete dataset of photos.", hint) from error
        if meta.get("generator") != _GENERATOR:
            raise DatasetError(f"{self._out} exists already and was not made of photos.", hint)
        different = difference(
            {**there, "balance": meta.get("balance")}, {**self.asked, "balance": self._balance}
        )  # fmt: skip
        if different:
            raise DatasetError(f"{self._out} exists already with {different}.", hint)
        return report

    def assemble(self) -> Report:
        """Put the parts together; when nobody can be used, only the report. The zip comes last, as it ends the job."""
        # Decide about duplicates and repeats, and open the dataset and its report.
        decisions = decide(self._job, self._balance)
        report = decisions.report
        about = self._about()
        whole = self._job.parts / "dataset.zip"  # not beside `out`, where a killed run would leave a stray file
        with contextlib.ExitStack() as stack:
            report_writer = stack.enter_context(open_report(self._out, report, about, self.asked))
            writer = None
            if report.accepted:
                meta = {**_totals(report), **about}
                writer = stack.enter_context(open_writer(whole, resolution=self._job.resolution, meta=meta))

            # Each accepted person goes into the dataset, each photo into the report.
            for number, kept in enumerate(read_photos(self._job)):
                photo = decisions.decided(number, kept.outcome)
                shown = []
                for index, person in enumerate(photo.people):
                    if person.reason is None and writer is not None:
                        names = _add(writer, kept, index, decisions.repeats[number, index])
                        shown.append(ShownPerson(tuple(names), kept.thumbnail(index)))
                    else:
                        shown.append(ShownPerson())
                report_writer.add(photo, shown)
        if report.accepted:
            with explained_os_errors(self._out):
                os.replace(whole, self._out)
        return report

    def _about(self) -> dict[str, Any]:
        """What both the dataset and its report say of how they were made."""
        return {
            "resolution": self._job.resolution,
            "limits": dataclasses.asdict(self._job.limits),
            "given": self._job.given.about(),
            "versions": self.asked["versions"],
            "balance": self._balance,
        }


def _totals(report: Report) -> dict[str, Any]:
    """The part of meta.json that the photos decide."""
    return {
        "generator": _GENERATOR,
        "label_kind": "estimated",
        "photos": report.photos,
        "photos_used": report.photos_used,
        "persons": report.people,
        "persons_accepted": report.accepted,
        "rejected": report.reasons,
        layout.YAW_BEFORE: list(report.yaw_before),
    }


def _add(writer: DatasetWriter, kept: KeptPhoto, index: int, times: int) -> Iterator[str]:
    """Append a person `times` times, one after the other; the names in the dataset."""
    image, mask = kept.encoded(index)
    person = kept.outcome.people[index]
    assert person.camera is not None
    assert person.body_pose is not None
    for _ in range(times):
        yield layout.image_name(len(writer))
        writer.add_encoded(image, mask, person.camera, person.body_pose)
