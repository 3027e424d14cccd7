"""Rotations as axis-angle vectors and 3x3 matrices, smooth and exact at the identity."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

_SERIES_BELOW = 1e-3
"""Squared angle under which power series (error below 1e-12) replace the trigonometric forms."""


def axis_angle_to_matrix(axis_angle: Float[Tensor, "*shape 3"]) -> Float[Tensor, "*shape 3 3"]:
    """Rotation matrices of axis-angle vectors (radians), by Rodrigues' formula.

    Smooth everywhere, zero included; the zero vector gives exactly the identity.
    """
    square = axis_angle.square().sum(-1)
    small = square < _SERIES_BELOW
    angle = torch.where(small, torch.ones_like(square), square).sqrt()
    half = 0.5 * angle
    sine = torch.where(small, 1 - square / 6 + square.square() / 120 - square**3 / 5040, angle.sin() / angle)
    # (1 - cos a) / a^2 written with the half angle, which does not cancel for small angles
    cosine = torch.where(
        small,
        0.5 - square / 24 + square.square() / 720 - square**3 / 40320,
        0.5 * (half.sin() / half).square(),
    )
    cross = cross_matrix(axis_angle)
    identity = torch.eye(3, dtype=axis_angle.dtype, device=axis_angle.device)
    return identity + sine[..., None, None] * cross + cosine[..., None, None] * (cross @ cross)


def cross_matrix(vector: Float[Tensor, "*shape 3"]) -> Float[Tensor, "*shape 3 3"]:
    """The skew matrix K with K u = vector x u."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    rows = [zero, -z, y, z, zero, -x, -y, x, zero]
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def matrix_to_axis_angle(matrix: Float[Tensor, "*shape 3 3"]) -> Float[Tensor, "*shape 3"]:
    """Axis-angle vectors (radians, length at most pi) of rotation matrices.

    Goes through the unit quaternion computed from its largest component, so that angles near 0 and near pi
    are equally accurate. At exactly pi one of the two opposite vectors is returned.
    """
    # Products of the quaternion's components.
    m = matrix
    trace = m[..., 0, 0] + m[..., 1, 1] + m[..., 2, 2]
    # row i holds 4 q_i (q_0, q_1, q_2, q_3): the products of component i with all others
    skew = [m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]]
    xy, xz, yz = m[..., 0, 1] + m[..., 1, 0], m[..., 0, 2] + m[..., 2, 0], m[..., 1, 2] + m[..., 2, 1]
    diagonal = [1 + 2 * m[..., i, i] - trace for i in range(3)]
    candidates = torch.stack(
        [
            torch.stack([1 + trace, *skew], dim=-1),
            torch.stack([skew[0], diagonal[0], xy, xz], dim=-1),
            torch.stack([skew[1], xy, diagonal[1], yz], dim=-1),
            torch.stack([skew[2], xz, yz, diagonal[2]], dim=-1),
        ],
        dim=-2,
    )

    # Divide by the largest component.
    largest = torch.diagonal(candidates, dim1=-2, dim2=-1).argmax(-1)
    chosen = candidates.gather(-2, largest[..., None, None].expand(*largest.shape, 1, 4)).squeeze(-2)
    quaternion = chosen / torch.linalg.vector_norm(chosen, dim=-1, keepdim=True)
    quaternion = torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)

    # The half angle's sine and cosine to the angle.
    real, imaginary = quaternion[..., 0], quaternion[..., 1:]
    square = imaginary.square().sum(-1)
    small = square < 1e-12
    length = torch.where(small, torch.ones_like(square), square).sqrt()
    factor = torch.where(small, 2 + square / 3, 2 * torch.atan2(length, real) / length)
    return factor[..., None] * imaginary


def geodesic_angle(first: Float[Tensor, "*shape 3 3"], second: Float[Tensor, "*shape 3 3"]) -> Float[Tensor, "*shape"]:
    """Angle (radians, 0 to pi) of the rotation that takes `first` to `second`; accurate near 0 and pi."""
    relative = first.transpose(-1, -2) @ second
    vee = torch.stack(
        [
            relative[..., 2, 1] - relative[..., 1, 2],
            relative[..., 0, 2] - relative[..., 2, 0],
            relative[..., 1, 0] - relative[..., 0, 1],
        ],
        dim=-1,
    )
    trace = relative[..., 0, 0] + relative[..., 1, 1] + relative[..., 2, 2]
    return torch.atan2(torch.linalg.vector_norm(vee, dim=-1), trace - 1)
