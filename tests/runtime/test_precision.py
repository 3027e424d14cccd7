"""bf16 is chosen by measurement, once per run and processor."""

from __future__ import annotations

import pytest
import torch

from portrait360.config import PRESETS
from portrait360.runtime import precision
from portrait360.runtime.precision import choose_bf16, convolution_seconds, processor_name, worth_bf16

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def measured(monkeypatch, float32: float, bf16: float) -> None:
    times = {torch.float32: float32, torch.bfloat16: bf16}
    monkeypatch.setattr(precision, "convolution_seconds", times.__getitem__)


@pytest.mark.parametrize(("float32", "bf16", "chosen"), [(2.0, 1.0, True), (1.0, 2.0, False), (1.1, 1.0, False)])
def test_the_faster_one_is_chosen(monkeypatch, float32, bf16, chosen):
    measured(monkeypatch, float32, bf16)
    assert choose_bf16(True, CPU, {}) is chosen
    assert choose_bf16(True, CPU, {"bf16": not chosen, "processor": "another"}) is chosen


@pytest.mark.parametrize("saved", [True, False])
def test_a_resumed_run_keeps_its_choice_on_the_same_processor(monkeypatch, saved):
    measured(monkeypatch, 1.0, 2.0 if saved else 0.5)
    assert choose_bf16(True, CPU, {"bf16": saved, "processor": processor_name()}) is saved


def test_processors_of_one_name_differ_by_their_instructions(monkeypatch):
    names = []
    for flags in ("fpu avx512_bf16 sse", "fpu avx512_bf16 amx_bf16", "fpu"):
        text = f"processor : 0\nmodel name : Xeon\nflags : {flags}\n"
        monkeypatch.setattr("pathlib.Path.read_text", lambda self, text=text: text)
        names.append(processor_name())
    assert names == ["Xeon (avx512_bf16)", "Xeon (amx_bf16, avx512_bf16)", "Xeon"]


def test_the_recipe_has_the_last_word(monkeypatch):
    measured(monkeypatch, 2.0, 1.0)
    assert choose_bf16(False, CPU, {}) is False
    assert choose_bf16(False, GPU, {}) is False
    measured(monkeypatch, 1.0, 2.0)
    assert choose_bf16(True, GPU, {}) is True


def test_images_of_large_networks_only(monkeypatch):
    measured(monkeypatch, 2.0, 1.0)
    assert worth_bf16(PRESETS["original-512"].model)
    assert not worth_bf16(PRESETS["cpu-64"].model)
    measured(monkeypatch, 1.0, 2.0)
    assert not worth_bf16(PRESETS["original-512"].model)


def test_measuring_takes_time():
    assert 0 < convolution_seconds(torch.float32, repeats=2) < 10
    assert processor_name()
