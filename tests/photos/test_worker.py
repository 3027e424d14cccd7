"""One photo from file to outcome."""

from __future__ import annotations

import io
import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut, coffee

from portrait360.geometry.cameras import RADIUS, camera_label, yaw_pitch
from portrait360.photos import worker as worker_module
from portrait360.photos.crop import Square
from portrait360.photos.fit import Fit
from portrait360.photos.gates import PhotoLimits
from portrait360.photos.landmark_model import load_landmark_model
from portrait360.photos.records import PhotoFile
from portrait360.photos.worker import PhotoWorker, outside_share, shoulders_outside
from support.synthetic_person import LEFT, TOP, photo
from support.synthetic_person import SIDE as PERSON

SIDE = 128


@pytest.fixture(scope="module")
def worker():
    return PhotoWorker(SIDE)


def file_of(folder, pixels, name: str = "photo.png") -> PhotoFile:
    Image.fromarray(pixels).save(folder / name)
    return PhotoFile(folder / name, name)


def test_a_portrait_is_accepted_with_all_that_a_dataset_needs(tmp_path, worker):
    outcome = worker(file_of(tmp_path, astronaut()))
    assert outcome.reason is None
    assert outcome.size == (512, 512)
    (person,) = outcome.people
    assert person.reason is None
    assert person.image is not None
    assert person.mask is not None
    image = np.asarray(Image.open(io.BytesIO(person.image)).convert("RGB"))
    mask = np.asarray(Image.open(io.BytesIO(person.mask)))
    assert image.shape == (SIDE, SIDE, 3)
    assert mask.shape == (SIDE, SIDE)
    assert 0.2 < (mask > 127).mean() < 0.6
    assert mask[int(0.45 * SIDE), SIDE // 2] == 255
    assert person.camera is not None
    camera = torch.from_numpy(person.camera)
    yaw, pitch = yaw_pitch(camera[None])
    assert abs(math.degrees(yaw)) < 30
    assert abs(math.degrees(pitch)) < 30
    assert camera[[3, 7, 11]].norm() == pytest.approx(RADIUS, abs=1e-4)
    torch.testing.assert_close(camera[16:], camera_label(0.0)[0, 16:])
    assert person.body_pose is not None
    assert person.body_pose.shape == (6,)
    assert person.hash is not None


def test_a_head_cut_off_by_the_photo_is_rejected_as_truncated(tmp_path, worker):
    """As in a partial crop of a portrait: half of the face is missing."""
    (person,) = worker(file_of(tmp_path, np.ascontiguousarray(astronaut()[:, :245]))).people
    assert person.reason == "truncated"
    assert "%" in person.detail
    assert person.image is None


def test_a_small_person_is_rejected_by_a_limit_that_can_be_changed(tmp_path, worker):
    small = np.asarray(Image.fromarray(astronaut()).resize((150, 150), Image.Resampling.LANCZOS))
    (person,) = worker(file_of(tmp_path, small)).people
    assert person.reason == "too small"
    kinder = PhotoWorker(SIDE, PhotoLimits(smallest_side=32.0))
    (person,) = kinder(file_of(tmp_path, small)).people
    assert person.reason != "too small"


def test_what_is_no_photo_of_a_person_says_so(tmp_path, worker):
    assert worker(file_of(tmp_path, coffee())).reason == "no person"
    (tmp_path / "a.jpg").write_text("hello")
    assert worker(PhotoFile(tmp_path / "a.jpg", "a.jpg")).reason == "not an image"


def test_networks_of_the_user_are_asked(tmp_path):
    calls = []

    def matting(image):
        calls.append(image.shape)
        return np.ones(image.shape[:2], np.float32)

    worker = PhotoWorker(SIDE, PhotoLimits(least_quality=0.5), matting=matting, quality=lambda image: 0.25)
    (person,) = worker(file_of(tmp_path, astronaut())).people
    assert calls == [(SIDE, SIDE, 3)]
    assert 0.4 < person.measures["person"] < 0.95  # what lies far from the body is cut off
    assert person.reason == "low quality"


class Failing:
    """A matting network that finds nobody at first, and then everything."""

    def __init__(self, failures: int) -> None:
        self.failures, self.calls = failures, 0

    def __call__(self, image: np.ndarray, /) -> np.ndarray:
        self.calls += 1
        return np.full(image.shape[:2], float(self.calls > self.failures), np.float32)


@pytest.mark.parametrize("failures", [0, 1, 2, 3])
def test_a_mask_that_misses_the_body_is_made_again(tmp_path, failures):
    matting = Failing(failures)
    (person,) = PhotoWorker(SIDE, matting=matting)(file_of(tmp_path, astronaut())).people
    assert person.reason is None
    assert person.measures["uncovered"] == 0.0
    assert matting.calls == failures + 1


def test_a_body_that_no_mask_covers_is_rejected_as_occluded(tmp_path):
    def left_half(image: np.ndarray) -> np.ndarray:
        return np.broadcast_to(np.arange(image.shape[1]) < image.shape[1] / 2, image.shape[:2]).astype(np.float32)

    (person,) = PhotoWorker(SIDE, matting=left_half)(file_of(tmp_path, astronaut())).people
    assert person.reason == "occluded"
    assert 0.0 < person.measures["uncovered"] < 0.6
    assert "leaves out" in person.detail
    kinder = PhotoWorker(SIDE, PhotoLimits(most_uncovered=0.6), matting=left_half)
    assert kinder(file_of(tmp_path, astronaut())).people[0].reason is None


def test_people_without_landmarks_are_fitted_too(tmp_path, worker, monkeypatch):
    """When no detector finds anybody, the outline is used."""
    monkeypatch.setattr(worker.networks().detector, "find", lambda photo: [])
    (person,) = worker(file_of(tmp_path, photo(4)[0])).people
    assert person.reason is None
    assert person.crop is not None
    x, y, side = person.crop
    assert abs(x - (LEFT + PERSON / 2)) < 0.06 * PERSON
    assert abs(y - (TOP + PERSON / 2)) < 0.06 * PERSON
    assert abs(side / PERSON - 1.0) < 0.15
    assert person.measures["uncovered"] < 0.03


def test_shoulders_beyond_the_edges():
    """As wide as the crop, both joints are inside; they are some three quarters of it apart."""
    model, camera = load_landmark_model(), camera_label(0.0)[0]
    for centre, outside in (((100.0, 100.0), 0.0), ((40.0, 100.0), 1.0), ((160.0, 100.0), 1.0)):
        fit = Fit(Square(centre, 200.0), camera, torch.zeros(6), 0.0, 1.0)
        assert shoulders_outside(fit, model, (200, 200)) == outside
    fit = Fit(Square((100.0, 100.0), 200.0), camera, torch.zeros(6), 0.0, 1.0)
    assert shoulders_outside(fit, model, (200, 120)) == 2.0


def test_a_worker_travels_between_processes_after_it_worked(tmp_path, worker):
    file = file_of(tmp_path, astronaut())
    worker(file)
    again = pickle.loads(pickle.dumps(worker))
    assert len(pickle.dumps(again)) < 2000
    a, b = worker(file).people[0], again(file).people[0]
    assert a.image == b.image
    assert a.crop == b.crop


def test_share_of_a_box_outside():
    assert outside_share((0.0, 0.0, 10.0, 10.0), (20, 20)) == 0.0
    assert outside_share((-5.0, 0.0, 5.0, 10.0), (20, 20)) == 0.5
    assert outside_share((30.0, 0.0, 40.0, 10.0), (20, 20)) == 1.0


def test_people_behind_things_are_rejected_on_request(tmp_path, monkeypatch):
    original = worker_module.fit_person
    strict, lenient = PhotoWorker(SIDE, PhotoLimits(most_covered=0.08)), PhotoWorker(SIDE)
    for worker, share, reason in ((strict, 0.3, "occluded"), (strict, 0.02, None), (lenient, 0.3, None)):
        monkeypatch.setattr(
            worker_module, "fit_person", lambda *a, hidden=share, **k: replace(original(*a, **k), covered=hidden)
        )
        (person,) = worker(file_of(tmp_path, astronaut())).people
        assert person.measures["covered"] == share
        assert person.reason == reason
        assert ("things in front hide 30.0% of the person" in person.detail) == (reason is not None)


def test_a_neighbour_whom_no_detector_finds_is_not_in_the_mask(tmp_path, worker):
    """Two portraits side by side; segmentation takes both for one."""
    parts = [photo(number)[0][TOP:, LEFT : LEFT + PERSON] for number in (0, 1)]
    both = np.concatenate([parts[0][:, : int(0.85 * PERSON)], parts[1][:, int(0.12 * PERSON) :]], axis=1)
    outcome = worker(file_of(tmp_path, np.ascontiguousarray(both), "both.png"))
    assert outcome.people
    for person in outcome.people:
        assert person.reason is not None or person.measures["beyond"] <= 0.03
