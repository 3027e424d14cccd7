"""Teach a trained discriminator to see body poses in real pictures, by coarse labels without their mean.

    python -m portrait360.training.finetune_poses TRAIN.zip --weights weights.safetensors --out taught.safetensors

In training its pose head learns from generated pictures alone. A calibration (`poses.calibration`) says what its
answers about real pictures are worth; this goes the same way through layers of their own: labels without their mean, as
large as the truth, are what it learns to answer about real pictures, whole and in middle parts. Noise of labels
averages out over pictures, their bias has no part in it. The mean stays what self-learning found.

Poses get a path of their own for it, a copy of the last blocks (`with_pose_path`). All else stays as it is, so that
verdicts given a pose are the same to the bit.

Every step is a function of the seed, its number and the state before it, so a stopped run continues exactly.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from jaxtyping import Float, Int
from torch import Tensor

from portrait360.config import ModelConfig, named_preset
from portrait360.encoder.augment import PhotoRanges, other_crops_and_colours
from portrait360.geometry.cameras import zoom_camera
from portrait360.model.discriminator import Discriminator, Pictures, concatenate, with_pose_path
from portrait360.portrait.weights import save_weights
from portrait360.poses.calibration import label_shrink, with_mirrored
from portrait360.poses.memory import shared_turns
from portrait360.poses.windows import network_pictures
from portrait360.runtime.device import choose_device
from portrait360.runtime.files import check_place
from portrait360.runtime.memory import keep_freed_memory
from portrait360.runtime.precision import choose_bf16, processor_name
from portrait360.runtime.progress import show_progress
from portrait360.runtime.schedule import cosine_decay
from portrait360.runtime.script import run_script
from portrait360.runtime.tensors import fill_module, metadata_json, module_tensors, read_tensors, write_tensors
from portrait360.training.calibrate import calibrate, calibration_rows, closer_levels, load_preset_weights, seen_in
from portrait360.training.data import TrainingData
from portrait360.training.losses import pose_loss
from portrait360.training.passes import Batch
from portrait360.training.state import fill_optimizer, optimizer_tensors
from portrait360.training.step import update_average
from portrait360.types import CheckpointError, DatasetError

_FORMAT = {"format": "portrait360", "kind": "real-poses-checkpoint"}


@dataclasses.dataclass(frozen=True)
class Teaching:
    """The recipe."""

    steps: int = 3000
    pictures: int = 128
    """In a step."""
    pose_blocks: int = 3
    """Of the pose path, if the discriminator has none or a shorter one."""
    rate: float = 0.012
    warm_up: int = 100
    betas: tuple[float, float] = (0.9, 0.99)
    average: int = 200
    """Steps over which weights are averaged."""
    save_every: int = 200
    seed: int = 0


VARIED = PhotoRanges(plain_crop=0.3, roll_degrees=0.0, smallest_scale=1.0, largest_scale=1.3, offset=0.0, grey=0.0)
"""How pictures are varied."""


@dataclasses.dataclass(frozen=True)
class Lessons:
    """The pictures of one dataset, and the poses that its labels stand for."""

    data: TrainingData
    wanted: Float[Tensor, "N 6"]
    rows: Int[Tensor, " M"]
    """Those that are learned from: a calibration keeps its own."""
    levels: tuple[int, ...]
    """Zoom levels that are shown, one as often as another; 0 is the whole picture."""

    def batch(self, count: int, model: ModelConfig, device: torch.device) -> tuple[Pictures, Tensor, Tensor]:
        """Random pictures or middle parts of them, with cameras and wanted poses."""
        data = self.data
        i = self.rows[torch.randint(len(self.rows), (count,))]
        level = torch.tensor(self.levels)[torch.randint(len(self.levels), (count,))]
        flags, there = torch.rand(count) < 0.5, i.to(data.images.device)
        pictures = data.images[there], data.masks[there], data.cameras[i], self.wanted[i]
        batch = varied(data.framing.batch(*pictures, flags, level, device), model)
        shown = network_pictures(model, batch.image, batch.mask, before_grey=True)
        return shown, batch.camera, batch.coarse_pose


def varied(batch: Batch, model: ModelConfig) -> Batch:
    """Other colours and closer crops, as cameras say, so that pictures are not known by heart; uses torch's random
    state."""
    draws = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
    image, mask, crop = other_crops_and_colours(batch.image, batch.mask, batch.camera, draws, VARIED)
    if model.background is None:
        grey = model.plain_background
        image = grey + (image - grey) * mask
    return Batch(image, mask, zoom_camera(batch.camera, crop.scale), batch.coarse_pose)


def poses_of_labels(seen: Float[Tensor, "M 6"], some: Float[Tensor, "M 6"], labels: Float[Tensor, "N 6"]) -> Tensor:
    """The poses [N, 6] that labels stand for: without their mean, as large as the truth, around the mean of what the
    discriminator sees.

    How neck and head share the mean nod does not show in pictures and is the labels', as in training (`SharedTurns`).

    Args:
        seen: the discriminator's poses of some whole pictures.
        some: their labels.
        labels: all labels.
    """
    mean = with_mirrored(seen).mean(dim=0)
    change = shared_turns(labels).nod - (mean[3] - mean[0])
    mean[0], mean[3] = mean[0] - 0.5 * change, mean[3] + 0.5 * change
    return (labels - with_mirrored(labels).mean(dim=0)) / label_shrink(seen, some) + mean


def prepare(discriminator: Discriminator, model: ModelConfig, data: TrainingData, where: Path) -> Lessons:
    """What a dataset teaches this discriminator.

    Raises:
        DatasetError: it holds too few pictures.
    """
    known = calibration_rows(len(data))
    left = torch.ones(len(data), dtype=torch.bool)
    left[known] = False
    if int(left.sum()) < len(known) // 4 or not len(known):
        raise DatasetError(f"{where} holds too few pictures.", f"It takes {len(known) + len(known) // 4 + 1}.")
    seen = seen_in(discriminator, model, data, known, (1.0,))[:, 0]
    wanted = poses_of_labels(seen, data.body_poses[known], data.body_poses)
    return Lessons(data, wanted, left.nonzero()[:, 0], (0, *closer_levels(data)))


def teach(
    student: Discriminator,
    model: ModelConfig,
    lessons: Sequence[Lessons],
    recipe: Teaching,
    checkpoint: Path,
    *,
    device: torch.device,
    bf16: bool | None = None,
) -> Discriminator:
    """What a discriminator with a pose path becomes; continues from the checkpoint, if it is there.

    Args:
        student, model: from `with_pose_path`.
        lessons: from `prepare`, one of each dataset; pictures are taken from all alike.
        recipe: with `student` and `lessons` it must be that of the checkpoint.
        checkpoint: written every `save_every` steps.
        device: where it learns.
        bf16: whether convolutions run in bf16; None: where that is faster, as the checkpoint says or as measured.

    Raises:
        CheckpointError: the checkpoint is damaged, or of another run.
    """
    student = copy.deepcopy(student).to(device)
    average = copy.deepcopy(student)
    assert student.pose_path is not None
    learning = [*student.pose_path.parameters(), *student.pose_branch.parameters()]
    for parameter in learning:
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(learning, recipe.rate, betas=recipe.betas)
    step, notes, run = 0, {}, _run_name(student, lessons, recipe)
    if checkpoint.exists():
        step, notes = _resume(checkpoint, student, average, optimizer, run)
    bf16 = choose_bf16(True, device, notes) if bf16 is None else bf16
    notes = {"bf16": bf16, "processor": processor_name()}
    recent: float | None = None
    with show_progress("teaching", recipe.steps, "steps") as bar:
        bar.skip(step)
        while step < recipe.steps:
            torch.manual_seed(recipe.seed * 1_000_003 + step)
            shown, camera, wanted = real_batch(lessons, recipe.pictures, model, device)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                seen = student.predict_pose(shown, camera, parts=recipe.pictures)
            loss = pose_loss(seen.float(), wanted)
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate * min(1.0, (step + 1) / recipe.warm_up) * cosine_decay(step / recipe.steps)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
            update_average(average, student, min(1.0 - 1.0 / recipe.average, (1.0 + step) / (10.0 + step)))
            bar.advance(1)
            recent = float(loss.detach()) if recent is None else 0.98 * recent + 0.02 * float(loss.detach())
            if step % recipe.save_every == 0 or step == recipe.steps:
                print(f"step {step}  squared difference from the labels {recent:.4f}", flush=True)
                _save(checkpoint, student, average, optimizer, step, run, notes)
    return average


def real_batch(
    lessons: Sequence[Lessons], count: int, model: ModelConfig, device: torch.device
) -> tuple[Pictures, Float[Tensor, "B 25"], Float[Tensor, "B 6"]]:
    """Random pictures of all datasets, with cameras and wanted poses."""
    sizes = torch.tensor([float(len(one.rows)) for one in lessons])
    counts = torch.multinomial(sizes, count, replacement=True).bincount(minlength=len(lessons)).tolist()
    parts = [one.batch(n, model, device) for one, n in zip(lessons, counts, strict=True) if n]
    pictures, cameras, wanted = zip(*parts, strict=True)
    return concatenate(*pictures), torch.cat(cameras), torch.cat(wanted)


def _run_name(student: Discriminator, lessons: Sequence[Lessons], recipe: Teaching) -> str:
    """A hash of what a run is given. Wanted poses are left out: they follow from the rest, but for rounding that other
    machines do otherwise."""
    found = hashlib.sha256(json.dumps(dataclasses.asdict(recipe)).encode())
    for tensor in [*student.state_dict().values(), *(one.rows for one in lessons)]:
        found.update(tensor.cpu().contiguous().numpy().tobytes())
    for one in lessons:
        found.update(one.data.fingerprint.encode())
    return found.hexdigest()


def _save(
    path: Path,
    student: Discriminator,
    average: Discriminator,
    optimizer: torch.optim.Adam,
    step: int,
    run: str,
    notes: dict[str, Any],
) -> None:
    tensors = module_tensors(student, "D") | module_tensors(average, "D_ema")
    tensors |= optimizer_tensors(optimizer, student, "adam_D")
    write_tensors(path, tensors, _FORMAT | {"step": str(step), "precision": json.dumps(notes), "run": run})


def _resume(
    path: Path, student: Discriminator, average: Discriminator, optimizer: torch.optim.Adam, run: str
) -> tuple[int, dict[str, Any]]:
    """The step that a checkpoint is of, and its notes on precision."""
    tensors, metadata = read_tensors(path)
    if metadata.get("kind") != _FORMAT["kind"] or metadata.get("run") != run:
        raise CheckpointError(f"{path} is of another run.", "Remove it, or give the same data, weights and recipe.")
    fill_module(student, tensors, "D", path)
    fill_module(average, tensors, "D_ema", path)
    fill_optimizer(optimizer, student, tensors, "adam_D")
    return int(metadata_json(metadata, "step", path)), metadata_json(metadata, "precision", path)


def main(
    data: Annotated[tuple[Path, ...], tyro.conf.Positional],
    weights: Path,
    out: Path,
    recipe: Teaching = Teaching(),
    device: str = "auto",
    bf16: bool | None = None,
) -> None:
    """Write weights whose discriminator sees body poses in real pictures better, and their calibration.

    Args:
        data: pictures with the labels that training reads, one or several datasets; the first one's are calibrated by.
        weights: a weights file that training wrote.
        out: the file to write; the checkpoint goes beside it.
        device: cpu, cuda, cuda:1, or auto for the GPU if there is one.
        bf16: convolutions in bf16; None: where that is measured to be faster.
    """
    check_place(out)
    target = choose_device(device)
    given = load_preset_weights(weights)
    student, model = with_pose_path(given.discriminator, given.generator.config, recipe.pose_blocks)
    keep_freed_memory()
    lessons = []
    for path in data:
        content = TrainingData(path, model, named_preset(model.name).training, 0, device=target, progress=True)
        lessons.append(prepare(student.to(target), model, content, path))
    checkpoint = out.with_name(out.stem + ".checkpoint.safetensors")
    taught = teach(student, model, lessons, recipe, checkpoint, device=target, bf16=bf16).cpu()
    found = calibrate(taught, model, lessons[0].data)
    about = given.info.about | {"real_poses": {"steps": recipe.steps, "pictures": sum(len(o.rows) for o in lessons)}}
    save_weights(out, model, given.generator, taught, about, calibration=found)
    checkpoint.unlink()


if __name__ == "__main__":
    run_script(main)
