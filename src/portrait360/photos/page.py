"""The report for people: one HTML page that needs nothing beside it, and no scripts (`templates/report.html`).

Photos come in the order of the folder but are shown by outcome: each group is collected in a temporary file, so that a
folder of any size takes the same memory.
"""

from __future__ import annotations

import base64
import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from portrait360.runtime.words import counted

MOST_IMAGES = 2000
"""So many small images are shown; more would make a page that browsers open slowly."""
_ACCEPTED = "accepted"


class Group:
    """The photos with one outcome, in a file without a name."""

    def __init__(self, title: str, file: IO[str]) -> None:
        self.title, self.count = title, 0
        self.is_accepted = title == _ACCEPTED
        self._file = file

    def add(self, photo: Mapping[str, Any]) -> None:
        """Append the entry of a photo."""
        self.count += 1
        self._file.write(json.dumps(photo) + "\n")

    def photos(self) -> Iterator[dict[str, Any]]:
        """The entries, in order."""
        self._file.seek(0)
        return map(json.loads, self._file)


class Page:
    """Takes the photos; `open_page` gives one and puts the groups together."""

    def __init__(self, groups: Mapping[str, Group]) -> None:
        self._groups = groups
        self._images = 0

    def add(self, reason: str | None, entry: Mapping[str, Any], thumbnails: Sequence[bytes | None]) -> None:
        """Append a photo (as in the JSON) to the group of its reason; None is the group of the accepted ones."""
        people = []
        for person, small in zip(entry["people"], thumbnails, strict=True):
            shown = small is not None and self._images < MOST_IMAGES
            self._images += shown
            people.append({**person, "thumbnail": base64.b64encode(small).decode() if small and shown else ""})
        self._groups[reason or _ACCEPTED].add({**entry, "people": people})


@contextlib.contextmanager
def open_page(file: IO[str], head: Mapping[str, Any], folder: Path) -> Iterator[Page]:
    """Write the page into `file` when the block ends well.

    Args:
        file: open for text.
        head: the head of the JSON report.
        folder: where temporary files may lie; they have no names.
    """
    with contextlib.ExitStack() as stack:
        # Collect the photos by outcome.
        groups = {
            title: Group(title, stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8", dir=folder)))
            for title in (_ACCEPTED, *head["reasons"])
        }
        yield Page(groups)

        # Write the page piece by piece.
        names = {"photos": "photos", "photos_used": "photos used", "people": "persons found"}
        names |= {"accepted": "persons accepted", "images": "images in the dataset"}
        template = _environment().get_template("report.html")
        pieces = template.stream(
            title=f"{head['dataset']}: what became of {counted(head['totals']['photos'], 'photo')}",
            totals={words: head["totals"][name] for name, words in names.items()},
            head=head,
            histogram=_histogram(head["yaw_histogram"]),
            most_images=MOST_IMAGES,
            groups=[group for group in groups.values() if group.count or group.is_accepted],
            settings=_settings(head),
        )
        file.writelines(pieces)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("portrait360.photos"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["short"] = _short
    return environment


def _short(value: float | None) -> str:
    return "?" if value is None else f"{value:.4g}"


def _settings(head: Mapping[str, Any]) -> dict[str, Any]:
    """What the dataset was made with."""
    settings = {"resolution": head.get("resolution"), "balance": head.get("balance")}
    given = {name: f"{file['file']}, SHA-256 {file['sha256']}" for name, file in head.get("given", {}).items()}
    return settings | head.get("limits", {}) | head.get("versions", {}) | given


# ---- viewing directions ----


@dataclass(frozen=True)
class Bar:
    """A rectangle of the histogram, in units of its view box."""

    kind: str
    """before or after balancing."""
    x: float
    y: float
    width: float
    height: float
    title: str


@dataclass(frozen=True)
class Histogram:
    """Bars: images with repeats behind, accepted persons in front of them. Lengths in units of the view box."""

    peak: int
    bars: list[Bar]
    ticks: dict[int, float]
    """Right of each yaw, degrees, that is written below."""
    left: int = 45
    right: int = 805
    top: int = 10
    floor: int = 210
    label: str = "Yaw in sectors of 10 degrees: accepted persons in blue, images that balancing added in orange"


def _histogram(yaw: Mapping[str, Sequence[int]]) -> Histogram:
    """The histogram of the `yaw_histogram` of a report's head."""
    starts = yaw["sectors_start_degrees"]
    histogram = Histogram(max(1, *yaw["before"], *yaw["after"]), [], {})
    width, height = histogram.right - histogram.left, histogram.floor - histogram.top
    sector, step = 360 // len(starts), width / len(starts)

    # Later bars cover earlier ones.
    for kind in ("after", "before"):
        for index, (start, count) in enumerate(zip(starts, yaw[kind], strict=True)):
            if count:
                tall = count / histogram.peak * height
                title = f"{start}° to {start + sector}°: {count} {kind} balancing"
                x = histogram.left + index * step + 1
                histogram.bars.append(Bar(kind, x, histogram.floor - tall, step - 2, tall, title))
    for degrees in range(-180, 181, 45):
        histogram.ticks[degrees] = histogram.left + (degrees + 180) / 360 * width
    return histogram
