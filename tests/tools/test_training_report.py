"""Curves and sheets of a run."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from portrait360.types import InputError
from tools.training_report import curves_image, progress_image


def test_curves_show_every_series(tmp_path):
    names = ("d_loss", "g_loss", "real_logit", "fake_logit", "r1", "pose_loss", "coarse_error")
    # curves that do not cover each other
    lines = [{"images": i * 1000, **{name: 0.5 * k + i for k, name in enumerate(names)}} for i in range(1, 9)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    image = np.asarray(curves_image(tmp_path / "log.jsonl")).astype(int)
    assert image.shape == (760, 1520, 3)
    warmth = image[..., 0] - image[..., 2]
    for line in (warmth > 20, warmth < -20):  # orange, blue
        counts = [half.sum() for half in np.array_split(line, 2, axis=1)]
        assert min(counts) > 200, counts


def test_progress_keeps_first_and_last_sheet(tmp_path):
    for i in range(10):
        Image.new("RGB", (64, 64), (i * 20, 0, 0)).save(tmp_path / f"turn-{i * 1000:010d}.png")
    image = np.asarray(progress_image(tmp_path, most=3))
    reds = {int(v) for v in image[:, 5, 0]}
    assert {0, 180} <= reds
    assert len(reds & set(range(0, 200, 20))) == 3


def test_runs_without_anything_are_refused(tmp_path):
    with pytest.raises(InputError, match="no training log"):
        curves_image(tmp_path / "log.jsonl")
    with pytest.raises(InputError, match="no image sheets"):
        progress_image(tmp_path)
