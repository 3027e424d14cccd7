"""From photos to a dataset with many processes: same bytes always, resuming, clean failure, nothing lost."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from portrait360.cli.main import main
from portrait360.data.dataset import PortraitDataset
from portrait360.data.inspect import inspect_dataset
from portrait360.data.sampling import yaw_repeats
from portrait360.data.shards import PortraitShards
from portrait360.geometry.cameras import yaw_pitch
from portrait360.photos import job as photo_job
from portrait360.photos.gates import PhotoLimits
from portrait360.photos.job import process_folder
from portrait360.photos.report import read_report
from portrait360.runtime import job_processes
from portrait360.types import AssetError, DatasetError, InputError
from support import fake_worker
from support.bad_input import check
from support.full_disk import full_disk
from support.here_crew import HereCrew
from support.programs import Program, children, wait_for_ends

COUNT = 40
NEVER = {3: "nobody", 7: "unreadable", 11: "break"}
"""Photos that give nobody, by index; 13 shows two persons and 20 the image of 5."""


def process(folder: Path, out: Path, worker=fake_worker.FakeWorker, **changes):
    arguments = {"resolution": 32, "limits": PhotoLimits(), "workers": 2, "progress": False}
    return process_folder(folder, out, worker_factory=worker, **{**arguments, **changes})


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def report_of(out: Path) -> dict:
    return json.loads(out.with_name(f"{out.stem}.report.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("folder")
    for i in range(COUNT):
        kind = NEVER.get(i, "two" if i == 13 else "good")
        fake_worker.write_photo(path / f"{i // 10}" / f"{i:02d}.jpg", kind, 5 if i == 20 else i, yaw=9.0 * i - 180.0)
    return path


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory) -> Path:
    """The dataset, made by two processes without interruption."""
    out = tmp_path_factory.mktemp("whole") / "whole.zip"
    process(folder, out)
    return out


@pytest.fixture
def here(monkeypatch) -> None:
    """Read in this process, for tests of what comes afterwards."""

    monkeypatch.setattr(job_processes, "LocalCrew", HereCrew)


def test_the_dataset_holds_everyone_accepted_in_order(whole: Path) -> None:
    assert sorted(path.name for path in whole.parent.iterdir()) == [
        "whole.report.html",
        "whole.report.json",
        "whole.zip",
    ]
    dataset = PortraitDataset(whole)
    accepted = [i for i in range(COUNT) if i not in NEVER and i != 20]
    assert len(dataset) == len(accepted) == 36
    yaw = yaw_pitch(dataset.cameras)[0].rad2deg()
    expected = torch.tensor([9.0 * i - 180.0 for i in accepted])
    assert (torch.remainder(yaw - expected + 180.0, 360.0) - 180.0).abs().max() < 1e-3
    for k in (0, 9, 35):
        assert np.array_equal(dataset.mask(k), fake_worker.disc(32))
        assert np.abs(dataset.image(k).astype(int) - fake_worker.pixels(accepted[k], 32)).mean() < 12
    assert dataset.has_masks
    assert dataset.has_body_poses
    wanted = {
        "generator": "portrait360 dataset photos",
        "label_kind": "estimated",
        "count": 36,
        "photos": COUNT,
        "photos_used": 36,
        "persons": 38,
        "persons_accepted": 36,
        "resolution": 32,
        "rejected": {"unreadable": 2, "duplicate": 1, "no person": 1, "too small": 1},
    }
    assert {key: dataset.meta[key] for key in wanted} == wanted
    assert dataset.meta["limits"]["duplicate_bits"] == PhotoLimits().duplicate_bits


def test_a_tool_that_knows_eg3d_reads_its_labels(whole: Path) -> None:
    import zipfile

    with zipfile.ZipFile(whole) as archive:
        labels = json.loads(archive.read("dataset.json"))["labels"]
        names = sorted(name for name in archive.namelist() if name.startswith("images/"))
        masks = sorted(name for name in archive.namelist() if name.startswith("masks/"))
    assert [name for name, _ in labels] == names  # EG3D sorts the names and looks each up
    assert all(len(numbers) == 31 for _, numbers in labels)
    assert [Path(name).stem for name in masks] == [Path(name).stem for name in names]
    cameras = np.array([numbers[:16] for _, numbers in labels]).reshape(-1, 4, 4)
    assert np.allclose(np.linalg.det(cameras[:, :3, :3]), 1.0, atol=1e-4)


def test_every_photo_is_in_the_report_once(whole: Path, folder: Path) -> None:
    photos = {entry["name"]: entry for entry in report_of(whole)["photos"]}
    assert list(photos) == sorted(f"{i // 10}/{i:02d}.jpg" for i in range(COUNT))
    assert len(report_of(whole)["photos"]) == COUNT
    assert photos["0/03.jpg"]["reason"] == "no person"
    assert photos["0/07.jpg"]["detail"] == "the file is cut off."
    assert "ZeroDivisionError: no such angle" in photos["1/11.jpg"]["detail"]
    assert [person["reason"] for person in photos["1/13.jpg"]["people"]] == [None, "too small"]
    assert photos["1/13.jpg"]["outcome"] == "accepted"
    assert photos["2/20.jpg"]["people"][0]["reason"] == "duplicate"
    assert "0/05.jpg" in photos["2/20.jpg"]["people"][0]["detail"]
    assert photos["0/05.jpg"]["outcome"] == "accepted"
    images = [name for entry in photos.values() for person in entry["people"] for name in person["images"]]
    dataset = PortraitDataset(whole)
    assert images == [dataset.name(i) for i in range(len(dataset))]


def test_one_worker_gives_the_same_bytes(whole: Path, folder: Path, tmp_path: Path) -> None:
    report = process(folder, tmp_path / "whole.zip", workers=1)
    assert report == read_report(whole)[0]
    for name in ("whole.zip", "whole.report.json", "whole.report.html"):
        assert sha256(tmp_path / name) == sha256(whole.with_name(name)), name


def in_a_process(folder: Path, out: Path) -> Program:
    """The same work in a process of its own that can be killed; photo 30 takes until it is."""
    code = (
        "import sys; from pathlib import Path; from support import fake_worker;"
        " from portrait360.photos.job import process_folder;"
        "process_folder(Path(sys.argv[1]), Path(sys.argv[2]), resolution=32, workers=2,"
        " worker_factory=fake_worker.EndlessWorker)"
    )
    return Program(code, folder, out)


def parts_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.zip"))


@pytest.mark.slow
def test_killed_run_continues_to_the_same_bytes(whole: Path, folder: Path, tmp_path: Path, here) -> None:
    out, parts = tmp_path / "whole.zip", tmp_path / "whole.zip.parts"
    with in_a_process(folder, out) as program:
        program.until(lambda: len(parts_of(parts)) >= 3)
        workers = children(program.pid)
        program.send_signal(signal.SIGKILL)
    assert not out.exists()
    wait_for_ends(workers)
    finished = {path.name: path.stat().st_mtime_ns for path in parts_of(parts)}
    assert 3 <= len(finished) < COUNT
    victim = min(finished)
    (parts / victim).write_bytes((parts / victim).read_bytes()[:-30])  # as after a power cut

    # Other values do not continue this reading, and an error keeps what is there.
    for change, words in [
        ({"resolution": 48}, "unfinished dataset with resolution 32, not 48"),
        ({"limits": PhotoLimits(duplicate_bits=1)}, "limit of duplicate bits"),
    ]:
        with pytest.raises(DatasetError, match=words):
            process(folder, out, **change)
    with pytest.raises(AssetError, match="the model is missing"):
        process(folder, out, fake_worker.MissingModel)
    assert finished.keys() == {path.name for path in parts_of(parts)}
    process(folder, out)
    assert sha256(out) == sha256(whole)
    assert not parts.exists()


@pytest.mark.slow
def test_ctrl_c_says_how_to_continue(folder: Path, tmp_path: Path) -> None:
    out, parts = tmp_path / "stopped.zip", tmp_path / "stopped.zip.parts"
    with in_a_process(folder, out) as program:
        program.until(lambda: len(parts_of(parts)) >= 3)
        for pid in [program.pid, *children(program.pid)]:
            os.kill(pid, signal.SIGINT)  # a terminal sends it to the whole group
        program.wait()
        errors = program.errors
    assert f"of 40 photos are kept in {parts}; run the same command again to continue." in errors
    assert errors.count("Traceback") == 1  # of this test's own call without a command line, none of processes
    assert not out.exists()
    assert len(parts_of(parts)) >= 3


def test_processes_that_never_read_are_no_fault_of_the_photos(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"ended unexpectedly \(exit code -9\)"):
        process(folder, tmp_path / "new" / "a.zip", fake_worker.Stillborn, workers=1)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_gives_one_sentence_and_nothing_half_written(folder: Path, tmp_path: Path) -> None:
    with full_disk(1000), pytest.raises(InputError, match="the disk is full"):
        process(folder, tmp_path / "full.zip", workers=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("worker", "kind", "words"),
    [(fake_worker.MissingModel, AssetError, "model is missing"), (fake_worker.Forgetful, DatasetError, "incomplete")],
)
def test_errors_that_are_not_of_one_photo_end_the_job_and_leave_nothing(here, folder, tmp_path, worker, kind, words):
    with pytest.raises(kind, match=words):
        process(folder, tmp_path / "new" / "none.zip", worker)
    assert list(tmp_path.iterdir()) == []


def test_when_nobody_is_accepted_the_report_says_why(here, tmp_path: Path) -> None:
    for i, kind in enumerate(["nobody", "nobody", "unreadable"]):
        fake_worker.write_photo(tmp_path / "photos" / f"{i}.jpg", kind)
    with pytest.raises(DatasetError, match="nobody in 3 photos can be used: 2 no person, 1 unreadable") as caught:
        process(tmp_path / "photos", tmp_path / "a.zip")
    assert str(tmp_path / "a.report.html") in caught.value.hint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.report.html", "a.report.json", "photos"]
    assert len(report_of(tmp_path / "a.zip")["photos"]) == 3


def test_an_existing_output_is_kept(here, tmp_path: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "photos" / "a.zip"  # what is written here is not read as a photo
    fake_worker.write_photo(photos / "1.jpg", seed=1)
    fake_worker.write_photo(photos / "2.jpg", seed=2)
    first = process(photos, out)
    assert first.photos == 2
    before = out.stat().st_mtime_ns
    assert process(photos, out) == first  # the same dataset: nothing to do
    assert out.stat().st_mtime_ns == before
    for change, words in [({"resolution": 64}, "resolution 32, not 64"), ({"balance": 3}, "balance 1, not 3")]:
        with pytest.raises(DatasetError, match=f"exists already with {words}"):
            process(photos, out, **change)
    fake_worker.write_photo(photos / "3.jpg", seed=3)
    with pytest.raises(DatasetError, match="exists already with photos 2, not 3"):
        process(photos, out)
    assert out.stat().st_mtime_ns == before
    other = tmp_path / "other.zip"
    other.write_text("something precious")
    with pytest.raises(DatasetError, match="exists already and is no complete dataset of photos"):
        process(photos, other)
    assert other.read_text() == "something precious"


def test_balance_repeats_rare_sides(here, tmp_path: Path) -> None:
    for i in range(12):
        fake_worker.write_photo(tmp_path / "photos" / f"{i:02d}.jpg", seed=i, yaw=180.0 if i == 4 else 0.0)
    out = tmp_path / "a.zip"
    report = process(tmp_path / "photos", out, balance=4)
    assert (report.accepted, report.images) == (12, 15)
    assert sum(report.yaw_before) == 12
    assert sum(report.yaw_after) == 15
    changed = [(a, b) for a, b in zip(report.yaw_before, report.yaw_after, strict=True) if a != b]
    assert changed == [(1, 4)]
    dataset = PortraitDataset(out)
    assert len({dataset.encoded(i)[0][1] for i in range(4, 8)}) == 1
    assert len({dataset.encoded(i)[0][1] for i in range(len(dataset))}) == 12
    assert report_of(out)["photos"][4]["people"][0]["images"] == [dataset.name(i) for i in range(4, 8)]
    summary = inspect_dataset(out, tmp_path / "inspect")
    before, after = summary["yaw_sectors_before_balancing"], summary["yaw_sectors"]
    assert (sum(before.values()), sum(after.values())) == (12, 15)
    assert sorted((n, after[name]) for name, n in before.items() if n != after[name]) == [(1, 4)]


def test_repeats_even_out_the_sectors() -> None:
    from portrait360.geometry.cameras import camera_label

    yaws = torch.deg2rad(torch.tensor([0.0] * 12 + [90.0] * 4 + [180.0] * 2))
    assert yaw_repeats(camera_label(yaws), 100).tolist() == [1] * 12 + [3] * 4 + [6] * 2
    assert yaw_repeats(camera_label(yaws), 4).tolist() == [1] * 12 + [3] * 4 + [4] * 2
    assert yaw_repeats(camera_label(yaws), 1).tolist() == [1] * 18
    assert yaw_repeats(torch.zeros(0, 25), 3).tolist() == []


def test_shards_hold_the_same_people(here, folder: Path, tmp_path: Path) -> None:
    process(folder, tmp_path / "a.zip", shards=tmp_path / "shards")
    assert len(PortraitShards(tmp_path / "shards")) == 36
    process(folder, tmp_path / "a.zip", shards=tmp_path / "shards")  # nothing to do
    with pytest.raises(InputError, match="already holds shards"):
        process(folder, tmp_path / "b.zip", shards=tmp_path / "shards")


def test_training_takes_a_step(whole: Path, tmp_path: Path) -> None:
    from portrait360.training.loop import train

    train(whole, "tiny", tmp_path / "run", kimg=0.004, device="cpu", quiet=True)
    assert (tmp_path / "run" / "weights.safetensors").exists()


@pytest.fixture
def fake_command(here, monkeypatch) -> Callable:
    monkeypatch.setattr(photo_job, "package_worker", lambda *_: fake_worker.FakeWorker)
    return main


def test_the_command(fake_command, folder: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "a.zip"
    assert fake_command(["dataset", "photos", str(folder), "--resolution", "32", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{out}  36 ")
    assert ": 36 persons of 36 photos out of 40; rejected: 2 unreadable, " in printed
    assert out.exists()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--workers 0", "at least 1 worker"),
        ("--resolution 8", "resolution must be"),
        ("--resolution 100000", "resolution must be"),
        ("--balance 0", "balancing can show"),
        ("--balance 1000", "balancing can show"),
        ("--engine spark", "no engine spark"),
        ("--out {0}/folder.txt", r"must be a zip"),
        ("--out {0}/file/a.zip", "expected a folder"),
        ("--out {0}/other.zip", "exists already and is no complete dataset of photos"),
    ],
)
def test_bad_numbers_and_places(fake_command, capfd, tmp_path, folder, tiny_dataset, flags, sentence):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "other.zip").write_bytes(tiny_dataset.read_bytes())
    values = {"--resolution": "32", "--out": str(tmp_path / "new.zip")}
    flag, value = flags.format(tmp_path).split()
    values[flag] = value
    words = ["dataset", "photos", str(folder), *(word for pair in values.items() for word in pair)]
    check(capfd, tmp_path, words, sentence)


@pytest.mark.parametrize(("name", "extra"), [("mediapipe", "photos"), ("ray", "ray")])
def test_a_package_that_is_missing(capfd, tmp_path, folder, monkeypatch, name, extra):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked, *rest: None if asked == name else found(asked))
    engine = ["--engine", "ray"] if name == "ray" else []
    words = ["dataset", "photos", str(folder), "--resolution", "32", "--out", str(tmp_path / "a.zip"), *engine]
    assert main(words) == 2
    error, hint = capfd.readouterr().err.splitlines()
    assert "needs" in error
    assert f'pip install "portrait360[{extra}]"' in hint
    assert list(tmp_path.iterdir()) == []
