"""Laws of rotations: inverses, round trips, smoothness at zero."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.spatial.transform import Rotation

from portrait360.geometry.rotations import axis_angle_to_matrix, geodesic_angle, matrix_to_axis_angle


def random_axis_angles(count: int, longest: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    direction = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator, dtype=torch.float64), dim=-1)
    return direction * torch.rand(count, 1, generator=generator, dtype=torch.float64) * longest


def test_matrices_agree_with_scipy() -> None:
    vectors = random_axis_angles(200, 3 * math.pi)
    expected = torch.from_numpy(Rotation.from_rotvec(vectors.numpy()).as_matrix())
    torch.testing.assert_close(axis_angle_to_matrix(vectors), expected, atol=1e-12, rtol=0)


def test_zero_is_exactly_the_identity() -> None:
    assert torch.equal(axis_angle_to_matrix(torch.zeros(2, 3)), torch.eye(3).expand(2, 3, 3))
    assert torch.equal(matrix_to_axis_angle(torch.eye(3)), torch.zeros(3))


def test_inverse_is_the_negated_vector() -> None:
    vectors = random_axis_angles(50, math.pi)
    product = axis_angle_to_matrix(vectors) @ axis_angle_to_matrix(-vectors)
    torch.testing.assert_close(product, torch.eye(3, dtype=torch.float64).expand_as(product), atol=1e-12, rtol=0)


@pytest.mark.parametrize("angle", [1e-9, 1e-4, 0.02, 0.04, 1.0, 2.0, math.pi - 1e-4, math.pi - 1e-7])
def test_round_trip_through_the_matrix(angle: float) -> None:
    vectors = torch.nn.functional.normalize(random_axis_angles(100, 1.0), dim=-1) * angle
    torch.testing.assert_close(matrix_to_axis_angle(axis_angle_to_matrix(vectors)), vectors, atol=1e-9, rtol=1e-6)


def test_half_turn_keeps_the_axis_up_to_sign() -> None:
    vectors = torch.nn.functional.normalize(random_axis_angles(20, 1.0), dim=-1) * math.pi
    again = matrix_to_axis_angle(axis_angle_to_matrix(vectors))
    torch.testing.assert_close((again * vectors).sum(-1).abs(), torch.full((20,), math.pi**2, dtype=torch.float64))


def test_single_precision_round_trip() -> None:
    vectors = random_axis_angles(500, 3.0).float()
    assert (matrix_to_axis_angle(axis_angle_to_matrix(vectors)) - vectors).abs().max() < 5e-6


@pytest.mark.parametrize("scale", [0.0, 1e-8, 1e-3, 0.0316, 0.8, 3.0])
def test_gradients_are_finite_and_right_around_zero(scale: float) -> None:
    vectors = (random_axis_angles(4, 1.0) * scale).requires_grad_()
    assert torch.autograd.gradcheck(axis_angle_to_matrix, (vectors,))


@pytest.mark.parametrize("scale", [0.0, 1e-7, 0.1, 3.0])
def test_gradients_of_the_way_back(scale: float) -> None:
    vectors = (random_axis_angles(4, 1.0) * scale).requires_grad_()
    jacobian = torch.autograd.functional.jacobian(
        lambda v: matrix_to_axis_angle(axis_angle_to_matrix(v)), vectors[0].detach()
    )
    torch.testing.assert_close(jacobian, torch.eye(3, dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-3, 1.0, 3.0, math.pi])
def test_geodesic_angle_measures_the_turn_between(angle: float) -> None:
    first = axis_angle_to_matrix(random_axis_angles(30, math.pi, seed=1))
    turn = axis_angle_to_matrix(torch.nn.functional.normalize(random_axis_angles(30, 1.0), dim=-1) * angle)
    expected = torch.full((30,), angle, dtype=torch.float64)
    torch.testing.assert_close(geodesic_angle(first, first @ turn), expected, atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(geodesic_angle(first @ turn, first), expected, atol=1e-12, rtol=1e-9)
