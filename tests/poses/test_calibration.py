"""Calibration of the poses that the discriminator sees in real images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from portrait360.geometry.cameras import mirror_body_pose
from portrait360.poses import calibration as module
from portrait360.poses.calibration import (
    calibrated,
    calibration_from,
    calibration_tensors,
    fit_calibration,
    label_shrink,
)


def overconfident(count: int, bias: float = 0.3):
    """True poses; what is seen of them, which holds the sum of two turns and splits it at random; noisy labels."""
    g = torch.Generator().manual_seed(3)
    truth = torch.randn(count, 6, generator=g) * 0.15
    split = torch.randn(count, generator=g) * 0.2
    seen = truth.clone()
    seen[:, 1], seen[:, 4] = truth[:, 1] + split, truth[:, 4] - split
    labels = 0.7 * truth + bias + torch.randn(count, 6, generator=g) * 0.1
    return truth, seen[:, None], labels


def test_labels_tell_how_far_answers_can_be_trusted():
    truth, seen, labels = overconfident(4000)
    found = calibrated(seen, fit_calibration(seen, labels))
    before, after = ((v - truth).square().mean(dim=0) for v in (seen[:, 0], found))
    assert (after[[1, 4]] < 0.5 * before[[1, 4]]).all()
    torch.testing.assert_close(found.mean(dim=0), seen[:, 0].mean(dim=0), atol=0.01, rtol=0)  # not the labels' bias


def test_labels_that_shrink_poses_do_not_shrink_answers():
    truth, seen, labels = overconfident(4000)
    assert label_shrink(seen[:, 0], labels) == pytest.approx(0.7, abs=0.02)  # how a turn is split plays no part
    found = calibrated(seen, fit_calibration(seen, labels))
    slopes = (found * truth).sum(0) / found.square().sum(0)
    torch.testing.assert_close(slopes, torch.ones(6), atol=0.06, rtol=0)
    # labels are never taken for larger than the truth, nor for much smaller
    assert label_shrink(seen[:, 0], 3.0 * labels) == 1.0
    assert label_shrink(seen[:, 0], 0.01 * labels) == 0.5
    assert label_shrink(torch.zeros(5, 6), labels[:5]) == 0.5


def test_bias_of_labels_does_not_matter():
    _, seen, labels = overconfident(500, bias=0.0)
    shifted = labels + torch.tensor([0.5, 0.1, 0.0, -0.2, 0.0, 0.3])
    torch.testing.assert_close(fit_calibration(seen, labels).maps, fit_calibration(seen, shifted).maps)


def test_it_is_least_squares_on_images_and_their_mirror_images(monkeypatch):
    monkeypatch.setattr(module, "RIDGE", 0.0)
    _, seen, labels = overconfident(300)
    seen = seen[:, 0]
    x, y = (v.double() - v.double().mean(0) for v in (seen, labels))
    x, y = (torch.cat([v, mirror_body_pose(v)]).numpy() for v in (x, y))
    expected = np.linalg.lstsq(x, y, rcond=None)[0] / label_shrink(seen, labels)
    mean = (seen + mirror_body_pose(seen)).mean(0).numpy() / 2
    found = fit_calibration(seen[:, None], labels).maps[0].numpy()
    np.testing.assert_allclose(found[:6], expected, atol=1e-5)
    np.testing.assert_allclose(found[6], mean - mean @ expected, atol=1e-5)


def test_left_and_right_are_treated_alike():
    _, seen, labels = overconfident(200)
    found = fit_calibration(seen, labels)
    torch.testing.assert_close(
        calibrated(mirror_body_pose(seen[:, 0])[:, None], found), mirror_body_pose(calibrated(seen, found))
    )


def test_constant_answers_stay_bounded_and_no_calibration_changes_nothing():
    _, seen, labels = overconfident(200)
    still = torch.zeros_like(seen)
    still[:, 0, 0] = torch.linspace(-1e-3, 1e-3, 200)
    assert fit_calibration(still, labels).maps[0].isfinite().all()
    assert torch.equal(calibrated(seen, None), seen[:, 0])


def with_closer_looks(count: int):
    """Answers about the whole image and about two parts, each with errors of its own, the closer the smaller."""
    truth, whole, labels = overconfident(count)
    g = torch.Generator().manual_seed(4)
    nods = torch.tensor([0.3, 0.0, 0.0, 0.3, 0.0, 0.0])
    parts = [truth + nods + torch.randn(count, 6, generator=g) * spread for spread in (0.15, 0.08)]
    return truth, torch.stack([whole[:, 0], *parts], dim=1), labels


def test_closer_looks_make_poses_more_exact_and_leave_their_mean():
    truth, seen, labels = with_closer_looks(4000)
    found = fit_calibration(seen, labels, (1.0, 0.6, 0.4))
    assert found.windows == (1.0, 0.6, 0.4)
    assert [len(m) for m in found.maps] == [7, 13, 19]
    answers = [calibrated(seen[:, : k + 1], found) for k in range(3)]
    off = [(answer - truth - (answer - truth).mean(0)).square().mean() for answer in answers]
    assert off[0] > 1.1 * off[1]
    assert off[1] > 1.1 * off[2]
    for answer in answers:
        torch.testing.assert_close(answer.mean(0), seen[:, 0].mean(0), atol=0.01, rtol=0)
    assert torch.equal(found.maps[0], fit_calibration(seen[:, :1], labels).maps[0])


def test_the_map_of_several_looks_is_least_squares_too(monkeypatch):
    monkeypatch.setattr(module, "RIDGE", 0.0)
    _, seen, labels = with_closer_looks(300)
    x = torch.cat([seen, mirror_body_pose(seen.flatten(0, 1)).view_as(seen)]).double()
    y = torch.cat([labels, mirror_body_pose(labels)]).double()
    for part in (slice(300), slice(300, 600)):
        x[part], y[part] = x[part] - x[part].mean(0), y[part] - y[part].mean(0)
    expected = np.linalg.lstsq(x.flatten(1).numpy(), y.numpy(), rcond=None)[0] / label_shrink(seen[:, 0], labels)
    found = fit_calibration(seen, labels, (1.0, 0.6, 0.4)).maps[2]
    np.testing.assert_allclose(found[:18], expected, atol=1e-5)


def test_files_hold_it_and_damaged_ones_are_refused():
    _, seen, labels = with_closer_looks(50)
    found = fit_calibration(seen, labels, (1.0, 0.6, 0.4))
    tensors = calibration_tensors(found)
    again = calibration_from(tensors)
    assert again.windows == found.windows
    assert all(torch.equal(a, b) for a, b in zip(again.maps, found.maps, strict=True))
    changes = [{"2": tensors["1"]}, {"0": tensors["0"] * float("nan")}, {"3": tensors["2"]}]
    changes += [
        {"windows": torch.tensor(sides)} for sides in ([1.0, 0.4, 0.6], [0.9, 0.6, 0.4], [1.0, 0.6, 0.0], [1.0])
    ]
    for change in changes:
        with pytest.raises(ValueError, match="damaged|parts|windows"):
            calibration_from(tensors | change)
    with pytest.raises(ValueError, match="parts"):
        calibration_from({name: value for name, value in tensors.items() if name != "windows"})
