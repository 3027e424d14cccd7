"""Converting datasets: labels come right, everything else stays byte for byte."""

from __future__ import annotations

import json
import shlex
import zipfile
from pathlib import Path

import numpy as np
import pytest

from portrait360.cli.main import main
from portrait360.data.conventions import Conventions
from portrait360.data.convert import convert_dataset
from portrait360.data.dataset import PortraitDataset
from portrait360.data.layout import encode_labels
from portrait360.types import DatasetError, InputError
from support.fake_portraits import write_fake_dataset
from support.foreign_labels import foreign

SIDE = 32
WRONG = {
    "opengl": Conventions(axes="opengl"),
    "w2c": Conventions(matrix="w2c"),
    "pixels": Conventions(intrinsics="pixels"),
    "degrees": Conventions(pose="degrees"),
    "all": Conventions("opengl", "w2c", "pixels", "degrees"),
}


@pytest.fixture(scope="module")
def right(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("right") / "right.zip"
    write_fake_dataset(path, 12, SIDE, coarse=True)
    return path


def contents(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def relabelled(right: Path, out: Path, conventions: Conventions, side: int = SIDE, *, exact: bool = False) -> Path:
    """The dataset with dataset.json (and exact.json) in other conventions."""
    files = contents(right)
    for name in ("dataset.json", "exact.json") if exact else ("dataset.json",):
        entries = json.loads(files[name])["labels"]
        array = foreign(np.array([label for _, label in entries]), conventions, side)
        files[name] = encode_labels([image for image, _ in entries], array)
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out


@pytest.mark.parametrize("name", WRONG)
def test_the_command_of_the_error_mends_the_dataset(name, right, tmp_path, monkeypatch, capsys):
    wrong = relabelled(right, tmp_path / "wrong.zip", WRONG[name])
    before = wrong.read_bytes()
    with pytest.raises(DatasetError) as caught:
        PortraitDataset(wrong)
    program, *words = shlex.split(caught.value.hint.split("`")[1])
    assert program == "portrait360"
    assert main(words) == 0
    out = tmp_path / "wrong-converted.zip"
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(f"{out}  12 images with labels")
    assert f"next: portrait360 dataset inspect {out} --out " in line
    mended, wanted = PortraitDataset(out), PortraitDataset(right)
    assert mended.cameras.numpy() == pytest.approx(wanted.cameras.numpy(), abs=2e-6)
    assert mended.body_poses.numpy() == pytest.approx(wanted.body_poses.numpy(), abs=2e-6)
    files, original = contents(out), contents(right)
    assert files.keys() == original.keys()
    assert [key for key in files if files[key] != original[key] and key != "dataset.json"] == []
    assert wrong.read_bytes() == before


def test_exact_labels_are_converted_where_they_are_wrong_too(right, tmp_path):
    wrong = relabelled(right, tmp_path / "wrong.zip", WRONG["w2c"], exact=True)
    convert_dataset(wrong, tmp_path / "out.zip", WRONG["w2c"], progress=False)
    mended, wanted = (PortraitDataset(path, labels="exact") for path in (tmp_path / "out.zip", right))
    assert mended.cameras.numpy() == pytest.approx(wanted.cameras.numpy(), abs=2e-6)


def test_intrinsics_in_pixels_of_larger_images(right, tmp_path):
    """Which were averaged down since, as training data often are."""
    wrong = relabelled(right, tmp_path / "wrong.zip", WRONG["pixels"], side=1024)
    convert_dataset(wrong, tmp_path / "out.zip", WRONG["pixels"], progress=False)
    wanted = PortraitDataset(right).cameras.numpy()
    assert PortraitDataset(tmp_path / "out.zip").cameras.numpy() == pytest.approx(wanted, abs=2e-6)


@pytest.mark.parametrize(
    ("given", "words", "hint"),
    [
        (Conventions(), "by their numbers the matrices map world to camera", "--matrix w2c"),
        (Conventions(axes="opengl"), "by their numbers the matrices map world to camera", "--matrix w2c"),
    ],
)
def test_other_flags_than_the_labels_need_are_refused_and_leave_nothing(right, tmp_path, given, words, hint):
    wrong = relabelled(right, tmp_path / "wrong.zip", WRONG["w2c"])
    with pytest.raises(DatasetError) as caught:
        convert_dataset(wrong, tmp_path / "out.zip", given, progress=False)
    assert words in caught.value.message
    assert hint in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.zip"]


def test_right_labels_need_no_flags(right, tmp_path):
    with pytest.raises(DatasetError, match="follow the conventions as they are"):
        convert_dataset(right, tmp_path / "out.zip", Conventions(axes="opengl"), progress=False)
    convert_dataset(right, tmp_path / "copy.zip", progress=False)
    assert contents(tmp_path / "copy.zip") == contents(right)


def test_places_that_cannot_be(right, tmp_path):
    with pytest.raises(InputError, match="is the dataset itself"):
        convert_dataset(right, right, progress=False)
    with pytest.raises(InputError, match="must be a .zip file"):
        convert_dataset(right, tmp_path / "folder", progress=False)
    with pytest.raises(DatasetError, match="there is no dataset"):
        convert_dataset(tmp_path / "missing.zip", tmp_path / "out.zip", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_becomes_a_zip(right, tmp_path):
    with zipfile.ZipFile(right) as archive:
        archive.extractall(tmp_path / "folder")
    assert convert_dataset(tmp_path / "folder", tmp_path / "out.zip", progress=False) == 12
    assert contents(tmp_path / "out.zip") == contents(right)
