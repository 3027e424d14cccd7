"""What became of every photo, for programs (FILE.report.json) and for people (FILE.report.html).

Both are written photo by photo, so that a folder of any size takes the same memory.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from portrait360.data.sampling import YAW_BINS
from portrait360.geometry.cameras import yaw_pitch
from portrait360.photos.gates import REASONS
from portrait360.photos.page import Page, open_page
from portrait360.photos.records import PersonOutcome, PhotoOutcome
from portrait360.runtime.files import atomic_write
from portrait360.runtime.words import counted
from portrait360.types import DatasetError


@dataclass(frozen=True)
class Report:
    """Totals of a folder of photos.

    Attributes:
        photos: files of the folder.
        photos_used: those with an accepted person.
        people: persons that were found.
        accepted: persons in the dataset.
        images: images in the dataset, with those that balancing repeats.
        reasons: how often each reason was given, for a photo without people or for a person.
        yaw_before: accepted persons in each of YAW_BINS sectors.
        yaw_after: the same with the repeats.
    """

    photos: int
    photos_used: int
    people: int
    accepted: int
    images: int
    reasons: dict[str, int]
    yaw_before: tuple[int, ...]
    yaw_after: tuple[int, ...]

    def sentence(self) -> str:
        """The totals in words."""
        given = ", ".join(f"{count} {reason}" for reason, count in self.reasons.items())
        found = f"{counted(self.accepted, 'person')} of {self.photos_used} photos out of {self.photos}"
        return f"{found}; rejected: {given}" if given else found


def report_files(out: Path) -> tuple[Path, Path]:
    """The report of a dataset for programs and for people: FILE.zip → FILE.report.json, FILE.report.html."""
    return out.with_name(f"{out.stem}.report.json"), out.with_name(f"{out.stem}.report.html")


def read_report(out: Path) -> tuple[Report, dict[str, Any]]:
    """The totals of a dataset's report, and what had been asked.

    Raises:
        DatasetError: there is no report, or it is broken.
    """
    path, _ = report_files(out)
    try:
        content = json.loads(path.read_bytes())
        yaw = content["yaw_histogram"]
        reasons = {reason: given["count"] for reason, given in content["reasons"].items()}
        before, after = tuple(yaw["before"]), tuple(yaw["after"])
        report = Report(**content["totals"], reasons=reasons, yaw_before=before, yaw_after=after)
        return report, dict(content["asked"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{path} is no complete report.", "Delete the dataset to make both anew.") from error


@dataclass(frozen=True)
class ShownPerson:
    """What the report shows of a person: the names in the dataset and a small WebP, if accepted."""

    images: tuple[str, ...] = ()
    thumbnail: bytes | None = None


class ReportWriter:
    """Takes the photos in order; `open_report` gives one and finishes the files."""

    def __init__(self, file: IO[str], page: Page) -> None:
        self._file, self._page = file, page
        self._first = True

    def add(self, photo: PhotoOutcome, shown: Sequence[ShownPerson]) -> None:
        """Append one photo, duplicates decided, and what is shown of each of its persons."""
        entry = _photo_entry(photo, shown)
        self._file.write("" if self._first else ",\n")
        self._file.write("    " + json.dumps(entry, ensure_ascii=False, allow_nan=False))
        self._first = False
        self._page.add(group_of(photo), entry, [person.thumbnail for person in shown])


def group_of(photo: PhotoOutcome) -> str | None:
    """The one reason under which a photo is listed; None when somebody in it was accepted."""
    if photo.reason is not None:
        return photo.reason
    reasons = [person.reason for person in photo.people]
    return None if None in reasons else reasons[0]


@contextlib.contextmanager
def open_report(out: Path, report: Report, about: dict[str, Any], asked: dict[str, Any]) -> Iterator[ReportWriter]:
    """Write both files of the report; they appear when the block ends well.

    Args:
        out: the dataset.
        report: totals.
        about: what else is in the head of the report: resolution, balance, limits, versions.
        asked: what distinguishes this job from others; `read_report` gives it back.

    Raises:
        InputError: the disk is full, or the place is read-only.
    """
    path, html = report_files(out)
    head = _head(out, report, about, asked)

    # The entries of photos come between the head and the end of the JSON.
    with (
        atomic_write(path) as temporary,
        atomic_write(html) as temporary_html,
        open(temporary, "w", encoding="utf-8") as file,
        open(temporary_html, "w", encoding="utf-8") as page_file,
        open_page(page_file, head, out.parent) as page,
    ):
        start = json.dumps(head, indent=2, ensure_ascii=False, allow_nan=False)
        file.write(start.removesuffix("\n}") + ',\n  "photos": [\n')
        yield ReportWriter(file, page)
        file.write("\n  ]\n}\n")


def _head(out: Path, report: Report, about: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    totals = asdict(report)
    return {
        "generator": "portrait360 dataset photos",
        "dataset": _text(out.name),
        **about,
        "totals": {name: value for name, value in totals.items() if isinstance(value, int)},
        "reasons": {
            reason: {"count": count, "sentence": REASONS.get(reason, reason)}
            for reason, count in report.reasons.items()
        },
        "yaw_histogram": {
            "sectors_start_degrees": [-180 + 360 * i // YAW_BINS for i in range(YAW_BINS)],
            "before": list(report.yaw_before),
            "after": list(report.yaw_after),
        },
        "asked": asked,
    }


def _photo_entry(photo: PhotoOutcome, shown: Sequence[ShownPerson]) -> dict[str, Any]:
    group = group_of(photo)
    return {
        "name": _text(photo.name),
        "outcome": "accepted" if group is None else "rejected",
        "reason": group,
        "sentence": "" if group is None else REASONS.get(group, group),
        "detail": _text(photo.detail),
        "size": None if photo.size is None else list(photo.size),
        "turned": photo.turned,
        "people": [_person_entry(*pair) for pair in zip(photo.people, shown, strict=True)],
    }


def _person_entry(person: PersonOutcome, shown: ShownPerson) -> dict[str, Any]:
    reason = person.reason
    return {
        "outcome": "accepted" if reason is None else "rejected",
        "reason": reason,
        "sentence": "" if reason is None else REASONS.get(reason, reason),
        "detail": _text(person.detail),
        "crop": None if person.crop is None else dict(zip(("x", "y", "side"), _rounded(person.crop), strict=True)),
        "measures": dict(zip(person.measures, _rounded(person.measures.values(), 6), strict=True)),
        "camera_degrees": camera_degrees(person.camera),
        "body_pose_degrees": _pose_degrees(person.body_pose),
        "images": list(shown.images),
    }


def camera_degrees(camera: np.ndarray | None) -> dict[str, float | None] | None:
    """Yaw and pitch of a camera label, degrees."""
    if camera is None:
        return None
    angles = yaw_pitch(torch.from_numpy(np.asarray(camera, np.float64))[None])
    return dict(zip(("yaw", "pitch"), _rounded(math.degrees(angle.item()) for angle in angles), strict=True))


def _pose_degrees(pose: np.ndarray | None) -> dict[str, list[float | None]] | None:
    if pose is None:
        return None
    degrees = _rounded(np.rad2deg(np.asarray(pose, np.float64)).tolist())
    return {"neck": degrees[:3], "head": degrees[3:]}


def _rounded(values: Any, digits: int = 2) -> list[float | None]:
    """Short numbers; None for what JSON cannot hold."""
    return [round(float(value), digits) + 0.0 if math.isfinite(value) else None for value in values]


def _text(words: str) -> str:
    """Names of files need not be text; what is not is written as \\x.. ."""
    return words.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
