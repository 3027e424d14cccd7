"""`dataset inspect`: numbers and warnings on whether labels belong to their images."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from portrait360.apps.inspect import inspect
from portrait360.cli.main import main
from portrait360.data.layout import encode_labels
from portrait360.geometry.cameras import mirror_camera
from support.bad_input import check

PEOPLE = Path(__file__).parents[1] / "support" / "people.zip"


@pytest.fixture(autouse=True)
def few_overlays(monkeypatch) -> None:
    monkeypatch.setattr("portrait360.data.inspect.OVERLAYS", 1)


def with_labels(path: Path, change) -> Path:
    """The people with their label array changed."""
    with zipfile.ZipFile(PEOPLE) as source, zipfile.ZipFile(path, "w") as archive:
        for name in source.namelist():
            content = source.read(name)
            if name == "dataset.json":
                entries = json.loads(content)["labels"]
                array = change(np.array([label for _, label in entries]))
                content = encode_labels([image for image, _ in entries], array)
            archive.writestr(name, content)
    return path


def mirror(array: np.ndarray) -> np.ndarray:
    import torch

    array[:, :25] = mirror_camera(torch.from_numpy(array[:, :25])).numpy()
    return array


def test_right_labels(tmp_path, capsys):
    assert main(["dataset", "inspect", str(PEOPLE), "--out", str(tmp_path / "out")]) == 0
    output = capsys.readouterr()
    assert "warning" not in output.err
    last = output.out.splitlines()[-1]
    what = "sheet.png, overlay.png and more of 24 images"
    assert last.startswith(f"{tmp_path / 'out'}  {what}; next: portrait360 train --data {PEOPLE} ")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["label_check"]["images"] == 24
    assert summary["label_check"]["bodies_met"] == 1.0
    assert summary["label_check"]["warnings"] == []


def test_mirrored_images_give_a_warning_and_all_files(tmp_path, capsys):
    path = with_labels(tmp_path / "mirrored.zip", mirror)
    summary = inspect(path, tmp_path / "out", progress=False)
    assert "warning: the images are mirrored but their labels are not" in capsys.readouterr().err
    assert summary["label_check"]["mirrored"] == 1.0
    assert (tmp_path / "out" / "sheet.png").is_file()


def test_other_conventions_are_refused_with_the_command(tmp_path, capfd):
    def opengl(array: np.ndarray) -> np.ndarray:
        array[:, [1, 2, 5, 6, 9, 10]] *= -1.0
        return array

    path = with_labels(tmp_path / "opengl.zip", opengl)
    words = ["dataset", "inspect", str(path), "--out", str(tmp_path / "out")]
    check(capfd, tmp_path, words, "the camera axes are OpenGL's")
    assert main(words) == 2
    assert f"portrait360 dataset convert {path} --axes opengl --out " in capfd.readouterr().err


def test_histograms_of_an_earlier_dataset_do_not_stay(tmp_path):
    out = tmp_path / "out"
    inspect(PEOPLE, out, progress=False)
    assert (out / "pose_histogram.png").is_file()
    (out / "mine.png").write_bytes(b"stays")
    inspect(with_labels(tmp_path / "cameras.zip", lambda array: array[:, :25]), out, progress=False)
    assert not (out / "pose_histogram.png").exists()
    assert (out / "mine.png").is_file()
