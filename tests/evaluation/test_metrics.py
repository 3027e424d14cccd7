"""Distances between sets against brute force, against libraries, and against the laws that they obey."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.linalg

from portrait360.evaluation import metrics
from portrait360.evaluation.metrics import (
    circular_error,
    frechet_distance,
    kernel_distance,
    precision_recall,
    retrieval_top1,
    sliced_wasserstein,
    wasserstein_1d,
)
from portrait360.types import InputError


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def mixed(count: int, width: int, seed: int) -> np.ndarray:
    """Correlated features with a mean."""
    return normal(count, width, seed=seed) @ normal(width, width, seed=seed + 1) + normal(width, seed=seed + 2)


def squared(x: np.ndarray, y: np.ndarray) -> float:
    return sum((float(p) - float(q)) ** 2 for p, q in zip(x, y, strict=True))


@pytest.fixture
def in_parts(monkeypatch):
    """Everything that is done in parts takes many of them."""
    monkeypatch.setattr(metrics, "MOST_AT_ONCE", 50)


# ---- Fréchet ----


@pytest.mark.parametrize(("n", "m"), [(200, 150), (40, 300), (20, 17)])
def test_frechet_is_the_formula_with_a_root_of_a_matrix(n, m):
    a, b = mixed(n, 12, 0), mixed(m, 12, 5)
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
    expected = squared(a.mean(0), b.mean(0)) + sum(np.trace(c) for c in covariances) - 2 * np.trace(root).real
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance`:UserWarning")  # that it keeps all features
def test_frechet_and_kernel_distance_are_those_of_torchmetrics():
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    class Flat(torch.nn.Module):
        num_features = 12

        def forward(self, images):
            return images.flatten(1)

    a, b = mixed(90, 12, 0), mixed(70, 12, 0) + normal(70, 12, seed=9)
    frechet = FrechetInceptionDistance(feature=Flat(), input_img_size=(3, 2, 2)).set_dtype(torch.float64)
    kernel = KernelInceptionDistance(feature=Flat(), subsets=1, subset_size=70, degree=3, coef=1.0)
    for metric in (frechet, kernel.set_dtype(torch.float64)):
        metric.update(torch.from_numpy(a[: 70 if metric is kernel else 90]).reshape(-1, 3, 2, 2), real=True)
        metric.update(torch.from_numpy(b).reshape(-1, 3, 2, 2), real=False)
    assert frechet_distance(a, b) == pytest.approx(float(frechet.compute()), rel=1e-6)
    assert kernel_distance(a[:70], b).mean == pytest.approx(float(kernel.compute()[0]), rel=1e-6)


def test_frechet_of_known_distributions():
    """Moved: the squared distance. Scaled by s: (s - 1)² times the trace. Fewer samples than numbers do not matter."""
    a = mixed(30, 50, 0)
    assert frechet_distance(a, a + 3) == pytest.approx(9 * 50)
    scaled = a.mean(0) + 1.5 * (a - a.mean(0))
    assert frechet_distance(a, scaled) == pytest.approx(0.25 * np.trace(np.cov(a, rowvar=False)))


@pytest.mark.parametrize(("n", "width"), [(200, 8), (10, 64), (2, 30)])
def test_frechet_of_equal_sets_is_zero_and_never_negative(n, width):
    a = 100 * mixed(n, width, 3)
    size = np.trace(np.cov(a, rowvar=False))
    assert 0 <= frechet_distance(a, a) <= 1e-12 * size
    assert 0 <= frechet_distance(a, a[::-1]) <= 1e-12 * size
    assert frechet_distance(np.ones((5, 3)), np.ones((4, 3))) == 0


def test_frechet_takes_low_precision_without_losing_any():
    a, b = mixed(50, 6, 0).astype(np.float32), mixed(60, 6, 1).astype(np.float16)
    assert frechet_distance(a, b) == frechet_distance(a.astype(float), b.astype(float))


# ---- kernel ----


def test_kernel_distance_is_the_formula_in_loops():
    a, b = mixed(7, 5, 0), mixed(9, 5, 4)

    def kernel(x, y):
        return (sum(float(p) * float(q) for p, q in zip(x, y, strict=True)) / 5 + 1) ** 3

    expected = -2 * sum(kernel(x, y) for x in a for y in b) / (7 * 9)
    for s in (a, b):
        expected += sum(kernel(x, y) for x, y in itertools.permutations(s, 2)) / (len(s) * (len(s) - 1))
    result = kernel_distance(a, b)
    assert result.mean == pytest.approx(expected)
    assert (result.deviation, result.subsets) == (0, 1)


def test_kernel_distance_has_no_bias_at_any_size():
    """Over many pairs of halves of one distribution the mean is 0 within its error, and some values are negative."""
    for size in (5, 40):
        values = [kernel_distance(*np.split(normal(2 * size, 6, seed=seed), 2)).mean for seed in range(400)]
        assert abs(np.mean(values)) < 4 * np.std(values) / math.sqrt(len(values))
        assert min(values) < 0 < max(values)


def test_kernel_distance_over_subsets_scatters_around_that_of_all():
    a, b = normal(300, 6, seed=1), normal(250, 6, seed=2) + 0.5
    whole = kernel_distance(a, b)
    parts = kernel_distance(a, b, subset_size=50, subsets=200, seed=3)
    assert parts.subsets == 200
    assert parts.deviation > 0
    assert parts.mean == pytest.approx(whole.mean, abs=4 * parts.deviation / math.sqrt(200))
    assert parts == kernel_distance(a, b, subset_size=50, subsets=200, seed=3)
    assert parts.mean != kernel_distance(a, b, subset_size=50, subsets=200, seed=4).mean


def test_subsets_hold_no_sample_twice():
    """All but one of the samples: every subset leaves one out, so the deviation is tiny."""
    a, b = normal(100, 4, seed=1), normal(100, 4, seed=2) + 2
    assert kernel_distance(a, b, subset_size=99, subsets=20).deviation < 0.05 * kernel_distance(a, b).mean


# ---- precision and recall ----


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.usefixtures("in_parts")
def test_precision_and_recall_are_the_definition_in_loops(k):
    real, fake = normal(24, 3, seed=0), 0.8 * normal(31, 3, seed=1) + 1.2

    def share(samples, balls):
        radii = [sorted(squared(x, y) for y in balls)[k] for x in balls]
        return np.mean([any(squared(s, x) <= r for x, r in zip(balls, radii, strict=True)) for s in samples])

    result = precision_recall(real, fake, k)
    assert result.precision == pytest.approx(share(fake, real))
    assert result.recall == pytest.approx(share(real, fake))
    assert 0 < result.precision < 1
    assert 0 < result.recall < 1


def test_dropped_modes_lower_recall_and_noise_lowers_precision():
    modes = 20 * np.eye(4)[np.arange(400) % 4]
    real, fake = modes + normal(400, 4, seed=0), modes + normal(400, 4, seed=1)
    same = precision_recall(real, fake)
    dropped = precision_recall(real, fake[np.arange(400) % 4 < 2])
    noisy = precision_recall(real, np.concatenate([fake[:200], fake[200:] + 8 * normal(200, 4, seed=2)]))
    assert min(same) > 0.8
    assert dropped.recall == pytest.approx(0.5 * same.recall, abs=0.06)
    assert dropped.precision > 0.8
    assert noisy.precision < 0.65
    assert noisy.recall > 0.8


def test_precision_and_recall_of_equal_sets_are_one_with_copies_in_them():
    a = np.repeat(normal(10, 5) + 1000, 5, axis=0)
    assert precision_recall(a, a) == (1, 1)
    assert precision_recall(a, a + 1e-3) == (0, 0)  # four copies beside each sample: balls of radius 0


# ---- all distances of features ----


@pytest.mark.parametrize("distance", [frechet_distance, lambda a, b: kernel_distance(a, b).mean])
def test_distances_are_symmetric_and_do_not_see_the_order(distance):
    a, b = mixed(40, 6, 0), mixed(50, 6, 7)
    assert distance(a, b) == pytest.approx(distance(b, a))
    assert distance(np.random.default_rng(0).permutation(a), b[::-1]) == pytest.approx(distance(a, b))


def test_precision_and_recall_change_places_and_do_not_see_the_order():
    a, b = normal(40, 3, seed=0), 0.7 * normal(50, 3, seed=1)
    assert precision_recall(a, b) == precision_recall(b, a)[::-1]
    assert precision_recall(np.random.default_rng(0).permutation(a), b[::-1]) == precision_recall(a, b)


@pytest.mark.parametrize("distance", [frechet_distance, lambda a, b: kernel_distance(a, b).mean])
def test_distances_grow_with_a_shift_and_with_noise(distance):
    a, b, noise = normal(300, 5, seed=0), normal(300, 5, seed=1), normal(300, 5, seed=2)
    shifts = [distance(a, b + s) for s in (0, 0.5, 1, 2)]
    noises = [distance(a, b + s * noise) for s in (0, 1, 2, 4)]
    assert shifts == sorted(shifts)
    assert noises == sorted(noises)


BAD = {
    "one sample": (normal(1, 4), normal(9, 4), "at least"),
    "one sample in the second": (normal(9, 4), normal(1, 4), "second"),
    "widths": (normal(9, 4), normal(9, 5), "5"),
    "not a number": (np.full((9, 4), np.nan), normal(9, 4), "not finite"),
    "infinite": (normal(9, 4), np.full((9, 4), np.inf), "not finite"),
}


@pytest.mark.parametrize("function", [frechet_distance, kernel_distance, precision_recall, wasserstein_1d])
@pytest.mark.parametrize("name", BAD)
def test_bad_features_are_refused_clearly(function, name):
    a, b, words = BAD[name]
    with pytest.raises(InputError, match=words) as caught:
        function(a, b)
    assert caught.value.hint


@pytest.mark.parametrize(
    "call",
    [
        lambda: precision_recall(normal(3, 4), normal(9, 4)),
        lambda: precision_recall(normal(9, 4), normal(9, 4), 0),
        lambda: kernel_distance(normal(3, 4), normal(9, 4), subset_size=1),
        lambda: kernel_distance(normal(3, 4), normal(9, 4), subsets=0),
        lambda: retrieval_top1(normal(3, 4), normal(4, 4)),
        lambda: retrieval_top1(np.full((3, 4), np.nan), normal(3, 4)),
        lambda: circular_error(normal(3), normal(4)),
        lambda: circular_error(normal(3), np.full(3, np.inf)),
        lambda: sliced_wasserstein(normal(1, 3, 16, 16), normal(2, 3, 16, 16)),
        lambda: sliced_wasserstein(normal(2, 3, 16, 16), normal(2, 3, 32, 32)),
        lambda: sliced_wasserstein(normal(2, 3, 15, 15), normal(2, 3, 15, 15)),
        lambda: sliced_wasserstein(normal(2, 3, 16, 16), np.full((2, 3, 16, 16), np.nan)),
        lambda: sliced_wasserstein(normal(2, 3, 16, 16), normal(2, 3, 16, 16), patches=0),
    ],
)
def test_bad_arguments_are_refused_clearly(call):
    with pytest.raises(InputError) as caught:
        call()
    assert caught.value.message
    assert caught.value.hint


# ---- sliced Wasserstein ----


def mirrored_index(i: int, side: int) -> int:
    return -i if i < 0 else 2 * (side - 1) - i if i >= side else i


def blurred_in_loops(channel: np.ndarray) -> np.ndarray:
    weights, side = [1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16], len(channel)
    result = np.zeros_like(channel)
    for y, x, j, i in itertools.product(range(side), range(side), range(-2, 3), range(-2, 3)):
        value = channel[mirrored_index(y + j, side), mirrored_index(x + i, side)]
        result[y, x] += weights[j + 2] * weights[i + 2] * value
    return result


def test_sliced_wasserstein_is_the_description_in_loops():
    real, fake = np.tanh(normal(2, 3, 32, 32, seed=0)), np.tanh(2 * normal(2, 3, 32, 32, seed=1))
    result = sliced_wasserstein(real, fake, patches=3, projections=4, seed=5)
    rng = np.random.default_rng(5)
    places = [rng.integers(0, side - 6, (2, 2, 3)) for side in (32, 16)]
    directions = [rng.standard_normal((147, 4)) for _ in places]
    patches: dict = {}
    for name, images in (("real", real), ("fake", fake)):
        levels = np.zeros((2, 3, 32, 32)), np.zeros((2, 3, 16, 16))
        for n, c in itertools.product(range(2), range(3)):
            smaller = blurred_in_loops(images[n, c])[::2, ::2]
            spread = np.zeros((32, 32))
            spread[::2, ::2] = smaller
            levels[0][n, c], levels[1][n, c] = images[n, c] - 4 * blurred_in_loops(spread), smaller
        for number, level in enumerate(levels):
            found = []
            for n, p in itertools.product(range(2), range(3)):
                y, x = places[number][:, n, p]
                found.append(level[n, :, y : y + 7, x : x + 7])
            taken = np.array(found)
            for c in range(3):
                taken[:, c] = (taken[:, c] - taken[:, c].mean()) / taken[:, c].std()
            patches[name, number] = taken.reshape(6, 147)
    for number, side in enumerate((32, 16)):
        distances = []
        for d in directions[number].T:
            unit = d / np.linalg.norm(d)
            pairs = zip(sorted(patches["real", number] @ unit), sorted(patches["fake", number] @ unit), strict=True)
            distances.append(np.mean([abs(p - q) for p, q in pairs]))
        assert result.levels[side] == pytest.approx(1000 * np.mean(distances))
    assert result.mean == pytest.approx(np.mean(list(result.levels.values())))


@pytest.mark.parametrize(
    ("side", "levels"), [(64, [64, 32, 16]), (16, [16]), (17, [17]), (48, [48, 24]), (40, [40, 20]), (31, [31])]
)
def test_levels_go_down_to_16_pixels(side, levels):
    result = sliced_wasserstein(normal(2, 3, side, side), normal(3, 3, side, side, seed=1))
    assert list(result.levels) == levels
    assert min(result.levels.values()) > 0


def textured(count: int, seed: int, smooth: int = 3) -> np.ndarray:
    noise = normal(count, 3, 32, 32, seed=seed)
    for axis, _ in itertools.product((2, 3), range(smooth)):
        noise = 0.5 * noise + 0.5 * np.roll(noise, 1, axis)
    return np.clip(noise, -1, 1).astype(np.float32)


def test_sliced_wasserstein_of_equal_sets_is_zero_and_it_is_symmetric(monkeypatch):
    a, b = textured(12, 0), textured(12, 1, smooth=1)
    assert sliced_wasserstein(a, a).mean == 0
    whole = sliced_wasserstein(a, b)
    assert whole.mean == pytest.approx(sliced_wasserstein(b, a).mean)
    monkeypatch.setattr(metrics, "MOST_AT_ONCE", 2 * a[0].size)
    assert sliced_wasserstein(a, b).mean == pytest.approx(whole.mean)


def test_sliced_wasserstein_sees_the_texture_and_the_level_where_it_changed():
    real = textured(150, 0)
    same, coarser = sliced_wasserstein(real, textured(150, 1)), sliced_wasserstein(real, textured(150, 1, smooth=12))
    assert coarser.mean > 1.5 * same.mean
    stripes = textured(150, 1) + 0.5 * (np.arange(32) % 2).astype(np.float32)
    striped = sliced_wasserstein(real, stripes)
    assert striped.levels[32] > 3 * same.levels[32]
    assert striped.levels[16] < 2 * same.levels[16]


def test_sliced_wasserstein_hardly_sees_order_and_number():
    real, fake = textured(150, 0), textured(150, 1, smooth=8)
    value = sliced_wasserstein(real, fake).mean
    assert sliced_wasserstein(real[::-1], fake).mean == pytest.approx(value, rel=0.15)
    assert sliced_wasserstein(real, fake[:120]).mean == pytest.approx(value, rel=0.2)
    assert sliced_wasserstein(real, fake, seed=1).mean == pytest.approx(value, rel=0.15)


def test_images_of_one_colour_give_numbers():
    assert sliced_wasserstein(np.ones((2, 3, 16, 16)), -np.ones((2, 3, 16, 16))).mean == 0


# ---- embeddings, angles, columns ----


@pytest.mark.usefixtures("in_parts")
def test_retrieval_counts_rows_whose_own_partner_is_nearest():
    gallery = normal(30, 8)
    assert retrieval_top1(3 * gallery + 0.01 * normal(30, 8, seed=1), gallery) == 1
    swapped = gallery[[1, 0, *range(2, 30)]]
    assert retrieval_top1(swapped, gallery) == pytest.approx(28 / 30)
    query = gallery + 1.2 * normal(30, 8, seed=2)
    similar = [[q @ g / np.linalg.norm(g) for g in gallery] for q in query]
    expected = np.mean([np.argmax(row) == i for i, row in enumerate(similar)])
    assert retrieval_top1(query, gallery) == pytest.approx(expected)
    assert 0 < expected < 1


def test_retrieval_among_equal_embeddings_finds_nothing():
    assert retrieval_top1(np.ones((5, 4)), np.ones((5, 4))) == 0


def test_circular_error_wraps():
    degrees = np.radians
    a, b = degrees(np.array([[179.0, 10.0], [-170.0, 90.0]])), degrees(np.array([[-179.0, 370.0], [170.0, -90.0]]))
    np.testing.assert_allclose(circular_error(a, b), degrees(np.array([[2.0, 0.0], [20.0, 180.0]])), atol=1e-12)
    x, y = 20 * normal(200, seed=0), 20 * normal(200, seed=1)
    np.testing.assert_allclose(circular_error(x, y), np.abs(np.angle(np.exp(1j * (x - y)))), atol=1e-12)
    np.testing.assert_array_equal(circular_error(x, y), circular_error(y, x))
    np.testing.assert_array_equal(circular_error(x, x), 0)


def test_wasserstein_of_columns_is_the_area_between_distributions():
    a, b = normal(6, 3, seed=0), 2 * normal(9, 3, seed=1) + 1
    for column, value in enumerate(wasserstein_1d(a, b)):
        p, q = np.repeat(np.sort(a[:, column]), 3), np.repeat(np.sort(b[:, column]), 2)  # 18 quantiles of each
        assert value == pytest.approx(np.abs(p - q).mean())
    np.testing.assert_allclose(wasserstein_1d(a, a + np.array([1, 2, -3])), [1, 2, 3])
    np.testing.assert_array_equal(wasserstein_1d(a, a[::-1]), 0)
    np.testing.assert_allclose(wasserstein_1d(a, b), wasserstein_1d(b, a))
