"""Bad input for the pose command: one clear sentence, a hint, exit status 2, and nothing half-written."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from portrait360.geometry.cameras import camera_label
from support.bad_input import check

CAMERA = camera_label(0.3)[0].tolist()


@pytest.fixture
def photo(tmp_path) -> Path:
    """An image that is complete: photo.png, photo.mask.png and photo.json."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    Image.fromarray(pixels[..., 0]).save(tmp_path / "photo.mask.png")
    write_camera(tmp_path, CAMERA)
    return tmp_path / "photo.png"


def write_camera(folder: Path, camera: object) -> None:
    (folder / "photo.json").write_text(json.dumps({"camera": camera}))


def changed(index: int, value: object) -> list[object]:
    return [value if i == index else number for i, number in enumerate(CAMERA)]


def refuse(capfd, folder: Path, sentence: str, *words: object, weights: Path) -> None:
    """`portrait360 pose` fails politely, with and without a file to write."""
    command = ["pose", *map(str, words), "--weights", str(weights)]
    check(capfd, folder, command, sentence)
    check(capfd, folder, [*command, "--out", str(folder / "new" / "poses.json")], sentence)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda d: (d / "photo.png").unlink(), "there is no image, folder or zip at .*photo.png"),
        (lambda d: (d / "photo.png").write_text("hello"), "photo.png is not a readable image"),
        (lambda d: (d / "photo.png").write_bytes(b""), "photo.png is not a readable image"),
        (lambda d: (d / "photo.png").write_bytes((d / "photo.png").read_bytes()[:300]), "photo.png is not a readable"),
        (lambda d: Image.new("RGB", (24, 20)).save(d / "photo.png"), "photo.png has 24x20 pixels; expected a square"),
        (lambda d: (d / "photo.json").unlink(), "nobody was found in .*photo.png, and there is no camera"),
        (lambda d: (d / "photo.json").write_text("{camera: 1}"), "photo.json is not valid JSON"),
        (lambda d: (d / "photo.json").write_bytes(b"\xff\xfe\x00"), "photo.json is not valid JSON"),
        (lambda d: (d / "photo.json").write_text('{"views": []}'), "photo.json holds no camera"),
        (lambda d: (d / "photo.json").write_text("[1, 2]"), "photo.json holds no camera"),
        (lambda d: write_camera(d, CAMERA[:16]), "must be a list of 25 numbers, not 16 entries"),
        (lambda d: write_camera(d, CAMERA + [0.0] * 6), "must be a list of 25 numbers, not 31 entries"),
        (lambda d: write_camera(d, "front"), "must be a list of 25 numbers, not a str"),
        (lambda d: write_camera(d, changed(3, "x")), "photo.json holds something that is not a number"),
        (lambda d: write_camera(d, changed(3, True)), "photo.json holds something that is not a number"),
        (lambda d: write_camera(d, changed(3, float("nan"))), "photo.json holds NaN, infinity"),
        (lambda d: write_camera(d, changed(16, float("inf"))), "photo.json holds NaN, infinity"),
        (lambda d: write_camera(d, changed(0, 5.0)), "photo.json has a camera whose 3x3 part is not a rotation"),
        (lambda d: write_camera(d, changed(12, 1.0)), "photo.json has a camera-to-world matrix whose last row"),
        (lambda d: write_camera(d, changed(16, -6.5)), "photo.json has wrong intrinsics"),
        (lambda d: (d / "photo.mask.png").unlink(), "there is no mask for .*photo.png"),
        (lambda d: (d / "photo.mask.png").write_text("hello"), "photo.mask.png is not a readable image"),
        (lambda d: Image.new("L", (12, 12)).save(d / "photo.mask.png"), "the mask of .*photo.png has 12x12 pixels"),
    ],
)
def test_an_image_that_is_incomplete(capfd, tmp_path, tiny_weights, photo, damage: Callable, sentence):
    damage(tmp_path)
    refuse(capfd, tmp_path, sentence, photo, weights=tiny_weights)


def test_one_bad_image_among_good_ones(capfd, tmp_path, tiny_weights, photo):
    (tmp_path / "other.png").write_bytes(photo.read_bytes())
    refuse(capfd, tmp_path, "nobody was found in .*other.png", photo, tmp_path, weights=tiny_weights)


def test_what_is_no_image(capfd, tmp_path, tiny_weights):
    (tmp_path / "notes.txt").write_text("mine")
    refuse(capfd, tmp_path, "notes.txt is not an image", tmp_path / "notes.txt", weights=tiny_weights)
    refuse(capfd, tmp_path, "holds neither images nor a dataset.json or result.json", tmp_path, weights=tiny_weights)
    (tmp_path / "a.zip").write_bytes(b"PK")
    refuse(capfd, tmp_path, "a.zip is not a zip file", tmp_path / "a.zip", weights=tiny_weights)


def test_no_image_at_all(capfd, tmp_path):
    check(capfd, tmp_path, ["pose"], "something is missing: IMAGE")


# ---- datasets ----


def unpack(dataset: Path, folder: Path) -> None:
    with zipfile.ZipFile(dataset) as archive:
        archive.extractall(folder)


def relabel(folder: Path, change: Callable[[list], None]) -> None:
    """Change the rows of a dataset's label files."""
    for name in ("dataset.json", "exact.json"):
        content = json.loads((folder / name).read_text())
        change(content["labels"])
        (folder / name).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda rows: rows[2][1].pop(), "has 30 numbers; expected 31"),
        (lambda rows: rows[2][1].__setitem__(5, float("nan")), "holds NaN"),
        (lambda rows: rows.pop(), "have no label in dataset.json"),
    ],
)
@pytest.mark.parametrize("single", [True, False])
def test_datasets_with_wrong_labels(capfd, tmp_path, tiny_weights, tiny_dataset, change, sentence, single):
    unpack(tiny_dataset, tmp_path / "data")
    relabel(tmp_path / "data", change)
    path = tmp_path / "data" / ("images/00000/00000001.webp" if single else "")
    refuse(capfd, tmp_path, sentence, path, weights=tiny_weights)


def test_a_dataset_without_masks(capfd, tmp_path, tiny_weights, tiny_dataset):
    unpack(tiny_dataset, tmp_path / "data")
    for mask in (tmp_path / "data" / "masks").rglob("*.png"):
        mask.unlink()
    refuse(capfd, tmp_path, "data has no masks, without which", tmp_path / "data", weights=tiny_weights)


def test_a_mask_of_a_dataset_is_no_image(capfd, tmp_path, tiny_weights, tiny_dataset):
    unpack(tiny_dataset, tmp_path / "data")
    path = tmp_path / "data/masks/00000/00000001.png"
    refuse(capfd, tmp_path, "is not among the images of the dataset", path, weights=tiny_weights)


# ---- test data of the original ----


@pytest.fixture
def test_data(tmp_path, photo) -> Path:
    """The complete image in the original's layout."""
    root = tmp_path / "test_data"
    for folder, file in (("aligned_images", photo), ("mask", tmp_path / "photo.mask.png")):
        (root / folder).mkdir(parents=True)
        file.rename(root / folder / "photo.png")
    (tmp_path / "photo.json").unlink()
    write_result(root, {"photo.png": {"camera_pose": [CAMERA[4 * i : 4 * i + 4] for i in range(4)]}})
    return root


def write_result(root: Path, content: object) -> None:
    (root / "result.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda d: (d / "result.json").write_text("{"), "result.json in .* is not valid JSON"),
        (lambda d: write_result(d, []), "there is no camera for photo.png in result.json"),
        (lambda d: write_result(d, {"other.png": {}}), "there is no camera for photo.png in result.json"),
        (lambda d: write_result(d, {"photo.png": {}}), "there is no camera for photo.png in result.json"),
        (lambda d: write_result(d, {"photo.png": {"camera_pose": CAMERA[:16]}}), "camera_pose that is not 4 rows of 4"),
        (lambda d: write_result(d, {"photo.png": {"camera_pose": [[1.0] * 4] * 3}}), "camera_pose that is not 4 rows"),
        (lambda d: write_result(d, {"photo.png": {"camera_pose": [[float("nan")] * 4] * 4}}), "holds NaN"),
        (lambda d: write_result(d, {"photo.png": {"camera_pose": [["x"] * 4] * 4}}), "not a number"),
        (lambda d: write_result(d, {"photo.png": {"camera_pose": [[1.0] * 4] * 4}}), "3x3 part is not a rotation"),
        (lambda d: (d / "mask" / "photo.png").unlink(), "there is no mask for .*photo.png"),
        (lambda d: Image.new("L", (9, 9)).save(d / "mask" / "photo.png"), "the mask of .*photo.png has 9x9 pixels"),
        (lambda d: (d / "aligned_images" / "photo.png").write_text("x"), "photo.png in .* is not a readable image"),
    ],
)
@pytest.mark.parametrize("single", [True, False])
def test_test_data_that_are_incomplete(capfd, tmp_path, tiny_weights, test_data, damage, sentence, single):
    damage(test_data)
    path = test_data / "aligned_images" / "photo.png" if single else test_data
    refuse(capfd, tmp_path, sentence, path, weights=tiny_weights)


def test_test_data_without_images(capfd, tmp_path, tiny_weights, test_data):
    (test_data / "aligned_images" / "photo.png").unlink()
    refuse(capfd, tmp_path, "has no images in aligned_images/", test_data, weights=tiny_weights)


# ---- weights, and places to write ----


def test_wrong_weights(capfd, tmp_path, photo):
    refuse(capfd, tmp_path, "no weights file", photo, weights=tmp_path / "none.safetensors")
    torch.save({"D": torch.zeros(3)}, tmp_path / "pickled.safetensors")
    refuse(capfd, tmp_path, "not a readable safetensors file", photo, weights=tmp_path / "pickled.safetensors")


@pytest.mark.parametrize(
    ("out", "sentence"),
    [
        ("poses.txt", "--out must be a .json file"),
        ("poses", "--out must be a .json file"),
        ("/", "--out must be a .json file"),
        ("folder.json", "expected a file but .*folder.json is a folder"),
        ("blocked.json", "expected a file but .*blocked.overlay.png is a folder"),
        ("/proc/poses.json", "there can be no file at /proc/poses.json"),
        ("photo.png/poses.json", "expected a folder but .*photo.png is a file"),
        ("photo.json", "photo.json is one of the files to read"),
        ("../{0}/photo.json", "photo.json is one of the files to read"),
    ],
)
def test_places_that_cannot_be_written(capfd, tmp_path, tiny_weights, photo, out, sentence):
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "blocked.overlay.png").mkdir()
    place = tmp_path / out.format(tmp_path.name)
    check(capfd, tmp_path, ["pose", str(photo), "--weights", str(tiny_weights), "--out", str(place)], sentence)


def test_an_overlay_over_an_image(capfd, tmp_path, tiny_weights, photo):
    for file in ("photo.png", "photo.json"):
        (tmp_path / file).rename(tmp_path / file.replace("photo", "poses.overlay"))
    (tmp_path / "photo.mask.png").rename(tmp_path / "poses.overlay.mask.png")
    words = ["pose", str(tmp_path / "poses.overlay.png"), "--weights", str(tiny_weights)]
    check(capfd, tmp_path, [*words, "--out", str(tmp_path / "poses.json")], "poses.overlay.png is one of the files")


def test_a_failing_write_leaves_nothing(capfd, tmp_path, tiny_weights, photo, monkeypatch):
    from portrait360.apps import pose

    def full(path: Path, content: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(pose, "write_json", full)
    words = ["pose", str(photo), "--weights", str(tiny_weights), "--out", str(tmp_path / "new" / "poses.json")]
    check(capfd, tmp_path, words, "the disk is full")
