"""Reading datasets: what was written comes back, and everything broken gets a clear error."""

from __future__ import annotations

import errno
import io
import json
import multiprocessing
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from portrait360.data.dataset import PortraitDataset
from portrait360.data.writer import open_writer
from portrait360.geometry.cameras import camera_label
from portrait360.synthetic.label_noise import coarse_body_poses
from portrait360.types import DatasetError, InputError
from support.fake_portraits import FakeSource, write_fake_dataset

COUNT, SIDE = 6, 32


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("drawn") / "drawn.zip"
    write_fake_dataset(path, COUNT, SIDE, coarse=True)
    return path


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def pack(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def official(count: int = 3, numbers: int = 31, side: int = SIDE) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Files of a zip as EG3D and 3DPortraitGAN pack it, and of the zip with its masks."""
    images, masks, labels = {}, {}, []
    for index in reversed(range(count)):
        sample = FakeSource().draw(5, index, side)
        name = f"{index // 2:010d}/{index:010d}.png"
        images[name], masks[name] = png(sample.image), png(sample.mask)
        label = np.concatenate([sample.camera, sample.body_pose])[:numbers]
        labels.append([name, label.astype(float).tolist()])
    images["dataset.json"] = json.dumps({"labels": labels}).encode()
    return images, masks


def test_what_was_written_is_read_in_order(drawn: Path) -> None:
    dataset = PortraitDataset(drawn)
    exact = PortraitDataset(drawn, labels="exact")
    assert (len(dataset), dataset.resolution, dataset.label_kind) == (COUNT, SIDE, "coarse")
    assert dataset.name(5) == "images/00000/00000005.webp"
    assert dataset.has_masks
    assert dataset.has_body_poses
    for index in range(COUNT):
        sample = FakeSource().draw(1, index, SIDE, depth=True)
        assert np.array_equal(dataset.mask(index), sample.mask)
        assert np.abs(dataset.image(index).astype(int) - sample.image).mean() < 12
        depth = dataset.depth(index)
        assert depth is not None
        assert np.allclose(depth, sample.depth, atol=1 / 16384)
        assert np.array_equal(dataset.cameras[index].numpy(), sample.camera)
        assert np.array_equal(exact.body_poses[index].numpy(), sample.body_pose)
    assert not torch.equal(dataset.body_poses, exact.body_poses)
    assert torch.equal(dataset.cameras, exact.cameras)


def test_writing_twice_gives_the_same_bytes(drawn: Path, tmp_path: Path) -> None:
    write_fake_dataset(tmp_path / "again.zip", COUNT, SIDE, coarse=True)
    assert (tmp_path / "again.zip").read_bytes() == drawn.read_bytes()
    names = list(members(drawn))
    assert names[:3] == [
        f"{kind}/00000/00000000.{suffix}" for kind, suffix in (("images", "webp"), ("masks", "png"), ("depth", "png"))
    ]
    assert names[-3:] == ["dataset.json", "exact.json", "meta.json"]


def test_a_failed_or_empty_writing_leaves_nothing(tmp_path: Path) -> None:
    sample = FakeSource().draw(1, 0, SIDE)
    arguments = {"resolution": SIDE, "meta": {"generator": "test", "label_kind": "exact"}}
    with pytest.raises(RuntimeError), open_writer(tmp_path / "a.zip", **arguments) as writer:
        writer.add(sample.image, sample.mask, sample.camera, sample.body_pose)
        raise RuntimeError
    with (
        pytest.raises(DatasetError, match="no image to write"),
        open_writer(tmp_path / "a.zip", **arguments),
    ):
        pass
    with (
        pytest.raises(DatasetError, match="mask 0 has 16x32 pixels, not 32x32"),
        open_writer(tmp_path / "a.zip", **arguments) as writer,
    ):
        writer.add(sample.image, sample.mask[:, :16], sample.camera, sample.body_pose)
    with (
        pytest.raises(DatasetError, match="31 finite numbers"),
        open_writer(tmp_path / "a.zip", **arguments) as writer,
    ):
        writer.add(sample.image, sample.mask, sample.camera, sample.body_pose * np.float32("nan"))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
    with pytest.raises(InputError, match="the disk is full"):
        write_fake_dataset(tmp_path / "full.zip")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_and_a_deflated_zip_read_the_same(drawn: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(drawn) as archive:
        archive.extractall(tmp_path / "folder")
    pack(tmp_path / "deflated.zip", members(drawn), zipfile.ZIP_DEFLATED)
    expected = PortraitDataset(drawn)
    for path in (tmp_path / "folder", tmp_path / "deflated.zip"):
        dataset = PortraitDataset(path)
        assert [dataset.name(i) for i in range(COUNT)] == [expected.name(i) for i in range(COUNT)]
        assert torch.equal(dataset.body_poses, expected.body_poses)
        for got, wanted in zip(dataset.load_arrays(), expected.load_arrays(), strict=True):
            assert torch.equal(got, wanted)


def test_official_zips_with_a_separate_zip_of_masks(tmp_path: Path) -> None:
    images, masks = official()
    path, masks_path = pack(tmp_path / "images.zip", images), pack(tmp_path / "seg.zip", masks)
    dataset = PortraitDataset(path, masks_path=masks_path)
    assert dataset.label_kind == "estimated"
    assert dataset.depth(0) is None
    for index in range(3):
        sample = FakeSource().draw(5, index, SIDE)
        assert dataset.name(index) == f"{index // 2:010d}/{index:010d}.png"
        assert np.array_equal(dataset.image(index), sample.image)
        assert np.array_equal(dataset.mask(index), sample.mask)
        assert np.array_equal(dataset.cameras[index].numpy(), sample.camera)
        assert np.array_equal(dataset.body_poses[index].numpy(), sample.body_pose)
    without = PortraitDataset(path)
    images_only, no_masks = without.load_arrays(masks=False)
    assert (images_only.shape, no_masks.shape) == ((3, 3, SIDE, SIDE), (0, 1, SIDE, SIDE))
    for use in (lambda: without.mask(0), without.load_arrays):
        with pytest.raises(DatasetError, match="has no masks, and training needs them"):
            use()
    with pytest.raises(DatasetError, match="no exact body poses; its labels are estimated"):
        PortraitDataset(path, labels="exact")
    masks.popitem()
    with pytest.raises(DatasetError, match=r"1 of 3 images have no mask in .*seg.zip"):
        PortraitDataset(path, masks_path=pack(masks_path, masks))


def test_eg3d_zips_without_body_poses(tmp_path: Path) -> None:
    dataset = PortraitDataset(pack(tmp_path / "eg3d.zip", official(numbers=25)[0]))
    assert not dataset.has_body_poses
    assert torch.equal(dataset.body_poses, torch.zeros(3, 6))
    assert dataset.cameras.shape == (3, 25)


@pytest.mark.parametrize("side", [SIDE, 16, 12, 1])
def test_load_arrays_averages_down(drawn: Path, side: int) -> None:
    dataset = PortraitDataset(drawn)
    seen: list[tuple[int, int]] = []
    images, masks = dataset.load_arrays(side, workers=3, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, COUNT) for done in range(1, COUNT + 1)]
    assert (images.shape, masks.shape) == ((COUNT, 3, side, side), (COUNT, 1, side, side))
    assert images.dtype == masks.dtype == torch.uint8
    for index in range(COUNT):
        image = dataset.image(index).transpose(2, 0, 1).astype(float)
        mask = dataset.mask(index).astype(float)
        # averaging keeps the mean, and box blocks are exact
        assert abs(images[index].double().mean().item() - image.mean()) < 2
        assert abs(masks[index].double().mean().item() - mask.mean()) < 2
        if SIDE % side == 0:
            k = SIDE // side
            blocks = image.reshape(3, side, k, side, k).mean(axis=(2, 4))
            assert np.abs(images[index].numpy() - blocks).max() <= 1
            blocks = mask.reshape(side, k, side, k).mean(axis=(1, 3))
            assert np.abs(masks[index, 0].numpy() - blocks).max() <= 1


def test_load_arrays_does_not_enlarge(drawn: Path) -> None:
    with pytest.raises(DatasetError, match="32x32 pixels; 64x64 was asked for"):
        PortraitDataset(drawn).load_arrays(64)


def _mask_sum(dataset: PortraitDataset, index: int, queue) -> None:
    queue.put((index, int(dataset.mask(index).sum())))


def test_reads_from_threads_forks_and_pickles(drawn: Path) -> None:
    dataset = PortraitDataset(drawn)
    expected = {index: int(dataset.mask(index).sum()) for index in range(COUNT)}
    order = np.random.default_rng(0).integers(0, COUNT, 300).tolist()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda i: int(dataset.mask(i).sum()), order)) == [expected[i] for i in order]
    copied = pickle.loads(pickle.dumps(dataset))
    assert int(copied.mask(2).sum()) == expected[2]
    # forked children share the file position of the parent's handle unless they open their own
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks beside threads
        pid = os.fork()
    if pid == 0:
        right = all(int(dataset.mask(i).sum()) == expected[i] for i in order)
        os._exit(0 if right else 1)
    assert all(int(dataset.mask(i).sum()) == expected[i] for i in order)
    assert os.waitpid(pid, 0)[1] == 0
    context = multiprocessing.get_context("forkserver")
    queue = context.Queue()
    process = context.Process(target=_mask_sum, args=(dataset, 3, queue))
    process.start()
    assert queue.get(timeout=300) == (3, expected[3])
    process.join()
    queue.close()
    queue.join_thread()


def first_label(change: Callable[[list], object]) -> Callable[[dict[str, bytes]], object]:
    """Change the numbers of the second entry."""

    def apply(files: dict[str, bytes]) -> None:
        content = json.loads(files["dataset.json"])
        change(content["labels"][1][1])
        files["dataset.json"] = json.dumps(content).encode()

    return apply


def replace(name: str, content: bytes) -> Callable[[dict[str, bytes]], object]:
    return lambda files: files.update({name: content})


IMAGE, MASK = "images/00000/00000002.webp", "masks/00000/00000002.png"
GREY = png(np.zeros((SIDE, SIDE), np.uint8))
NOISE = png(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda files: files.pop("dataset.json"), r"has no dataset\.json"),
        (lambda files: files.clear(), "has no images"),
        (replace("dataset.json", b"{'labels': 1}"), "is not valid JSON"),
        (replace("dataset.json", b"\xff\xfe\x00"), "is not valid JSON"),
        (replace("dataset.json", b'{"labels": null}'), "at least one entry"),
        (replace("dataset.json", b'{"labels": [["a.png"]]}'), "entry 0 of .* must be"),
        (replace("meta.json", b"[1]"), "must hold an object"),
        (first_label(lambda label: label.__delitem__(slice(27, None))), r"entry 1 \(images.* has 27 numbers"),
        (
            first_label(lambda label: label.__delitem__(slice(25, None))),
            "has 25 numbers, the entries before it 31",
        ),
        (first_label(lambda label: label.__setitem__(30, float("nan"))), "entry 1 .* holds NaN"),
        (first_label(lambda label: label.__setitem__(30, 10**400)), "entry 1 .* huge number"),
        (first_label(lambda label: label.__setitem__(30, "much")), "not a number"),
        (first_label(lambda label: label.__setitem__(0, 2.0)), r"entry 1 .* not a rotation"),
        (
            first_label(lambda label: label.__setitem__(slice(0, 12, 4), [-x for x in label[0:12:4]])),
            "not a rotation",
        ),
        (first_label(lambda label: label.__setitem__(12, 1.0)), "last row is not 0 0 0 1"),
        (first_label(lambda label: label.__setitem__(16, -6.5)), "wrong intrinsics"),
        (lambda files: files.pop(IMAGE), "1 label without an image in dataset.json .* for example images"),
        (
            replace("images/00009/00009999.webp", GREY),
            "1 of 7 images .* have no label .* images/00009/00009999",
        ),
        (lambda files: files.pop(MASK), "1 of 6 images have no mask .* images/00000/00000002"),
        (replace(IMAGE, b"RIFF....WEBPVP8 broken"), "00000002.webp .* not a readable image"),
        (replace(IMAGE, b""), "00000002.webp .* not a readable image"),
        (lambda files: files.update({IMAGE: files[IMAGE][:-40]}), "00000002.webp .* not a readable image"),
        (replace(IMAGE, NOISE[:-500]), "00000002.webp .* not a readable image"),
        (replace(IMAGE, png(np.zeros((SIDE, 16), np.uint8))), "16x32 pixels; expected a square"),
        (
            replace(IMAGE, png(np.zeros((16, 16, 3), np.uint8))),
            "00000002.webp .* has 16x16 pixels, others 32x32",
        ),
        (replace(MASK, png(np.zeros((64, 64), np.uint8))), "masks/00000/00000002.png .* has 64x64 pixels"),
        (replace(IMAGE, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n"), "not a readable image"),
    ],
)
def test_what_is_broken_gets_a_clear_error(
    drawn: Path, tmp_path: Path, change: Callable[[dict[str, bytes]], object], words: str
) -> None:
    files = members(drawn)
    change(files)
    pack(tmp_path / "broken.zip", files)
    with pytest.raises(DatasetError, match=words) as caught:
        PortraitDataset(tmp_path / "broken.zip").load_arrays()
    assert caught.value.hint
    assert "broken.zip" in caught.value.message


def test_no_zip(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="there is no dataset at"):
        PortraitDataset(tmp_path / "missing.zip")
    (tmp_path / "text.zip").write_text("hello")
    with pytest.raises(DatasetError, match="is not a zip file"):
        PortraitDataset(tmp_path / "text.zip")
    (tmp_path / "empty.zip").touch()
    with pytest.raises(DatasetError, match="is not a zip file"):
        PortraitDataset(tmp_path / "empty.zip")


def test_a_zip_that_was_cut_off_or_changed(drawn: Path, tmp_path: Path) -> None:
    content = drawn.read_bytes()
    cut = tmp_path / "cut.zip"
    cut.write_bytes(content[: len(content) // 2])
    with pytest.raises(DatasetError, match="is broken: it seems to be cut off"):
        PortraitDataset(cut)
    with zipfile.ZipFile(drawn) as archive:
        info = archive.getinfo(IMAGE)
    changed = bytearray(content)
    changed[info.header_offset + 30 + len(IMAGE) + 60] ^= 0xFF
    cut.write_bytes(changed)
    with pytest.raises(DatasetError, match="00000002.webp does not match its checksum"):
        PortraitDataset(cut).image(2)
    changed = bytearray(content)
    changed[info.header_offset : info.header_offset + 4] = b"XXXX"
    cut.write_bytes(changed)
    with pytest.raises(DatasetError, match="not where the directory has it"):
        PortraitDataset(cut).image(2)


def test_a_deflate_bomb_does_not_fill_the_memory(drawn: Path, tmp_path: Path) -> None:
    """The directory says 100 bytes, the data would inflate to 50 MB: no more than 100 are unpacked."""
    files = members(drawn)
    files[IMAGE] = bytes(50_000_000)
    path = pack(tmp_path / "bomb.zip", files, zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    entry = content.rindex(IMAGE.encode()) - 46
    assert content[entry : entry + 4] == b"PK\x01\x02"
    content[entry + 24 : entry + 28] = (100).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(DatasetError, match="does not match its checksum"):
        PortraitDataset(path).image(2)


def test_names_outside_the_folder_are_never_read(drawn: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(drawn) as archive:
        archive.extractall(tmp_path / "folder")
    (tmp_path / "secret.png").write_bytes(GREY)
    labels = tmp_path / "folder" / "dataset.json"
    content = json.loads(labels.read_bytes())
    content["labels"][0][0] = "../secret.png"
    labels.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match="no label"):
        PortraitDataset(tmp_path / "folder")


def test_labels_round_trip_exactly(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cameras = camera_label(torch.from_numpy(rng.uniform(-3, 3, 20)), torch.from_numpy(rng.normal(0, 0.3, 20)))
    poses = rng.normal(0, 0.3, (20, 6)).astype(np.float32)
    blank = np.zeros((SIDE, SIDE), np.uint8)
    with open_writer(tmp_path / "labels.zip", resolution=SIDE, meta={"label_kind": "exact"}) as writer:
        for camera, pose in zip(cameras.float().numpy(), poses, strict=True):
            writer.add(np.dstack([blank] * 3), blank, camera, pose)
    dataset = PortraitDataset(tmp_path / "labels.zip", labels="exact")
    assert torch.equal(dataset.cameras, cameras.float())
    assert np.array_equal(dataset.body_poses.numpy(), poses)


def test_coarse_poses_err_as_stated_and_each_row_stands_alone() -> None:
    rng = np.random.default_rng(1)
    exact = rng.normal(0, 0.3, (4000, 6)).astype(np.float32)
    coarse = coarse_body_poses(exact, 4.0, seed=7)
    assert coarse.dtype == np.float32
    assert np.array_equal(coarse[:10], coarse_body_poses(exact[:10], 4.0, seed=7))
    assert not np.array_equal(coarse[:10], coarse_body_poses(exact[:10], 4.0, seed=8))
    bias = np.deg2rad([5, 0, 0, 5, 0, 0])
    noise = coarse - 0.7 * exact - bias
    assert np.abs(noise.mean(axis=0)).max() < np.deg2rad(4) * 4 / np.sqrt(4000)
    assert np.allclose(noise.std(axis=0), np.deg2rad(4), rtol=0.05)
    assert np.allclose(coarse_body_poses(exact, 0.0, seed=7), 0.7 * exact + bias, atol=1e-6)
    for noise_degrees, seed in [(-1.0, 1), (float("nan"), 1), (1.0, -1)]:
        with pytest.raises(InputError):
            coarse_body_poses(exact, noise_degrees, seed)
