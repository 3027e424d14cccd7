"""How far generated samples are from real ones: pure functions of arrays, computed in float64.

Features are rows, whatever network made them; nothing here knows where they come from. Random numbers
come from the seed that was given, so that equal arguments give equal results.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.ndimage import convolve1d
from scipy.stats import wasserstein_distance

from portrait360.types import InputError

PATCH = 7
"""Side of the patches of `sliced_wasserstein`, pixels."""
COARSEST = 16
"""Side of the smallest images that `sliced_wasserstein` compares, pixels."""
_BINOMIAL = np.array([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
MOST_AT_ONCE = 2**22
"""Most numbers of a part of a distance matrix or of a batch of images (32 MiB)."""
_ROUNDING = 1e-12
"""Squared distances below this share of the largest squared norm are rounding of equal points."""


class KernelDistance(NamedTuple):
    """Mean and standard deviation over `subsets` pairs of subsets; of one pair the deviation is 0."""

    mean: float
    deviation: float
    subsets: int


class PrecisionRecall(NamedTuple):
    """Improved precision and recall: see `precision_recall`."""

    precision: float
    recall: float


class SlicedWasserstein(NamedTuple):
    """Mean over the levels, and the value of each level by its side in pixels; all times 1000."""

    mean: float
    levels: dict[int, float]


# ---- distributions of features ----


def frechet_distance(a: Float[np.ndarray, "N D"], b: Float[np.ndarray, "M _D"]) -> float:
    """Fréchet distance of two normal distributions with the mean and covariance of the samples (Heusel et al. 2017, 1).

    |mean(a) - mean(b)|² + tr(A + B - 2 (A B)^½), A and B the unbiased covariances. With A = XᵀX and B = YᵀY the last
    trace is the sum of the singular values of X Yᵀ: no root of a matrix, hence nothing complex, and sets smaller than
    their features are wide need no care. 0 or more; both sets may be of any size, but the value falls as they grow.

    Raises:
        InputError: fewer than 2 samples, different widths, numbers that are not finite.
    """
    a, b = _features(a, b)
    root_a, root_b = _covariance_root(a), _covariance_root(b)
    cross = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    means = np.square(a.mean(axis=0) - b.mean(axis=0)).sum()
    return max(0.0, float(means + np.square(root_a).sum() + np.square(root_b).sum() - 2 * cross))


def _covariance_root(samples: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "R D"]:
    """X with XᵀX = the unbiased covariance, R = min(N, D) rows."""
    centred = (samples - samples.mean(axis=0)) / math.sqrt(len(samples) - 1)
    return np.asarray(np.linalg.qr(centred, mode="r")) if len(centred) > centred.shape[1] else centred


def kernel_distance(
    a: Float[np.ndarray, "N D"],
    b: Float[np.ndarray, "M _D"],
    *,
    subset_size: int = 1000,
    subsets: int = 100,
    seed: int = 0,
) -> KernelDistance:
    """Squared maximum mean discrepancy with the kernel (x·y / D + 1)³, unbiased (Bińkowski et al. 2018, 4 and eq. 4).

    Mean over `subsets` draws, without putting back within one, of `subset_size` samples of each set; a smaller set
    is taken whole every time, and two such sets are compared once. Unbiased means that equal distributions give
    values around 0, some of them negative, at any number of samples.

    Raises:
        InputError: fewer than 2 samples, different widths, numbers that are not finite, `subset_size` below 2 or
            `subsets` below 1.
    """
    # Check the arguments.
    a, b = _features(a, b)
    if subset_size < 2 or subsets < 1:
        raise InputError(
            f"{subsets} subsets of {subset_size} samples cannot be compared.", "Give 1 subset of 2 samples or more."
        )

    # Small sets are compared once, larger ones in subsets.
    if len(a) <= subset_size and len(b) <= subset_size:
        return KernelDistance(_squared_discrepancy(a, b), 0.0, 1)
    rng = np.random.default_rng(seed)
    values = [_squared_discrepancy(_subset(a, subset_size, rng), _subset(b, subset_size, rng)) for _ in range(subsets)]
    return KernelDistance(float(np.mean(values)), float(np.std(values)), subsets)


def _subset(samples: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    return samples if len(samples) <= most else samples[rng.choice(len(samples), most, replace=False)]


def _squared_discrepancy(a: Float[np.ndarray, "N D"], b: Float[np.ndarray, "M D"]) -> float:
    """Mean kernel within a and within b, each without the samples with themselves, less twice that between them."""
    within = [(k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in (_kernel(a, a), _kernel(b, b))]
    return float(sum(within) - 2 * _kernel(a, b).mean())


def _kernel(a: Float[np.ndarray, "N D"], b: Float[np.ndarray, "M D"]) -> Float[np.ndarray, "N M"]:
    base = a @ b.T / a.shape[1] + 1
    return np.square(base) * base


def precision_recall(real: Float[np.ndarray, "N D"], fake: Float[np.ndarray, "M _D"], k: int = 3) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al. 2019, eq. 1 and 2).

    A set covers the balls around its samples that reach to their `k`-th nearest neighbour within the set, borders
    included. Precision is the share of `fake` that `real` covers; recall the share of `real` that `fake` covers.
    Distances are Euclidean; less than a millionth of the largest feature vector (from the mean) counts as 0.

    Raises:
        InputError: fewer than k + 1 samples, different widths, numbers that are not finite.
    """
    # Check the arguments, and move both sets to the mean of the real one.
    if k < 1:
        raise InputError(f"there is no {k}-th nearest neighbour.", "k is 1 or more; 3 is usual.")
    real, fake = _features(real, fake, least=k + 1)
    centre = real.mean(axis=0)
    real, fake = real - centre, fake - centre
    tiny = _ROUNDING * max(np.square(x).sum(axis=1).max() for x in (real, fake))

    # Radius of the ball around each sample.
    real_radii, fake_radii = (
        # the nearest of each sample is the sample itself, hence k and not k - 1
        np.concatenate([np.partition(part, k, axis=1)[:, k].copy() for _, part in _squared_distances(x, x, tiny)])
        for x in (real, fake)
    )

    # Count the samples in the balls of the other set.
    precise, recalled = np.zeros(len(fake), dtype=bool), np.zeros(len(real), dtype=bool)
    for rows, part in _squared_distances(fake, real, tiny):
        precise[rows] = (part <= real_radii).any(axis=1)
        recalled |= (part <= fake_radii[rows, None]).any(axis=0)
    return PrecisionRecall(float(precise.mean()), float(recalled.mean()))


def _squared_distances(
    a: Float[np.ndarray, "N D"], b: Float[np.ndarray, "M D"], tiny: float
) -> Iterator[tuple[slice, np.ndarray]]:
    """The matrix |a - b|², some rows at a time; what is below `tiny` is 0."""
    norms = np.square(b).sum(axis=1)
    for rows in _row_parts(len(a), len(b)):
        part = a[rows] @ b.T
        part *= -2
        part += norms
        part += np.square(a[rows]).sum(axis=1, keepdims=True)
        part[part < tiny] = 0
        yield rows, part


# ---- images ----


def sliced_wasserstein(
    real: Float[np.ndarray, "N 3 S S"],
    fake: Float[np.ndarray, "M 3 _S _S"],
    *,
    patches: int = 16,
    projections: int = 128,
    seed: int = 0,
) -> SlicedWasserstein:
    """Sliced Wasserstein distance of the patches of Laplacian pyramids (Karras et al. 2018, Progressive Growing, 5).

    1. The larger set is cut to the size of the smaller one, by drawing images without putting back.
    2. Each image becomes a Laplacian pyramid with the 5 x 5 binomial filter, mirrored at the borders: S, S/2, ...
       pixels, down to the last side of 16 or more; each level less the enlarged next one, the coarsest as it is.
    3. From each image and level, `patches` squares of 7 x 7 pixels at uniformly drawn places, the same places in
       the n-th image of both sets.
    4. Per level, set and colour channel the patches are shifted and scaled to mean 0 and deviation 1. So a shift of
       colour or contrast that all images share does not count.
    5. Per level, the patches (147 numbers each) of both sets are projected on the same `projections` directions,
       uniform on the sphere; the value is the mean over directions of the one-dimensional Wasserstein-1 distance
       (mean absolute difference of the sorted projections), times 1000.

    Differs from the paper's program by the number of patches (128 there) and directions (512 there), which take
    minutes on a laptop, and by the same places in both sets, which makes equal sets give 0. Two samples of one
    distribution give more than 0, the more so the fewer they are: compare values at one number of images only.

    The images lie in [-1, 1] and are square, of one side of at least 16 pixels. All random numbers follow `seed`.

    Raises:
        InputError: fewer than 2 images, other shapes, numbers that are not finite.
    """
    # Check the arguments.
    _check_image_sets(real, fake)
    if patches < 1 or projections < 1:
        raise InputError(f"{patches} patches and {projections} directions give no value.", "Give 1 or more of each.")

    # Cut both sets to one size, and draw the places of the patches.
    rng = np.random.default_rng(seed)
    count = min(len(real), len(fake))
    real, fake = _subset(real, count, rng), _subset(fake, count, rng)
    sides = _level_sides(real.shape[-1])
    places = [rng.integers(0, side - PATCH + 1, (2, count, patches)) for side in sides]

    # Compare the projections of each level's patches.
    levels = {}
    for side, a, b in zip(sides, _pyramid_patches(real, places), _pyramid_patches(fake, places), strict=True):
        directions = rng.standard_normal((3 * PATCH * PATCH, projections))
        directions /= np.linalg.norm(directions, axis=0)
        sorted_a, sorted_b = (np.sort(directions.T @ _normalised(x).T, axis=1) for x in (a, b))
        levels[side] = float(1000 * np.abs(sorted_a - sorted_b).mean())
    return SlicedWasserstein(float(np.mean(list(levels.values()))), levels)


def _level_sides(side: int) -> list[int]:
    """Sides of a pyramid's levels: halved as long as that leaves whole pixels, and enough of them."""
    sides = [side]
    while sides[-1] % 2 == 0 and sides[-1] // 2 >= COARSEST:
        sides.append(sides[-1] // 2)
    return sides


def _pyramid_patches(images: np.ndarray, places: list[np.ndarray]) -> list[Float[np.ndarray, "P 3 49"]]:
    """Per level, the patches whose upper left corners are at the rows and columns of `places` (2, N, patches)."""
    found: list[list[np.ndarray]] = [[] for _ in places]
    across, step = np.arange(PATCH), max(1, MOST_AT_ONCE // images[0].size)
    for start in range(0, len(images), step):
        level = images[start : start + step].astype(np.float64)
        for number, (rows, columns) in enumerate(place[:, start : start + step] for place in places):
            smaller = level
            if number + 1 < len(places):
                smaller = _blurred(level)[..., ::2, ::2]
                enlarged = np.zeros_like(level)
                enlarged[..., ::2, ::2] = 4 * smaller
                level = level - _blurred(enlarged)
            image = np.arange(len(level)).reshape(-1, 1, 1, 1, 1)
            y, x = rows[..., None, None, None] + across[:, None], columns[..., None, None, None] + across
            taken = level[image, np.arange(3).reshape(3, 1, 1), y, x]
            found[number].append(taken.reshape(-1, 3, PATCH * PATCH))
            level = smaller
    return [np.concatenate(parts) for parts in found]


def _blurred(images: np.ndarray) -> np.ndarray:
    for axis in (2, 3):
        images = convolve1d(images, _BINOMIAL, axis=axis, mode="mirror")
    return images


def _normalised(patches: Float[np.ndarray, "P 3 49"]) -> Float[np.ndarray, "P 147"]:
    """Patches with mean 0 and deviation 1 in every colour channel."""
    centred = patches - patches.mean(axis=(0, 2), keepdims=True)
    deviation = centred.std(axis=(0, 2), keepdims=True)
    return (centred / np.where(deviation > 0, deviation, 1)).reshape(len(patches), -1)


# ---- embeddings, angles, columns ----


def retrieval_top1(query: Float[np.ndarray, "N D"], gallery: Float[np.ndarray, "_N _D"]) -> float:
    """Share of queries whose own row of the gallery is the most similar of all rows, by cosine.

    Row i of both belong together. A tie with another row is a miss, so that equal embeddings score 0.

    Raises:
        InputError: fewer than 2 rows, different shapes, an embedding of length 0, numbers that are not finite.
    """
    _check_shapes(query, gallery)
    query, gallery = _unit_rows("queries", query), _unit_rows("gallery", gallery)
    hits = 0
    for rows in _row_parts(len(query), len(gallery)):
        cosines = query[rows] @ gallery.T
        own = (np.arange(len(cosines)), np.arange(len(gallery))[rows])
        similarity = cosines[own]
        cosines[own] = -np.inf
        hits += int((similarity > cosines.max(axis=1) + _ROUNDING).sum())
    return hits / len(query)


def circular_error(a: Float[np.ndarray, "*S"], b: Float[np.ndarray, "*_S"]) -> Float[np.ndarray, "*S"]:
    """Angle between two directions, element by element: 0 to pi, from angles in radians with any number of turns.

    Raises:
        InputError: different shapes, numbers that are not finite.
    """
    _check_shapes(a, b)
    for name, angles in (("first", a), ("second", b)):
        _check_finite(f"{name} angles", angles)
    difference = np.abs(a.astype(np.float64) - b.astype(np.float64)) % (2 * math.pi)
    return np.minimum(difference, 2 * math.pi - difference)


def wasserstein_1d(a: Float[np.ndarray, "N D"], b: Float[np.ndarray, "M _D"]) -> Float[np.ndarray, " D"]:
    """Wasserstein-1 distance of each column on its own, in the unit of the column: the area between both distributions.

    Raises:
        InputError: fewer than 2 samples, different widths, numbers that are not finite.
    """
    a, b = _features(a, b)
    return np.array([wasserstein_distance(x, y) for x, y in zip(a.T, b.T, strict=True)])


# ---- checks ----


def _features(a: np.ndarray, b: np.ndarray, least: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Both sets in float64, checked."""
    for name, samples in (("first", a), ("second", b)):
        _check_samples(f"{name} features", samples, least)
    if a.shape[1:] != b.shape[1:]:
        raise InputError(
            f"one set has {a.shape[1]} numbers a sample, the other {b.shape[1]}.", "Take both from the same network."
        )
    return a.astype(np.float64), b.astype(np.float64)


def _unit_rows(name: str, rows: np.ndarray) -> np.ndarray:
    _check_samples(name, rows, 2)
    rows = rows.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not lengths.all():
        raise InputError(f"the {name} hold a row of zeros, which has no direction.", "Leave that sample out.")
    return rows / lengths


def _check_samples(name: str, samples: np.ndarray, least: int) -> None:
    if len(samples) < least:
        raise InputError(f"the {name} hold {len(samples)} samples, at least {least} are needed.", "Give more samples.")
    _check_finite(name, samples)


def _check_finite(name: str, numbers: np.ndarray) -> None:
    if not np.isfinite(numbers).all():
        raise InputError(f"the {name} hold numbers that are not finite.", "Find out which sample they come from.")


def _check_shapes(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape != b.shape:
        raise InputError(
            f"rows belong together, but one array is {list(a.shape)}, the other {list(b.shape)}.",
            "Give both in the same order and number.",
        )


def _check_image_sets(real: np.ndarray, fake: np.ndarray) -> None:
    """Raise InputError unless both sets hold square colour images of one size."""
    for name, images in (("real", real), ("generated", fake)):
        side = images.shape[-1]
        if images.ndim != 4 or images.shape[1:] != (3, side, side) or side < COARSEST:
            raise InputError(
                f"the {name} images are {list(images.shape)}, expected [count, 3, S, S] with S >= {COARSEST}.",
                "Give square colour images.",
            )
        _check_samples(f"{name} images", images, 2)
    if real.shape[-1] != fake.shape[-1]:
        raise InputError(
            f"the real images have {real.shape[-1]} pixels a side, the generated ones {fake.shape[-1]}.",
            "Scale them to one size first.",
        )


def _row_parts(rows: int, columns: int) -> Iterator[slice]:
    """Row ranges whose part of a rows x columns matrix stays below `MOST_AT_ONCE` entries."""
    step = max(1, MOST_AT_ONCE // columns)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
