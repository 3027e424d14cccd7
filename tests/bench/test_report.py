"""`portrait360 bench`: what it measures, prints and writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from portrait360.bench import report, training, worker
from portrait360.bench import scene as bench_scene
from portrait360.bench.report import bench, bench_training, table
from portrait360.bench.training import time_training
from portrait360.bench.worker import psnr, seconds, time_preset
from portrait360.types import InputError, Portrait360Error, RenderOutput


@pytest.fixture
def hasty(monkeypatch):
    """In this process, with a rough fit, and without giving this process's memory back."""
    monkeypatch.setattr(bench_scene, "STEPS", 40)
    for name in ("release_freed_memory", "restart_peak"):
        monkeypatch.setattr(worker, name, lambda: None)
    monkeypatch.setattr(report, "run_job", lambda job: json.loads(json.dumps(time_preset(**job))))


@pytest.mark.slow
def test_bench_of_small_presets(tmp_path, hasty, capsys):
    out = tmp_path / "bench.json"
    result = bench(out, quick=True, presets=("tiny", "tiny-original"))
    assert json.loads(out.read_text()) == result
    assert result["machine"]["gflops_float32"] > 0
    tiny, original = result["presets"]["tiny"], result["presets"]["tiny-original"]
    assert {"mapping", "tri-grid", "background", "deformation", "super-resolution", "discriminator"} <= set(
        tiny["stages"]
    )
    assert "exact" not in tiny
    for found in (tiny, original, original["exact"]):
        assert set(found["views"]) == set(report.VIEWS)
        assert all(value > 0 for value in found["views"].values())
        assert found["peak_mib"] > 100
    assert original["exact"]["psnr_db"]["canonical"] > 40
    printed = capsys.readouterr().out
    assert "tiny-original" in printed
    assert "exact" in printed
    assert table(result).row_count == 3


@pytest.mark.slow
def test_heads_are_timed_without_a_pose(tmp_path, hasty):
    result = bench(tmp_path / "bench.json", quick=True, presets=("tiny-head",))
    head = result["presets"]["tiny-head"]
    for found in (head, head["exact"]):
        assert set(found["views"]) == {"first view, canonical", "further view, canonical"}
    assert "deformation" not in head["stages"]
    assert head["exact"]["psnr_db"]["canonical"] > 40
    assert set(head["exact"]["psnr_db"]) == {"canonical"}
    assert table(result).row_count == 2


@pytest.mark.slow
def test_the_worker_is_a_process_of_its_own(tmp_path):
    result = bench(tmp_path / "bench.json", quick=True, presets=("tiny",))
    assert result["presets"]["tiny"]["views"]["first view, posed"] > 0


def test_unknown_presets_and_failures(tmp_path, monkeypatch):
    out = tmp_path / "bench.json"
    with pytest.raises(InputError, match="no preset 'huge'"):
        bench(out, presets=("tiny", "huge"))
    with pytest.raises(InputError):
        bench(Path(__file__) / "bench.json", presets=("tiny",))
    monkeypatch.setattr(report.sys, "executable", "/bin/false")
    with pytest.raises(Portrait360Error, match="tiny could not be timed"):
        bench(out, presets=("tiny",))
    assert not out.exists()
    assert list(tmp_path.iterdir()) == []


def test_seconds_takes_the_shortest_after_a_warm_up():
    calls = []
    assert seconds(lambda: calls.append(0), 3) >= 0
    assert len(calls) == 4


def test_psnr_of_a_known_error():
    def image(value: float) -> RenderOutput:
        image = torch.full((1, 3, 4, 4), value)
        return RenderOutput(image, image, image, image, None)

    assert psnr(image(0.02), image(0.0)) == pytest.approx(40.0, abs=1e-3)
    assert psnr(image(5.0), image(1.0)) >= 120.0


@pytest.mark.slow
def test_training_is_timed_in_both_forms(tmp_path, monkeypatch, capsys):
    seen = []

    def watched(state, batch, original=training.training_step):
        seen.append((state.config.separate_phases, state.config.plain_renderer, state.config.batch))
        return original(state, batch)

    monkeypatch.setattr(training, "restart_peak", lambda: None)
    monkeypatch.setattr(training, "training_step", watched)
    monkeypatch.setattr(report, "run_job", lambda job, worker: json.loads(json.dumps(time_training(**job))))
    out = tmp_path / "bench.json"
    result = bench_training(out, quick=True, presets=("tiny",))
    assert json.loads(out.read_text()) == result
    assert seen == [(False, False, 8)] * 3 + [(True, True, 8)] * 3
    for form in result["training"]["tiny"].values():
        assert form["images_per_second"] > 0
        assert form["trained"] is False
    assert "tiny" in capsys.readouterr().out
    with pytest.raises(InputError, match="no preset 'huge'"):
        bench_training(out, presets=("huge",))
    with pytest.raises(InputError):
        bench_training(out, presets=("tiny",), device="tpu")


@pytest.mark.slow
def test_the_packaged_weights_are_trained_on_from():
    """What can be skipped shows only with a trained density. Without a GPU there are no graphs."""
    assert time_training("portrait-identity", batch=4, steps=1, graphs=True)["trained"] is True
