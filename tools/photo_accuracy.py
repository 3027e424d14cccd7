"""Errors of the labels that `dataset photos` gives to synthetic photos.

python -m tools.synthetic_photos --count 500 --seed 4002 --out photos
portrait360 dataset photos photos --resolution 512 --out photos.zip
python -m tools.photo_accuracy photos photos.zip --out docs/measurements/photos.json
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from jaxtyping import Float
from numpy import ndarray
from PIL import Image
from torch import Tensor

from portrait360.data.dataset import PortraitDataset
from portrait360.geometry.cameras import SECTORS, project, yaw_pitch, yaw_sector
from portrait360.geometry.rotations import axis_angle_to_matrix, geodesic_angle
from portrait360.photos.crop import Square
from portrait360.photos.report import report_files
from portrait360.runtime.files import write_json
from portrait360.runtime.script import run_script
from portrait360.types import DatasetError
from tools.synthetic_photos import TRUTH_FOLDER, read_truth

COLUMNS = ("yaw", "pitch", "neck", "head", "neck_joint", "side", "overlap")
"""Errors: angles in degrees; the neck joint's distance and the crop's side in percent of the true crop's side; the
mask's intersection over union with the true one."""


def measure(folder: Path, dataset: Path) -> dict[str, Any]:
    """Shares accepted and median errors of the accepted, by the sector of the camera.

    Raises:
        DatasetError: the folder has no truth, or the dataset or its report is missing or of other photos.
    """
    # Truth, report and dataset of the same photos.
    truths = read_truth(folder)
    path, _ = report_files(dataset)
    try:
        photos = {photo["name"]: photo for photo in json.loads(path.read_bytes())["photos"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{path} is no report.", "Run `portrait360 dataset photos` on the folder first.") from error
    if not set(truths) <= set(photos):
        raise DatasetError(f"{path} is the report of other photos.", "Run `portrait360 dataset photos` on the folder.")

    # Errors of every photo, or why it was rejected.
    data = PortraitDataset(dataset)
    rows = {data.name(row): row for row in range(len(data))}
    sectors, errors, reasons = [], [], {}
    for name, truth in truths.items():
        yaw = yaw_pitch(torch.tensor([truth["camera"]]))[0]
        sectors.append(int(yaw_sector(yaw)))
        person = _true_person(photos[name], truth)
        if person is None:
            reason = photos[name]["reason"] or "another person"
            reasons[reason] = reasons.get(reason, 0) + 1
            errors.append([math.nan] * len(COLUMNS))
            continue
        row = rows[person["images"][0]]
        mask = np.asarray(Image.open(folder / TRUTH_FOLDER / name).convert("RGB"))
        errors.append(_errors(truth, person["crop"], data.cameras[row], data.body_poses[row], data.mask(row), mask))

    # Medians by sector.
    table, where = np.array(errors), np.array(sectors)
    front = np.isin(where, [0, 1, 7])
    groups = {name: where == i for i, name in enumerate(SECTORS)}
    groups |= {"front half": front, "all": np.ones(len(where), bool)}
    return {"sectors": {name: _summary(table[rows]) for name, rows in groups.items()}, "rejected": reasons}


def _true_person(photo: dict[str, Any], truth: dict[str, Any]) -> dict[str, Any] | None:
    """The accepted person whose crop is where the true one is."""
    for person in photo["people"]:
        if person["outcome"] == "accepted":
            crop = person["crop"]
            off = math.hypot(crop["x"] - truth["centre"][0], crop["y"] - truth["centre"][1])
            if off < 0.5 * truth["side"]:
                return person
    return None


def _errors(
    truth: dict[str, Any],
    crop: dict[str, float],
    camera: Float[Tensor, " 25"],
    pose: Float[Tensor, " 6"],
    mask: np.ndarray,
    true_mask: np.ndarray,
) -> list[float]:
    # Angles of camera and body pose.
    true_camera, true_pose = torch.tensor(truth["camera"])[None], torch.tensor(truth["body_pose"])
    (yaw, pitch), (true_yaw, true_pitch) = yaw_pitch(camera[None]), yaw_pitch(true_camera)
    turned = torch.remainder(yaw - true_yaw + math.pi, 2.0 * math.pi) - math.pi
    turns, true_turns = (axis_angle_to_matrix(p.double().unflatten(0, (2, 3))) for p in (pose, true_pose))
    angles = geodesic_angle(turns, true_turns)

    # The neck joint, and the masks in one crop.
    x, y = truth["centre"]
    joint = _joint(camera[None], crop["x"], crop["y"], crop["side"])
    true_joint = _joint(true_camera, x, y, truth["side"])
    expected = Square((crop["x"], crop["y"]), crop["side"]).of(true_mask, mask.shape[0]).image[..., 0] > 127
    own = mask > 127

    # In the order of COLUMNS.
    return [
        abs(math.degrees(turned.item())),
        abs(math.degrees((pitch - true_pitch).item())),
        *angles.rad2deg().tolist(),
        100.0 * float(np.linalg.norm(joint - true_joint)) / truth["side"],
        100.0 * abs(math.log(crop["side"] / truth["side"])),
        float((expected & own).sum() / max((expected | own).sum(), 1)),
    ]


def _joint(camera: Float[Tensor, "1 25"], x: float, y: float, side: float) -> Float[ndarray, " 2"]:
    """Where the neck joint, the origin of the world, is in the photo."""
    place = project(camera, torch.zeros(1, 1, 3))[0][0, 0].numpy()
    return np.array([x, y]) + (place - 0.5) * side


def _summary(errors: Float[ndarray, "N C"]) -> dict[str, Any]:
    known = errors[~np.isnan(errors[:, 0])]
    medians = np.median(known, axis=0).tolist() if len(known) else [None] * len(COLUMNS)
    rounded = [None if m is None else round(m, 3) for m in medians]
    accepted = round(len(known) / max(len(errors), 1), 3)
    return {"photos": len(errors), "accepted": accepted, **dict(zip(COLUMNS, rounded, strict=True))}


def main(folder: Annotated[Path, tyro.conf.Positional], dataset: Annotated[Path, tyro.conf.Positional], out: Path):
    """Write errors (.json) of the labels that `dataset photos` gave to a folder of synthetic photos."""
    result = measure(folder, dataset)
    write_json(out, result)
    print(f"{'':12}{'photos':>7}{'accepted':>9}" + "".join(f"{name:>11}" for name in COLUMNS))
    for name, row in result["sectors"].items():
        numbers = "".join(f"{row[c]:11.2f}" if row[c] is not None else f"{'-':>11}" for c in COLUMNS)
        print(f"{name:12}{row['photos']:7d}{row['accepted']:9.2f}{numbers}")
    print("rejected:", ", ".join(f"{count} {reason}" for reason, count in result["rejected"].items()) or "none")


if __name__ == "__main__":
    run_script(main)
