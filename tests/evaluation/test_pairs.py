"""The same persons from several cameras."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from portrait360.config import PRESETS
from portrait360.encoder.files import load_encoder
from portrait360.evaluation.pairs import FAR_DEGREES, STEP_DEGREES, generated_pairs, synthetic_pairs, three_yaws
from portrait360.evaluation.sampler import PortraitSampler
from portrait360.geometry.cameras import camera_label, yaw_pitch
from portrait360.portrait.weights import load_weights

MODEL = dataclasses.replace(PRESETS["cpu-64"].model, resolution=128, raw_resolution=128)


def test_the_three_cameras():
    first = torch.linspace(-3, 3, 400)
    yaws = three_yaws(first, torch.Generator().manual_seed(0))
    near, far = ((yaws[k] - first).rad2deg() for k in (1, 2))
    assert torch.allclose(near.abs(), torch.full((400,), STEP_DEGREES), atol=1e-3)
    assert far.abs().min() >= FAR_DEGREES[0] - 1e-3
    assert far.abs().max() <= FAR_DEGREES[1] + 1e-3
    for turn in (near, far):
        assert 0.4 < (turn > 0).float().mean() < 0.6


@pytest.fixture(scope="module")
def pairs(source):
    return synthetic_pairs(source, MODEL, 4, 5, lambda _: None)


def test_synthetic_persons_are_consistent(pairs, tiny_encoder):
    encoder, _ = load_encoder(tiny_encoder)
    found = pairs.measures(encoder)
    assert found["reprojection_agreement"] > 0.95
    assert found["reprojection_depth"] < 0.002
    assert found["reprojection_colour"] < 12.0
    yaw, pitch = yaw_pitch(pairs.first.camera)
    near, tilt = yaw_pitch(pairs.near.camera)
    assert torch.allclose((near - yaw).abs() % (2 * math.pi), torch.full((4,), math.radians(20.0)), atol=0.01)
    assert torch.allclose(pitch, tilt, atol=1e-4)
    # before the model's plain grey
    assert (pairs.first.image[:, :, :4, :4].abs() < 0.02).all()


def test_images_that_follow_the_camera_are_found(pairs, tiny_encoder):
    encoder, _ = load_encoder(tiny_encoder)
    glued = dataclasses.replace(pairs.near, image=pairs.first.image)
    assert (
        dataclasses.replace(pairs, near=glued).measures(encoder)["reprojection_colour"]
        > 1.3 * pairs.measures(encoder)["reprojection_colour"]
    )
    nearer = dataclasses.replace(pairs.near, distance=pairs.near.distance - 0.05)
    assert dataclasses.replace(pairs, near=nearer).measures(encoder)["reprojection_agreement"] < 0.5


def test_masks_and_distances_are_those_of_the_rays(source):
    model = dataclasses.replace(MODEL, raw_resolution=64)
    pairs = synthetic_pairs(source, model, 1, 5, lambda _: None)
    assert pairs.first.image.shape == (1, 3, 128, 128)
    assert pairs.first.mask.shape == pairs.first.distance.shape == (1, 1, 64, 64)


def test_generated_persons(tiny_weights, tiny_encoder):
    generator = load_weights(tiny_weights).generator
    encoder, _ = load_encoder(tiny_encoder)
    cameras = camera_label(torch.linspace(-3, 3, 12), 0.1)
    done = []
    pairs = generated_pairs(PortraitSampler(generator, cameras), 5, 0, done.append, batch=2)
    again = generated_pairs(PortraitSampler(generator, cameras), 5, 0, done.append, batch=2)
    assert sum(done) == 10
    assert torch.equal(pairs.far.image, again.far.image)
    assert pairs.first.camera.shape == (5, 25)
    found = pairs.measures(encoder)
    assert -1.0 <= found["identity_similarity"] <= 1.0
    assert 0.0 <= found["identity_retrieval"] <= 1.0
