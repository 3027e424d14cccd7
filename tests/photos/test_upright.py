"""Which way up photos are: the network, and what the worker makes of its answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut

from portrait360.photos.records import PhotoFile
from portrait360.photos.upright import (
    TURNS,
    UprightNetwork,
    load_upright,
    save_upright,
    turn_probabilities,
    turned,
    with_face,
)
from portrait360.photos.worker import PhotoWorker
from portrait360.types import CheckpointError
from support.synthetic_person import LEFT, SIDE, TOP, photo


@pytest.fixture(scope="module")
def worker() -> PhotoWorker:
    return PhotoWorker(128)


@pytest.mark.parametrize("degrees", TURNS)
@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_network_knows_which_turn_makes_a_person_upright(number, degrees):
    upright = np.ascontiguousarray(photo(number)[0][TOP:, LEFT : LEFT + SIDE])
    lying = turned(upright, -degrees % 360)
    found = turn_probabilities(load_upright(), lying)
    assert found.sum() == pytest.approx(1.0)
    assert found[TURNS.index(degrees)] > 0.8


def test_mirror_images_have_the_mirrored_answer():
    torch.manual_seed(0)
    network = UprightNetwork().eval()
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    straight = turn_probabilities(network, image)
    mirrored = turn_probabilities(network, np.ascontiguousarray(image[:, ::-1]))
    np.testing.assert_allclose(mirrored, straight[[0, 3, 2, 1]], rtol=1e-5)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_photo_that_lost_its_orientation_is_turned(degrees, worker, tmp_path):
    Image.fromarray(turned(astronaut(), -degrees % 360)).save(tmp_path / "lying.png")
    outcome = worker(PhotoFile(tmp_path / "lying.png", "lying.png"))
    assert outcome.turned == degrees
    assert outcome.size == (512, 512)
    assert outcome.people[0].reason is None
    Image.fromarray(astronaut()).save(tmp_path / "upright.png")
    upright = worker(PhotoFile(tmp_path / "upright.png", "upright.png"))
    assert upright.turned == 0
    np.testing.assert_array_equal(upright.people[0].camera, outcome.people[0].camera)


def test_a_face_that_fits_speaks_for_upright():
    assert with_face(0.12, 0.009) > 0.5  # a photo whose background misleads the network
    assert with_face(0.0001, 0.02) < 0.01  # hair of a head upside down that was taken for a face
    assert with_face(0.5, 0.015) == pytest.approx(0.5)
    assert with_face(0.0, 0.0) < 0.5 < with_face(1.0, 1.0)


def test_networks_are_kept_in_files_and_foreign_ones_refused(tmp_path):
    torch.manual_seed(1)
    network = UprightNetwork().eval()
    save_upright(tmp_path / "a.safetensors", network)
    again = load_upright(tmp_path / "a.safetensors")
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(again(x), network(x), atol=1e-2, rtol=1e-2)
    from portrait360.photos.landmark_model import load_landmark_model, save_landmark_model

    save_landmark_model(tmp_path / "b.safetensors", load_landmark_model())
    with pytest.raises(CheckpointError, match="which way up"):
        load_upright(tmp_path / "b.safetensors")
