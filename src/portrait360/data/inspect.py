"""Inspect a dataset: contact sheet, histograms of yaw and body pose, posed body over images, numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from portrait360.data.dataset import PortraitDataset, exact_poses
from portrait360.data.layout import YAW_BEFORE
from portrait360.data.overlay import draw_body
from portrait360.data.sampling import YAW_BINS, yaw_histogram
from portrait360.geometry.body import load_body
from portrait360.geometry.cameras import yaw_pitch
from portrait360.geometry.rotations import axis_angle_to_matrix, geodesic_angle
from portrait360.media.plots import Series, histogram
from portrait360.media.sheets import FIRST, SECOND, Colour, captioned, tiled
from portrait360.runtime.files import atomic_folder
from portrait360.runtime.progress import show_progress
from portrait360.runtime.words import counted

POSE_NAMES = ("neck nod", "neck turn", "neck tilt", "head nod", "head turn", "head tilt")

_SHEET = 64
_SHEET_COLUMNS = 8
_SHEET_SIDE = 160
OVERLAYS = 12
_OVERLAY_COLUMNS = 4
_OVERLAY_SIDE = 384
_STATISTICS_SIDE = 64
_POSE_BINS = 36
_POSES = "pose_histogram.png"
_BLUE = (40, 110, 255)


def inspect_dataset(
    path: Path,
    out_dir: Path,
    *,
    masks_path: Path | None = None,
    workers: int = 2,
    check_labels: Callable[[PortraitDataset], dict[str, Any]] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Decode a whole dataset and write what shows whether it is right.

    Writes into `out_dir`: sheet.png (64 evenly chosen images with yaw), yaw_histogram.png,
    pose_histogram.png (when there are body poses), overlay.png (the posed body's contours over 12 images)
    and summary.json.

    Args:
        path: zip or folder, see `PortraitDataset`.
        out_dir: folder to write; made when missing. Other files in it stay.
        masks_path: separate zip of masks.
        workers: threads that decode.
        check_labels: compares labels with their images; what it returns becomes `label_check` in summary.json.
        progress: show how far the decoding is.

    Returns:
        The content of summary.json.

    Raises:
        DatasetError: the dataset is missing, broken or inconsistent; nothing is written then.
        InputError: the folder cannot be written.
    """
    # Decode everything, which shows whether it is whole.
    dataset = PortraitDataset(path, masks_path=masks_path)
    exact = exact_poses(path, dataset)
    side = min(_STATISTICS_SIDE, dataset.resolution)
    with show_progress("checking", len(dataset), "images", visible=progress) as bar:
        _, masks = dataset.load_arrays(
            side, workers, masks=dataset.has_masks, progress=lambda done, total: bar.advance(1)
        )

    # Write what shows whether it is right.
    summary = _summary(dataset, exact, masks)
    if check_labels is not None:
        summary["label_check"] = check_labels(dataset)
    with atomic_folder(out_dir) as folder:
        _sheet(dataset).save(folder / "sheet.png")
        _yaw_plot(dataset).save(folder / "yaw_histogram.png")
        if dataset.has_body_poses:
            _pose_plot(dataset, exact).save(folder / _POSES)
        _overlay(dataset, exact).save(folder / "overlay.png")
        (folder / "summary.json").write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n")
    if not dataset.has_body_poses:
        (Path(out_dir) / _POSES).unlink(missing_ok=True)  # of a dataset that was inspected into this folder before
    return summary


def _evenly(count: int, wanted: int) -> list[int]:
    """At most `wanted` of `count` indices, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(wanted, count)).round().astype(int)).tolist()


def _yaw_degrees(dataset: PortraitDataset) -> Float[Tensor, " N"]:
    return yaw_pitch(dataset.cameras)[0].rad2deg()


def _sheet(dataset: PortraitDataset) -> Image.Image:
    yaw = _yaw_degrees(dataset)
    chosen = _evenly(len(dataset), _SHEET)
    tiles = [captioned(dataset.image(i), _SHEET_SIDE, f"yaw {round(yaw[i].item())}°") for i in chosen]
    return tiled(tiles, min(_SHEET_COLUMNS, len(tiles)))


def _yaw_plot(dataset: PortraitDataset) -> Image.Image:
    counts = yaw_histogram(dataset.cameras).numpy()
    title = f"Yaw of {counted(len(dataset), 'camera')}, sectors of 10°"
    unit = "yaw in degrees: 0 = front, 90 = the subject's left, ±180 = back"
    ticks = list(range(-180, 181, 30))
    series = [Series("yaw", counts, FIRST)]
    before = _before_balancing(dataset)
    if before is not None:
        series = [Series("with repeats", counts, FIRST), Series("persons", before, SECOND, filled=False)]
    return histogram((1100, 420), title, series, (-180.0, 180.0), ticks, unit)


def _before_balancing(dataset: PortraitDataset) -> Int[np.ndarray, " bins"] | None:
    """The yaw histogram without the repeats of `dataset photos --balance`; None where nothing was repeated."""
    counts = dataset.meta.get(YAW_BEFORE)
    if not isinstance(counts, list) or len(counts) != YAW_BINS or not all(type(n) is int and n >= 0 for n in counts):
        return None
    return np.array(counts) if sum(counts) < len(dataset) else None


def _pose_plot(dataset: PortraitDataset, exact: Float[Tensor, "N 6"] | None) -> Image.Image:
    """Six panels; exact poses as bars, coarse ones as an outline over them."""
    shown = [(dataset.label_kind, dataset.body_poses)]
    if dataset.label_kind == "coarse" and exact is not None:
        shown = [("exact", exact), ("coarse", dataset.body_poses)]
    degrees = {name: poses.rad2deg().numpy() for name, poses in shown}
    largest = max(float(np.quantile(np.abs(values), 0.999)) for values in degrees.values())
    limit = 10.0 * max(1, int(np.ceil(largest / 10)))
    ticks = np.arange(-limit, limit + 1, 10 if limit <= 40 else 30).tolist()
    panels = []
    for component, title in enumerate(POSE_NAMES):
        series = []
        for number, (name, values) in enumerate(degrees.items()):
            inside = np.clip(values[:, component], -limit, np.nextafter(limit, 0))
            counts, _ = np.histogram(inside, _POSE_BINS, (-limit, limit))
            series.append(Series(name, counts, (FIRST, SECOND)[number], filled=number == 0))
        panels.append(histogram((560, 360), title, series, (-limit, limit), ticks, "degrees"))
    return tiled(panels, 3)


@dataclass(frozen=True)
class _Outlined:
    """Body poses that are outlined in one colour."""

    colour_name: str
    colour: Colour
    label_kind: str
    poses: Float[Tensor, "N 6"]


def _overlay(dataset: PortraitDataset, exact: Float[Tensor, "N 6"] | None) -> Image.Image:
    """The exact pose in blue, others in orange."""
    body = load_body()
    yaw = _yaw_degrees(dataset)
    outlined = []
    if dataset.label_kind != "exact":
        outlined.append(_Outlined("orange", SECOND, dataset.label_kind, dataset.body_poses))
    if exact is not None:
        outlined.append(_Outlined("blue", _BLUE, "exact", exact))
    legend = ", ".join(f"{one.colour_name} = {one.label_kind}" for one in reversed(outlined))
    tiles = []
    for index in _evenly(len(dataset), OVERLAYS):
        image = Image.fromarray(dataset.image(index))
        image = image.resize((_OVERLAY_SIDE, _OVERLAY_SIDE), Image.Resampling.BICUBIC)
        for one in outlined:
            image = draw_body(image, body, dataset.cameras[index], one.poses[index], one.colour)
        text = f"{Path(dataset.name(index)).stem}   yaw {round(yaw[index].item())}°   {legend}"
        tiles.append(captioned(np.asarray(image), _OVERLAY_SIDE, text))
    return tiled(tiles, min(_OVERLAY_COLUMNS, len(tiles)))


def _summary(dataset: PortraitDataset, exact: Float[Tensor, "N 6"] | None, masks: Tensor) -> dict[str, Any]:
    # Counts, sectors and angles.
    yaw, pitch = (angle.rad2deg() for angle in yaw_pitch(dataset.cameras))
    sectors = yaw_histogram(dataset.cameras, 12).tolist()
    summary: dict[str, Any] = {
        "count": len(dataset),
        "resolution": dataset.resolution,
        "label_kind": dataset.label_kind,
        "label_noise_degrees": dataset.meta.get("label_noise"),
        "masks": dataset.has_masks,
        "depth": dataset.depth(0) is not None,
        "yaw_sectors": {f"{30 * i - 180} to {30 * i - 150}": n for i, n in enumerate(sectors)},
        "yaw_sectors_empty": sectors.count(0),
        "yaw_front_share": _share(yaw.abs() < 45),
        "yaw_back_share": _share(yaw.abs() > 135),
        "pitch_degrees": _mean_std(pitch),
        "body_pose_degrees": None,
    }

    # Yaws before rare ones were repeated.
    before = _before_balancing(dataset)
    if before is not None:
        summary["yaw_sectors_before_balancing"] = dict(
            zip(summary["yaw_sectors"], before.reshape(len(sectors), -1).sum(axis=1).tolist(), strict=True)
        )

    # Body poses, and the errors of noisy ones.
    if dataset.has_body_poses:
        summary["body_pose_degrees"] = _pose_statistics(dataset.body_poses)
    if dataset.label_kind == "coarse" and exact is not None:
        summary["exact_body_pose_degrees"] = _pose_statistics(exact)
        summary["coarse_error_degrees"] = _pose_errors(dataset.body_poses, exact)

    # Masks.
    if dataset.has_masks:
        share = masks.to(torch.float32).mean(dim=(1, 2, 3)) / 255
        summary["mask_share"] = {"mean": _rounded(share.mean()), "min": _rounded(share.min())}
        summary["mask_share"]["max"] = _rounded(share.max())
        summary["mask_empty"] = int((masks.amax(dim=(1, 2, 3)) == 0).sum())
        summary["mask_touches_top_share"] = _share(masks[:, 0, 0].amax(dim=1) > 127)
    return summary


def _pose_statistics(poses: Float[Tensor, "N 6"]) -> dict[str, dict[str, float]]:
    degrees = poses.rad2deg()
    return {name: _mean_std(degrees[:, i]) for i, name in enumerate(POSE_NAMES)}


def _pose_errors(coarse: Float[Tensor, "N 6"], exact: Float[Tensor, "N 6"]) -> dict[str, dict[str, float]]:
    """Angle between the coarse and the exact rotation of neck and head."""
    errors = {}
    for name, part in (("neck", slice(0, 3)), ("head", slice(3, 6))):
        pair = (axis_angle_to_matrix(poses[:, part].double()) for poses in (coarse, exact))
        angle = geodesic_angle(*pair).rad2deg()
        errors[name] = {
            "mean": _rounded(angle.mean()),
            "median": _rounded(angle.quantile(0.5)),
            "95th percentile": _rounded(angle.quantile(0.95)),
        }
    return errors


def _mean_std(values: Tensor) -> dict[str, float]:
    return {"mean": _rounded(values.mean()), "std": _rounded(values.std(correction=0))}


def _share(flags: Tensor) -> float:
    return _rounded(flags.double().mean())


def _rounded(value: Tensor) -> float:
    return round(value.item(), 4)
