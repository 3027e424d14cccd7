"""What the user gives to `dataset photos`: used by every process, remembered, and refused before anything is read."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from skimage.data import astronaut

from photos.test_body import smpl_arrays
from portrait360.cli.main import main
from portrait360.data.dataset import PortraitDataset
from portrait360.photos.gates import PhotoLimits
from portrait360.photos.job import process_folder
from portrait360.photos.networks import UserMatting, UserQuality
from portrait360.photos.records import PhotoFile
from portrait360.photos.user_files import UserFiles, open_user_file
from portrait360.photos.worker import PhotoWorker
from portrait360.types import DatasetError, InputError
from support import fake_worker
from support import onnx_files as onnx
from support.bad_input import check
from support.smpl_files import hostile_smpl_files, npz, random_arrays

SIDE = 64


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> dict[str, Path]:
    """A file of each kind: the opacity is the red channel, the mark the mean of the image."""
    folder = tmp_path_factory.mktemp("given")
    np.savez(folder / "smpl.npz", **smpl_arrays())
    return {
        "matting": onnx.write(folder / "red.onnx", onnx.channel_network()),
        "quality": onnx.write(folder / "mean.onnx", onnx.mean_network(side=32)),
        "body": folder / "smpl.npz",
    }


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    Image.fromarray(astronaut()).save(folder / "astronaut.png")
    return folder


def report_of(out: Path) -> dict:
    return json.loads(out.with_name(f"{out.stem}.report.json").read_text())


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def words(photos: Path, out: Path, **flags: Path) -> list[str]:
    start = ["dataset", "photos", str(photos), "--resolution", str(SIDE), "--out", str(out), "--workers", "1"]
    return start + [word for name, path in flags.items() for word in (f"--{name}", str(path))]


def test_the_command_uses_all_of_them_and_says_so(photos, given, tmp_path, capfd):
    limits = tmp_path / "limits.json"
    limits.write_text('{"smallest_side": 50, "least_quality": 0.2, "most_uncovered": 1.0}')
    plain, own = tmp_path / "plain.zip", tmp_path / "own.zip"
    assert main(words(photos, plain)) == 0
    assert main(words(photos, own, limits=limits, **given)) == 0
    printed = capfd.readouterr()
    assert "Traceback" not in printed.err + printed.out
    report, before = report_of(own), report_of(plain)
    names = {"matting": "red.onnx", "quality": "mean.onnx", "body": "smpl.npz"}
    about = {kind: {"file": name, "sha256": sha256(given[kind])} for kind, name in names.items()}
    assert report["given"] == about
    assert before["given"] == {}
    assert PortraitDataset(own).meta["given"] == about
    page = own.with_name("own.report.html").read_text()
    assert all(f"{entry['file']}, SHA-256 {entry['sha256']}" in page for entry in about.values())
    assert report["limits"]["smallest_side"] == 50
    assert report["limits"]["largest_turn"] == PhotoLimits().largest_turn
    (person,), (other,) = report["photos"][0]["people"], before["photos"][0]["people"]
    image, mask = (getattr(PortraitDataset(own), part)(0) for part in ("image", "mask"))
    assert person["measures"]["quality"] == pytest.approx(image.mean() / 255.0, abs=0.02)
    assert "quality" not in other["measures"]
    sure = ndimage.binary_erosion(mask > 100, iterations=3)  # what is not the person's is cut off, with a soft border
    assert sure.any()
    # red, less what WebP loses, which is most where there is detail: on the person
    assert np.abs(mask[sure].astype(float) - image[..., 0][sure]).mean() < 16
    poses = [PortraitDataset(out).body_poses[0] for out in (own, plain)]
    assert (poses[0] - poses[1]).abs().max() > np.radians(0.5)


def test_a_mark_rejects_only_with_a_limit(photos, given, tmp_path):
    file = PhotoFile(photos / "astronaut.png", "astronaut.png")
    quality = UserQuality(open_user_file(given["quality"], "network"), SIDE)
    (person,) = PhotoWorker(SIDE, quality=quality)(file).people
    assert person.reason is None
    mark = person.measures["quality"]
    (person,) = PhotoWorker(SIDE, PhotoLimits(least_quality=mark + 0.01), quality=quality)(file).people
    assert person.reason == "low quality"
    (person,) = PhotoWorker(SIDE, PhotoLimits(least_quality=mark - 0.01), quality=quality)(file).people
    assert person.reason is None


def test_a_worker_with_all_of_them_travels(photos, given):
    files = {kind: open_user_file(path, kind) for kind, path in given.items()}
    matting, quality = UserMatting(files["matting"], SIDE), UserQuality(files["quality"], SIDE)
    worker = PhotoWorker(SIDE, matting=matting, quality=quality, body=files["body"])
    worker.prepare()
    file = PhotoFile(photos / "astronaut.png", "astronaut.png")
    again = pickle.loads(pickle.dumps(worker))
    first, second = worker(file).people[0], again(file).people[0]
    assert first.image == second.image
    assert first.mask == second.mask
    assert first.measures == second.measures


# ---- the same work ----


def fake(folder: Path, out: Path, **given: Path | None):
    return process_folder(
        folder, out, resolution=32, workers=1, worker_factory=fake_worker.FakeWorker, progress=False, **given
    )  # fmt: skip


def test_work_goes_on_with_the_same_files_only(tmp_path):
    for i in range(3):
        fake_worker.write_photo(tmp_path / "photos" / f"{i}.jpg", "good", i)
    out, kinds = tmp_path / "out.zip", {"matting": "matting network", "quality": "quality network", "body": "body"}
    given = {kind: onnx.write(tmp_path / f"{kind}.bin", kind.encode()) for kind in kinds}
    other = onnx.write(tmp_path / "other.bin", b"other")
    fake(tmp_path / "photos", out, **given)
    asked = report_of(out)["asked"]

    def refused(start: str) -> None:
        for kind, what in kinds.items():
            for path, found in ((other, sha256(other)), (None, "none")):
                expected = f"{start} sha256 of the {what} {sha256(given[kind])}, not {found}"
                with pytest.raises(DatasetError, match=expected):
                    fake(tmp_path / "photos", out, **given | {kind: path})

    refused("exists already with")
    out.unlink()
    parts = tmp_path / "out.zip.parts"  # as a run leaves them that was killed
    parts.mkdir()
    (parts / "job.json").write_text(json.dumps(asked))
    refused("holds an unfinished dataset with")
    renamed = given["matting"].rename(tmp_path / "renamed.bin")  # the same file under another name is the same
    assert fake(tmp_path / "photos", out, **given | {"matting": renamed}).accepted == 3


def test_files_are_told_apart_by_what_is_in_them(tmp_path):
    (tmp_path / "a").write_text("a")
    one = open_user_file(tmp_path / "a", "body")
    assert one.about() == {"file": "a", "sha256": sha256(tmp_path / "a")}
    assert one.check() == tmp_path / "a"
    (tmp_path / "a").write_text("b")
    with pytest.raises(InputError, match="has changed since the work began"):
        one.check()
    (tmp_path / "a").unlink()
    with pytest.raises(InputError, match="there is no file at"):
        one.check()
    assert UserFiles().about() == {}
    assert set(UserFiles().asked().values()) == {"none"}


def test_paths_do_not_depend_on_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("a")
    monkeypatch.chdir(tmp_path)
    assert open_user_file(Path("a"), "body").path == tmp_path / "a"


# ---- refused ----


@pytest.mark.parametrize(
    ("flag", "name", "content", "sentence"),
    [
        ("matting", "none.onnx", None, "there is no matting network at"),
        ("quality", "none.onnx", None, "there is no quality network at"),
        ("body", "none.npz", None, "there is no body at"),
        ("matting", "a.onnx", b"", "not an ONNX network .* no graph"),
        ("matting", "a.onnx", onnx.channel_network()[:-9], "not an ONNX network"),
        ("matting", "a.pth", onnx.channel_network(), "must be an ONNX file"),
        ("matting", "a.onnx", onnx.mean_network(), "expected the opacity"),
        ("matting", "a.onnx", onnx.channel_network([9.0, 0.0, 0.0]), "numbers from 0 to 9; expected opacities"),
        ("matting", "a.onnx", onnx.channel_network(shape=[1, 3, 8, 6]), "expected one image"),
        (
            "matting",
            "a.onnx",
            onnx.identity_with(tensors=[onnx.external("w", [2], "a.onnx")]),
            "numbers in other files, which is refused",
        ),
        ("quality", "a.onnx", onnx.channel_network(), "expected one number"),
        ("quality", "a.onnx", onnx.identity_with([onnx.node("Leak", [], ["x"], domain="evil")]), "not ONNX's own"),
        ("quality", "a.safetensors", b"hello", "not a readable safetensors file"),
        ("body", "a.pkl", hostile_smpl_files()["system-in-chumpy"][0](), "names .*system"),
        ("body", "a.npz", npz(random_arrays()), "cannot stand for the packaged body"),
        ("limits", "a.json", b'{"least_quality": 0.5}', "limit least_quality, but no quality network"),
    ],
)
def test_bad_files(capfd, tmp_path, photos, flag, name, content, sentence):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    check(capfd, tmp_path, words(photos, tmp_path / "new" / "a.zip", **{flag: tmp_path / name}), sentence)


def test_a_folder_is_no_file(capfd, tmp_path, photos):
    check(capfd, tmp_path, words(photos, tmp_path / "a.zip", matting=tmp_path), "is a folder")


def test_without_onnxruntime(capfd, tmp_path, photos, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "onnxruntime" else found(name, *rest)
    )  # fmt: skip
    network = onnx.write(tmp_path / "a.onnx", onnx.channel_network())
    assert main(words(photos, tmp_path / "a.zip", matting=network)) == 2
    error, hint = capfd.readouterr().err.splitlines()
    assert error == "error: networks as ONNX need onnxruntime."
    assert hint == 'hint: Install it: pip install "portrait360[onnx]"'
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]
