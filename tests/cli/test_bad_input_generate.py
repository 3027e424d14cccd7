"""Bad input for `generate`: one clear sentence, a hint, exit status 2, and nothing half-written."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from portrait360.runtime.tensors import read_tensors, write_tensors
from support.bad_input import check
from support.damage import cut, folder, head_only, noise, nothing, pickled


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
        ("--seeds 0 --texture 1000", "--texture must be one of 256, 512, 1024, 2048, not 1000"),
        ("--seeds 0 --texture 0", "--texture must be one of"),
        ("--seeds 0 --device nonsense", "not a device"),
        ("--seeds 0 --device meta", "do not run on 'meta'"),
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


def test_seeds_or_a_portrait(capfd, tmp_path):
    words = ["generate", "--out", str(tmp_path / "out")]
    check(capfd, tmp_path, words, "takes either --seeds or --portrait")
    check(capfd, tmp_path, [*words, "--seeds", "1", "--portrait", "a.safetensors"], "takes either --seeds or")


def test_a_portrait_that_is_none(capfd, tmp_path, tiny_weights):
    words = ["generate", "--out", str(tmp_path / "out"), "--weights", str(tiny_weights), "--portrait"]
    check(capfd, tmp_path, [*words, str(tmp_path / "none.safetensors")], "there is no portrait file")
    check(capfd, tmp_path, [*words, str(tiny_weights)], "is not a portrait")
