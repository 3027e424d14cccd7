"""What each engine must do: the same dataset, whatever ends or blocks its processes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from portrait360.photos.job import process_folder
from portrait360.types import AssetError
from support import fake_worker

COUNT = 64
"""Two photos in a chunk."""
HOSTILE = {10: "hang", 20: "die", 21: "break", 40: "nobody", 50: "two"}


def process(folder: Path, out: Path, engine: str, worker=fake_worker.FakeWorker):
    return process_folder(
        folder,
        out,
        resolution=32,
        workers=2,
        worker_factory=worker,
        engine=engine,
        longest_reading=3.0,
        progress=False,
    )


def digests(out: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.parent.iterdir()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("folder")
    for i in range(COUNT):
        fake_worker.write_photo(path / f"{i:02d}.jpg", HOSTILE.get(i, "good"), seed=i, yaw=5.0 * i)
    return path


@pytest.fixture(scope="module")
def local(folder: Path, tmp_path_factory) -> Path:
    """The dataset, made by processes of this machine."""
    out = tmp_path_factory.mktemp("local") / "a.zip"
    process(folder, out, "local")
    return out


@pytest.fixture
def ray_folder(monkeypatch) -> Iterator[Path]:
    """Where Ray keeps its sockets and logs; its path must be short."""
    path = Path(tempfile.mkdtemp(prefix="ray-"))
    monkeypatch.setenv("RAY_TMPDIR", str(path))
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else a busy machine starves its processes,
    monkeypatch.setenv("RAY_worker_register_timeout_seconds", "300")  # and starts others in their place
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))  # for its processes
    yield path
    shutil.rmtree(path)


def processes_with(path: Path) -> list[str]:
    """The processes, other than this one, in whose environment a path is."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) == os.getpid():
            continue
        try:
            if os.fsencode(path) in (process / "environ").read_bytes():
                found.append((process / "comm").read_text().strip())
        except OSError:  # it has just ended, or is another user's
            continue
    return found


def test_a_photo_that_ends_or_blocks_its_process_is_unreadable_and_the_others_go_on(local: Path) -> None:
    photos = json.loads(local.with_name("a.report.json").read_text())["photos"]
    rejected = {int(Path(entry["name"]).stem): entry for entry in photos if entry["outcome"] == "rejected"}
    assert {i: entry["reason"] for i, entry in rejected.items()} == {
        10: "unreadable",
        20: "unreadable",
        21: "unreadable",
        40: "no person",
    }
    assert rejected[10]["detail"] == "reading it took longer than 3 seconds, twice."
    assert rejected[20]["detail"] == "the process died while reading it, twice."
    assert len(photos) == COUNT


@pytest.mark.slow
def test_ray_gives_the_same_bytes(local: Path, folder: Path, tmp_path: Path, ray_folder: Path) -> None:
    process(folder, tmp_path / "a.zip", "ray")
    assert digests(tmp_path / "a.zip") == digests(local)
    limit = time.monotonic() + 300
    while left := processes_with(ray_folder):
        assert time.monotonic() < limit, f"Ray has left {left}"
        time.sleep(0.1)


@pytest.mark.slow
def test_a_ray_that_runs_is_used_and_left_running(folder: Path, tmp_path: Path, ray_folder: Path) -> None:
    import ray

    ray.init(address="local", num_cpus=2, object_store_memory=100 * 2**20, include_dashboard=False, log_to_driver=False)
    try:
        with pytest.raises(AssetError, match="model is missing"):
            process(folder, tmp_path / "new" / "a.zip", "ray", fake_worker.MissingModel)
        assert ray.is_initialized()
    finally:
        ray.shutdown()
    assert list(tmp_path.iterdir()) == []
