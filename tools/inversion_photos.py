"""How well real photos are inverted: face recognition between a photo and renderings around the face's direction.

python -m tools.inversion_photos a.jpg b.jpg --out photos.json --sheets sheets/
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from jaxtyping import Float
from torch import Tensor

from portrait360.evaluation.faces import SAME, FaceNetwork
from portrait360.geometry.cameras import camera_label, yaw_pitch
from portrait360.geometry.rotations import axis_angle_to_matrix
from portrait360.inversion.photos import read_photos
from portrait360.inversion.portrait import portrait_from_photos
from portrait360.media.images import to_bytes
from portrait360.portrait.model import PortraitModel
from portrait360.runtime.files import write_json
from portrait360.runtime.process import settle_process
from portrait360.runtime.script import run_script

_TURNS = (0, 15, 30, 45, 60, 75)
"""Degrees to either side of the face's direction."""
_FACE_SIDE = 512


def main(
    files: Annotated[tuple[Path, ...], tyro.conf.Positional],
    *,
    out: Path,
    sheets: Path,
    weights: Path | None = None,
    force: bool = True,
    fast: bool = False,
) -> None:
    """Write how far, by face recognition, renderings of inverted photos are from the photos (.json).

    Args:
        files: the photos.
        out: the numbers (.json).
        sheets: folder for an image per photo.
        weights: of the model; the packaged ones when None.
        force: go on with photos that are refused.
        fast: leave out the descent.
    """
    settle_process()
    model, network, entries = PortraitModel.from_pretrained(weights), FaceNetwork(), []
    sheets.mkdir(parents=True, exist_ok=True)
    for path in files:
        start = time.monotonic()
        portrait = portrait_from_photos(model, [path], force=force, fast=fast)
        seconds = time.monotonic() - start
        portrait.save(sheets / path.stem, video=False, mesh=False)
        used = portrait.record.photos[0]
        camera, pose = torch.tensor([used.camera]), torch.tensor([used.body_pose])

        # The photo and its camera
        first = portrait.renderer.render(camera, pose, _FACE_SIDE).image
        shown = read_photos([path], force=True)[0][0].target.window(1.0, _FACE_SIDE).image
        descriptor = network.describe(to_bytes(shown)[0])

        # Around the direction of the face, in the photo's pose
        entry: dict[str, Any] = {"name": path.name, "seconds": round(seconds, 1), "report": portrait.report}
        if descriptor is not None:
            entry["photo"] = _distance(network, descriptor, to_bytes(first)[0])
            yaw = face_yaw(pose)
            for turn in sorted({sign * t for t in _TURNS for sign in (-1, 1)}):
                label = camera_label(yaw + math.radians(turn), float(yaw_pitch(camera)[1]))
                image = portrait.renderer.render(label, pose, _FACE_SIDE).image
                entry[f"{turn:+d}" if turn else "0"] = _distance(network, descriptor, to_bytes(image)[0])
        entries.append(entry)
        print(path.name, {k: v for k, v in entry.items() if k not in ("report", "name")}, file=sys.stderr)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        write_json(out, {"photos": entries, "summary": face_summary(entries), "peak_gigabytes": round(peak, 2)})


def face_yaw(body_pose: Float[Tensor, "1 6"]) -> float:
    """The yaw (radians) of the direction that the face looks in."""
    turn = axis_angle_to_matrix(body_pose[:, :3]) @ axis_angle_to_matrix(body_pose[:, 3:])
    direction = turn[0, :, 2]
    return math.atan2(float(direction[0]), float(direction[2]))


def _distance(network: FaceNetwork, photo: np.ndarray, image: np.ndarray) -> float | None:
    descriptor = network.describe(image)
    return None if descriptor is None else round(float(np.linalg.norm(photo - descriptor)), 3)


def face_summary(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean distance at the photo's camera; share of found faces that are the photo's person, by turn."""
    found: dict[str, Any] = {}
    own = [entry["photo"] for entry in entries if entry.get("photo") is not None]
    if own:
        found["photo"] = {"mean": round(float(np.mean(own)), 3), "most": max(own)}
    for turn in _TURNS:
        keys = {"0"} if turn == 0 else {f"+{turn}", f"-{turn}"}
        values = [entry.get(key) for entry in entries if "photo" in entry for key in keys]
        faces = [value for value in values if value is not None]
        if faces:
            same = float(np.mean([value < SAME for value in faces]))
            found[str(turn)] = {
                "mean": round(float(np.mean(faces)), 3),
                "same": round(same, 3),
                "found": round(len(faces) / len(values), 3),
            }
    return found


if __name__ == "__main__":
    run_script(main)
