"""Fitting camera, crop and body pose to what was found."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.optimize import approx_fprime
from skimage.data import astronaut

from portrait360.encoder.files import load_encoder
from portrait360.geometry.body import load_body
from portrait360.geometry.cameras import cam2world, yaw_pitch
from portrait360.geometry.rotations import axis_angle_to_matrix
from portrait360.photos import fit
from portrait360.photos.crop import Square
from portrait360.photos.detect import LEFT_SHOULDER, RIGHT_SHOULDER, Detection, Detector
from portrait360.photos.landmark_model import load_landmark_model
from portrait360.photos.matte import Outline, SelfieMatte

TRUTH = np.array([0.5, -0.1, 0.05, 0.04, 0.02, -0.01, 0.1, -0.15, 0.05, -0.12, 0.2, 0.02])
"""Yaw, pitch, roll, log scale, offset, body pose."""
UNIT = Square((0.0, 0.0), 1.0)


def problem(view: np.ndarray, *, mesh: bool) -> fit.FitProblem:
    """A person exactly as in TRUTH, for whom the encoder predicts `view`."""
    model, body = load_landmark_model(), load_body()
    blank = Detection(np.zeros((33, 2)), None)
    said = fit.View(view[:6], view[6:], np.zeros((15, 2)), 0.0)
    exact = fit.FitProblem(said, blank, UNIT, model, body)
    face, shoulders = exact.places(torch.from_numpy(TRUTH)[None])
    points, whole = np.zeros((33, 2)), np.zeros((478, 2))
    points[[LEFT_SHOULDER, RIGHT_SHOULDER]] = shoulders[0].numpy() - 0.5
    whole[model.mesh_indices.numpy()] = face[0].numpy() - 0.5
    person = Detection(points, whole if mesh else None)
    return fit.FitProblem(said, person, UNIT, model, body)


@pytest.mark.parametrize("mesh", [True, False])
def test_what_everything_agrees_on_is_found(mesh):
    solved = problem(TRUTH, mesh=mesh).solve()
    np.testing.assert_allclose(solved, TRUTH, atol=1e-3)


def test_a_face_outweighs_an_encoder_that_sees_the_back():
    """As happens with photos unlike any synthetic image: the head's direction is the face's."""
    wrong = TRUTH.copy()
    wrong[0] += math.pi * 0.95
    found = problem(wrong, mesh=True)
    solved = found.solve()
    facing = solved[0] - solved[7] - solved[10], TRUTH[0] - TRUTH[7] - TRUTH[10]
    assert abs((facing[0] - facing[1] + math.pi) % (2 * math.pi) - math.pi) < math.radians(25.0)
    assert found.distance(solved) < 0.03


def test_yaw_has_no_seam_at_the_back():
    behind = TRUTH.copy()
    behind[0] = math.pi - 0.01
    around = behind.copy()
    around[0] -= 2.0 * math.pi
    there = problem(behind, mesh=False)
    np.testing.assert_allclose(there.residuals(behind), there.residuals(around), atol=1e-9)


def test_the_jacobian_is_that_of_the_residuals():
    view = TRUTH + 0.05
    here = problem(view, mesh=True)
    expected = approx_fprime(TRUTH, lambda x: here.residuals(x), 1e-7)
    np.testing.assert_allclose(here.jacobian(TRUTH), expected, atol=2e-3, rtol=1e-4)


@pytest.fixture(scope="module")
def found_people():
    photo = astronaut()
    people = Detector().find(photo)
    return photo, people


def test_a_real_portrait_and_its_mirror_image(found_people):
    """The astronaut looks into the camera; mirroring the photo mirrors camera, crop and pose. On a grey background, as
    users have it: with her own, the encoder is less sure which way she stands."""
    photo, people = found_people
    parts = load_encoder()[0].eval(), load_landmark_model(), load_body()
    matte = SelfieMatte()
    found = fit.fit_person(photo, people[0], *parts, matte=matte)
    yaw, pitch = yaw_pitch(found.camera[None])
    assert abs(math.degrees(yaw)) < 20
    assert abs(math.degrees(pitch)) < 25
    assert 200 < found.square.side < 480
    assert found.fit_error < 0.02
    assert found.confidence > 0.5
    mirrored = np.ascontiguousarray(photo[:, ::-1])
    again = fit.fit_person(mirrored, Detector().find(mirrored)[0], *parts, matte=matte)
    assert abs(photo.shape[1] - again.square.centre[0] - found.square.centre[0]) < 0.05 * found.square.side
    assert abs(again.square.side / found.square.side - 1.0) < 0.1
    yaws = [yaw_pitch(camera[None])[0].item() for camera in (found.camera, again.camera)]
    assert abs(yaws[0] + yaws[1]) < math.radians(10.0)
    looks = [looking(fitted) for fitted in (found, again)]
    np.testing.assert_allclose(looks[1], looks[0] * [-1, 1, 1], atol=math.sin(math.radians(8.0)))


def test_views_of_nearly_the_same_crop_are_averaged():
    """Turns are means, across the seam of the yaw too; where the crop lies, the later view decides alone."""

    def view(yaw, side, pose):
        camera = np.array([yaw, 0.2 * yaw, 0.0, side, 0.01, 0.02])
        return fit.View(camera, np.full(6, pose), np.zeros((3, 2)), 0.1)

    before, after = view(3.1, 0.1, 0.3), view(-3.1, 0.02, 0.1)
    found = fit.mean_view(before, after)
    assert abs(math.remainder(found.camera[0] - math.pi, 2.0 * math.pi)) < 1e-9
    np.testing.assert_allclose(found.camera[1:], [0.0, 0.0, 0.02, 0.01, 0.02], atol=1e-12)
    np.testing.assert_allclose(found.pose, 0.2)
    assert fit.mean_view(view(3.1, 0.2, 0.3), after) is after


def looking(fitted: fit.Fit) -> np.ndarray:
    """Where the head looks, in the camera's axes: right, down, forward."""
    neck, head = axis_angle_to_matrix(fitted.body_pose.unflatten(0, (2, 3)))
    return (cam2world(fitted.camera[None])[0, :3, :3].T @ neck @ head)[:, 2].numpy()


def test_without_landmarks_the_encoder_decides(monkeypatch):
    """As for people who were found by their outline: its crop is the first one."""
    model, body = load_landmark_model(), load_body()
    looked, first = [], Square((40.0, 50.0), 100.0)

    def look(crop, *_):
        looked.append(crop.square)
        return fit.View(TRUTH[:6], TRUTH[6:], np.zeros((15, 2)), 0.0)

    monkeypatch.setattr(fit, "view_of", look)
    monkeypatch.setattr(fit, "ENCODER_PASSES", 1)
    person = Detection(None, None, first, (0.0, 0.0, 1.0, 1.0))
    found = fit.fit_person(np.zeros((8, 8, 3), np.uint8), person, load_encoder()[0], model, body)
    assert looked == [first]
    assert found.square.centre == pytest.approx((40.0 + 100.0 * TRUTH[4], 50.0 + 100.0 * TRUTH[5]))
    assert found.square.side == pytest.approx(100.0 * math.exp(TRUTH[3]))
    torch.testing.assert_close(found.body_pose.double(), torch.from_numpy(TRUTH[6:]), atol=1e-5, rtol=0)


def test_people_are_encoded_on_a_grey_background(monkeypatch):
    """Unless the mask covers next to nothing: then it is the mask that fails."""
    encoder, shown = load_encoder()[0], []
    original = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda pixels, batch: shown.append(pixels) or original(pixels))
    photo = np.full((200, 200, 3), 255, np.uint8)

    def left(share: float):
        def matte(image: np.ndarray) -> np.ndarray:
            columns = (np.arange(image.shape[1]) + 0.5) / image.shape[1]
            return np.broadcast_to(columns < share, image.shape[:2]).astype(np.float32)

        return matte

    for matte in (left(0.6), left(0.2), None):
        crop = Square((100.0, 100.0), 80.0).of(photo, encoder.config.resolution)
        fit.view_of(crop, encoder, None if matte is None else Outline(crop, matte))
    half, none, plain = (pixels[0, 0] for pixels in shown[::2])
    assert torch.equal(shown[1], shown[0].flip(3))
    assert (half[:, :60] == 1.0).all()
    assert (half[:, 100:].abs() < 0.01).all()
    assert (none == 1.0).all()
    assert (plain == 1.0).all()


def test_hair_that_looks_like_a_face_is_ignored(monkeypatch):
    """A mesh that would take a turn of more than a neck can do is left out."""
    model, body = load_landmark_model(), load_body()
    view = fit.View(TRUTH[:6], TRUTH[6:], np.zeros((15, 2)), 0.0)
    monkeypatch.setattr(fit, "view_of", lambda *_: view)
    turned = TRUTH.copy()
    turned[0] += math.radians(150.0)
    exact = problem(turned, mesh=True)
    face = exact.places(torch.from_numpy(turned)[None])[0][0].numpy() - 0.5
    mesh = np.zeros((478, 2))
    mesh[model.mesh_indices.numpy()] = face * 100.0
    shoulders = exact.places(torch.from_numpy(TRUTH)[None])[1][0].numpy() - 0.5
    points = np.random.default_rng(0).normal(0, 10, (33, 2))
    points[[LEFT_SHOULDER, RIGHT_SHOULDER]] = shoulders * 100.0
    monkeypatch.setattr(type(model), "first_crop", lambda *_: (np.zeros(2), 100.0))
    monkeypatch.setattr(fit, "ENCODER_PASSES", 1)
    encoder = load_encoder()[0]
    blank = np.zeros((8, 8, 3), np.uint8)
    with_face = fit.fit_person(blank, Detection(points, mesh), encoder, model, body)
    without = fit.fit_person(blank, Detection(points, None), encoder, model, body)
    assert fit.largest_turn(with_face.body_pose.numpy()) < fit.MOST_TURN
    torch.testing.assert_close(with_face.body_pose, without.body_pose)


def test_the_share_that_is_hidden_is_predicted(monkeypatch):
    """The mean of what the encoder predicts for the image and for its mirror image; None if it does not."""
    encoder = load_encoder()[0]
    crop = Square((32.0, 32.0), 40.0).of(np.full((64, 64, 3), 200, np.uint8), encoder.config.resolution)
    original = encoder.encode

    def covered(*logits: float) -> float | None:
        left = [torch.tensor([value]) for value in logits]

        def encode(pixels: torch.Tensor, batch: int):
            return dataclasses.replace(original(pixels, batch), cover_logits=left.pop(0) if left else None)

        monkeypatch.setattr(encoder, "encode", encode)
        return fit.view_of(crop, encoder, None).covered

    assert covered(-2.0, 1.0) == pytest.approx(1.0 / (1.0 + math.exp(0.5)))
    assert covered() is None
