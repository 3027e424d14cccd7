"""Calibration of the poses that the discriminator sees in real pictures."""

from __future__ import annotations

import numpy as np
import torch

from portrait360.geometry.cameras import mirror_body_pose
from portrait360.model import calibration as module
from portrait360.model.calibration import calibrated, fit_calibration


def overconfident(count: int, bias: float = 0.3):
    """True poses; what is seen of them, which holds the sum of two turns and splits it at random; coarse labels."""
    g = torch.Generator().manual_seed(3)
    truth = torch.randn(count, 6, generator=g) * 0.15
    split = torch.randn(count, generator=g) * 0.2
    seen = truth.clone()
    seen[:, 1], seen[:, 4] = truth[:, 1] + split, truth[:, 4] - split
    labels = 0.7 * truth + bias + torch.randn(count, 6, generator=g) * 0.1
    return truth, seen, labels


def test_labels_tell_how_far_answers_can_be_trusted():
    truth, seen, labels = overconfident(4000)
    found = calibrated(seen, fit_calibration(seen, labels))
    before, after = ((v - truth).square().mean(dim=0) for v in (seen, found))
    assert (after[[1, 4]] < 0.5 * before[[1, 4]]).all()
    torch.testing.assert_close(found.mean(dim=0), seen.mean(dim=0), atol=0.01, rtol=0)  # not the labels' bias


def test_bias_of_labels_does_not_matter():
    _, seen, labels = overconfident(500, bias=0.0)
    shifted = labels + torch.tensor([0.5, 0.1, 0.0, -0.2, 0.0, 0.3])
    torch.testing.assert_close(fit_calibration(seen, labels), fit_calibration(seen, shifted))


def test_it_is_least_squares_on_pictures_and_their_mirror_images(monkeypatch):
    monkeypatch.setattr(module, "RIDGE", 0.0)
    _, seen, labels = overconfident(300)
    x, y = (v.double() - v.double().mean(0) for v in (seen, labels))
    x, y = (torch.cat([v, mirror_body_pose(v)]).numpy() for v in (x, y))
    expected = np.linalg.lstsq(x, y, rcond=None)[0]
    mean = (seen + mirror_body_pose(seen)).mean(0).numpy() / 2
    found = fit_calibration(seen, labels).numpy()
    np.testing.assert_allclose(found[:6], expected, atol=1e-5)
    np.testing.assert_allclose(found[6], mean - mean @ expected, atol=1e-5)


def test_left_and_right_are_treated_alike():
    _, seen, labels = overconfident(200)
    found = fit_calibration(seen, labels)
    torch.testing.assert_close(calibrated(mirror_body_pose(seen), found), mirror_body_pose(calibrated(seen, found)))


def test_constant_answers_stay_bounded_and_no_calibration_changes_nothing():
    _, seen, labels = overconfident(200)
    still = torch.zeros_like(seen)
    still[:, 0] = torch.linspace(-1e-3, 1e-3, 200)
    assert fit_calibration(still, labels).isfinite().all()
    assert calibrated(seen, None) is seen
