"""Training a preset: what a run starts from, its steps, and what it leaves."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from portrait360.config import Preset
from portrait360.data.shards import is_shards
from portrait360.encoder.label_check import warn_about_labels
from portrait360.portrait.weights import load_weights
from portrait360.poses.calibration import PoseCalibration
from portrait360.poses.memory import shared_turns
from portrait360.runtime.device import choose_device
from portrait360.runtime.distributed import Ranks, is_first_process, join, own_gpu
from portrait360.runtime.precision import choose_bf16, processor_name
from portrait360.runtime.progress import show_progress
from portrait360.runtime.threads import denormals_flushed, settle_threads
from portrait360.training.adapt import StartingWeights, start_from
from portrait360.training.calibrate import calibrate
from portrait360.training.checkpoints import Checkpoint, RunRecord
from portrait360.training.data import TrainingData
from portrait360.training.first_people import first_people
from portrait360.training.graphs import record_steps
from portrait360.training.passes import Batch, TrainingState
from portrait360.training.people import People, Targets, order
from portrait360.training.run_folder import RunFolder
from portrait360.training.settings import full_names
from portrait360.training.start import Origin, asked_settings, base_preset, starting_point
from portrait360.training.state import fill_state, new_state
from portrait360.training.step import training_step
from portrait360.training.streaming import StreamingData
from portrait360.training.watch import Every, Report, StopRequests, Timer, Watchdog
from portrait360.types import InputError

REPORT_STEPS = 50
"""From one line of the log to the next."""


def train(
    data: str | Path,
    preset: str | Preset,
    out: str | Path,
    *,
    resume: bool = False,
    max_minutes: float | None = None,
    kimg: float | None = None,
    device: str = "auto",
    seed: int = 0,
    init: str | Path | None = None,
    recipe: str = "preset",
    quiet: bool = False,
    clock: Callable[[], float] = time.monotonic,
    **options: object,
) -> Path:
    """Train a preset on a dataset and return the weights file.

    SIGTERM and Ctrl-C save first. Processes that torchrun starts again after a failure (`--max-restarts`) resume by
    themselves.

    Args:
        data: a dataset: a zip, a folder, or a folder of shards.
        preset: a preset's name, or a preset.
        out: the folder of the run, for what `training.run_folder.RunFolder` lists.
        resume: continue from the last checkpoint, to the same numbers as a run that was never interrupted.
        max_minutes: save and stop after so many minutes.
        kimg: train on so many thousand images in all. Default: as the preset says.
        device: `cpu`, `cuda`, `cuda:1`, or `auto`: the GPU if there is one.
        seed: of the first weights and of the order of images.
        init: a weights file to start from, of the same preset or of one that it can start from
            (`training.adapt.can_start_from`); its images count as shown, and its pose path is kept.
        recipe: `preset`, or `original` for the published training.
        quiet: whether to show no progress.
        clock: returns seconds, in which `max_minutes` and the log's speeds are counted.
        **options: other values for fields of the training recipe and of the model config, `batch=32`; by full name
            (`**{"model.discriminator.clamp": None}`) where several fields have the plain one.

    Raises:
        TypeError: an option that no field has, or several.
        InputError: unknown preset, recipe or device, a value that does not fit, or a run folder that does not fit.
        DatasetError: the dataset cannot be used.
        CheckpointError: the checkpoint or the weights are damaged or of another preset.
        DivergenceError: a loss is not finite, or the portraits vanished; the last good checkpoint is kept.
    """
    # Decide what is trained and from what, before anything is opened or written
    base, target = base_preset(preset, recipe), own_gpu(choose_device(device))
    run = RunRecord(base.model.name, recipe, seed)
    settings = asked_settings(preset, full_names(options), kimg)
    trained, origin = starting_point(base, settings, run, Path(out), resume=resume, init=init)

    # Open the data, whose labels may belong to other images, and train
    if not isinstance(origin, Checkpoint) and is_first_process():
        warn_about_labels(Path(data))
    images = _open_data(Path(data), trained, seed, target, quiet)
    run = dataclasses.replace(run, data=images.fingerprint, labels=images.label_kind)
    return _train(RunFolder(Path(out), trained, run), origin, images, target, Timer(clock, max_minutes), quiet)


def _open_data(
    path: Path, preset: Preset, seed: int, device: torch.device, quiet: bool
) -> TrainingData | StreamingData:
    if is_shards(path):
        return StreamingData(path, preset.model, preset.training, seed)
    return TrainingData(path, preset.model, preset.training, seed, device=device, progress=not quiet)


@denormals_flushed()
def _train(
    folder: RunFolder,
    origin: Origin,
    images: TrainingData | StreamingData,
    device: torch.device,
    timer: Timer,
    quiet: bool,
) -> Path:
    """Train until the end or a stop, in this process's place among all; the weights file."""
    threads = torch.get_num_threads()
    ranks = join(device)
    try:
        state = _first_state(folder, origin, images, device, ranks)
        _take_steps(state, folder, images, timer, quiet)
        ranks.wait()
        return folder.weights
    finally:
        ranks.leave()
        settle_threads(threads)


def _first_state(
    folder: RunFolder, origin: Origin, images: TrainingData | StreamingData, device: torch.device, ranks: Ranks
) -> TrainingState:
    """The networks as the run finds them, its random state, and its folder, opened."""
    # Fresh networks, and how steps are computed on this machine: all processes alike
    preset, run = folder.preset, folder.run
    _check_share(ranks, preset.training.batch, preset.training.views_per_latent)
    state = new_state(preset, run.seed, device)
    torch.manual_seed(run.seed * ranks.size + ranks.rank)
    measured = dataclasses.asdict(origin.run) if isinstance(origin, Checkpoint) else {}
    choice = choose_bf16(preset.training.bf16, device, measured)
    bf16 = bool(ranks.average({"bf16": torch.tensor(float(choice))})["bf16"] > 0.5)
    state.config = dataclasses.replace(preset.training, bf16=bf16)

    # Networks and random state of the checkpoint, or networks of the given weights
    if isinstance(origin, Checkpoint):
        fill_state(state, origin, ranks)
        if ranks.first and origin.run.data != run.data:
            print(f"note: {origin.path.name} was trained on other data; training goes on with the data given now.")
    elif origin is not None:
        start_from(state, origin)
        state.people = _new_people(state, origin, images)
    if origin is not None:
        origin.tensors.clear()  # as large as the networks
    state.memory.shared = shared_turns(images.body_poses)
    if state.people is not None and isinstance(images, TrainingData):
        images.shown_poses = state.people.body_poses

    # The folder
    record_steps(state, device)
    folder.open(ranks, state.images, dataclasses.replace(run, bf16=bf16, processor=processor_name()))
    return state


def _check_share(ranks: Ranks, batch: int, views: int) -> None:
    """Each process renders whole portraits, with all of their views."""
    if ranks.share(batch) % views:
        raise InputError(
            f"{ranks.size} processes cannot share a batch of {batch} with {views} views of each portrait.",
            f"Choose a `training.batch` that is a multiple of {ranks.size * views}.",
        )


def _new_people(state: TrainingState, origin: StartingWeights, images: TrainingData | StreamingData) -> People | None:
    """Styles of the images that are to be reconstructed, if some are, by the weights that the run starts from."""
    config = state.config.reconstruction
    if config is None or isinstance(images, StreamingData):
        return None
    return first_people(state, load_weights(origin.path), images, config)


def _take_steps(
    state: TrainingState, folder: RunFolder, images: TrainingData | StreamingData, timer: Timer, quiet: bool
) -> None:
    """Train until all images have been shown, or until time or a signal ends it; then save.

    Raises:
        KeyboardInterrupt: Ctrl-C ended it, after saving.
    """
    # What happens now and then
    config, ranks, begin = state.config, folder.ranks, state.images
    total, watchdog = int(config.total_kimg * 1000), Watchdog(str(folder.path))
    saves, sheets = Every(config.checkpoint_kimg, begin), Every(config.sheet_kimg, begin)
    timer.start()
    report = Report(timer, begin)

    with StopRequests() as stop, show_progress("training", total, "images", visible=ranks.first and not quiet) as bar:
        bar.skip(begin)
        while state.images < total:
            # Stop together, when the time is up or any process has been asked to
            ending = ranks.average({"stop": torch.tensor(float(timer.up or stop.requested))})
            if float(ending["stop"]) > 0:
                break

            # One step
            metrics = training_step(state, _next_batch(state, images, ranks), ranks)
            values = {name: float(value) for name, value in metrics.items()}
            watchdog.check(state.images, values)
            report.add(values)
            bar.advance(config.batch)

            # Report, draw and save now and then
            if state.step % REPORT_STEPS == 0:
                folder.report(state.images, report.take(state.images))
            if sheets.due(state.images):
                folder.draw_sheets(state)
            if saves.due(state.images):
                folder.save(state)

    # Leave a checkpoint, weights and sheets; a run that was not stopped also calibrates its poses
    if state.images > begin:
        folder.save(state)
        folder.draw_sheets(state)
        if ranks.first and not stop.requested and (calibration := final_calibration(state, images)) is not None:
            folder.write_weights(state, calibration)
    folder.close()
    if stop.interrupted:
        raise KeyboardInterrupt


def _next_batch(state: TrainingState, images: TrainingData | StreamingData, ranks: Ranks) -> Batch:
    """This process's share of the next images, on the device of the networks."""
    config, device = state.config, next(state.generator.parameters()).device
    share = ranks.share(config.batch)
    batch = images.batch(state.images, share, ranks, device)
    if state.people is not None and isinstance(images, TrainingData):
        return dataclasses.replace(batch, targets=_targets(state, state.people, images, ranks, device))
    if state.config.separate_phases:
        return dataclasses.replace(batch, drawn=(images.labels(share, device), images.labels(share, device)))
    return batch


def _targets(state: TrainingState, people: People, images: TrainingData, ranks: Ranks, device: torch.device) -> Targets:
    """This process's share of the next images to reconstruct."""
    config = state.config.reconstruction
    assert config is not None
    count, place = ranks.share(config.images), state.step * ranks.size + ranks.rank
    rows = order(len(people.table), images.sampler.seed, place * count, count)
    kept = images.kept(people.rows[rows], device)
    random = np.random.default_rng([images.sampler.seed, 2, place])
    return people.targets(rows, kept, config, state.model.resolution, random, state.generator.body)


def final_calibration(state: TrainingState, images: TrainingData | StreamingData) -> PoseCalibration | None:
    """The calibration of whole images and their centre crops, where images are zoomed and in memory; else None.

    It takes as long as training on some hundred images, so weights get it at the end; until then they have that of
    whole images, from what was shown last.
    """
    if isinstance(images, StreamingData) or not images.framing.zooms:
        return None
    if state.people is None and state.memory.calibration() is None:
        return None
    return calibrate(state.average_discriminator, state.model, images)
