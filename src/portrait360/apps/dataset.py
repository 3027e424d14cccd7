"""Datasets of photos; what `portrait360 dataset photos` does."""

from __future__ import annotations

from pathlib import Path

from portrait360.photos.gates import read_limits
from portrait360.photos.job import process_folder
from portrait360.photos.report import Report


def make_dataset(
    photos: str | Path,
    out: str | Path,
    *,
    resolution: int = 512,
    limits: str | Path | None = None,
    balance: int | None = None,
    workers: int | None = None,
    engine: str = "local",
    shards: str | Path | None = None,
    matting: str | Path | None = None,
    quality: str | Path | None = None,
    body: str | Path | None = None,
    progress: bool = True,
) -> Report:
    """Make a dataset of a folder of photos: find each person, estimate camera and body pose, crop and mask.

    A run that was stopped continues when it is called again with the same arguments.

    Args:
        photos: a folder; folders below are searched as well.
        out: the zip to write; FILE.report.json and FILE.report.html with what became of every photo lie beside it.
        resolution: side of the square images in pixels, 16 to 2048.
        limits: a JSON file that says when to reject a photo (docs/photos.md); the package's own limits when None.
        balance: repeat people seen from rare sides up to so many times; nobody when None.
        workers: processes; one per core when None.
        engine: "local" for processes of this machine, "ray" for a Ray cluster.
        shards: also pack the dataset into WebDataset shards in this folder.
        matting: an ONNX matting network in place of mediapipe's segmentation.
        quality: a network whose scores the report holds (.safetensors or .onnx).
        body: an SMPL file, in whose terms body poses are then.
        progress: show photos done on standard error.

    Returns:
        The totals of the report.

    Raises:
        InputError: an argument is out of range, a package is missing, or the disk is full (what was read is kept).
        AssetError, CheckpointError: `body` is no SMPL file, or `quality` no network.
        DatasetError: `out` is something else, nobody can be used (the report says why), or a process failed.
    """
    return process_folder(
        Path(photos),
        Path(out),
        resolution=resolution,
        limits=None if limits is None else read_limits(Path(limits)),
        workers=workers,
        balance=balance,
        matting=_path(matting),
        quality=_path(quality),
        body=_path(body),
        engine=engine,
        shards=_path(shards),
        progress=progress,
    )


def _path(value: str | Path | None) -> Path | None:
    return None if value is None else Path(value)
