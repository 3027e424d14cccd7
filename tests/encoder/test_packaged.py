"""The encoder in the package, on six synthetic persons from four sides each that it was not trained on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from portrait360.encoder.files import DEFAULT_ENCODER
from tools.encoder_accuracy import measure_encoder

PEOPLE = Path(__file__).parents[1] / "support" / "people.zip"
"""dataset synth --count 24 --resolution 128 --seed 20004 --views 4"""


@pytest.fixture(scope="module")
def result():
    return measure_encoder(PEOPLE)


def test_it_is_small():
    assert DEFAULT_ENCODER.stat().st_size <= 8_000_000


def test_it_sees_where_persons_were_taken_from(result):
    found = result["plain"]["sectors"]["all"]
    assert found["pictures"] == 24
    assert found["yaw"] < 8.0
    assert found["pitch"] < 7.0
    assert found["roll"] < 3.0
    assert found["scale"] < 5.0
    assert found["offset"] < 4.0


def test_it_sees_outlines_and_persons(result):
    assert result["plain"]["sectors"]["all"]["overlap"] > 0.94
    assert result["plain"]["retrieval"] > 0.6


def test_images_like_photos_are_harder_but_not_hopeless(result):
    found = result["photo_like"]["sectors"]["all"]
    assert found["yaw"] < 16.0
    assert found["overlap"] > 0.85


def test_it_sees_how_heads_are_turned(result):
    """Better than guessing no turn at all."""
    from portrait360.data.dataset import PortraitDataset
    from portrait360.evaluation.measures import rotation_errors

    poses = PortraitDataset(PEOPLE, labels="exact").body_poses
    none = rotation_errors(torch.zeros_like(poses), poses).rad2deg().median(0).values
    found = result["plain"]["sectors"]["all"]
    assert found["neck"] < none[0]
    assert found["head"] < none[1]
