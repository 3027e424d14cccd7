"""Finding persons in photos."""

from __future__ import annotations

import builtins

import numpy as np
import pytest
from skimage.data import astronaut, coffee

from portrait360.photos import detect
from portrait360.photos.crop import Square
from portrait360.photos.detect import LEFT_EAR, LEFT_SHOULDER, NOSE, RIGHT_EAR, Detection, Detector
from portrait360.types import InputError


@pytest.fixture(scope="module")
def detector():
    return Detector()


def test_a_portrait_has_one_person_with_a_face_mesh(detector):
    (person,) = detector.find(astronaut())
    assert person.points is not None
    assert person.points.shape == (33, 2)
    assert np.abs(person.points[NOSE] - [220, 125]).max() < 20
    assert person.points[LEFT_EAR, 0] > person.points[RIGHT_EAR, 0]
    assert person.points[LEFT_SHOULDER, 1] > person.points[NOSE, 1] + 60
    assert person.mesh is not None
    low, high = person.mesh.min(axis=0), person.mesh.max(axis=0)
    assert (low < person.points[NOSE]).all()
    assert (person.points[NOSE] < high).all()
    left, top, right, bottom = person.head_box()
    assert left < low[0] < high[0] < right
    assert top < low[1] < high[1] < bottom


def test_two_people_side_by_side_are_two_the_larger_first(detector):
    large = astronaut()[:400]
    small = np.full_like(large, 128)
    small[150:350, :256] = large[::2, ::2]
    people = detector.find(np.concatenate([large, small], axis=1))
    assert len(people) == 2
    widths = [person.head_box()[2] - person.head_box()[0] for person in people]
    assert widths[0] > 1.5 * widths[1]
    noses = [person.points[NOSE, 0] for person in people if person.points is not None]
    assert noses[0] < 512 < noses[1]
    assert all(person.mesh is not None for person in people)


def test_the_head_of_a_person_without_landmarks_is_given():
    head = (10.0, 20.0, 30.0, 45.0)
    assert Detection(None, None, Square((20.0, 40.0), 60.0), head).head_box() == head


@pytest.mark.parametrize(("width", "height"), [(100, 100), (640, 480), (300, 900), (3, 2000)])
def test_the_searched_squares_cover_the_photo(width, height):
    squares = detect.search_squares(width, height)
    assert squares[0] == (0, 0, max(width, height))
    assert all(left >= 0 and top >= 0 and side > 0 for left, top, side in squares)
    for side in {side for _, _, side in squares}:
        covered = np.zeros((height, width), bool)
        for left, top, s in squares:
            if s == side:
                covered[top : top + s, left : left + s] = True
        assert covered.all()


def test_an_image_without_people_has_none(detector):
    assert detector.find(coffee()) == []


def test_without_mediapipe_the_error_says_what_to_install(monkeypatch):
    original = builtins.__import__

    def refuse(name, *rest, **others):
        if name == "mediapipe":
            raise ImportError(name)
        return original(name, *rest, **others)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(InputError, match="mediapipe") as caught:
        detect.Detector().find(astronaut())
    assert "pip install" in caught.value.hint
