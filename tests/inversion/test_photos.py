"""Which photos can be inverted, and what is said of the others."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from PIL import Image

from portrait360.geometry.cameras import camera_label
from portrait360.inversion.photos import MOST_PHOTOS, read_photos
from portrait360.photos.crop import Square
from portrait360.photos.fit import Fit
from portrait360.photos.gates import REASONS
from portrait360.photos.records import PhotoError
from portrait360.photos.worker import Cut, Examination, Examined
from portrait360.types import InputError


@dataclass
class FakeWorker:
    """Finds in the photo number N, told by its first pixel, the people N of a list."""

    people: list = field(default_factory=list)

    def look(self, photo):
        return Examination(photo, 0, self.people[int(photo[0, 0, 0])])


def person(*, side: float = 400.0, confidence: float = 0.9, rejected=None, has_face: bool = True) -> Examined:
    fit = Fit(Square((200.0, 200.0), side), camera_label(0.0)[0], torch.zeros(6), 0.01, confidence)
    cut = Cut(np.full((64, 64, 3), 90, np.uint8), np.ones((64, 64)), np.full((64, 64), 255, np.uint8), 0.0, 0.0)
    return Examined(fit, cut, {}, rejected, has_face)


@pytest.fixture
def paths(tmp_path):
    made = []
    for number in range(3):
        Image.fromarray(np.full((32, 32, 3), number, np.uint8)).save(tmp_path / f"{number}.png")
        made.append(tmp_path / f"{number}.png")
    return made


def test_the_photo_with_the_best_evidence_comes_first(paths):
    worker = FakeWorker([[person(has_face=False)], [person(confidence=0.6)], [person(confidence=0.95)]])
    used, refused = read_photos(paths, worker=worker)
    assert [photo.name for photo in used] == ["2.png", "1.png", "0.png"]
    assert not refused
    assert used[0].target.image.shape == (1, 3, 64, 64)


def test_refused_photos_are_left_out_and_named(paths):
    worker = FakeWorker([[person(rejected=("blurred", "it is soft."))], [], [person()]])
    used, refused = read_photos(paths, worker=worker)
    assert [photo.name for photo in used] == ["2.png"]
    assert [(photo.name, photo.reason) for photo in refused] == [("0.png", "blurred"), ("1.png", "no person")]


@pytest.mark.parametrize(
    ("people", "sentence", "hint"),
    [
        ([], r"0.png cannot be used \(no person\): nobody was found", "from the chest up"),
        ([person(rejected=("blurred", "it is soft."))], r"\(blurred\): it is soft", "sharper photo. `force`"),
        ([person(), person(side=300.0)], "unclear who is meant", "Crop the photo to one person. `force`"),
        ([PhotoError("bad fit", "the crop would lie outside of the photo.")], r"\(bad fit\)", "upright"),
    ],
)
def test_a_refusal_says_why_and_what_would_help(paths, people, sentence, hint):
    with pytest.raises(InputError, match=sentence) as caught:
        read_photos(paths[:1], worker=FakeWorker([people]))
    assert hint in caught.value.hint


def test_force_takes_what_was_found(paths):
    worker = FakeWorker([[person(rejected=("blurred", "it is soft.")), person(side=390.0)]])
    used, refused = read_photos(paths[:1], force=True, worker=worker)
    assert used[0].warning == "blurred: it is soft."
    assert not refused


def test_a_small_second_head_does_not_matter(paths):
    used, _ = read_photos(paths[:1], worker=FakeWorker([[person(), person(side=120.0)]]))
    assert used[0].warning is None


def test_force_cannot_find_anybody(paths):
    with pytest.raises(InputError) as caught:
        read_photos(paths[:1], force=True, worker=FakeWorker([[]]))
    assert "force" not in caught.value.hint


def test_missing_and_too_many_files(paths, tmp_path):
    with pytest.raises(InputError, match="no photo at"):
        read_photos([tmp_path / "none.jpg"])
    with pytest.raises(InputError, match=f"1 to {MOST_PHOTOS} files, not 9"):
        read_photos(paths * 3)


def test_what_is_no_photo_is_refused(tmp_path):
    path = tmp_path / "notes.jpg"
    path.write_text("no image")
    with pytest.raises(InputError, match=r"notes.jpg cannot be used \(not an image\)") as caught:
        read_photos([path], worker=FakeWorker())
    assert "JPEG" in caught.value.hint


def test_every_reason_has_a_help():
    from portrait360.inversion.photos import _HELP

    assert {"duplicate", "low quality"} | set(_HELP) >= set(REASONS)
