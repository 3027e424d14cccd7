"""Bad input from the command line: one clear sentence, a hint, exit status 2, and nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from polite import check
from portrait360.checkpoint import read_tensors, write_tensors
from portrait360.cli import main
from portrait360.data.synthetic import PortraitSource

IMAGE, MASK = "images/00000/00000002.webp", "masks/00000/00000002.png"


# ---- generate: weights ----


def cut(good: Path, bad: Path) -> None:
    bad.write_bytes(good.read_bytes()[:-1000])


def head_only(good: Path, bad: Path) -> None:
    bad.write_bytes(good.read_bytes()[:20])


def nothing(good: Path, bad: Path) -> None:
    bad.write_bytes(b"")


def noise(good: Path, bad: Path) -> None:
    bad.write_bytes(np.random.default_rng(0).bytes(5000))


def folder(good: Path, bad: Path) -> None:
    bad.mkdir()


def pickled(good: Path, bad: Path) -> None:
    torch.save({"G_ema": torch.zeros(3)}, bad)


def other_tensors(good: Path, bad: Path) -> None:
    save_file({"a": torch.zeros(3)}, bad)


def other_model(good: Path, bad: Path) -> None:
    tensors, metadata = read_tensors(good)
    model = json.loads(metadata["model"])
    model["plane_features"] *= 2
    write_tensors(bad, tensors, metadata | {"model": json.dumps(model)})


def nonsense_model(good: Path, bad: Path) -> None:
    tensors, metadata = read_tensors(good)
    write_tensors(bad, tensors, metadata | {"model": json.dumps({"name": "x", "layers": 3})})


def lacking_tensor(good: Path, bad: Path) -> None:
    tensors, metadata = read_tensors(good)
    write_tensors(bad, dict(sorted(tensors.items())[:-1]), metadata)


def not_finite(good: Path, bad: Path) -> None:
    tensors, metadata = read_tensors(good)
    name = next(name for name, tensor in sorted(tensors.items()) if name.startswith("G_ema") and tensor.dim() > 1)
    tensors[name] = torch.full_like(tensors[name], torch.nan)
    write_tensors(bad, tensors, metadata)


def stripped(good: Path, bad: Path) -> None:
    save_file(load_file(good), bad)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (None, "no weights file"),
        (cut, "not a readable safetensors file"),
        (head_only, "not a readable safetensors file"),
        (nothing, "not a readable safetensors file"),
        (noise, "not a readable safetensors file"),
        (folder, "no weights file"),
        (pickled, "not a readable safetensors file"),
        (other_tensors, "not written by portrait360"),
        (stripped, "not written by portrait360"),
        (other_model, "is .*, expected"),
        (nonsense_model, "config"),
        (lacking_tensor, "lacks tensor"),
        (not_finite, "not finite"),
    ],
)
def test_bad_weights(capfd, tmp_path, tiny_weights, damage: Callable | None, sentence):
    bad = tmp_path / "weights.safetensors"
    if damage is not None:
        damage(tiny_weights, bad)
    words = ["generate", "--seeds", "0", "--out", str(tmp_path / "out"), "--weights", str(bad)]
    check(capfd, tmp_path, words, sentence)


def test_a_checkpoint_is_not_weights(capfd, tmp_path, run_folder):
    (checkpoint,) = run_folder.glob("checkpoint-*")
    words = ["generate", "--seeds", "0", "--out", str(tmp_path / "out"), "--weights", str(checkpoint)]
    check(capfd, tmp_path, words, "training checkpoint, not weights")


# ---- generate: numbers and places ----


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--seeds abc", "whole numbers"),
        ("--seeds 1.5", "whole numbers"),
        ("--seeds 3,,4", "whole numbers"),
        ("--seeds -1", "whole numbers of at least 0"),
        ("--seeds 5-2", "runs backwards"),
        ("--seeds 99999999999999999999", "above the largest"),
        ("--seeds 0-4000000", "more than 10000"),
        ("--seeds 0 --neck nan 0 0", "--neck takes three angles"),
        ("--seeds 0 --head 0 inf 0", "--head takes three angles"),
        ("--seeds 0 --neck 0 120 0", "at most 90"),
        ("--seeds 0 --head 80 80 0", "at most 90"),
        ("--seeds 0 --truncation-psi 1.5", "between 0 and 1"),
        ("--seeds 0 --truncation-psi -0.1", "between 0 and 1"),
        ("--seeds 0 --truncation-psi nan", "between 0 and 1"),
    ],
)
def test_bad_numbers_for_generate(capfd, tmp_path, tiny_weights, flags, sentence):
    words = ["generate", *flags.split(), "--out", str(tmp_path / "out"), "--weights", str(tiny_weights)]
    check(capfd, tmp_path, words, sentence)


@pytest.mark.parametrize("place", ["file", "file/below", "seeds/in/the/way"])
def test_a_file_where_the_folder_should_be(capfd, tmp_path, tiny_weights, place):
    (tmp_path / "file").write_text("mine")
    out = tmp_path / place
    if place.startswith("seeds"):
        out.mkdir(parents=True)
        (out / "seed0000").write_text("mine")
    words = ["generate", "--seeds", "0", "--out", str(out), "--weights", str(tiny_weights)]
    check(capfd, tmp_path, words, "expected a folder but .* is a file")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_place_that_may_not_be_written(capfd, tmp_path, tiny_weights, monkeypatch, code):
    # Permission bits do not stop root, which containers often run as; so the system call is made to fail.
    def refuse(path, *_, **__):
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(os, "mkdir", refuse)
    words = ["generate", "--seeds", "0", "--out", str(tmp_path / "out"), "--weights", str(tiny_weights)]
    check(capfd, tmp_path, words, "no permission to use .*out")


def limited(words: list[str], size: int) -> subprocess.CompletedProcess[str]:
    """Run a command in a process that cannot write files larger than `size` bytes."""
    code = (
        "import resource, sys; from portrait360.cli import entry_point;"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}));"
        f"sys.argv[1:] = {words!r}; entry_point()"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", ["generate", "inspect"])
def test_a_full_disk(tmp_path, tiny_weights, tiny_dataset, command):
    out = tmp_path / "new" / "out"
    if command == "generate":
        words = ["generate", "--seeds", "0", "--out", str(out), "--weights", str(tiny_weights)]
    else:
        words = ["dataset", "inspect", str(tiny_dataset), "--out", str(out)]
    result = limited(words, 500)
    assert result.returncode == 2, result.stderr
    lines = [line for line in result.stderr.splitlines() if line]
    assert any(line.startswith("error: ") and "the disk is full" in line for line in lines), result.stderr
    assert any(line.startswith("hint: Free some space") for line in lines)
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


# ---- dataset synth ----


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--count 0", "count must be at least 1"),
        ("--count -5", "count must be at least 1"),
        ("--resolution -64", "resolution must be"),
        ("--resolution 8", "resolution must be"),
        ("--resolution 100000", "resolution must be"),
        ("--seed -1", "seed must be at least 0"),
        ("--workers 0", "at least 1 worker"),
        ("--label-noise -1", "label noise must be"),
        ("--label-noise nan", "label noise must be"),
        ("--out {0}/folder.txt", r"must be a zip"),
        ("--out {0}/file/a.zip", "expected a folder"),
        ("--out {0}/other.zip", "exists already"),
    ],
)
def test_bad_numbers_and_places_for_synth(capfd, tmp_path, tiny_dataset, flags, sentence):
    (tmp_path / "file").write_text("mine")
    shutil.copy(tiny_dataset, tmp_path / "other.zip")
    values = {"--count": "2", "--resolution": "32", "--seed": "1", "--out": str(tmp_path / "new.zip")}
    flag, value = flags.format(tmp_path).split()
    values[flag] = value
    words = ["dataset", "synth", *(word for pair in values.items() for word in pair)]
    check(capfd, tmp_path, words, sentence)


def test_synth_without_npm(capfd, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PORTRAIT360_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PORTRAIT360_MAKEHUMAN", raising=False)
    out = tmp_path / "a.zip"
    words = ["dataset", "synth", "--count", "1", "--resolution", "32", "--seed", "1", "--out", str(out)]
    assert main([*words, "--workers", "1"]) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith(("error", "hint"))]
    assert "npm was not found" in lines[0]
    assert len(lines) == 2
    assert not out.exists()


def test_ctrl_c_during_synth_keeps_what_is_done(tmp_path):
    out = tmp_path / "a.zip"
    words = "dataset synth --count 60 --resolution 32 --seed 1 --workers 1 --out".split()
    code = (
        "import signal, sys, fake_portraits, portrait360.data.synthetic as s;"
        "signal.signal(signal.SIGINT, signal.default_int_handler);"  # background jobs start deaf to it
        "from portrait360.cli import entry_point; s.PortraitSource = fake_portraits.SlowSource;"
        f"sys.argv[1:] = {[*words, str(out)]!r}; entry_point()"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env=environment)
    parts = out.with_name("a.zip.parts")
    deadline = time.monotonic() + 60
    while len(list(parts.glob("part-*.zip"))) < 3:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "pictures are kept" in errors
    assert "the same command" in errors
    assert not out.exists()


# ---- datasets, for inspect and for train ----


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


def test_inspect_into_a_file(capfd, tmp_path, tiny_dataset):
    (tmp_path / "file").write_text("mine")
    check(
        capfd,
        tmp_path,
        ["dataset", "inspect", str(tiny_dataset), "--out", str(tmp_path / "file")],
        "is a file",
    )


# ---- train ----


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, tiny_dataset) -> Path:
    """A run of the preset `tiny` with one checkpoint."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    words = ["train", "--data", str(tiny_dataset), "--preset", "tiny", "--out", str(out), "--device", "cpu"]
    assert main([*words, "--kimg", "0.008"]) == 0
    return out


# ---- convert ----


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("none.pkl", None, "there is no SMPL file"),
        ("empty.pkl", b"", "not an SMPL body model .* is empty"),
        ("text.npz", b"hello", "not an SMPL body model .* damaged"),
        ("code.pkl", b"cos\nsystem\n(S'true'\ntR.", "names os.system"),
        ("zip.npz", b"PK\x03\x04" + b"\0" * 99, "compression is damaged"),
        ("other.pkl", b"\x80\x02}.", "has no v_template"),
    ],
)
def test_bad_bodies_for_convert(capfd, tmp_path, name, content, sentence):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    (tmp_path / "original.pkl").write_bytes(b"\x80\x02}.")
    words = ["convert", str(tmp_path / "original.pkl"), "--out", str(tmp_path / "new" / "out.safetensors")]
    check(capfd, tmp_path, [*words, "--body", str(tmp_path / name)], sentence)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--preset gigantic", "no preset 'gigantic'"),
        ("--preset portrait-256", "needs 256"),
        ("--max-minutes 0", "--max-minutes must be above 0"),
        ("--max-minutes -5", "--max-minutes must be above 0"),
        ("--max-minutes nan", "--max-minutes must be above 0"),
        ("--kimg 0", "--kimg must be above 0"),
        ("--kimg inf", "--kimg must be above 0"),
        ("--device warp", "'warp' is not a device"),
        ("--device meta", "does not run on 'meta'"),
        ("--device cuda", "no usable CUDA GPU"),
        ("--out {0}/file", "is a file"),
        ("--resume", "no checkpoint to resume"),
        ("--init {0}/none.safetensors", "no weights file"),
        ("--init {0}/file", "not a readable safetensors file"),
    ],
)
def test_bad_flags_for_train(capfd, tmp_path, tiny_dataset, monkeypatch, flags, sentence):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "file").write_text("mine")
    values = {
        "--data": str(tiny_dataset),
        "--preset": "tiny",
        "--out": str(tmp_path / "out"),
        "--device": "cpu",
    }
    flag, *value = flags.format(tmp_path).split()
    values |= {flag: value[0]} if value else {}
    words = ["train", *(word for pair in values.items() for word in pair), *([] if value else [flag])]
    check(capfd, tmp_path, words, sentence)


def test_a_run_is_not_overwritten(capfd, run_folder, tiny_dataset):
    words = [
        "train",
        "--data",
        str(tiny_dataset),
        "--preset",
        "tiny",
        "--out",
        str(run_folder),
        "--device",
        "cpu",
    ]
    check(capfd, run_folder.parent, words, "already holds a run")


def test_a_run_of_another_preset_is_not_resumed(capfd, run_folder, tiny_dataset):
    other = "tiny-original"
    words = [
        "train",
        "--data",
        str(tiny_dataset),
        "--preset",
        other,
        "--out",
        str(run_folder),
        "--device",
        "cpu",
    ]
    check(capfd, run_folder.parent, [*words, "--resume"], f"belongs to preset tiny, not {other}")


@pytest.mark.parametrize("damage", [cut, nothing, pickled])
def test_a_broken_checkpoint_is_not_resumed(capfd, tmp_path, run_folder, tiny_dataset, damage):
    (checkpoint,) = run_folder.glob("checkpoint-*")
    (tmp_path / "run").mkdir()
    damage(checkpoint, tmp_path / "run" / checkpoint.name)
    words = [
        "train",
        "--data",
        str(tiny_dataset),
        "--preset",
        "tiny",
        "--out",
        str(tmp_path / "run"),
        "--resume",
    ]
    check(capfd, tmp_path, [*words, "--device", "cpu"], "not a readable safetensors file")


def test_the_source_of_synth_is_the_real_one():
    # The tests above that replace it by a quick one depend on its name.
    assert callable(PortraitSource().draw)


# ---- bench ----


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--out {0}/b.json --presets huge", "no preset 'huge'"),
        ("--out {0}/file/b.json --presets tiny", "file"),
        ("--out {0} --presets tiny", "is a folder"),
    ],
)
def test_bad_arguments_for_bench(capfd, tmp_path, words, sentence):
    (tmp_path / "file").write_text("mine")
    check(capfd, tmp_path, ["bench", *words.format(tmp_path).split()], sentence)
