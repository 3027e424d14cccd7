"""Schedules at their ends and in between (equations 10.2, 10.3, 10.6, 10.7, 10.11)."""

from __future__ import annotations

import dataclasses

import pytest

from portrait360.config import PRESETS, TrainingConfig, original_recipe
from portrait360.training import schedules

CONFIG = TrainingConfig()


@pytest.mark.parametrize(("images", "expected"), [(0, 1.0), (500_000, 0.85), (1_000_000, 0.7), (9_000_000, 0.7)])
def test_swap_probability(images, expected):
    assert schedules.swap_probability(images, CONFIG) == pytest.approx(expected)


@pytest.mark.parametrize(("images", "expected"), [(0, 10.0), (100_000, 5.0), (200_000, 0.0), (300_000, 0.0)])
def test_blur(images, expected):
    assert schedules.blur_sigma(images, CONFIG) == pytest.approx(expected)


@pytest.mark.parametrize(("images", "expected"), [(0, 1.0), (50_000, 0.75), (200_000, 0.0)])
def test_density_noise(images, expected):
    assert schedules.density_noise(images, CONFIG) == pytest.approx(expected)


@pytest.mark.parametrize(("images", "expected"), [(0, 0.5), (200_000, 0.5), (300_000, 0.25), (400_000, 0.0)])
def test_pose_regularisation(images, expected):
    assert schedules.pose_regularisation(images, CONFIG) == pytest.approx(expected)


@pytest.mark.parametrize(("images", "expected"), [(0, 0.0), (100_000, 0.0), (112_500, 0.5), (900_000, 1.0)])
def test_refined_share(images, expected):
    config = dataclasses.replace(CONFIG, pose_refine_kimg=100.0)
    assert schedules.refined_share(images, config) == pytest.approx(expected)
    assert schedules.refined_share(images, CONFIG) == 0.0


def test_average_ramps_up_to_its_half_life():
    """At 10 kimg half-life, 32 images keep 0.5^(32/10000); early the half-life is 5 % of the images shown."""
    assert schedules.ema_beta(10_000_000, CONFIG) == pytest.approx(0.5 ** (32 / 10_000))
    assert schedules.ema_beta(1000, CONFIG) == pytest.approx(0.5 ** (32 / 50))
    constant = dataclasses.replace(CONFIG, ema_rampup=None)
    assert schedules.ema_beta(0, constant) == pytest.approx(0.5 ** (32 / 10_000))


def test_learning_rate_decays_only_at_the_end():
    config = dataclasses.replace(CONFIG, total_kimg=100.0, lr_decay_kimg=20.0)
    assert schedules.learning_rate_factor(80_000, config) == pytest.approx(1.0)
    assert schedules.learning_rate_factor(90_000, config) == pytest.approx(0.55)
    assert schedules.learning_rate_factor(100_000, config) == pytest.approx(0.1)
    assert schedules.learning_rate_factor(100_000, CONFIG) == 1.0


@pytest.mark.parametrize(
    ("images", "expected"),
    [(0, 64), (10_000_000, 64), (10_250_000, 80), (10_500_000, 96), (11_000_000, 128), (13_000_000, 128)],
)
def test_raw_resolution_of_the_published_stages(images, expected):
    model = PRESETS["original-512"].model
    assert schedules.raw_resolution(images, model, original_recipe(model)) == expected
    assert schedules.raw_resolution(images, model, CONFIG) == 64


def test_raw_resolution_is_rounded_to_whole_pixels():
    model = PRESETS["original-256"].model
    sides = [schedules.raw_resolution(i, model, original_recipe(model)) for i in range(10_000_000, 11_000_001, 7000)]
    assert sides == sorted(sides)
    assert set(sides) == set(range(64, 129))


@pytest.mark.parametrize(("images", "expected"), [(0, True), (5_999_999, True), (6_000_000, False)])
def test_the_pose_branch_learns_in_the_first_stage_only(images, expected):
    assert schedules.trains_pose_branch(images, original_recipe(PRESETS["cpu-64"].model)) is expected
    assert schedules.trains_pose_branch(images, CONFIG)
