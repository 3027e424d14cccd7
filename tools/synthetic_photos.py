"""Synthetic portraits as if they were photos: rendered wider, with the portrait's crop anywhere in the image.

    python -m tools.synthetic_photos --count 500 --seed 4002 --out photos

The true labels lie in the hidden folder `.truth`, for fitting (`tools.photo_landmarks`) and for measuring the labels of
`dataset photos` (`tools.photo_accuracy`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray
from PIL import Image

from portrait360.runtime.files import atomic_write, make_folder, write_json
from portrait360.runtime.progress import show_progress
from portrait360.runtime.script import run_script
from portrait360.synthetic.source import PortraitSource, portrait_camera
from portrait360.types import DatasetError, InputError

TRUTH_FOLDER, TRUTH_FILE = ".truth", "truth.json"
_SIDE = 768
_ZOOM = (0.3, 0.55)
"""Side of the portrait's crop in units of the rendered image's: from a person down to the hips to head and chest."""
_MARGIN = 0.1
"""Least margin around the crop, in units of its side, as far as the rendered image reaches."""


@dataclass(frozen=True)
class SyntheticPhoto:
    """An image with a person somewhere in it, and the truth about it."""

    image: UInt8[ndarray, "H W 3"]
    mask: UInt8[ndarray, "H W"]
    centre: tuple[float, float]
    """Right and down, pixels."""
    side: float
    """Of the portrait's crop, pixels."""
    camera: Float[ndarray, " 25"]
    """Label of the crop."""
    body_pose: Float[ndarray, " 6"]

    def truth(self) -> dict[str, Any]:
        """The entry in truth.json."""
        return {
            "centre": list(self.centre),
            "side": self.side,
            "camera": self.camera.tolist(),
            "body_pose": self.body_pose.tolist(),
        }


def render_photo(source: PortraitSource, seed: int, index: int) -> SyntheticPhoto:
    """Photo `index` of `seed`: the portrait of `source` with more around it, cut out at random."""
    # Render with more around the portrait.
    rng = np.random.default_rng([seed, index, 0x9607])
    scene = source.subject(seed, index)
    camera = portrait_camera(scene.subject.yaw, scene.subject.pitch)
    zoom = float(np.exp(rng.uniform(*np.log(_ZOOM))))
    wide = camera.copy()
    wide[[16, 20]] *= zoom
    rendered = source.render(scene, wide, _SIDE)

    # Edges anywhere outside of the crop.
    crop = zoom * _SIDE
    low, high = (_SIDE - crop) / 2, (_SIDE + crop) / 2
    edges = []
    for _ in range(2):
        first = int(rng.uniform(0, max(low - _MARGIN * crop, 0)))
        last = int(np.ceil(rng.uniform(min(high + _MARGIN * crop, _SIDE), _SIDE)))
        edges.append((first, last))
    (left, right), (top, bottom) = edges

    # Cut, with the truth in its pixels.
    return SyntheticPhoto(
        np.ascontiguousarray(rendered.image[top:bottom, left:right]),
        np.ascontiguousarray(rendered.mask[top:bottom, left:right]),
        (_SIDE / 2 - left, _SIDE / 2 - top),
        crop,
        camera,
        np.asarray(rendered.body_pose, np.float32),
    )


def main(out: Path, count: int = 500, seed: int = 4002) -> None:
    """Write a folder of synthetic photos with their true labels; a run that was stopped goes on."""
    if count < 1 or seed < 0:
        raise InputError("--count must be at least 1 and --seed at least 0.", "Try --count 500 --seed 4002.")
    make_folder(out / TRUTH_FOLDER)
    source, truths = PortraitSource(), {}
    with show_progress("rendering", count, "photos") as bar:
        for index in range(count):
            name = f"{index:06d}.png"
            note = out / TRUTH_FOLDER / f"{index:06d}.json"
            if not note.exists():
                photo = render_photo(source, seed, index)
                for folder, pixels in ((out, photo.image), (note.parent, photo.mask)):
                    with atomic_write(folder / name) as temporary:
                        Image.fromarray(pixels).save(temporary, "PNG", compress_level=1)
                write_json(note, photo.truth())
            truths[name] = json.loads(note.read_text())
            bar.advance(1)
    write_json(out / TRUTH_FOLDER / TRUTH_FILE, truths)


def read_truth(folder: Path) -> dict[str, dict[str, Any]]:
    """The true labels of the photos of a folder, by name. Raises DatasetError when the folder has no truth."""
    path = folder / TRUTH_FOLDER / TRUTH_FILE
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"{path} cannot be read.", "Render photos: python -m tools.synthetic_photos --out DIR"
        ) from error


if __name__ == "__main__":
    run_script(main)
