"""Labels of photos against the truth."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from PIL import Image

from portrait360.data.writer import open_writer
from portrait360.geometry.cameras import camera_label
from portrait360.types import DatasetError
from tools.photo_accuracy import measure
from tools.synthetic_photos import TRUTH_FILE, TRUTH_FOLDER

YAWS = (0.0, 90.0, 180.0)
SIDE = 64


def write_photos(folder, *, yaw_error: float = 0.0, shift: float = 0.0, turn: float = 0.0):
    """Three photos from the front, the left and the back, the last one rejected, and a dataset with these errors."""
    (folder / "photos" / TRUTH_FOLDER).mkdir(parents=True)
    square = np.zeros((200, 200), np.uint8)
    square[80:140, 70:130] = 255
    truths, photos = {}, []
    with open_writer(
        folder / "d.zip", resolution=SIDE, meta={"generator": "test", "label_kind": "estimated"}
    ) as writer:
        for i, yaw in enumerate(YAWS):
            name = f"{i}.png"
            Image.fromarray(square).save(folder / "photos" / TRUTH_FOLDER / name)
            camera = camera_label(math.radians(yaw))[0]
            pose = np.array([0.1, 0, 0, 0, 0.2, 0], np.float32)
            truths[name] = {
                "centre": [100.0, 110.0],
                "side": 100.0,
                "camera": camera.tolist(),
                "body_pose": pose.tolist(),
            }
            crop = {"x": 100.0 + shift, "y": 110.0, "side": 100.0}
            accepted = i < 2
            people = [{"outcome": "accepted" if accepted else "rejected", "crop": crop, "images": []}]
            if accepted:
                people[0]["images"] = [f"images/00000/{len(writer):08d}.webp"]
                part = np.asarray(Image.fromarray(square).crop((50, 60, 150, 160)).resize((SIDE, SIDE)))
                seen = camera_label(math.radians(yaw + yaw_error))[0].numpy()
                writer.add(np.zeros((SIDE, SIDE, 3), np.uint8), part, seen, pose + np.float32([0, 0, 0, 0, turn, 0]))
            photos.append({"name": name, "reason": None if accepted else "blurred", "people": people})
    (folder / "photos" / TRUTH_FOLDER / TRUTH_FILE).write_text(json.dumps(truths))
    (folder / "d.report.json").write_text(json.dumps({"photos": photos}))
    return folder / "photos", folder / "d.zip"


def test_exact_labels_have_no_error(tmp_path):
    result = measure(*write_photos(tmp_path))
    front = result["sectors"]["front"]
    assert front["photos"] == 1
    assert front["accepted"] == 1.0
    assert max(front[c] for c in ("yaw", "pitch", "neck", "head", "neck_joint", "side")) < 0.1
    assert front["overlap"] > 0.9
    assert result["sectors"]["back"]["accepted"] == 0.0
    assert result["sectors"]["back"]["yaw"] is None
    assert result["sectors"]["all"]["accepted"] == pytest.approx(2 / 3, abs=1e-3)
    assert result["rejected"] == {"blurred": 1}


def test_errors_are_found(tmp_path):
    """10 degrees of yaw, 5 of the crop's 100 pixels to the right, 0.1 radians of turn of the head."""
    row = measure(*write_photos(tmp_path, yaw_error=10.0, shift=5.0, turn=0.1))["sectors"]["front half"]
    assert row["yaw"] == pytest.approx(10.0, abs=0.05)
    assert row["neck_joint"] == pytest.approx(5.0, abs=0.1)
    assert row["head"] == pytest.approx(math.degrees(0.1), abs=0.05)
    assert row["neck"] < 0.05


def test_other_reports_are_refused(tmp_path):
    folder, dataset = write_photos(tmp_path)
    (tmp_path / "d.report.json").write_text(json.dumps({"photos": []}))
    with pytest.raises(DatasetError, match="other photos"):
        measure(folder, dataset)
    (tmp_path / "d.report.json").write_text("{")
    with pytest.raises(DatasetError, match="no report"):
        measure(folder, dataset)
