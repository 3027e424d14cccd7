"""Body-pose labels as a real estimator would give them: shrunk, biased and noisy.

A model that is trained on exact labels overfits to them and meets errors only in photos, so synthetic datasets can
carry noisy (coarse) labels for training beside the exact ones for measuring.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from portrait360.types import HEAD_NOD, NECK_NOD, InputError

SHRINK = 0.7
"""Estimators turn the head too little; both axis-angles are multiplied by this."""

BIAS_NOD_DEGREES = 5.0
"""Estimators see people looking down; added to the +X component (nod) of neck and head."""

_STREAM = 0x6C61626C
"""Third word of the random seed: keeps the label noise apart from what is sampled from [seed, index]."""


def coarse_body_poses(
    exact: Float[ndarray, "N 6"],
    noise_degrees: float,
    seed: int,
    bias_nod_degrees: float = BIAS_NOD_DEGREES,
    shrink: float = SHRINK,
) -> Float[ndarray, "N 6"]:
    """Body poses with the errors of a real estimator.

    Args:
        exact: exact body poses (neck axis-angle, head axis-angle), radians; row i is image i.
        noise_degrees: standard deviation of the Gaussian noise on each component, degrees, at least 0.
        seed: seed of the dataset, at least 0. Row i depends on (seed, i, exact[i]) only, not on N.
        bias_nod_degrees: degrees of nod (+X) added to neck and head.
        shrink: factor on both axis-angles, applied before bias and noise.

    Returns:
        Coarse body poses, float32, radians.

    Raises:
        InputError: the noise is negative or not a number, or the seed is negative.
    """
    # Check the arguments.
    if not (np.isfinite(noise_degrees) and noise_degrees >= 0):
        raise InputError(
            f"the label noise must be a number of degrees of at least 0, not {noise_degrees}.",
            "Give for instance `label_noise=4`, or leave it out for exact labels.",
        )
    if seed < 0:
        raise InputError(f"the seed must be at least 0, not {seed}.", "Give for instance `seed=1`.")

    # Shrink, nod, and add noise row by row.
    coarse = shrink * exact.astype(np.float64)
    coarse[:, [NECK_NOD, HEAD_NOD]] += np.deg2rad(bias_nod_degrees)
    for index, row in enumerate(coarse):
        noise = np.random.default_rng([seed, index, _STREAM]).standard_normal(6)
        row += np.deg2rad(noise_degrees) * noise
    return coarse.astype(np.float32)
