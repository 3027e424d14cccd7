"""Slips of the pen are answered before anything heavy is imported, in the words of the library."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "numba", "scipy", "skimage", "av", "matplotlib")

SLIPS = [
    ("generate --seeds x --out out", "--seeds takes whole numbers"),
    ("generate --seeds 3 --truncation-psi 2 --out out", "--truncation-psi must lie between 0 and 1"),
    ("generate --seeds 3 --head 0 100 0 --out out", "--head takes three angles"),
    ("generate --seeds 3 --size 20 --out out", "--size must lie between 64 and 2048"),
    ("generate --seeds 3 --device gpu --out out", "'gpu' is not a device"),
    ("generate --seeds 3 --weights missing.safetensors --out out", "there is no weights file at missing.safetensors"),
    ("generate --seeds 3 --texture 3 --out out", "--texture must be one of"),
    ("page --seeds x --out p.html", "--seeds takes whole numbers"),
    ("page missing.safetensors --out p.html", "there is no portrait file at missing.safetensors"),
    ("page --out p.html", "give one of them"),
    ("generate --seeds 3 --out file", "expected a folder but file is a file"),
    ("invert photo.jpg --neck 0 0 120 --out out", "--neck takes three angles"),
    ("dataset synth --count 0 --resolution 64 --seed 1 --out a.zip", "the count must be at least 1"),
    ("dataset photos missing --resolution 64 --out a.zip", "there is no folder at missing"),
    ("dataset inspect missing.zip --out out", "there is no dataset at missing.zip"),
    ("dataset inspect file --out out", "file is not a zip file"),
    ("dataset shard missing.zip --out out", "there is no dataset at missing.zip"),
    ("dataset convert missing.zip --out a.zip", "there is no dataset at missing.zip"),
    ("train --data missing.zip --preset cpu-64 --out run", "there is no dataset at missing.zip"),
    ("train --data file.zip --preset cpu-65 --out run", "there is no preset 'cpu-65'"),
    ("train --data file.zip --preset cpu-64 --out run --kimg -1", "--kimg must be above 0"),
    ("evaluate --data missing.zip --out m.json", "there is no dataset at missing.zip"),
    ("evaluate --data file.zip --out m.txt", "--out must be a .json file"),
    ("pose missing.jpg", "there is no image, folder or zip at missing.jpg"),
    ("bench --presets cpu-65 --out b.json", "there is no preset 'cpu-65'"),
]

PROGRAM = f"""
import sys
from portrait360.cli.main import main
for words in sys.argv[1:]:
    print(main(words.split()), [name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> list[list[str]]:
    """What standard error holds for each slip: error, hint, and exit status with the heavy packages that are loaded."""
    folder = tmp_path_factory.mktemp("slips")
    (folder / "file").write_text("mine")
    (folder / "file.zip").write_bytes(b"PK\x05\x06" + bytes(18))
    words = [sys.executable, "-c", PROGRAM, *(words for words, _ in SLIPS)]
    result = subprocess.run(words, capture_output=True, text=True, check=True, cwd=folder)
    assert sorted(path.name for path in folder.iterdir()) == ["file", "file.zip"]
    lines = result.stderr.splitlines()
    return [lines[i : i + 3] for i in range(0, len(lines), 3)]


@pytest.mark.parametrize("number", range(len(SLIPS)), ids=[words for words, _ in SLIPS])
def test_a_slip_gets_its_sentence_while_nothing_heavy_is_loaded(answers, number):
    error, hint, rest = answers[number]
    assert error.startswith("error: ")
    assert SLIPS[number][1] in error
    assert hint.startswith("hint: ")
    assert rest == "2 []"


@pytest.mark.parametrize("name", ["", "gpu", "cuda:x", "meta", "mps", "xpu:0"])
def test_names_of_devices_are_refused_in_the_words_of_the_library(name):
    from portrait360.cli.early import check_device_name
    from portrait360.errors import InputError
    from portrait360.runtime.device import choose_device

    errors = []
    for check in (check_device_name, choose_device):
        with pytest.raises(InputError) as caught:
            check(name)
        errors.append((caught.value.message, caught.value.hint))
    assert errors[0] == errors[1]


def test_places_are_refused_in_the_words_of_the_library(tmp_path):
    from portrait360.cli import early
    from portrait360.data.store import open_store
    from portrait360.errors import Portrait360Error
    from portrait360.photos.folder import find_photos
    from portrait360.runtime.files import make_folder
    from portrait360.runtime.tensors import read_tensors

    (tmp_path / "text").write_text("mine")
    pairs = [
        (early.check_dataset_place, open_store, tmp_path / "missing"),
        (early.check_dataset_place, open_store, tmp_path / "text"),
        (early.check_weights_place, read_tensors, tmp_path / "missing"),
        (early.check_photo_folder, find_photos, tmp_path / "missing"),
        (early.check_photo_folder, find_photos, tmp_path / "text"),
        (early.check_folder_place, make_folder, tmp_path / "text"),
    ]
    for quick, library, path in pairs:
        errors = []
        for check in (quick, library):
            with pytest.raises(Portrait360Error) as caught:
                check(path)
            errors.append((type(caught.value), caught.value.message, caught.value.hint))
        assert errors[0] == errors[1]
