"""Labels of other conventions are recognised by their numbers, and right ones are left alone."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from portrait360.data.conventions import (
    OURS,
    Conventions,
    check_conventions,
    convert_command,
    converted,
    likely_conventions,
    remaining_problem,
)
from portrait360.geometry.cameras import camera_label
from portrait360.types import DatasetError
from support.foreign_labels import foreign

SIDE = 256
ALL = [
    Conventions(*values)
    for values in product(("opencv", "opengl"), ("c2w", "w2c"), ("normalised", "pixels"), ("radians", "degrees"))
]
PATH = Path("some/other data.zip")


def labels(seed: int = 0, count: int = 40, spread: float = math.pi, **camera) -> np.ndarray:
    """Labels with yaws of this spread (radians), some roll, and body poses of 10 degrees per axis."""
    random = np.random.default_rng(seed)
    yaw, pitch, roll = (
        random.uniform(-spread, spread, count),
        random.normal(0, 0.2, count),
        random.normal(0, 0.1, count),
    )
    cameras = camera_label(*(torch.from_numpy(angle) for angle in (yaw, pitch, roll)), **camera)
    return np.concatenate([cameras.numpy(), random.normal(0, math.radians(10), (count, 6))], axis=1)


def names(array: np.ndarray) -> list[str]:
    return [f"{index}.png" for index in range(len(array))]


def complaint(array: np.ndarray) -> DatasetError:
    with pytest.raises(DatasetError) as caught:
        check_conventions(PATH, array, names(array), SIDE)
    return caught.value


@pytest.mark.parametrize("conventions", ALL, ids=lambda one: one.flags() or "ours")
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_every_combination_is_recognised_and_converted_back(conventions, seed):
    right = labels(seed)
    wrong = foreign(right, conventions, SIDE)
    assert likely_conventions(wrong, SIDE) == conventions
    assert converted(wrong, conventions, SIDE) == pytest.approx(right, abs=1e-9)


@pytest.mark.parametrize("conventions", ALL, ids=lambda one: one.flags() or "ours")
def test_faces_from_the_front_are_enough(conventions):
    """Under w2c read as c2w, cameras from the front look almost at the head."""
    wrong = foreign(labels(3, 200, spread=math.radians(25)), conventions, SIDE)
    assert likely_conventions(wrong, SIDE) == conventions


def test_right_labels_are_accepted_also_in_the_frames_of_eg3d_and_panohead():
    for seed in range(20):
        for spread in (math.pi, 0.6, 0.05):
            check_conventions(PATH, labels(seed, spread=spread), names(labels(seed)), SIDE)
            eg3d = labels(seed, spread=spread, look_at=(0.0, 0.0, 0.2), focal=4.2647)[:, :25]
            panohead = labels(seed, spread=spread, look_at=(0.0, 0.0, 0.0), focal=4.2647)[:, :25]
            for array in (eg3d, panohead):
                assert likely_conventions(array, SIDE) == OURS
                assert remaining_problem(array, names(array)) is None


def test_one_image_is_enough_to_recognise_axes_but_not_to_invent_anything():
    for yaw in (0.0, 1.0, math.pi):
        one = camera_label(yaw).double().numpy()
        assert likely_conventions(one, SIDE) == OURS
        assert likely_conventions(foreign(one, Conventions(axes="opengl"), SIDE), SIDE).axes == "opengl"


def test_the_error_names_the_cause_and_the_command():
    error = complaint(foreign(labels(), Conventions("opengl", "w2c", "pixels", "degrees"), SIDE))
    for words in ("OpenGL's", "world to camera", "in pixels", "in degrees"):
        assert words in error.message
    command = (
        "portrait360 dataset convert 'some/other data.zip' --axes opengl --matrix w2c --intrinsics pixels"
        " --pose degrees --out 'some/other data-converted.zip'"
    )
    assert f"`{command}`" in error.hint
    assert convert_command(Path("folder"), OURS) == "portrait360 dataset convert folder --out folder-converted.zip"


def scaled(factor: float) -> np.ndarray:
    array = labels()
    array[:, [3, 7, 11]] *= factor
    array[:, 3:12:4] += (1 - factor) * np.array([0.0, 0.0649, 0.0])  # still looking at the head
    return array


def z_up() -> np.ndarray:
    array = labels(spread=math.pi)
    pose = array[:, :16].reshape(-1, 4, 4)
    turned = np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]]) @ pose
    array[:, :16] = turned.reshape(-1, 16)
    return array


def some_wrong() -> np.ndarray:
    array = labels()
    wrong = foreign(array, Conventions(axes="opengl"), SIDE)
    array[7:10] = wrong[7:10]
    return array


def with_values(columns: list[int], value: float) -> np.ndarray:
    array = labels()
    array[:, columns] = value
    return array


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (scaled(10.0), "cameras stand 27"),
        (scaled(0.3), "cameras stand 0.8"),
        (z_up(), "stand on their heads"),
        (some_wrong(), "3 of 40 cameras look past the head or stand on their heads, for example 7.png"),
        (with_values([18, 21], 0.0), r"principal point lies at (0, 0)"),
        (with_values([16, 20], 0.01), "focal length is 0.01"),
        (with_values([26], 300.0), "turn neck or head by more than 115 degrees"),
    ],
    ids=["far", "near", "z up", "some", "centre", "focal", "poses"],
)
def test_what_no_convention_explains_is_said(array, words):
    error = complaint(array)
    assert words in error.message
    assert "docs/conventions.md" in error.hint
