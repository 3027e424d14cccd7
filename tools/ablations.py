"""Ablations: the recipe without one of its parts, trained for equal minutes, measured in the same way.

    python -m tools.ablations TRAIN.zip --held-out HELDOUT.zip --out RUNS --minutes 25

The model is `cpu-64` at 32 pixels, which trains enough in an hour of one core for recipes to differ, or, with
`--side 64`, `cpu-64` itself. All arms start from random weights. Each is measured when its time is over; those that
have been are left alone, so that a run that was stopped goes on with the arm that it was in, from that arm's beginning.
Several runs side by side may share RUNS if they have different `--arms`. On a CPU, minutes are of processor time, so
that what else the machine does favours no arm; give each run one thread (OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1). On a
GPU they are minutes of the clock: start all arms at once. With `--train-only` arms are not measured; the same command
without it measures those that are trained, on any machine.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from portrait360.config import PRESETS, ModelConfig, Preset, TrainingConfig, original_recipe
from portrait360.evaluation.evaluate import evaluate
from portrait360.evaluation.plan import Plan
from portrait360.runtime.device import choose_device
from portrait360.runtime.files import write_json
from portrait360.runtime.process import settle_process
from portrait360.runtime.script import run_script
from portrait360.training.loop import train
from portrait360.types import InputError, Portrait360Error

SIDES = (32, 64)
PLAN = Plan(images=400, pairs=32, meshes=4, faces=120)
ENDLESS_KIMG = 1e6
"""Time ends these runs: schedules that count from the end would come too late or too early."""
_LENGTHS = ("total_kimg", "checkpoint_kimg", "sheet_kimg")


def base(side: int = 32, batch: int = 16) -> Preset:
    """`cpu-64`, or its like at half its side, with its recipe at constant learning rates, which grow with the root of
    the batch."""
    preset = PRESETS["cpu-64"]
    model, training = preset.model, preset.training
    root = math.sqrt(batch / training.batch)
    if side == 32:
        model = dataclasses.replace(
            model,
            name="ablation-32",
            resolution=32,
            raw_resolution=32,
            synthesis=dataclasses.replace(model.synthesis, channels=(192, 192, 128, 96, 64)),
            discriminator=dataclasses.replace(model.discriminator, channels=(64, 128, 192, 192)),
        )
    never = dict.fromkeys(_LENGTHS, ENDLESS_KIMG)
    rates = {"g_lr": training.g_lr * root, "d_lr": training.d_lr * root}
    return Preset(model, dataclasses.replace(training, batch=batch, lr_decay_kimg=0.0, **rates, **never))


@dataclass(frozen=True)
class Arm:
    """One way to train: what is changed, and the seed of weights and order."""

    about: str
    change: Callable[[Preset], Preset] = lambda preset: preset
    seed: int = 0


def _model(**changes: Any) -> Callable[[Preset], Preset]:
    return lambda preset: Preset(dataclasses.replace(preset.model, **changes), preset.training)


def _training(**changes: Any) -> Callable[[Preset], Preset]:
    return lambda preset: Preset(preset.model, dataclasses.replace(preset.training, **changes))


def _original(preset: Preset) -> Preset:
    kept: dict[str, Any] = {name: getattr(preset.training, name) for name in _LENGTHS}
    return Preset(preset.model, dataclasses.replace(original_recipe(preset.model), **kept))


ARMS = {
    "recipe": Arm("the recipe"),
    "again": Arm("the recipe, another seed", seed=1),
    "nonsaturating": Arm("non-saturating loss", _training(loss="nonsaturating")),
    "one-view": Arm("one view of each portrait", _training(views_per_latent=1)),
    "asymmetric": Arm("no features that are the same left and right", _model(symmetric_features=0)),
    "whole": Arm("whole images only, no zoomed crops", _training(zoom_probability=0.0, face_zoom_probability=0.0)),
    "conditioned": Arm("portraits depend on the camera that they are sampled for", _model(conditioning_scale=1.0)),
    "r1-tenfold": Arm("ten times the gradient penalties", _training(r1_gamma=0.5, r1_gamma_mask=0.5)),
    "own-poses": Arm("only poses of the branch, no noisy labels", _training(coarse_pose_probability=0.0)),
    "float32": Arm("convolutions in float32", _training(bf16=False)),
    "everywhere": Arm("rays visit empty space too", _training(occupancy=False)),
    "published": Arm("the published recipe", _original),
}


@dataclass(frozen=True)
class Setting:
    """What all arms have in common."""

    data: Path
    held_out: Path
    out: Path
    minutes: float = 25.0
    side: int = 32
    batch: int = 16
    seed: int = 0
    device: str = "cpu"

    def base(self) -> Preset:
        return base(self.side, self.batch)


def train_arm(name: str, setting: Setting) -> dict[str, Any]:
    """Train an arm and write what it is to `trained.json` beside its weights, or read what was written before.

    Raises:
        InputError: the folder holds an arm that was trained otherwise.
        Portrait360Error: as `train` does; or it was stopped before its minutes were over.
    """
    # What the arm is.
    arm, folder = ARMS[name], setting.out / name
    preset = arm.change(setting.base())
    about = {
        "arm": name,
        "about": arm.about,
        "minutes": setting.minutes,
        "side": setting.side,
        "batch": setting.batch,
        "seed": arm.seed + setting.seed,
        "differs": differences(setting.base(), preset),
    }

    # Leave a trained arm alone, and begin an unfinished one anew.
    done = folder / "trained.json"
    if done.exists():
        _refuse_another(json.loads(done.read_text()), about, folder)
        return about
    shutil.rmtree(folder, ignore_errors=True)

    # Train for its minutes: of processor time on a CPU, of the clock on a GPU.
    device = choose_device(setting.device)
    clock = time.process_time if device.type == "cpu" else time.monotonic
    start = clock()
    options: dict[str, Any] = {"device": setting.device, "seed": about["seed"], "clock": clock}
    train(setting.data, preset=preset, out=folder, max_minutes=setting.minutes, **options)
    if clock() - start < setting.minutes * 60.0:
        raise Portrait360Error(f"the arm {name!r} was stopped.", "The same command begins it anew.")
    write_json(done, about)
    return about


def measure_arm(name: str, setting: Setting) -> dict[str, Any]:
    """Measure a trained arm and write all that is known of it to `arm.json`, or read what was written before.

    Raises:
        InputError: the folder holds an arm that was trained otherwise.
        Portrait360Error: as `evaluate` does.
    """
    folder = setting.out / name
    done = folder / "arm.json"
    about = train_arm(name, setting)
    if done.exists():
        return json.loads(done.read_text())
    weights, measured = folder / "weights.safetensors", folder / "evaluation.json"
    result = evaluate(setting.held_out, measured, weights=weights, device=setting.device, plan=PLAN)
    record = about | {
        "images": result["about"]["weights"]["about"]["images"],
        "machine": result["about"]["machine"],
        "measures": result["measures"],
    }
    write_json(done, record)
    return record


def _refuse_another(found: dict[str, Any], wanted: dict[str, Any], folder: Path) -> None:
    for key in ("minutes", "side", "batch", "seed"):
        if found[key] != wanted[key]:
            raise InputError(
                f"{folder} holds an arm of {found['minutes']:g} minutes at {found['side']} pixels, "
                f"{found['batch']} images a step, seed {found['seed']}.",
                "Choose another --out.",
            )


def differences(base: Preset, other: Preset) -> dict[str, Any]:
    """What another preset sets otherwise: its value of each field of model and training that differs."""
    found: dict[str, Any] = {}
    for part in ("model", "training"):
        one: ModelConfig | TrainingConfig = getattr(base, part)
        two: ModelConfig | TrainingConfig = getattr(other, part)
        for field in dataclasses.fields(one):
            if getattr(one, field.name) != getattr(two, field.name):
                found[field.name] = getattr(two, field.name)
    return found


def main(
    data: Annotated[Path, tyro.conf.Positional],
    *,
    held_out: Path,
    out: Path,
    minutes: float = 25.0,
    arms: tuple[str, ...] = tuple(ARMS),
    side: int = 32,
    batch: int = 16,
    seed: int = 0,
    device: str = "cpu",
    train_only: bool = False,
) -> None:
    """Write OUT/ablations.json: measures of the recipe and its variants, trained for equal minutes.

    Args:
        arms: which of them.
        side: 32 or 64 pixels.
        batch: images in a step; a GPU takes larger ones in little more time.
        seed: of weights and order, added to those of the arms.
        device: where arms are trained and measured: cpu, cuda, or auto for the GPU if there is one.
        train_only: measure nothing yet.
    """
    # Check the arguments.
    for name in arms:
        if name not in ARMS:
            raise InputError(f"there is no arm {name!r}.", f"Known arms: {', '.join(ARMS)}.")
    if side not in SIDES:
        raise InputError(f"--side takes 32 or 64, not {side}.")
    if batch < 4 or batch % 4:
        raise InputError(f"--batch takes multiples of 4, not {batch}.")

    # Train and measure arm by arm, then collect.
    settle_process()
    setting = Setting(data, held_out, out, minutes, side, batch, seed, device)
    for name in arms:
        (train_arm if train_only else measure_arm)(name, setting)
    collect(out)


def collect(out: Path) -> None:
    """Write OUT/ablations.json from the arms that are done, in the order of ARMS."""
    records = [json.loads(path.read_text()) for name in ARMS if (path := out / name / "arm.json").exists()]
    write_json(out / "ablations.json", {"arms": records})


if __name__ == "__main__":
    run_script(main)
