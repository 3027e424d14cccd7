"""The report: every file once, safe whatever files are called, complete without anything beside it."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from portrait360.data.sampling import YAW_BINS
from portrait360.geometry.cameras import camera_label
from portrait360.photos import page as page_module
from portrait360.photos.gates import REASONS
from portrait360.photos.records import PersonOutcome, PhotoOutcome
from portrait360.photos.report import Report, ShownPerson, open_report, read_report
from portrait360.types import DatasetError, InputError

HOSTILE = [
    "<script>alert(1)</script>.jpg",
    '"><img src=x onerror=alert(1)>.png',
    "a&amp;b.jpg",
    "</table></details>.jpg",
    "line\nbreak.jpg",
    "umlaut ä 写真 \u202eгнп.jpg",
    "not text \udcff.jpg",
    "'; DROP TABLE photos; --.jpg",
]
ABOUT = {"resolution": 32, "balance": 2, "limits": {"duplicate_bits": 6}, "versions": {"portrait360": "0"}}


class Reader(HTMLParser):
    """Elements with their attributes, and the text of the first cell of each row of photos."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.names: list[str] = []
        self._inside = False
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        if (tag, dict(attrs).get("class")) == ("td", "name"):
            self.names.append("")
            self._inside = True
        elif tag == "div":
            self._inside = False

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self._inside:
            self.names[-1] += data


def small() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (96, 96), (200, 30, 30)).save(buffer, "WEBP")
    return buffer.getvalue()


def person(reason: str | None = None, detail: str = "") -> PersonOutcome:
    return PersonOutcome(
        reason,
        detail,
        (100.0, 200.0, 55.5),
        {"sharpness": 12.3456789, "fit_error": float("nan")},
        camera_label(np.deg2rad(30.0).item(), np.deg2rad(-10.0).item())[0].numpy(),
        np.deg2rad([10, -20, 5, 1, 2, 3]).astype(np.float32),
    )


def totals(photos: int = 2, accepted: int = 1, **reasons: int) -> Report:
    before = [0] * YAW_BINS
    before[21] = accepted
    after = [2 * count for count in before]
    return Report(photos, accepted, photos, accepted, 2 * accepted, reasons, tuple(before), tuple(after))


def written(out: Path, photos, report: Report) -> tuple[dict, str]:
    with open_report(out, report, ABOUT, {"photos": len(photos)}) as writer:
        for photo in photos:
            accepted = ShownPerson(("images/00000/00000000.webp",) * 2, small())
            writer.add(photo, [accepted if one.reason is None else ShownPerson() for one in photo.people])
    page = out.with_name(f"{out.stem}.report.html").read_text(encoding="utf-8")
    return json.loads(out.with_name(f"{out.stem}.report.json").read_text(encoding="utf-8")), page


def test_what_programs_read(tmp_path: Path) -> None:
    photos = [
        PhotoOutcome("a.jpg", None, "", (640, 480), (person(), person("blurred", "12 is under 30."))),
        PhotoOutcome("b.jpg", "unreadable", "the file is cut off."),
    ]
    content, _ = written(tmp_path / "set.zip", photos, totals(blurred=1, unreadable=1))
    assert content["dataset"] == "set.zip"
    assert content["totals"] == {"photos": 2, "photos_used": 1, "people": 2, "accepted": 1, "images": 2}
    assert content["reasons"]["blurred"] == {"count": 1, "sentence": REASONS["blurred"]}
    assert sum(content["yaw_histogram"]["before"]) == 1
    assert sum(content["yaw_histogram"]["after"]) == 2
    assert {key: content[key] for key in ABOUT} == ABOUT
    first, second = content["photos"]
    assert (first["name"], first["outcome"], first["reason"], first["size"]) == ("a.jpg", "accepted", None, [640, 480])
    yes, no = first["people"]
    assert yes["camera_degrees"] == pytest.approx({"yaw": 30.0, "pitch": -10.0})
    assert yes["body_pose_degrees"] == {"neck": [10, -20, 5], "head": [1, 2, 3]}
    assert yes["crop"] == {"x": 100.0, "y": 200.0, "side": 55.5}
    assert yes["measures"] == {"sharpness": 12.345679, "fit_error": None}
    assert len(yes["images"]) == 2
    assert (no["outcome"], no["reason"], no["sentence"], no["detail"], no["images"]) == (
        "rejected",
        "blurred",
        REASONS["blurred"],
        "12 is under 30.",
        [],
    )
    assert (second["outcome"], second["reason"], second["people"]) == ("rejected", "unreadable", [])
    report, asked = read_report(tmp_path / "set.zip")
    assert report == totals(blurred=1, unreadable=1)
    assert asked == {"photos": 2}


def test_what_people_read(tmp_path: Path) -> None:
    photos = [
        PhotoOutcome("a.jpg", None, "", (640, 480), (person(), person("blurred", "12 is under 30."))),
        PhotoOutcome("b.jpg", "unreadable", "the file is cut off."),
        PhotoOutcome("c.jpg", None, "", (64, 48), (person("blurred", "9 is under 30."),)),
    ]
    _, page = written(tmp_path / "set.zip", photos, totals(3, blurred=2, unreadable=1))
    reader = Reader(page)
    assert reader.open == []
    assert sorted(reader.names) == ["a.jpg", "b.jpg", "c.jpg"]
    groups = re.findall(r"<summary>([^<]*): (\d+) photos", page)
    assert groups == [("accepted", "1"), ("blurred", "1"), ("unreadable", "1")]
    for words in ("12 is under 30.", "9 is under 30.", "the file is cut off.", "accepted, 2 times", "yaw 30°"):
        assert words in page
    (source,) = [attributes["src"] for tag, attributes in reader.elements if tag == "img"]
    content = base64.b64decode(source.removeprefix("data:image/webp;base64,"))
    assert Image.open(io.BytesIO(content)).size == (96, 96)
    bars = [attributes for tag, attributes in reader.elements if tag == "rect"]
    assert len(bars) == 2
    assert float(bars[0]["height"]) == 2 * float(bars[1]["height"])


def test_the_page_needs_nothing_and_runs_nothing_whatever_files_are_called(tmp_path: Path) -> None:
    photos = [PhotoOutcome(name, None, "", (9, 9), (person("blurred", f"{name} is blurred"),)) for name in HOSTILE]
    photos += [PhotoOutcome(f"2{name}", "unreadable", f"{name} broke") for name in HOSTILE]
    photos.append(PhotoOutcome("good.jpg", None, "", (9, 9), (person(),)))
    content, page = written(tmp_path / "<i>set.zip", photos, totals(17, blurred=8, unreadable=8))
    assert len({entry["name"] for entry in content["photos"]}) == len(content["photos"]) == 17
    reader = Reader(page)
    assert reader.open == []
    written_names = [name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace") for name in HOSTILE]
    assert sorted(reader.names) == sorted(["good.jpg", *written_names, *(f"2{name}" for name in written_names)])
    tags = {tag for tag, _ in reader.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "i", "base"}
    for tag, attributes in reader.elements:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in ("src", "href", "srcset", "action"):
            assert attributes.get(name, "data:").startswith("data:")
    assert "url(" not in page
    assert "@import" not in page


def test_images_stop_where_a_page_would_become_slow(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(page_module, "MOST_IMAGES", 3)
    photos = [PhotoOutcome(f"{i}.jpg", None, "", (9, 9), (person(),)) for i in range(5)]
    _, page = written(tmp_path / "set.zip", photos, totals(5, 5))
    assert page.count("<img ") == 3
    assert "The first 3 accepted crops" in page
    assert len(Reader(page).names) == 5


def test_nothing_is_left_when_writing_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), open_report(tmp_path / "set.zip", totals(), ABOUT, {}):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError), open_report(tmp_path / "file" / "set.zip", totals(), ABOUT, {}):
        pass


def test_a_broken_report_is_no_report(tmp_path: Path) -> None:
    for text in ("", "[]", "{}", '{"totals": {}, "reasons": 3}'):
        (tmp_path / "set.report.json").write_text(text)
        with pytest.raises(DatasetError, match="no complete report"):
            read_report(tmp_path / "set.zip")
