"""Measures by face recognition."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from portrait360.data.dataset import PortraitDataset
from portrait360.evaluation import faces
from portrait360.evaluation.faces import FaceNetwork, Faces, data_faces, face_measures, frontal_rows, generated_faces
from portrait360.evaluation.sampler import PortraitSampler
from portrait360.geometry.cameras import camera_label
from portrait360.portrait.weights import load_generator
from portrait360.types import InputError
from support.fake_portraits import write_fake_dataset
from support.presets import TINY


def random_faces(seed: int, count: int = 40, spread: float = 0.06, images: int | None = None) -> Faces:
    rng = np.random.default_rng(seed)
    return Faces(images or count, rng.normal(0, spread, (count, 128)))


class Noted:
    """In place of the network: the mean colour decides, dark images have no face."""

    def __init__(self) -> None:
        self.images: list[np.ndarray] = []

    def describe(self, image: np.ndarray) -> np.ndarray | None:
        self.images.append(image)
        return np.full(128, image.mean()) if image.mean() > 20 else None


def test_a_face_is_found_and_recognised_again() -> None:
    network = FaceNetwork()
    astronaut = skimage.data.astronaut()
    first = network.describe(astronaut)
    assert first is not None
    assert first.shape == (128,)
    smaller = np.asarray(Image.fromarray(astronaut).resize((320, 320)))
    again = network.describe(smaller)
    assert again is not None
    assert np.linalg.norm(first - again) < faces.SAME / 2
    assert network.describe(np.full((256, 256, 3), 128, np.uint8)) is None


def test_distances_are_those_of_all_pairs() -> None:
    some = random_faces(1, 12)
    expected = np.linalg.norm(some.descriptors[:, None] - some.descriptors[None], axis=-1)
    np.fill_diagonal(expected, np.inf)
    assert np.allclose(some.distances, expected)


def test_measures_tell_one_face_for_all_from_many() -> None:
    real = random_faces(2, 400)
    alike = Faces(500, random_faces(3, 400).descriptors * 0.4)
    values, floors = face_measures(real, alike), face_measures(real, random_faces(4, 400))
    assert values["faces_found"] == 0.8
    assert floors["faces_found"] == 1.0
    assert values["same_person"] == 1.0
    assert floors["same_person"] < 0.05
    assert values["face_copies"] == 1.0
    assert floors["face_copies"] < 0.05
    assert values["frechet_recognition"] > 2 * floors["frechet_recognition"]


def test_one_copy_is_a_copy_of_two_people() -> None:
    descriptors = random_faces(5).descriptors
    descriptors[7] = descriptors[3] + 1e-3
    assert face_measures(random_faces(6, 400), Faces(40, descriptors))["face_copies"] == pytest.approx(2 / 40)


def test_few_faces_leave_only_their_share() -> None:
    assert face_measures(random_faces(2), random_faces(3, 1, images=9), "_truncated") == {
        "faces_found_truncated": pytest.approx(1 / 9)
    }


def test_frontal_rows_are_those_near_the_front() -> None:
    yaw = torch.deg2rad(torch.tensor([0.0, 29.0, -29.0, 31.0, 180.0, -100.0]))
    assert frontal_rows(camera_label(yaw)).tolist() == [0, 1, 2]


def test_the_datas_faces_stand_on_the_models_grey(tmp_path: Path) -> None:
    path = tmp_path / "data.zip"
    write_fake_dataset(path, count=4, resolution=64)
    data, network = PortraitDataset(path), Noted()
    model = replace(TINY.model, background=None, plain_background=0.5)
    found = data_faces(data, torch.arange(4), model, network, lambda _: None)
    assert found.images == 4
    for row, image in enumerate(network.images):
        outside = data.mask(row) == 0
        assert np.all(image[outside] == round(1.5 * 127.5))
        inside = data.mask(row) == 255
        assert np.array_equal(image[inside], data.image(row)[inside])


def test_generated_faces_are_counted_and_follow_the_seed(tiny_weights: Path) -> None:
    generator = load_generator(tiny_weights)[0]
    cameras = camera_label(torch.linspace(-math.pi, math.pi, 40))
    sets = []
    for seed in (0, 0, 1):
        network = Noted()
        found = generated_faces(PortraitSampler(generator, cameras), 3, seed, network, lambda _: None)
        assert found.images == 3
        sets.append(np.stack(network.images))
    assert np.array_equal(sets[0], sets[1])
    assert not np.array_equal(sets[0], sets[2])


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "dlib" else found(name))
    with pytest.raises(InputError, match="dlib") as caught:
        FaceNetwork()
    assert "faces" in caught.value.hint
