"""One photo from file to outcome."""

from __future__ import annotations

import io
import math
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut, coffee

from portrait360.geometry.cameras import RADIUS, camera_label, yaw_pitch
from portrait360.photos.outcome import PhotoFile
from portrait360.photos.quality import PhotoLimits
from portrait360.photos.worker import PhotoWorker, outside_share

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
    assert worker(PhotoFile(tmp_path / "a.jpg", "a.jpg")).reason == "not a picture"


def test_networks_of_the_user_are_asked(tmp_path):
    calls = []

    def matting(image):
        calls.append(image.shape)
        return np.ones(image.shape[:2], np.float32)

    worker = PhotoWorker(SIDE, PhotoLimits(least_quality=0.5), matting=matting, quality=lambda image: 0.25)
    (person,) = worker(file_of(tmp_path, astronaut())).people
    assert calls == [(SIDE, SIDE, 3)]
    assert person.measures["person"] == pytest.approx(1.0, abs=0.01)
    assert person.reason == "low quality"


def test_a_worker_travels_between_processes_after_it_worked(tmp_path, worker):
    file = file_of(tmp_path, astronaut())
    worker(file)
    again = pickle.loads(pickle.dumps(worker))
    assert again._parts is None
    a, b = worker(file).people[0], again(file).people[0]
    assert a.image == b.image
    assert a.crop == b.crop


def test_share_of_a_box_outside():
    assert outside_share((0.0, 0.0, 10.0, 10.0), (20, 20)) == 0.0
    assert outside_share((-5.0, 0.0, 5.0, 10.0), (20, 20)) == 0.5
    assert outside_share((30.0, 0.0, 40.0, 10.0), (20, 20)) == 1.0
