"""Whole runs: exact resume after any end, clear refusals, divergence."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
from pathlib import Path

import pytest
import torch

from portrait360.config import RawRamp
from portrait360.model.discriminator import with_pose_path
from portrait360.portrait.weights import load_generator, load_weights, save_weights
from portrait360.training import loop, watch
from portrait360.training.checkpoints import (
    checkpoint_path,
    checkpoints,
    images_of,
    is_cut_off,
    load_checkpoint,
)
from portrait360.training.loop import train
from portrait360.training.run_folder import images_shown
from portrait360.training.state import new_state
from portrait360.types import CheckpointError, DivergenceError, InputError
from support.fake_portraits import write_fake_dataset
from support.presets import TINY
from support.programs import Program, run

PROGRAM = """
import dataclasses, sys
from pathlib import Path
from portrait360.config import register_preset
from support.presets import TINY
from support.programs import hold
from portrait360.training import loop

training = dataclasses.replace(TINY.training, checkpoint_kimg=0.016, sheet_kimg=1000.0, keep_checkpoints=100)
register_preset(dataclasses.replace(TINY, training=training))
loop.REPORT_STEPS = 1
data, out, start, stop = sys.argv[1:]
original = loop.training_step

def step(state, batch, ranks):
    if state.images == int(stop):
        hold(Path(out))
    return original(state, batch, ranks)

loop.training_step = step
loop.train(Path(data), "tiny", Path(out), resume=start == "resume", kimg=0.08, quiet=True)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "d.zip"
    write_fake_dataset(path, coarse=True)
    return path


@pytest.fixture(scope="module")
def unbroken(data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "unbroken"
    run(PROGRAM, data, out, "new", -1)
    return out


def losses(run: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {line["images"]: line["d_loss"] for line in lines}


def assert_same_end(a: Path, b: Path) -> None:
    one, other = (load_checkpoint(checkpoints(run)[-1]) for run in (a, b))
    assert (one.run, one.images, one.step) == (other.run, other.images, other.step)
    left, right = one.tensors, other.tensors
    assert left.keys() == right.keys()
    assert all(torch.equal(left[k], right[k]) for k in left)


def test_killed_run_resumes_to_the_same_numbers(data, unbroken, tmp_path):
    out = tmp_path / "killed"
    with Program(PROGRAM, data, out, "new", 40) as program:
        program.held(out)
        program.send_signal(signal.SIGKILL)
        assert program.wait() == -signal.SIGKILL
    assert 0 < len(checkpoints(out)) < len(checkpoints(unbroken))
    run(PROGRAM, data, out, "resume", -1)
    assert losses(out) == losses(unbroken)
    assert_same_end(out, unbroken)


def test_sigterm_saves_and_resumes(data, unbroken, tmp_path):
    out = tmp_path / "stopped"
    with Program(PROGRAM, data, out, "new", 24) as program:
        program.held(out)
        program.send_signal(signal.SIGTERM)
        program.release(out)
        assert program.wait() == 0
    assert load_checkpoint(checkpoints(out)[-1]).images == 28  # the step that the signal met is done
    run(PROGRAM, data, out, "resume", -1)
    assert_same_end(out, unbroken)


def test_run_leaves_weights_log_and_sheets(unbroken):
    weights = load_weights(unbroken / "weights.safetensors")
    assert weights.info.about["images"] == 80
    assert sorted(p.name.split("-")[0] for p in (unbroken / "sheets").iterdir()) == ["poses", "turn"]
    assert any((unbroken / "tensorboard").iterdir())
    assert sorted(losses(unbroken)) == list(range(4, 84, 4))


def test_a_run_without_tensorboard_says_so_and_writes_its_log(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setattr(loop, "REPORT_STEPS", 1)
    train(data, "tiny", tmp_path / "run", kimg=0.004, quiet=True)
    assert "without tensorboard" in capsys.readouterr().out
    assert sorted(losses(tmp_path / "run")) == [4]
    assert not (tmp_path / "run" / "tensorboard").exists()
    assert any((tmp_path / "run" / "sheets").iterdir())


def test_damaged_last_checkpoint_falls_back_to_the_one_before(data, unbroken, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    whole, broken = checkpoints(unbroken)[-3:-1]
    (out / whole.name).write_bytes(whole.read_bytes())
    (out / broken.name).write_bytes(broken.read_bytes()[:1000])
    run(PROGRAM, data, out, "resume", -1)
    assert_same_end(out, unbroken)


def test_a_broken_newest_checkpoint_is_named_and_never_outlives_a_good_one(data, tmp_path, capsys):
    out = tmp_path / "run"
    train(data, "tiny", out, kimg=0.008, quiet=True, keep_checkpoints=1)
    (good,) = checkpoints(out)
    broken = checkpoint_path(out, 500)
    broken.write_bytes(good.read_bytes()[:-100])
    train(data, "tiny", out, resume=True, kimg=0.016, quiet=True)
    assert f"warning: {broken} is broken; training goes on from {good.name}." in capsys.readouterr().err
    newest = checkpoint_path(out, 16)
    assert checkpoints(out) == [newest, broken]
    assert load_checkpoint(newest).images == 16
    assert images_shown(out) == (16, 16)


def test_broken_checkpoints_do_not_count_among_those_that_are_kept(data, tmp_path):
    out = tmp_path / "run"
    train(data, "tiny", out, kimg=0.008, quiet=True, keep_checkpoints=2)
    (good,) = checkpoints(out)
    checkpoint_path(out, 12).write_bytes(good.read_bytes()[:-100])
    train(data, "tiny", out, resume=True, kimg=0.016, quiet=True)
    assert [images_of(path) for path in checkpoints(out) if not is_cut_off(path)] == [8, 16]


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b + b"x", lambda b: b[:5], lambda b: b"", lambda b: b"{" * 99]
)
def test_cut_off_files_are_told_from_their_headers(unbroken, tmp_path, damage):
    whole = checkpoints(unbroken)[-1]
    assert not is_cut_off(whole)
    path = tmp_path / whole.name
    path.write_bytes(damage(whole.read_bytes()))
    assert is_cut_off(path)
    assert is_cut_off(tmp_path / "missing")


def test_existing_run_is_never_overwritten(data, unbroken):
    with pytest.raises(InputError, match="already holds a run"):
        train(data, "tiny", unbroken, kimg=0.01)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"preset": "huge"}, "no preset"),
        ({"recipe": "secret"}, "no recipe"),
        ({"kimg": 0.0}, "above 0"),
        ({"kimg": float("nan")}, "above 0"),
        ({"device": "tpu9"}, "device"),
        ({"device": "meta"}, "do not run"),
        ({"resume": True}, "no checkpoint"),
        ({"resume": True, "init": Path("w.safetensors")}, "`init` exclude"),
    ],
)
def test_refusals(data, tmp_path, options, said):
    arguments = {"preset": "tiny", "kimg": 0.01} | options
    with pytest.raises(InputError, match=said):
        train(data, out=tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


def test_checkpoint_of_another_preset_is_refused(data, unbroken, tmp_path):
    with pytest.raises(CheckpointError, match="belongs to preset tiny"):
        train(data, "tiny-original", unbroken, resume=True, kimg=1.0)


@pytest.mark.slow
def test_a_run_in_the_published_recipe_resumes_exactly(data, tmp_path):
    """Labels drawn anew for either phase come from the random state that checkpoints keep; so does a grown raw side."""
    options = {"recipe": "original", "quiet": True}
    small = {"batch": 4, "checkpoint_kimg": 0.008, "sheet_kimg": 1000.0, "raw_ramp": RawRamp(20, 0.0, 0.016)}
    train(data, "tiny-original", tmp_path / "whole", kimg=0.016, **options, **small)
    train(data, "tiny-original", tmp_path / "broken", kimg=0.008, **options, **small)
    with pytest.raises(CheckpointError, match="recipe original, not preset"):
        train(data, "tiny-original", tmp_path / "broken", resume=True, kimg=0.016)
    weights = train(data, "tiny-original", tmp_path / "broken", resume=True, kimg=0.016, **options)
    assert_same_end(tmp_path / "whole", tmp_path / "broken")
    assert load_generator(weights)[0].config.raw_resolution == 20
    again = train(data, "tiny-original", tmp_path / "next", init=weights, kimg=0.02, **options, **small)
    assert again.exists()


def test_a_process_that_torchrun_starts_again_resumes_by_itself(data, tmp_path, monkeypatch):
    """The same command, without --resume, in an environment that says that it is the second start."""
    options = {"quiet": True, "kimg": 0.016}
    train(data, "tiny", tmp_path / "whole", **options)
    train(data, "tiny", tmp_path / "broken", quiet=True, kimg=0.008)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    train(data, "tiny", tmp_path / "broken", **options)
    assert_same_end(tmp_path / "whole", tmp_path / "broken")
    train(data, "tiny", tmp_path / "fresh", **options)  # it had not saved anything yet
    assert_same_end(tmp_path / "whole", tmp_path / "fresh")


def test_a_run_starts_from_given_weights_and_counts_on(data, unbroken, tmp_path):
    out = tmp_path / "run"
    start = load_weights(unbroken / "weights.safetensors")
    train(data, "tiny", out, kimg=0.084, seed=1, init=unbroken / "weights.safetensors", quiet=True)
    last = load_checkpoint(checkpoints(out)[-1])
    assert last.images == 84
    for name, parameter in start.generator.named_parameters():  # one step of Adam moves no weight far
        torch.testing.assert_close(last.tensors[f"G/{name}"], parameter, atol=0.02, rtol=0.0)
    fresh = new_state(TINY, 1, torch.device("cpu"))
    name = "backbone.synthesis.b4.const"
    assert (last.tensors[f"G/{name}"] - fresh.generator.state_dict()[name]).abs().max() > 0.02


def test_a_run_from_weights_with_a_pose_path_keeps_it(data, unbroken, tmp_path):
    """The preset has none; resuming takes it from the checkpoint, to the numbers of a run without a stop."""
    start = load_weights(unbroken / "weights.safetensors")
    apart, model = with_pose_path(start.discriminator, start.generator.config, 2)
    given = tmp_path / "apart.safetensors"
    save_weights(given, model, start.generator, apart, start.info.about)
    train(data, "tiny", tmp_path / "whole", kimg=0.088, init=given, quiet=True)
    train(data, "tiny", tmp_path / "broken", kimg=0.084, init=given, quiet=True)
    train(data, "tiny", tmp_path / "broken", kimg=0.088, resume=True, quiet=True)
    assert_same_end(tmp_path / "whole", tmp_path / "broken")
    found = load_weights(tmp_path / "whole" / "weights.safetensors").discriminator
    assert found.config.pose_blocks == 2
    before, after = apart.pose_path.state_dict(), found.pose_path.state_dict()
    for name, value in before.items():  # learned with the rest
        assert 0.0 < (after[name] - value).abs().max() < 0.05, name


def test_weights_of_another_preset_are_refused(data, unbroken, tmp_path):
    with pytest.raises(CheckpointError, match="belongs to tiny"):
        train(data, "tiny-original", tmp_path / "run", kimg=1.0, init=unbroken / "weights.safetensors")
    assert not (tmp_path / "run").exists()


def test_weights_that_need_no_more_training_are_refused(data, unbroken, tmp_path):
    with pytest.raises(InputError, match="trained on 80 images already"):
        train(data, "tiny", tmp_path / "run", kimg=0.08, init=unbroken / "weights.safetensors")
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_keeps_the_recipe_that_it_began_with(data, unbroken, tmp_path):
    """PROGRAM's `tiny` writes checkpoints more often than the one that is registered here."""
    out = tmp_path / "run"
    out.mkdir()
    last = checkpoints(unbroken)[-1]
    (out / last.name).write_bytes(last.read_bytes())
    train(data, "tiny", out, resume=True, kimg=0.084, quiet=True)
    before, after = load_checkpoint(last), load_checkpoint(checkpoints(out)[-1])
    assert after.images == 84
    assert after.preset.training == dataclasses.replace(before.preset.training, total_kimg=0.084)
    assert after.preset.training.checkpoint_kimg == 0.016 != TINY.training.checkpoint_kimg


def test_divergence_keeps_the_last_good_checkpoint(data, unbroken, tmp_path, monkeypatch):
    out = tmp_path / "run"
    out.mkdir()
    last = checkpoints(unbroken)[-1]
    (out / last.name).write_bytes(last.read_bytes())
    real = loop.training_step

    def broken(state, batch, ranks):
        return real(state, batch, ranks) | {"d_loss": torch.tensor(float("nan"))}

    monkeypatch.setattr(loop, "training_step", broken)
    with pytest.raises(DivergenceError, match="not finite"):
        train(data, "tiny", out, resume=True, kimg=1.0, quiet=True)
    assert checkpoints(out) == [out / last.name]
    assert (out / last.name).read_bytes() == last.read_bytes()


def test_vanished_portraits_end_the_run(data, tmp_path, monkeypatch):
    real = loop.training_step

    def empty(state, batch, ranks):
        return real(state, batch, ranks) | {"fake_mask": torch.tensor(0.0)}

    monkeypatch.setattr(loop, "training_step", empty)
    monkeypatch.setattr(watch, "COLLAPSE_STEPS", 3)
    with pytest.raises(DivergenceError, match="masks are empty"):
        train(data, "tiny", tmp_path / "run", kimg=1.0, quiet=True)


def test_time_limit_ends_the_run_with_a_checkpoint(data, tmp_path):
    train(data, "tiny", tmp_path / "run", max_minutes=0.01, kimg=100.0, quiet=True)
    assert len(checkpoints(tmp_path / "run")) == 1


def test_ctrl_c_saves_and_is_reported(data, tmp_path):
    out = tmp_path / "run"
    with Program(PROGRAM, data, out, "new", 8) as program:
        program.held(out)
        program.send_signal(signal.SIGINT)
        program.release(out)
        assert program.wait() == -signal.SIGINT
        assert "KeyboardInterrupt" in program.errors
    assert load_checkpoint(checkpoints(out)[-1]).images == 12  # the step that the signal met is done
