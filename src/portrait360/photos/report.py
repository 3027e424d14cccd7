"""What became of every photo, for programs (FILE.report.json) and for people (FILE.report.html).

Both are written photo by photo, so that a folder of any size takes the same memory.
"""

from __future__ import annotations

import base64
import contextlib
import html
import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from portrait360.data.sampling import YAW_BINS
from portrait360.geometry.cameras import yaw_pitch
from portrait360.photos.gates import REASONS
from portrait360.photos.records import PersonOutcome, PhotoOutcome
from portrait360.runtime.files import atomic_write
from portrait360.types import DatasetError


@dataclass(frozen=True)
class Report:
    """Totals of a folder of photos.

    Attributes:
        photos: files that were looked at.
        photos_used: those with an accepted person.
        people: persons that were found.
        accepted: persons in the dataset.
        pictures: pictures in the dataset, with those that balancing repeats.
        reasons: how often each reason was given, for a photo without people or for a person.
        yaw_before: accepted persons in each of YAW_BINS sectors.
        yaw_after: the same with the repeats.
    """

    photos: int
    photos_used: int
    people: int
    accepted: int
    pictures: int
    reasons: dict[str, int]
    yaw_before: tuple[int, ...]
    yaw_after: tuple[int, ...]

    def sentence(self) -> str:
        """The totals in words."""
        given = ", ".join(f"{count} {reason}" for reason, count in self.reasons.items())
        found = f"{self.accepted} persons of {self.photos_used} photos out of {self.photos}"
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


class ReportWriter:
    """Takes the photos in order; `open_report` gives one and finishes the files."""

    def __init__(self, file: IO[str], page: Page) -> None:
        self._file, self._page = file, page
        self._first = True

    def add(self, photo: PhotoOutcome, pictures: Sequence[Sequence[str]], thumbnails: Sequence[bytes | None]) -> None:
        """Append one photo.

        Args:
            photo: what became of it, duplicates decided.
            pictures: of each person, the names in the dataset; none when rejected.
            thumbnails: of each person a small WebP; None when rejected.
        """
        entry = _photo_entry(photo, pictures)
        self._file.write("" if self._first else ",\n")
        self._file.write("    " + json.dumps(entry, ensure_ascii=False, allow_nan=False))
        self._first = False
        self._page.add(group_of(photo), entry, thumbnails)


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
        about: what else the head of the report says: resolution, balance, limits, versions.
        asked: what tells the same work from another; `read_report` gives it back.

    Raises:
        InputError: the disk is full, or the place is read-only.
    """
    path, html = report_files(out)
    head = {
        "generator": "portrait360 dataset photos",
        "dataset": _text(out.name),
        **about,
        "totals": {
            name: value for name, value in asdict(report).items() if isinstance(value, int)
        },
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
    }  # fmt: skip
    with (
        atomic_write(path) as temporary,
        atomic_write(html) as temporary_html,
        open(temporary, "w", encoding="utf-8") as file,
        open(temporary_html, "w", encoding="utf-8") as page_file,
        open_page(page_file, report, head, out.parent) as page,
    ):
        start = json.dumps(head, indent=2, ensure_ascii=False, allow_nan=False)
        file.write(start.removesuffix("\n}") + ',\n  "photos": [\n')
        yield ReportWriter(file, page)
        file.write("\n  ]\n}\n")


def _photo_entry(photo: PhotoOutcome, pictures: Sequence[Sequence[str]]) -> dict[str, Any]:
    group = group_of(photo)
    return {
        "name": _text(photo.name),
        "outcome": "accepted" if group is None else "rejected",
        "reason": group,
        "sentence": "" if group is None else REASONS.get(group, group),
        "detail": _text(photo.detail),
        "size": None if photo.size is None else list(photo.size),
        "people": [_person_entry(person, names) for person, names in zip(photo.people, pictures, strict=True)],
    }


def _person_entry(person: PersonOutcome, pictures: Sequence[str]) -> dict[str, Any]:
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
        "pictures": list(pictures),
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


# ---- the page for people ----
#
# It needs nothing beside it, and no scripts. Photos come in the order of the folder but are shown by outcome, so that
# each group is collected in a temporary file of its own.

MOST_PICTURES = 2000
"""So many small pictures are shown; more would make a page that browsers open slowly."""
_ACCEPTED = ""
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1c2430; background: #fff; margin: 2rem auto; max-width: 70rem;
  padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #dee1e6 }
td.name { overflow-wrap: anywhere; width: 30% } td.number { text-align: right }
details { border: 1px solid #dee1e6; border-radius: 6px; padding: .4rem .8rem; margin: .6rem 0 }
summary { cursor: pointer; font-weight: 600 }
.small { color: #5a6472; font-size: .85rem } .no { color: #a33a12 } .yes { color: #1d6b36 }
img { display: block; width: 96px; height: auto; margin-bottom: .3rem }
svg text { font: 11px system-ui, sans-serif; fill: #1c2430 }
@media (prefers-color-scheme: dark) {
  body { background: #14181f; color: #e4e7ec } th, td, details { border-color: #343b47 }
  .small { color: #a4adba } .no { color: #f09a76 } .yes { color: #85d3a0 } svg text { fill: #e4e7ec }
}
"""


class Page:
    """Takes the photos; `open_page` gives one and puts the groups together."""

    def __init__(self, groups: Mapping[str, IO[str]]) -> None:
        self._groups = groups
        self.counts = dict.fromkeys(groups, 0)
        self._pictures = 0

    def add(self, reason: str | None, entry: dict[str, Any], thumbnails: Sequence[bytes | None]) -> None:
        """Append a photo (as in the JSON) to the group of its reason; None is the group of the accepted ones."""
        key = _ACCEPTED if reason is None else reason
        self.counts[key] += 1
        self._groups[key].write(self._row(entry, thumbnails))

    def _row(self, entry: dict[str, Any], thumbnails: Sequence[bytes | None]) -> str:
        size = "" if entry["size"] is None else f"{entry['size'][0]}×{entry['size'][1]}"
        cells = [self._person(person, small) for person, small in zip(entry["people"], thumbnails, strict=True)]
        if not cells:
            sentence = " ".join(part for part in (entry["sentence"], entry["detail"]) if part)
            cells = [f'<span class="no">{_escaped(sentence)}</span>']
        name = _escaped(entry["name"])
        return f'<tr><td class="name">{name}<div class="small">{size}</div></td><td>{"<br>".join(cells)}</td></tr>\n'

    def _person(self, person: dict[str, Any], small: bytes | None) -> str:
        lines = []
        if small is not None and self._pictures < MOST_PICTURES:
            self._pictures += 1
            lines.append(f'<img alt="" src="data:image/webp;base64,{base64.b64encode(small).decode()}">')
        if person["outcome"] == "accepted":
            times = len(person["pictures"])
            repeated = f", {times} times" if times > 1 else ""
            lines.append(f'<span class="yes">accepted{repeated}</span>')
        else:
            sentence = " ".join(part for part in (person["sentence"], person["detail"]) if part)
            lines.append(f'<span class="no">{_escaped(sentence)}</span>')
        facts = [_numbers("camera", person["camera_degrees"], "°"), _numbers("crop", person["crop"], " px")]
        if person["body_pose_degrees"] is not None:
            facts += [f"{part} {_triple(angles)}" for part, angles in person["body_pose_degrees"].items()]
        facts.append(_numbers("", person["measures"], ""))
        lines.append(f'<div class="small">{_escaped("; ".join(fact for fact in facts if fact))}</div>')
        return "".join(lines)


@contextlib.contextmanager
def open_page(file: IO[str], report: Report, head: dict[str, Any], folder: Path) -> Iterator[Page]:
    """Write the page into `file` when the block ends well.

    Args:
        file: open for text.
        report: totals.
        head: the head of the JSON report.
        folder: where temporary files may lie; they have no names.
    """
    with contextlib.ExitStack() as stack:
        groups = {
            reason: stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8", dir=folder))
            for reason in (_ACCEPTED, *report.reasons)
        }
        page = Page(groups)
        yield page
        file.write(_top(report, head))
        for reason, group in groups.items():
            if page.counts[reason] or reason == _ACCEPTED:
                file.write(_group_top(reason, page.counts[reason]))
                group.seek(0)
                shutil.copyfileobj(group, file)
                file.write("</table></details>\n")
        file.write(_bottom(head))


def _top(report: Report, head: dict[str, Any]) -> str:
    title = f"{head['dataset']}: what became of {report.photos} photos"
    totals = [
        ("photos", report.photos),
        ("photos used", report.photos_used),
        ("persons found", report.people),
        ("persons accepted", report.accepted),
        ("pictures in the dataset", report.pictures),
    ]
    rows = "".join(f'<tr><td>{name}</td><td class="number">{value}</td></tr>' for name, value in totals)
    reasons = "".join(
        f'<tr><td>{_escaped(reason)}</td><td class="number">{count}</td>'
        f"<td>{_escaped(REASONS.get(reason, reason))}</td></tr>"
        for reason, count in report.reasons.items()
    )
    why = f"<h2>Why persons and photos were rejected</h2>\n<table>{reasons}</table>\n" if reasons else ""
    limit = ""
    if report.accepted > MOST_PICTURES:
        limit = f'<p class="small">The first {MOST_PICTURES} accepted crops are shown.</p>\n'
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_escaped(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{_escaped(title)}</h1>\n"
        f"<table>{rows}</table>\n{why}"
        f"<h2>Viewing directions</h2>\n{_histogram(report)}\n<h2>Photos</h2>\n{limit}"
    )


def _group_top(reason: str, count: int) -> str:
    title, opened = ("accepted", " open") if reason == _ACCEPTED else (reason, "")
    return (
        f"<details{opened}><summary>{_escaped(title)}: {count} photos</summary>\n"
        "<table><tr><th>photo</th><th>persons</th></tr>\n"
    )


def _bottom(head: dict[str, Any]) -> str:
    facts = {"resolution": head.get("resolution"), "balance": head.get("balance")}
    facts |= head.get("limits", {}) | head.get("versions", {})
    facts |= {name: f"{file['file']}, SHA-256 {file['sha256']}" for name, file in head.get("given", {}).items()}
    rows = "".join(
        f"<tr><td>{_escaped(name.replace('_', ' '))}</td><td>{_escaped(value)}</td></tr>"
        for name, value in facts.items()
    )
    table = f"<details><summary>show</summary><table>{rows}</table></details>"
    return f"<h2>Limits and versions</h2>\n{table}\n</body>\n</html>\n"


def _histogram(report: Report) -> str:
    """Bars: pictures with repeats behind, accepted persons in front of them."""
    width, height, left, bottom = 760, 200, 45, 30
    bins = len(report.yaw_before)
    peak = max(1, *report.yaw_before, *report.yaw_after)
    step = width / bins
    bars = []
    for counts, colour, what in ((report.yaw_after, "#de781e", "after"), (report.yaw_before, "#5c80bc", "before")):
        for i, count in enumerate(counts):
            if count:
                tall = count / peak * height
                start = -180 + 360 * i // bins
                bars.append(
                    f'<rect x="{left + i * step + 1:.1f}" y="{10 + height - tall:.1f}" width="{step - 2:.1f}"'
                    f' height="{tall:.1f}" fill="{colour}"><title>{start}° to {start + 360 // bins}°:'
                    f" {count} {what} balancing</title></rect>"
                )
    ticks = "".join(
        f'<text x="{left + (yaw + 180) / 360 * width:.0f}" y="{height + 26}" text-anchor="middle">{yaw}°</text>'
        for yaw in range(-180, 181, 45)
    )
    label = "Yaw in sectors of 10 degrees: accepted persons in blue, pictures that balancing added in orange"
    return (
        f'<svg role="img" aria-label="{label}" viewBox="0 0 {left + width + 20} {height + 10 + bottom}" width="100%">'
        f'{"".join(bars)}<text x="{left - 6}" y="20" text-anchor="end">{peak}</text>'
        f'<text x="{left - 6}" y="{height + 10}" text-anchor="end">0</text>{ticks}</svg>\n'
        f'<p class="small">{label}. 0° is the front, 90° the person\'s left, ±180° the back.</p>'
    )


def _numbers(name: str, values: dict[str, Any] | None, unit: str) -> str:
    if not values:
        return ""
    words = ", ".join(f"{key.replace('_', ' ')} {_short(value)}{unit}" for key, value in values.items())
    return f"{name} {words}".strip()


def _triple(angles: Sequence[float | None]) -> str:
    """Nod, turn, tilt (for angles this small the axis-angle numbers are near enough)."""
    return "/".join(_short(angle) for angle in angles) + "°"


def _short(value: float | None) -> str:
    return "?" if value is None else f"{value:.4g}"


def _escaped(value: Any) -> str:
    return html.escape(str(value), quote=True)
