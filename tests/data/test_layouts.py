"""Datasets as the tools of EG3D, PanoHead and 3DPortraitGAN, and programs on Windows, write them."""

from __future__ import annotations

import io
import json
import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from portrait360.cli.main import main
from portrait360.data.dataset import PortraitDataset
from portrait360.geometry.cameras import camera_label
from portrait360.types import DatasetError

COUNT, SIDE = 5, 24


def png(seed: int, mode: str) -> bytes:
    """An image whose pixels tell it from all others; a mask is white where the image's first channel is high."""
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    image = Image.fromarray(pixels) if mode == "RGB" else Image.fromarray((pixels[..., 0] > 127).astype(np.uint8) * 255)
    image.save(buffer, "PNG")
    return buffer.getvalue()


def cameras(look_at: tuple[float, float, float], focal: float) -> np.ndarray:
    yaw = torch.linspace(-2.0, 2.0, COUNT, dtype=torch.float64)
    return camera_label(yaw, 0.1, look_at=look_at, focal=focal).numpy()


def pack(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def unpack(path: Path, folder: Path) -> Path:
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    return folder


def labels(names: list[str], numbers: list) -> bytes:
    return json.dumps({"labels": [[name, list(row)] for name, row in zip(names, numbers, strict=True)]}).encode()


def eg3d(path: Path) -> Path:
    """A zip of 00000/img00000000.png and dataset.json; 25 numbers each, focal length 4.2647, cameras look past the
    origin; no masks."""
    names = [f"00000/img{index:08d}.png" for index in range(COUNT)]
    array = cameras((0.0, 0.0, 0.2), 4.2647)
    return pack(path, {name: png(i, "RGB") for i, name in enumerate(names)} | {"dataset.json": labels(names, array)})


def panohead(folder: Path) -> tuple[Path, Path]:
    """Two zips, of images and of masks; the numbers of labels are strings of six decimals."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"00000/person_{index}.png" for index in range(COUNT)]
    text = [[f"{value:.6f}" for value in row] for row in cameras((0.0, 0.0, 0.0), 4.2647).tolist()]
    images = {name: png(i, "RGB") for i, name in enumerate(names)} | {"dataset.json": labels(names, text)}
    return pack(folder / "images.zip", images), folder / "masks.zip"


def portraitgan(folder: Path) -> tuple[Path, Path]:
    """Two zips with the same stems, `%010d/%010d.png`; 31 numbers each."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{index // 1000:010d}/{index:010d}.png" for index in range(COUNT)]
    poses = np.random.default_rng(0).normal(0, 0.15, (COUNT, 6))
    array = np.concatenate([cameras((0.0, 0.0649, 0.0), 5000 / 1024 / 0.75), poses], axis=1)
    images = {name: png(i, "RGB") for i, name in enumerate(names)} | {"dataset.json": labels(names, array)}
    return pack(folder / "images.zip", images), pack(
        folder / "seg.zip", {name: png(i, "L") for i, name in enumerate(names)}
    )


def check_pairs(dataset: PortraitDataset) -> None:
    """Every image has the mask that was made of it."""
    for index in range(COUNT):
        assert np.array_equal(dataset.mask(index) == 255, dataset.image(index)[..., 0] > 127)


def test_eg3d(tmp_path):
    path = eg3d(tmp_path / "eg3d.zip")
    for place in (path, unpack(path, tmp_path / "folder")):
        dataset = PortraitDataset(place)
        assert (len(dataset), dataset.resolution, dataset.has_body_poses, dataset.has_masks) == (
            COUNT,
            SIDE,
            False,
            False,
        )
        assert dataset.cameras.numpy() == pytest.approx(cameras((0.0, 0.0, 0.2), 4.2647), abs=1e-6)
        assert dataset.name(2) == "00000/img00000002.png"


@pytest.mark.parametrize(
    "mask_name",
    [
        "00000/person_{}.png",
        "masks/00000/person_{}.png",
        "mask/00000/person_{}.jpg.png",
        "seg/00000/person_{}.png",
        "00000/person_{}_seg.png",
        "other_folder/person_{}_mask.png",
        "person_{}.png",
    ],
)
def test_panohead_with_its_masks(tmp_path, mask_name):
    images, masks = panohead(tmp_path)
    if mask_name.endswith(".jpg.png"):
        mask_name = mask_name.replace(".jpg.png", ".mask.png")
    pack(masks, {mask_name.format(i): png(i, "L") for i in range(COUNT)})
    dataset = PortraitDataset(images, masks_path=masks)
    assert dataset.cameras.numpy() == pytest.approx(cameras((0.0, 0.0, 0.0), 4.2647), abs=1e-6)
    check_pairs(dataset)


def test_masks_of_another_dataset_are_not_taken(tmp_path):
    images, masks = panohead(tmp_path)
    pack(masks, {f"00000/someone_{i}.png": png(i, "L") for i in range(COUNT)})
    with pytest.raises(DatasetError, match="5 of 5 images have no mask"):
        PortraitDataset(images, masks_path=masks)


def test_file_names_that_come_twice_are_matched_by_their_paths_alone(tmp_path):
    names = ["a/1.png", "b/1.png"]
    array = cameras((0.0, 0.0649, 0.0), 6.51)[:2]
    images = {name: png(i, "RGB") for i, name in enumerate(names)} | {"dataset.json": labels(names, array)}
    path = pack(tmp_path / "images.zip", images)
    with pytest.raises(DatasetError, match="1 of 2 images have no mask"):
        PortraitDataset(path, masks_path=pack(tmp_path / "m.zip", {"a/1.png": png(0, "L")}))


def test_3dportraitgan_and_joining_its_masks(tmp_path):
    images, masks = portraitgan(tmp_path)
    dataset = PortraitDataset(images, masks_path=masks)
    assert dataset.has_body_poses
    check_pairs(dataset)
    with pytest.raises(DatasetError) as caught:
        PortraitDataset(images).mask(0)
    assert f"portrait360 dataset convert {images} --masks MASKS.zip --out " in caught.value.hint
    out = tmp_path / "joined.zip"
    assert main(["dataset", "convert", str(images), "--masks", str(masks), "--out", str(out)]) == 0
    joined = PortraitDataset(out)
    assert joined.has_masks
    assert torch.equal(joined.cameras, dataset.cameras)
    assert torch.equal(joined.body_poses, dataset.body_poses)
    check_pairs(joined)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("slashes", ["labels", "files", "both"])
def test_separators_of_windows(tmp_path, packed, slashes):
    def windows(name: str, what: str) -> str:
        return name.replace("/", "\\") if slashes in (what, "both") else name

    names = [f"images/00000/{index:08d}.png" for index in range(COUNT)]
    masks = [f"masks/00000/{index:08d}.png" for index in range(COUNT)]
    array = cameras((0.0, 0.0649, 0.0), 6.51)
    files = {windows(name, "files"): png(i, "RGB") for i, name in enumerate(names)}
    files |= {windows(name, "files"): png(i, "L") for i, name in enumerate(masks)}
    files["dataset.json"] = labels([windows(name, "labels") for name in names], array)
    path = tmp_path / "windows.zip"
    if packed:
        pack(path, files)
    else:  # as some programs unpack such zips
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
    dataset = PortraitDataset(path)
    assert [dataset.name(index) for index in range(COUNT)] == names
    assert dataset.cameras.numpy() == pytest.approx(array, abs=1e-6)
    assert len(dataset.fingerprint()) == 64
    check_pairs(dataset)
    assert main(["dataset", "convert", str(path), "--out", str(tmp_path / "out.zip")]) == 0
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert not any("\\" in name for name in archive.namelist())
    check_pairs(PortraitDataset(tmp_path / "out.zip"))


def test_strings_that_are_no_numbers_are_refused(tmp_path):
    row = ["1.0"] * 24 + ["about two"]
    path = pack(tmp_path / "d.zip", {"a.png": png(0, "RGB"), "dataset.json": labels(["a.png"], [row])})
    with pytest.raises(DatasetError, match="not a number"):
        PortraitDataset(path)
    row[-1] = str(math.nan)
    path = pack(tmp_path / "e.zip", {"a.png": png(0, "RGB"), "dataset.json": labels(["a.png"], [row])})
    with pytest.raises(DatasetError, match="NaN"):
        PortraitDataset(path)
