"""Bad input that several commands share: one clear sentence, a hint, exit status 2, and nothing half-written."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from support.bad_input import check
from support.damage import cut, noise, nothing
from support.programs import Program, run

IMAGE, MASK = "images/00000/00000002.webp", "masks/00000/00000002.png"


def limited(words: list[str], size: int) -> Program:
    """Run a command in a process that cannot write files larger than `size` bytes."""
    code = (
        "import sys; from portrait360.cli.main import entry_point; from support.full_disk import fill_disk;"
        "fill_disk(int(sys.argv.pop(1))); entry_point()"
    )
    return run(code, size, *words, status=2)


@pytest.mark.parametrize("command", ["generate", "inspect"])
def test_a_full_disk(tmp_path, tiny_weights, tiny_dataset, command):
    out = tmp_path / "new" / "out"
    if command == "generate":
        words = ["generate", "--seeds", "0", "--out", str(out), "--weights", str(tiny_weights)]
    else:
        words = ["dataset", "inspect", str(tiny_dataset), "--out", str(out)]
    result = limited(words, 500)
    lines = [line for line in result.errors.splitlines() if line]
    assert any(line.startswith("error: ") and "the disk is full" in line for line in lines), result.errors
    assert any(line.startswith("hint: Free some space") for line in lines)
    assert "Traceback" not in result.errors
    assert list(tmp_path.iterdir()) == []


def rewrite(good: Path, bad: Path, change: Callable[[str, bytes], bytes | None]) -> None:
    """Copy a zip, every member as `change` gives it back; None leaves it out."""
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(bad, "w") as target:
        for name in source.namelist():
            data = change(name, source.read(name))
            if data is not None:
                target.writestr(name, data)


def without(member: str) -> Callable[[Path, Path], None]:
    return lambda good, bad: rewrite(good, bad, lambda name, data: None if name == member else data)


def labels(change: Callable[[list], None]) -> Callable[[Path, Path], None]:
    """Change the list of labels in dataset.json."""

    def damage(good: Path, bad: Path) -> None:
        def member(name: str, data: bytes) -> bytes:
            if name != "dataset.json":
                return data
            content = json.loads(data)
            change(content["labels"])
            return json.dumps(content).encode()

        rewrite(good, bad, member)

    return damage


def broken_image(good: Path, bad: Path) -> None:
    rewrite(good, bad, lambda name, data: data[:40] if name == IMAGE else data)


def text_labels(good: Path, bad: Path) -> None:
    rewrite(good, bad, lambda name, data: b"{labels: none}" if name == "dataset.json" else data)


DATASETS = [
    (None, "there is no|not found|does not exist|no such", "missing"),
    (nothing, "zip", "empty"),
    (noise, "zip", "noise"),
    (cut, "broken|not a zip|zip", "cut"),
    (without("dataset.json"), r"dataset\.json", "no-labels"),
    (text_labels, r"dataset\.json", "labels-not-json"),
    (labels(lambda rows: rows[1][1].pop()), "30|numbers", "label-count"),
    (labels(lambda rows: rows[1][1].__setitem__(3, float("nan"))), "finite|NaN|nan", "label-nan"),
    (labels(lambda rows: rows[1][1].__setitem__(3, "x")), "number", "label-text"),
    (
        labels(lambda rows: rows.append(["images/00000/00000099.webp", rows[0][1]])),
        "00000099",
        "label-of-nothing",
    ),
    (broken_image, "00000002", "image"),
    (without(MASK), "mask", "mask"),
]


@pytest.mark.parametrize("command", ["inspect", "train"])
@pytest.mark.parametrize(("damage", "sentence"), [row[:2] for row in DATASETS], ids=[row[2] for row in DATASETS])
def test_bad_datasets(capfd, tmp_path, tiny_dataset, command, damage: Callable | None, sentence):
    bad = tmp_path / "bad.zip"
    if damage is not None:
        damage(tiny_dataset, bad)
    out = str(tmp_path / "out")
    if command == "inspect":
        words = ["dataset", "inspect", str(bad), "--out", out]
    else:
        words = ["train", "--data", str(bad), "--preset", "tiny", "--out", out, "--device", "cpu"]
    check(capfd, tmp_path, words, sentence)
