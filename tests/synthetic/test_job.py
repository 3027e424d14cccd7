"""Drawing a dataset with many processes: same bytes always, resuming, and clean failure."""

from __future__ import annotations

import fcntl
import hashlib
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from portrait360.data.dataset import PortraitDataset
from portrait360.synthetic.job import render_dataset
from portrait360.synthetic.label_noise import coarse_body_poses
from portrait360.types import AssetError, DatasetError, InputError
from support import fake_portraits
from support.full_disk import full_disk
from support.programs import Program, children, wait_for_ends

COUNT = 100  # 34 chunks of 3


def draw(out: Path, source=fake_portraits.FakeSource, **changes) -> bool:
    arguments = {
        "count": COUNT,
        "resolution": 32,
        "seed": 3,
        "workers": 2,
        "label_noise": 4.0,
        "progress": False,
    }
    return render_dataset(out, source_factory=source, **{**arguments, **changes})


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A dataset drawn by two workers without interruption."""
    path = tmp_path_factory.mktemp("whole") / "whole.zip"
    draw(path)
    return path


def test_draws_what_the_source_gives(whole: Path) -> None:
    source = fake_portraits.FakeSource()
    dataset = PortraitDataset(whole)
    exact = PortraitDataset(whole, labels="exact")
    assert len(dataset) == COUNT
    assert not whole.with_name("whole.zip.parts").exists()
    assert [path.name for path in whole.parent.iterdir()] == ["whole.zip"]
    for index in (0, 2, 3, 64, 99):
        sample = source.draw(3, index, 32)
        assert np.array_equal(dataset.mask(index), sample.mask)
        assert np.abs(dataset.image(index).astype(int) - sample.image).mean() < 12
        assert np.array_equal(dataset.cameras[index].numpy(), sample.camera)
        assert np.array_equal(exact.body_poses[index].numpy(), sample.body_pose)
    expected = coarse_body_poses(exact.body_poses.numpy(), 4.0, seed=3)
    assert torch.equal(dataset.body_poses, torch.from_numpy(expected))
    wanted = {"seed": 3, "count": COUNT, "resolution": 32, "label_kind": "coarse", "label_noise": 4.0}
    assert {key: dataset.meta[key] for key in wanted} == wanted


def test_views_are_noted_and_belong_to_the_dataset(tmp_path: Path, whole: Path) -> None:
    draw(tmp_path / "views.zip", count=6, views=3)
    assert PortraitDataset(tmp_path / "views.zip").meta["views_per_subject"] == 3
    assert PortraitDataset(whole).meta["views_per_subject"] == 1
    with pytest.raises(DatasetError, match="exists already with views per subject 3, not 1"):
        draw(tmp_path / "views.zip", count=6)


def in_a_process(out: Path) -> Program:
    """The same run in a process of its own that can be killed; image 40 takes until it is."""
    code = (
        "import sys; from pathlib import Path; from support import fake_portraits;"
        " from portrait360.synthetic.job import render_dataset;"
        f"render_dataset(Path(sys.argv[1]), count={COUNT}, resolution=32, seed=3, workers=2, label_noise=4.0,"
        " source_factory=fake_portraits.EndlessSource)"
    )
    return Program(code, out)


def parts_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.zip"))


@pytest.mark.slow
def test_killed_run_leaves_no_process_and_continues_to_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    out, parts = tmp_path / "killed.zip", tmp_path / "killed.zip.parts"
    with in_a_process(out) as program:
        program.until(lambda: len(parts_of(parts)) >= 3)
        workers = children(program.pid)
        assert len(workers) >= 2
        program.send_signal(signal.SIGKILL)
    wait_for_ends(workers)
    assert not out.exists()
    finished = {path.name: path.stat().st_mtime_ns for path in parts_of(parts)}
    assert 3 <= len(finished) < 34
    victim = min(finished)
    (parts / victim).write_bytes((parts / victim).read_bytes()[:-30])  # as after a power cut

    # A run that is stopped by an error keeps the parts that were there, and draws only what was missing.
    with pytest.raises(DatasetError, match=r"rendering image 40 .*ZeroDivisionError: no such angle"):
        draw(out, fake_portraits.FailingSource, workers=1)
    kept = {path.name: path.stat().st_mtime_ns for path in parts_of(parts)}
    assert all(kept[name] == finished[name] for name in finished if name != victim)
    draw(out)
    assert sha256(out) == sha256(whole)
    assert not parts.exists()


@pytest.mark.slow
def test_ctrl_c_says_how_to_continue_and_one_worker_ends_with_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    out, parts = tmp_path / "stopped.zip", tmp_path / "stopped.zip.parts"
    with in_a_process(out) as program:
        program.until(lambda: len(parts_of(parts)) >= 3)
        for pid in [program.pid, *children(program.pid)]:
            os.kill(pid, signal.SIGINT)  # a terminal sends it to the whole group
        program.wait()
        errors = program.errors
    assert f"images are kept in {parts}; run the same command again to continue." in errors
    assert errors.count("Traceback") == 1  # of this test's own call without a command line, none of workers
    assert not out.exists()
    draw(out, workers=1)
    assert sha256(out) == sha256(whole)


def test_a_worker_that_is_killed_gives_a_clear_error(tmp_path: Path) -> None:
    out, parts = tmp_path / "died.zip", tmp_path / "died.zip.parts"
    with pytest.raises(DatasetError, match="ended unexpectedly") as caught:
        draw(out, fake_portraits.DyingSource, workers=1)
    assert "again to continue" in caught.value.hint
    assert len(parts_of(parts)) == 13  # images 0 to 38
    assert not out.exists()
    # Other values do not continue this run.
    for change, words in [
        ({"seed": 4}, "unfinished dataset with seed 3, not 4"),
        ({"label_noise": None}, "label kind coarse, not exact"),
        ({"count": 7}, "count 100, not 7"),
    ]:
        with pytest.raises(DatasetError, match=words) as caught:
            draw(out, **change)
        assert str(parts) in caught.value.hint
    # Nor does a second run draw into the same parts.
    with open(parts / "lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DatasetError, match="another run is rendering"):
            draw(out)


def test_an_error_of_the_source_that_users_can_mend_passes_through_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match="npm was not found") as caught:
        draw(tmp_path / "new" / "none.zip", fake_portraits.MissingAssets)
    assert caught.value.hint == "Install Node.js."
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_gives_one_sentence_and_nothing_half_written(tmp_path: Path) -> None:
    with full_disk(1000), pytest.raises(InputError, match="the disk is full"):
        draw(tmp_path / "full.zip", workers=1)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_is_kept(whole: Path, tmp_path: Path) -> None:
    before = whole.stat().st_mtime_ns
    assert draw(whole) is False  # the same dataset: nothing to do
    assert whole.stat().st_mtime_ns == before
    with pytest.raises(DatasetError, match="exists already with seed 3, not 5"):
        draw(whole, seed=5)
    other = tmp_path / "other.zip"
    other.write_text("something precious")
    with pytest.raises(DatasetError, match="exists already and is no complete dataset"):
        draw(other)
    assert other.read_text() == "something precious"


def test_exact_labels_and_depth(tmp_path: Path) -> None:
    out = tmp_path / "depth.zip"
    draw(out, count=2, label_noise=0.0, depth=True, workers=1)
    dataset = PortraitDataset(out, labels="exact")
    assert dataset.meta["label_kind"] == "exact"
    depth = dataset.depth(1)
    assert depth is not None
    expected = fake_portraits.FakeSource().draw(3, 1, 32, depth=True).depth
    assert np.abs(depth - expected).max() <= 0.5 / 16384 + 1e-7


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"count": 0}, "count must be at least 1"),
        ({"resolution": 8}, "16 to 2048"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"label_noise": -2.0}, "0 to 90 degrees"),
        ({"label_noise": float("nan")}, "0 to 90 degrees"),
        ({"workers": 0}, "at least 1 worker"),
    ],
)
def test_bad_arguments(tmp_path: Path, change: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        draw(tmp_path / "bad.zip", **change)
    with pytest.raises(InputError, match=r"ends? in \.zip|must be a zip"):
        draw(tmp_path / "bad.tar")
    assert list(tmp_path.iterdir()) == []
