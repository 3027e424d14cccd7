"""How photos fare that lost their orientation: synthetic photos, upright and turned by 90, 180 and 270 degrees.

python -m tools.synthetic_photos --count 170 --seed 4003 --out photos
python -m tools.photo_turns photos --out docs/measurements/photo-turns.json
"""

from __future__ import annotations

import functools
import multiprocessing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from portrait360.photos.reading import read_photo
from portrait360.photos.upright import TURNS, turned
from portrait360.photos.worker import Examined, PhotoWorker
from portrait360.runtime.files import write_json
from portrait360.runtime.process import settle_process
from portrait360.runtime.progress import show_progress
from portrait360.runtime.script import run_script

_SIDE = 256


@dataclass(frozen=True)
class Outcome:
    """What became of a photo in one turn."""

    accepted: bool
    turned: int


@functools.cache
def _worker() -> PhotoWorker:
    settle_process()
    return PhotoWorker(_SIDE)


def outcomes(path: Path) -> list[Outcome]:
    """Of a photo that needs each of `TURNS` to be upright."""
    photo, found = read_photo(path), []
    for degrees in TURNS:
        seen = _worker().look(turned(photo, -degrees % 360))
        accepted = any(isinstance(person, Examined) and person.rejected is None for person in seen.people)
        found.append(Outcome(accepted, seen.turned))
    return found


def summary(photos: list[list[Outcome]]) -> dict[str, Any]:
    """Shares: accepted upright, wrongly accepted in any turn, and recovered of those that are accepted upright."""
    upright = [photo[0].accepted and photo[0].turned == 0 for photo in photos]
    lying = [
        (right, one, degrees)
        for photo, right in zip(photos, upright, strict=True)
        for one, degrees in zip(photo[1:], TURNS[1:], strict=True)
    ]
    wrong = sum(one.accepted and one.turned != degrees for _, one, degrees in lying)
    wrong_upright = sum(photo[0].accepted and photo[0].turned != 0 for photo in photos)
    acceptable = [(one, degrees) for right, one, degrees in lying if right]
    recovered = sum(one.accepted and one.turned == degrees for one, degrees in acceptable)
    return {
        "photos": len(photos),
        "accepted_upright": sum(upright) / len(photos),
        "turned_photos": len(lying),
        "accepted_wrongly": wrong / len(lying),
        "upright_photos_turned": wrong_upright / len(photos),
        "recovered": recovered / max(len(acceptable), 1),
    }


def main(folder: tyro.conf.Positional[Path], out: Annotated[Path, tyro.conf.arg(metavar="FILE.json")]) -> None:
    """Write the shares.

    Args:
        folder: photos, all of them upright.
        out: the file.
    """
    paths = sorted(path for path in folder.iterdir() if path.suffix in (".png", ".jpg", ".webp"))
    photos = []
    with (
        multiprocessing.get_context("spawn").Pool(2) as pool,
        show_progress("turning", len(paths), "photos") as bar,
    ):
        for found in pool.imap(outcomes, paths):
            photos.append(found)
            bar.advance(1)
    content = summary(photos)
    write_json(out, content)
    print(content)


if __name__ == "__main__":
    run_script(main)
