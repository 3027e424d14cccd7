"""Regressing poses on labels learns what the images show."""

from __future__ import annotations

import json
import math

import pytest
import torch

from portrait360.config import PRESETS
from portrait360.geometry.cameras import camera_label
from portrait360.types import DatasetError
from support.fake_portraits import write_fake_dataset
from tools import pose_regression
from tools.pose_regression import Labelled, errors, main, predict, regress

MODEL = PRESETS["cpu-64"].model


class Bars(Labelled):
    """Images of a bar that rises with the nod."""

    def __init__(self, count):
        g = torch.Generator().manual_seed(count)
        self.poses = torch.zeros(count, 6)
        self.poses[:, 0] = torch.randn(count, generator=g) * 0.2
        rows = torch.linspace(-0.6, 0.6, 64)[None, :, None].expand(count, 64, 64)
        inside = (rows < self.poses[:, :1, None]).float()[:, None]
        self.images, self.masks = (inside * 255).byte().expand(-1, 3, -1, -1), (inside * 255).byte()
        self.cameras = camera_label(torch.zeros(count))


@pytest.mark.slow
def test_it_learns_a_pose_that_shows(monkeypatch):
    monkeypatch.setattr(pose_regression, "WARMUP", 10)
    monkeypatch.setattr(pose_regression, "BATCH", 8)
    train, held = Bars(256), Bars(100)
    network = regress(train, MODEL, 40)
    found = errors(predict(network, held), held.poses)
    resting = errors(torch.zeros(100, 6), held.poses)
    assert found["neck"] < 0.5 * resting["neck"]


def test_errors_are_angles_and_axes():
    seen = torch.zeros(50, 6)
    seen[:, 4] = math.radians(10)
    found = errors(seen, torch.zeros(50, 6))
    assert found["neck"] == 0
    assert found["head"] == pytest.approx(10, abs=0.01)
    assert found["bias"] == [0, 0, 0, 0, pytest.approx(10, abs=0.01), 0]
    assert found["deviation"][4] == pytest.approx(0, abs=0.01)


def test_the_command_writes_what_it_measured_and_refuses_small_images(tmp_path, capsys):
    data = tmp_path / "d.zip"
    write_fake_dataset(data, coarse=True)
    with pytest.raises(DatasetError, match="smaller than 64"):
        main(data, data, steps=1)
    large = tmp_path / "l.zip"
    write_fake_dataset(large, coarse=True, resolution=64)
    main(large, large, labels="exact", steps=2, out=tmp_path / "o.json")
    assert json.loads((tmp_path / "o.json").read_text())["labels"] == "exact"
    assert "neck" in capsys.readouterr().out
