"""The training loop: orchestration only, each step a named call."""

from __future__ import annotations

import dataclasses
import math
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from portrait360.config import ModelConfig, Preset, named_preset, original_recipe
from portrait360.data.shards import is_shards
from portrait360.portrait.weights import save_weights
from portrait360.poses.calibration import PoseCalibration
from portrait360.poses.memory import shared_turns
from portrait360.runtime.device import choose_device
from portrait360.runtime.distributed import Ranks, join, own_gpu, relaunched
from portrait360.runtime.files import make_folder
from portrait360.runtime.memory import keep_freed_memory
from portrait360.runtime.precision import choose_bf16, processor_name
from portrait360.runtime.progress import show_progress
from portrait360.runtime.threads import denormals_flushed
from portrait360.training import schedules
from portrait360.training.calibrate import calibrate
from portrait360.training.checkpoints import checkpoint_path, checkpoints, load_checkpoint, save_checkpoint
from portrait360.training.data import TrainingData
from portrait360.training.graphs import record_steps
from portrait360.training.log import RunLog, pose_sheet, turn_sheet
from portrait360.training.passes import TrainingState
from portrait360.training.state import (
    StartingWeights,
    fill_state,
    new_state,
    read_weights,
    start_from,
    state_tensors,
    with_pose_path_of,
)
from portrait360.training.step import training_step
from portrait360.training.streaming import StreamingData
from portrait360.types import CheckpointError, DivergenceError, InputError

REPORT_STEPS = 50
COLLAPSE_STEPS = 400
"""Steps in a row with an empty or full mask after which a run counts as collapsed."""
SHEET_SEEDS = range(8)


def train(
    data: Path,
    preset: str | Preset,
    out: Path,
    resume: bool = False,
    max_minutes: float | None = None,
    kimg: float | None = None,
    device: str = "auto",
    seed: int = 0,
    init: Path | None = None,
    recipe: str = "preset",
    quiet: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> Path:
    """Train a preset, given by name or itself, on a dataset and return the weights file.

    `out` receives checkpoints, `weights.safetensors` (averaged generator and discriminator), `log.jsonl`,
    TensorBoard events and picture sheets. Training ends after `kimg` thousand images (default: the preset's) or
    `max_minutes`; SIGTERM and Ctrl-C save first. `resume` continues from the last checkpoint, to the same numbers
    as a run that was never interrupted; processes that torchrun starts again after a failure (`--max-restarts`) resume
    by themselves. `init`: a weights file to start from instead of random weights, of the same preset or of a smaller
    one that it can grow from (`training.state.read_weights`); its images count as shown, and a pose path that its
    discriminator has is kept. `recipe`: `preset`, or `original` for the published training.
    `clock`: the seconds that `max_minutes` is counted in.

    Raises:
        InputError: unknown preset, recipe or device, or a run folder that does not fit `resume`.
        DatasetError: the dataset cannot be used.
        CheckpointError: the checkpoint or the weights are damaged or of another preset.
        DivergenceError: a loss is not finite, or the portraits vanished; the last good checkpoint is kept.
    """
    out = Path(out)
    chosen = _preset(preset, recipe, kimg)
    target = own_gpu(choose_device(device))
    if resume and init is not None:
        raise InputError("`resume` and `init` exclude each other.", "`resume` goes on from the run's own checkpoint.")
    if relaunched() and out.is_dir() and checkpoints(out):
        resume, init = True, None
    found = _found_checkpoints(out, resume)
    start = None if init is None else read_weights(init, chosen.model)
    if start is not None and start.images >= chosen.training.total_kimg * 1000:
        raise InputError(
            f"{init} has been trained on {start.images} images already, which is no less than the run is to have.",
            "Give a larger `kimg`: it counts the images that these weights have seen.",
        )
    material = _open_data(data, chosen, seed, target, quiet)
    ranks = join(target)
    try:
        weights = _run(
            _Job(chosen, material, out, target, seed, max_minutes, start, recipe, quiet, clock), found, ranks
        )
        ranks.wait()
        return weights
    finally:
        ranks.leave()


@dataclasses.dataclass(frozen=True)
class _Job:
    preset: Preset
    data: TrainingData | StreamingData
    out: Path
    device: torch.device
    seed: int
    max_minutes: float | None
    start: StartingWeights | None
    recipe: str
    quiet: bool
    clock: Callable[[], float]


@denormals_flushed()
def _run(job: _Job, found: list[Path], ranks: Ranks) -> Path:
    """Train until the end or a stop, in this process's place among `ranks`."""
    keep_freed_memory()
    before = _newest(found) if found else None
    origin = before or job.start
    if origin is not None:
        job = dataclasses.replace(job, preset=with_pose_path_of(origin.model, job.preset))
    chosen, out, max_minutes = job.preset, job.out, job.max_minutes
    share = ranks.share(chosen.training.batch)
    state = new_state(chosen, job.seed, job.device)
    torch.manual_seed(job.seed * ranks.size + ranks.rank)
    progress: dict[str, Any] = {}
    if before is not None:
        progress = _restore(state, job, before, ranks)
    elif job.start is not None:
        start_from(state, job.start)
    del before, origin  # as large as the networks
    state.memory.shared = shared_turns(job.data.body_poses)
    bf16 = choose_bf16(chosen.training.bf16, job.device, progress)
    bf16 = bool(ranks.average({"bf16": torch.tensor(float(bf16))})["bf16"] > 0.5)
    state.config = dataclasses.replace(chosen.training, bf16=bf16)
    record_steps(state, job.device)
    make_folder(out)
    log = RunLog(out, state.images) if ranks.first else None
    stop = _StopRequests()
    about = {"data": job.data.fingerprint, "seed": job.seed, "labels": job.data.label_kind}
    about |= {"recipe": job.recipe, "bf16": bf16, "processor": processor_name()}
    started, clock_started, begin_images = time.monotonic(), job.clock(), state.images
    last = {"checkpoint": state.images, "sheet": state.images, "report": (started, state.images)}
    collapsed, totals = 0, _Means()
    total = int(chosen.training.total_kimg * 1000)
    with stop, show_progress("training", total, "images", visible=ranks.first and not job.quiet) as bar:
        bar.skip(state.images)
        while state.images < total:
            late = max_minutes is not None and job.clock() - clock_started >= max_minutes * 60
            if float(ranks.average({"stop": torch.tensor(float(late or stop.requested))})["stop"]) > 0:
                break
            batch = job.data.batch(state.images, share, ranks, job.device)
            if state.config.separate_phases:
                labels = job.data.labels(share, job.device), job.data.labels(share, job.device)
                batch = dataclasses.replace(batch, drawn=labels)
            metrics = training_step(state, batch, ranks)
            values = {k: float(v) for k, v in metrics.items()}
            if not all(math.isfinite(v) for v in values.values()):
                raise DivergenceError(
                    f"training diverged after {state.images} images: a loss is not finite.",
                    f"The last good checkpoint is kept in {out}; lower the learning rate or raise R1.",
                )
            gone = values["fake_mask"] < 0.02 < values["real_mask"] or values["fake_mask"] > 0.98
            collapsed = collapsed + 1 if gone else 0
            if collapsed >= COLLAPSE_STEPS:
                raise DivergenceError(
                    f"training collapsed before {state.images} images: the generated masks are empty or full.",
                    f"The last good checkpoint is kept in {out}; start again with another seed or more R1.",
                )
            bar.advance(chosen.training.batch)
            totals.add(values)
            if state.step % REPORT_STEPS == 0:
                then, images = last["report"]
                now = time.monotonic()
                rate = (state.images - images) / max(now - then, 1e-9)
                last["report"] = (now, state.images)
                report = totals.take() | {"images_per_second": rate, "minutes": (now - started) / 60}
                if log is not None:
                    log.scalars(state.images, report)
            if state.images - last["sheet"] >= chosen.training.sheet_kimg * 1000:
                _draw_sheets(state, log)
                last["sheet"] = state.images
            if state.images - last["checkpoint"] >= chosen.training.checkpoint_kimg * 1000:
                _save(state, job, about, ranks)
                last["checkpoint"] = state.images
    if state.images > begin_images:
        _save(state, job, about, ranks)
        _draw_sheets(state, log)
        if ranks.first and not stop.requested and (closer := _calibration(state, job.data)) is not None:
            _write_weights(state, out, about, closer)
    if log is not None:
        log.close()
    if stop.interrupted:
        raise KeyboardInterrupt
    return out / "weights.safetensors"


# ---- steps ----


def _open_data(
    path: Path, preset: Preset, seed: int, device: torch.device, quiet: bool
) -> TrainingData | StreamingData:
    if is_shards(path):
        return StreamingData(path, preset.model, preset.training, seed)
    return TrainingData(path, preset.model, preset.training, seed, device=device, progress=not quiet)


RECIPES = ("preset", "original")


def _preset(preset: str | Preset, recipe: str, kimg: float | None) -> Preset:
    if isinstance(preset, str):
        preset = named_preset(preset)
    if recipe not in RECIPES:
        raise InputError(f"there is no recipe {recipe!r}.", f"Known recipes: {', '.join(RECIPES)}.")
    if recipe == "original":
        preset = dataclasses.replace(preset, training=original_recipe(preset.model))
    if kimg is None:
        return preset
    if not (math.isfinite(kimg) and kimg > 0):
        raise InputError(f"`kimg` must be above 0, not {kimg}.", "It is the length of training in thousand images.")
    return dataclasses.replace(preset, training=dataclasses.replace(preset.training, total_kimg=float(kimg)))


def _found_checkpoints(out: Path, resume: bool) -> list[Path]:
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file, not a folder.", "Give another `out`.")
    found = checkpoints(out) if out.is_dir() else []
    if resume and not found:
        raise InputError(f"there is no checkpoint to resume in {out}.", "Leave out `resume` to start a run.")
    if found and not resume:
        raise InputError(f"{out} already holds a run.", "Add `resume` to continue it, or choose another `out`.")
    return found


@dataclasses.dataclass(frozen=True)
class _Checkpoint:
    path: Path
    model: ModelConfig
    tensors: dict[str, Tensor]
    progress: dict[str, Any]


def _newest(found: list[Path]) -> _Checkpoint:
    """The newest checkpoint that is whole."""
    problem: CheckpointError | None = None
    for path in reversed(found):
        try:
            return _Checkpoint(path, *load_checkpoint(path))
        except CheckpointError as error:
            problem = problem or error
    assert problem is not None
    raise problem


def _restore(state: TrainingState, job: _Job, before: _Checkpoint, ranks: Ranks) -> dict[str, Any]:
    """Fill the state from a checkpoint; its progress notes."""
    path, model, progress = before.path, before.model, before.progress
    if model != job.preset.model:
        raise CheckpointError(
            f"{path} belongs to preset {model.name}, not {job.preset.model.name}.", "Give the same `preset`."
        )
    if progress.get("seed") != job.seed:
        raise CheckpointError(f"{path} was trained with seed {progress.get('seed')}, not {job.seed}.")
    if progress.get("recipe", "preset") != job.recipe:
        raise CheckpointError(
            f"{path} was trained with recipe {progress.get('recipe', 'preset')}, not {job.recipe}.",
            "Give the same `recipe`.",
        )
    fill_state(state, before.tensors, progress, path, ranks)
    if ranks.first and progress.get("data") != job.data.fingerprint:
        print(f"note: {path.name} was trained on other data; training goes on with the data given now.")
    return progress


def _save(state: TrainingState, job: _Job, about: dict[str, Any], ranks: Ranks) -> None:
    """Checkpoint first, then weights; old checkpoints go last."""
    random_states = ranks.random_states()
    if not ranks.first:
        return
    preset, out = job.preset, job.out
    path = checkpoint_path(out, state.images)
    save_checkpoint(path, preset, state_tensors(state, random_states), _progress(state, about))
    _write_weights(state, out, about, state.memory.calibration())
    for old in checkpoints(out)[: -preset.training.keep_checkpoints]:
        old.unlink()


def _progress(state: TrainingState, about: dict[str, Any]) -> dict[str, Any]:
    return about | {"images": state.images, "step": state.step}


def _write_weights(state: TrainingState, out: Path, about: dict[str, Any], calibration: PoseCalibration | None) -> None:
    side = schedules.raw_resolution(state.images, state.model, state.config)
    trained = dataclasses.replace(state.model, raw_resolution=side)
    networks = state.average, state.average_discriminator
    progress = _progress(state, about)
    save_weights(out / "weights.safetensors", trained, *networks, progress, calibration=calibration)


def _calibration(state: TrainingState, data: TrainingData | StreamingData) -> PoseCalibration | None:
    """The calibration of whole pictures and their middle parts, where pictures are zoomed and at hand; else None.

    It takes as long as training on some hundred pictures, so weights get it at the end; until then they have that of
    whole pictures, from what was shown last.
    """
    if state.memory.calibration() is None or isinstance(data, StreamingData) or not data.framing.zooms:
        return None
    return calibrate(state.average_discriminator, state.model, data)


def _draw_sheets(state: TrainingState, log: RunLog | None) -> None:
    if log is not None and next(state.average.parameters()).device.type == "cpu":
        log.sheet(state.images, "turn", turn_sheet(state.average, SHEET_SEEDS))
        log.sheet(state.images, "poses", pose_sheet(state.average, range(2)))


class _Means:
    """Running means between two reports."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[float, int]] = {}

    def add(self, values: dict[str, float]) -> None:
        for key, value in values.items():
            total, count = self.sums.get(key, (0.0, 0))
            self.sums[key] = (total + value, count + 1)

    def take(self) -> dict[str, float]:
        means = {key: total / count for key, (total, count) in self.sums.items()}
        self.sums = {}
        return means


class _StopRequests:
    """SIGTERM and Ctrl-C end the loop after the step; a second Ctrl-C ends at once."""

    def __init__(self) -> None:
        self.requested = self.interrupted = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.interrupted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        self.interrupted = self.interrupted or number == signal.SIGINT

    def __enter__(self) -> _StopRequests:
        self.previous = {}
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                self.previous[number] = signal.signal(number, self._handle)
        except ValueError:  # not in the main thread: signals stay with whoever has them
            pass
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
