from __future__ import annotations

import errno
import json
import math
from pathlib import Path

import pytest

from portrait360.runtime.files import (
    atomic_folder,
    atomic_write,
    check_place,
    explain_os_error,
    make_folder,
    write_json,
)
from portrait360.types import InputError


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_atomic_write_shows_the_file_only_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "folder" / "image.png"
    with atomic_write(path) as temporary:
        temporary.write_bytes(b"half")
        assert not path.exists()
        assert temporary.parent == path.parent
        assert temporary.suffix == ".png"
    assert path.read_bytes() == b"half"
    assert everything(path.parent) == ["image.png"]


def test_a_failure_keeps_the_old_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_bytes(b"new")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert everything(tmp_path) == ["a.bin"]


def test_a_failure_removes_the_folders_made_for_the_file(tmp_path):
    with pytest.raises(RuntimeError), atomic_write(tmp_path / "x" / "y" / "a.bin") as temporary:
        temporary.write_bytes(b"new")
        raise RuntimeError
    assert everything(tmp_path) == []


def test_a_full_disk_gets_a_sentence_and_a_hint(tmp_path):
    with pytest.raises(InputError, match="the disk is full") as caught, atomic_write(tmp_path / "a.bin"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "a.bin" in caught.value.message
    assert "Free some space" in caught.value.hint
    assert everything(tmp_path) == []


def test_a_folder_in_the_way_of_a_file(tmp_path):
    (tmp_path / "a.bin").mkdir()
    with pytest.raises(InputError, match="expected a file"), atomic_write(tmp_path / "a.bin"):
        pass


def test_a_file_in_the_way_of_a_folder(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(InputError, match="expected a folder"):
        make_folder(tmp_path / "a")
    with pytest.raises(InputError, match="expected a folder"), atomic_write(tmp_path / "a" / "b" / "c.bin"):
        pass
    assert everything(tmp_path) == ["a"]


def test_where_the_system_makes_nothing():
    """Linux has nothing there for it to be in: it says that there is no such place."""
    with pytest.raises(InputError, match="no folder at /proc/portraits"):
        make_folder(Path("/proc/portraits"))
    with pytest.raises(InputError, match="no folder at /proc"), atomic_folder(Path("/proc/portraits")):
        pytest.fail("the block began")
    with pytest.raises(InputError, match="no file at /proc/portrait.glb"), atomic_write(Path("/proc/portrait.glb")):
        pytest.fail("the block began")


def test_looking_whether_a_place_can_be_written_leaves_it_alone(tmp_path):
    (tmp_path / "a.json").write_text("old")
    check_place(tmp_path / "a.json")
    check_place(tmp_path / "new" / "deep" / "b.json")
    assert everything(tmp_path) == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "old"
    with pytest.raises(InputError, match="is a folder"):
        check_place(tmp_path)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.EACCES, "no permission"),
        (errno.EROFS, "no permission"),
        (errno.EDQUOT, "disk is full"),
        (errno.ENAMETOOLONG, "too long"),
        (errno.ELOOP, "in a circle"),
        (errno.EIO, "input/output error"),
    ],
)
def test_errors_that_a_user_can_mend_are_explained(code, words):
    explained = explain_os_error(OSError(code, "", "place"))
    assert words in explained.message
    assert "place" in explained.message
    assert explained.hint


def test_other_errors_are_left_alone(tmp_path):
    assert explain_os_error(OSError(errno.EBADF, "")) is None
    with pytest.raises(OSError, match="a mistake of ours"), atomic_write(tmp_path / "a"):
        raise OSError(errno.EBADF, "a mistake of ours")


def test_atomic_folder_replaces_files_of_the_same_name_and_keeps_others(tmp_path):
    folder = tmp_path / "deep" / "seed0000"
    folder.mkdir(parents=True)
    (folder / "views.png").write_bytes(b"old")
    (folder / "notes.txt").write_bytes(b"mine")
    with atomic_folder(folder) as temporary:
        (temporary / "views.png").write_bytes(b"new")
        (temporary / "portrait.glb").write_bytes(b"mesh")
        assert (folder / "views.png").read_bytes() == b"old"
    assert everything(folder.parent) == [
        "seed0000", "seed0000/notes.txt", "seed0000/portrait.glb", "seed0000/views.png"
    ]  # fmt: skip
    assert (folder / "views.png").read_bytes() == b"new"


def test_atomic_folder_leaves_nothing_after_a_failure(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "out" / "seed0000") as temporary:
        (temporary / "views.png").write_bytes(b"new")
        raise KeyboardInterrupt
    assert everything(tmp_path) == []


def test_atomic_folder_refuses_a_file_in_its_place(tmp_path):
    (tmp_path / "seed0000").write_bytes(b"")
    with pytest.raises(InputError, match="expected a folder"), atomic_folder(tmp_path / "seed0000"):
        pass


def test_json_is_readable_and_refuses_nan(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, 2.5], "a": "°"})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"b": [1, 2.5], "a": "°"}
    assert text.endswith("}\n")
    assert "°" in text
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "b.json", {"a": math.nan})
    assert everything(tmp_path) == ["a.json"]
