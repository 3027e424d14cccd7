"""Every value of a preset can be set, by name in Python and by flag on the command line; runs keep it."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from portrait360.cli.main import main, parse
from portrait360.config import PRESETS, Preset, RawRamp
from portrait360.config.fields import differences, preset_fields
from portrait360.training.checkpoints import checkpoints, load_checkpoint
from portrait360.training.loop import train
from portrait360.training.settings import full_names, resumed_preset, with_settings
from portrait360.types import InputError
from support.presets import TINY

BASE = PRESETS["cpu-64"]


def leaves() -> list[str]:
    return [path for path, field in preset_fields().items() if field.part is None]


def flag(path: str) -> str:
    return f"--{path.replace('_', '-')}"


def test_fields_are_all_values_of_recipe_and_model():
    for root, config in (("training", BASE.training), ("model", BASE.model)):
        assert {f"{root}.{field.name}" for field in dataclasses.fields(config)} <= set(preset_fields())
    assert {"training.raw_ramp.final", "model.background.channels", "model.original_bugs.raw_overwritten"} <= set(
        leaves()
    )
    assert preset_fields()["model.render.near"].of(BASE) == BASE.model.render.near
    assert preset_fields()["model.background.channels"].of(BASE) is None


@pytest.mark.parametrize("name", PRESETS)
def test_setting_every_value_to_what_it_is_changes_nothing(name):
    preset = PRESETS[name]
    values = {path: field.of(preset) for path, field in preset_fields().items()}
    present = {path: value for path, value in values.items() if value is not None}
    assert with_settings(preset, present) == preset


def test_every_value_has_a_flag_with_help(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        parse(["train", "--help"])
    words = capsys.readouterr().out.split()
    assert [path for path in leaves() if flag(path) not in words] == []
    assert [path for path in preset_fields() if not preset_fields()[path].about] == []


def test_help_shows_the_presets_defaults(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")  # one column of flags
    with pytest.raises(SystemExit):
        parse(["train", "--help"])
    text = " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    assert "0.05 in portrait-identity, cpu-64; 0.02 in portrait-256;" in text


def test_flags_arrive_as_values():
    words = "train --data a.zip --preset cpu-64 --out r --training.batch 8 --training.r1-gamma 1e-1 --model.z-dim 16"
    more = "--training.raw-ramp.final 64 --training.mirror False --training.pose-refine-kimg None"
    parts = "--training.zoom-windows .5 --model.background None --model.discriminator.channels 8 8 8 8 8"
    assert parse([*words.split(), *more.split(), *parts.split()]).settings == {
        "training.batch": 8,
        "training.r1_gamma": 0.1,
        "model.z_dim": 16,
        "training.raw_ramp.final": 64,
        "training.mirror": False,
        "training.pose_refine_kimg": None,
        "training.zoom_windows": (0.5,),
        "model.background": None,
        "model.discriminator.channels": (8, 8, 8, 8, 8),
    }
    assert parse(words.split()[:7]).settings == {}


def test_plain_names_stand_for_the_only_field_of_that_name():
    assert full_names({"batch": 8, "z_dim": 4, "model.render.near": 2.0}) == {
        "training.batch": 8,
        "model.z_dim": 4,
        "model.render.near": 2.0,
    }


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("bacth", "no option 'bacth'. Perhaps you meant batch"),
        ("training.bacth", "Perhaps you meant training.batch"),
        ("clamp", "any of model.discriminator.clamp, model.superresolution.clamp"),
        ("nothing_like_it_at_all", "no option"),
    ],
)
def test_names_of_no_field_or_of_several_are_refused(name, said, tmp_path):
    with pytest.raises(TypeError, match=said):
        train("a.zip", "tiny", tmp_path / "run", **{name: 1})
    assert not (tmp_path / "run").exists()


def test_values_take_the_fields_type():
    changed = with_settings(BASE, {"training.r1_gamma": 1, "training.zoom_windows": [0.5, 0.4]})
    assert changed.training.zoom_windows == (0.5, 0.4)
    assert isinstance(changed.training.r1_gamma, float)
    assert with_settings(BASE, {"training.raw_ramp": RawRamp(64, 1.0, 1.0)}).training.raw_ramp == RawRamp(64, 1.0, 1.0)
    values = {f"training.raw_ramp.{name}": 1 for name in ("final", "start_kimg", "kimg")}
    assert with_settings(BASE, values).training.raw_ramp == RawRamp(1, 1.0, 1.0)
    assert with_settings(PRESETS["portrait-256"], {"model.background": None}).model.background is None


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"training.batch": "many"}, "`training.batch` takes int, not 'many'"),
        ({"training.mirror": 1, "training.batch": 8}, "`training.mirror` takes bool, not 1"),
        ({"training.loss": "hinge"}, "`training.loss` takes"),
        ({"training.raw_ramp.final": 64}, "needs all of its values"),
        ({"training.batch": 0}, "`training.batch` must be at least 1, not 0"),
        ({"training.batch": 3}, "multiple of `training.views_per_latent`"),
        ({"training.g_lr": 0.0}, "above 0"),
        ({"training.r1_gamma": float("nan")}, "at least 0"),
        ({"training.zoom_probability": 1.5}, "between 0 and 1"),
        ({"training.betas": (0.0, 1.0)}, "below 1"),
        ({"training.zoom_windows": (0.3, 0.6)}, "the largest first"),
        ({"training.loss": object()}, "takes"),
    ],
)
def test_values_that_do_not_fit_are_refused(settings, said):
    with pytest.raises(InputError, match=re.escape(said)):
        with_settings(BASE, settings)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"z_dim": 0}, "`model.z_dim` must be at least 1"),
        ({"resolution": 64}, "`model.resolution` must be 32"),
        ({"raw_resolution": 32, "superresolution": None, "resolution": 64}, "`model.resolution`"),
        ({"superresolution": None}, "`model.raw_resolution`"),
        ({"symmetric_features": 99}, "at most `model.plane_features`, 8"),
        ({"pose_blocks": 3}, "`model.discriminator.pose_blocks`"),
        ({"near": 9.0}, "`model.render.near`"),
        ({"input_resolution": 8}, "`model.superresolution.input_resolution`"),
        ({"model.synthesis.channels": ()}, "`model.synthesis.channels`"),
    ],
)
def test_models_whose_parts_do_not_fit_are_refused(changes, said, tmp_path):
    with pytest.raises(InputError, match=re.escape(said)):
        train("a.zip", "tiny", tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_dataset) -> Path:
    """A run of `tiny` with another batch and a wider latent."""
    out = tmp_path_factory.mktemp("runs") / "run"
    train(tiny_dataset, "tiny", out, kimg=0.004, quiet=True, device="cpu", batch=2, z_dim=24)
    return out


def test_a_run_keeps_its_settings(run):
    checkpoint = load_checkpoint(checkpoints(run)[-1])
    asked = {"training.batch": 2, "model.z_dim": 24, "training.total_kimg": 0.004}
    assert checkpoint.preset == with_settings(TINY, asked)
    config = json.loads((run / "config.json").read_text())
    assert (config["training"]["batch"], config["model"]["z_dim"], config["run"]["preset"]) == (2, 24, "tiny")
    assert (checkpoint.images, checkpoint.step) == (4, 2)


def test_a_resumed_run_keeps_to_its_settings(run, tiny_dataset):
    """Whether they are given again or not; only its length may change."""
    stored = load_checkpoint(checkpoints(run)[-1]).preset
    assert resumed_preset(stored, {"training.batch": 2}) == stored
    longer = resumed_preset(stored, {"training.total_kimg": 1.0})
    assert [field.path for field in differences(stored, longer)] == ["training.total_kimg"]
    words = ["train", "--data", str(tiny_dataset), "--preset", "tiny", "--out", str(run), "--resume", "--device", "cpu"]
    assert main([*words, "--kimg", "0.006", "--model.z-dim", "24"]) == 0
    assert load_checkpoint(checkpoints(run)[-1]).step == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("--training.batch 4", "--training.batch was 2 when the run began and cannot become 4 now"),
        ("--model.z-dim 16", "--model.z-dim was 24 when the run began and cannot become 16 now"),
        ("--model.background None", "--model.background was"),
    ],
)
def test_a_changed_value_is_refused_on_resume(run, tiny_dataset, capfd, change, said):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    words = ["train", "--data", str(tiny_dataset), "--preset", "tiny", "--out", str(run), "--resume", "--device", "cpu"]
    assert main([*words, *change.split()]) == 2
    error = capfd.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 2
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_preset_that_is_given_itself_must_be_the_runs(run, tiny_dataset):
    stored = load_checkpoint(checkpoints(run)[-1]).preset
    other = Preset(stored.model, dataclasses.replace(stored.training, r1_gamma=7.0))
    with pytest.raises(InputError, match=r"`training.r1_gamma` was .* cannot become 7.0"):
        train(tiny_dataset, other, run, resume=True, device="cpu")


def exit_status(arguments: list[str]) -> int:
    """Of the command line; what tyro refuses itself ends by an exception."""
    try:
        return main(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--training.bacth 4", "--training.batch"),
        ("--training.batch many", "--training.batch"),
        ("--training.batch 0", "--training.batch must be at least 1, not 0"),
        ("--model.resolution 48", "--model.resolution must be 32"),
        ("--training.raw-ramp.final 32 --model.z-dim 8", "--training.raw-ramp.start-kimg, --training.raw-ramp.kimg"),
        ("--kimg 1 --training.total-kimg 2", "--kimg and --training.total-kimg are the same"),
    ],
)
def test_flags_that_do_not_fit_leave_nothing_behind(tmp_path, tiny_dataset, capfd, flags, said):
    words = [
        "train",
        "--data",
        str(tiny_dataset),
        "--preset",
        "tiny",
        "--out",
        str(tmp_path / "run"),
        "--device",
        "cpu",
    ]
    assert exit_status([*words, *flags.split()]) == 2
    assert said in capfd.readouterr().err
    assert not (tmp_path / "run").exists()
