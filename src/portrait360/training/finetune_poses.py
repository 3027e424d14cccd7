"""Fine-tune a trained discriminator's pose predictions on real images, by noisy labels without their mean.

    python -m portrait360.training.finetune_poses TRAIN.zip --weights weights.safetensors --out finetuned.safetensors

In training its pose head is fitted to generated images alone. A calibration (`poses.calibration`) corrects its
predictions for real images by a linear map; this does so by layers of their own. The targets are labels without their
mean, scaled to the spread of true poses, for whole images and centre crops. Noise of labels averages out over images,
and their bias has no part in it. The mean stays what self-learning found.

Poses get a path of their own for it, a copy of the last blocks (`with_pose_path`). All else stays as it is: logits
conditioned on a given pose are the same to the bit.

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
from portrait360.model.discriminator import Discriminator, DiscriminatorInput, concatenate, with_pose_path
from portrait360.portrait.weights import save_weights
from portrait360.poses.calibration import label_shrink, with_mirrored
from portrait360.poses.memory import shared_turns
from portrait360.poses.windows import network_images
from portrait360.runtime.device import choose_device
from portrait360.runtime.files import check_place
from portrait360.runtime.memory import keep_freed_memory
from portrait360.runtime.precision import choose_bf16, processor_name
from portrait360.runtime.progress import show_progress
from portrait360.runtime.schedule import cosine_decay
from portrait360.runtime.script import run_script
from portrait360.runtime.tensors import fill_module, metadata_json, module_tensors, read_tensors, write_tensors
from portrait360.training.calibrate import (
    calibrate,
    calibration_rows,
    closer_levels,
    load_preset_weights,
    predicted_poses,
)
from portrait360.training.data import TrainingData
from portrait360.training.losses import pose_loss
from portrait360.training.passes import Batch
from portrait360.training.state import fill_optimizer, optimizer_tensors
from portrait360.training.step import update_average
from portrait360.types import CheckpointError, DatasetError

_FORMAT = {"format": "portrait360", "kind": "real-poses-checkpoint"}


@dataclasses.dataclass(frozen=True)
class PoseFinetuning:
    """The recipe of fine-tuning."""

    steps: int = 3000
    images: int = 128
    """In a step."""
    pose_blocks: int = 3
    """Of the pose path, if the discriminator has none or a shorter one."""
    rate: float = 0.012
    """Learning rate of Adam, after the warm-up and before the cosine decay."""
    warm_up: int = 100
    """Steps over which the learning rate rises."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Adam's decays."""
    average: int = 200
    """Steps over which weights are averaged."""
    save_every: int = 200
    """Steps from one checkpoint to the next."""
    seed: int = 0


VARIED = PhotoRanges(plain_crop=0.3, roll_degrees=0.0, smallest_scale=1.0, largest_scale=1.3, offset=0.0, grey=0.0)
"""How images are varied."""


@dataclasses.dataclass(frozen=True)
class FinetuningData:
    """The images of one dataset, and the poses that its labels stand for."""

    data: TrainingData
    targets: Float[Tensor, "N 6"]
    rows: Int[Tensor, " M"]
    """Images that are trained on: a calibration keeps its own."""
    levels: tuple[int, ...]
    """Zoom levels that are shown, one as often as another; 0 is the whole image."""

    def batch(self, count: int, model: ModelConfig, device: torch.device) -> tuple[DiscriminatorInput, Tensor, Tensor]:
        """Random images or centre crops of them, with cameras and target poses."""
        data = self.data
        i = self.rows[torch.randint(len(self.rows), (count,))]
        level = torch.tensor(self.levels)[torch.randint(len(self.levels), (count,))]
        flags, there = torch.rand(count) < 0.5, i.to(data.images.device)
        samples = data.images[there], data.masks[there], data.cameras[i], self.targets[i]
        batch = varied(data.framing.batch(*samples, flags, level, device), model)
        images = network_images(model, batch.image, batch.mask, on_grey=True)
        return images, batch.camera, batch.coarse_pose


def varied(batch: Batch, model: ModelConfig) -> Batch:
    """Other colours and closer crops, with cameras to match, against overfitting; uses torch's random state."""
    draws = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
    image, mask, crop = other_crops_and_colours(batch.image, batch.mask, batch.camera, draws, VARIED)
    if model.background is None:
        grey = model.plain_background
        image = grey + (image - grey) * mask
    return Batch(image, mask, zoom_camera(batch.camera, crop.scale), batch.coarse_pose)


def poses_of_labels(
    predicted: Float[Tensor, "M 6"], some: Float[Tensor, "M 6"], labels: Float[Tensor, "N 6"]
) -> Tensor:
    """The poses [N, 6] that labels stand for: without their mean, scaled to the spread of true poses, around the mean
    prediction.

    How neck and head share the mean nod does not show in images and is the labels', as in training (`SharedTurns`).

    Args:
        predicted: the discriminator's poses of some whole images.
        some: their labels.
        labels: all labels.
    """
    mean = with_mirrored(predicted).mean(dim=0)
    change = shared_turns(labels).nod - (mean[3] - mean[0])
    mean[0], mean[3] = mean[0] - 0.5 * change, mean[3] + 0.5 * change
    return (labels - with_mirrored(labels).mean(dim=0)) / label_shrink(predicted, some) + mean


def finetuning_data(
    discriminator: Discriminator, model: ModelConfig, data: TrainingData, where: Path
) -> FinetuningData:
    """Images of a dataset with this discriminator's target poses.

    Raises:
        DatasetError: it holds too few images.
    """
    known = calibration_rows(len(data))
    left = torch.ones(len(data), dtype=torch.bool)
    left[known] = False
    if int(left.sum()) < len(known) // 4 or not len(known):
        raise DatasetError(f"{where} holds too few images.", f"It takes {len(known) + len(known) // 4 + 1}.")
    predicted = predicted_poses(discriminator, model, data, known, (1.0,))[:, 0]
    targets = poses_of_labels(predicted, data.body_poses[known], data.body_poses)
    return FinetuningData(data, targets, left.nonzero()[:, 0], (0, *closer_levels(data)))


def finetune(
    discriminator: Discriminator,
    model: ModelConfig,
    data: Sequence[FinetuningData],
    recipe: PoseFinetuning,
    checkpoint: Path,
    *,
    device: torch.device,
    bf16: bool | None = None,
) -> Discriminator:
    """Fine-tune the pose path of a copy of a discriminator; continue from the checkpoint, if it is there.

    Args:
        discriminator, model: from `with_pose_path`.
        data: from `finetuning_data`, one of each dataset; images are taken from all alike.
        recipe: with `discriminator` and `data` it must be that of the checkpoint.
        checkpoint: written every `save_every` steps.
        device: where it is trained.
        bf16: whether convolutions run in bf16; None: where that is faster, as the checkpoint says or as measured.

    Raises:
        CheckpointError: the checkpoint is damaged, or of another run.
    """
    # Start, or go on from the checkpoint
    state = FinetuningState.start(discriminator, recipe, _run_name(discriminator, data, recipe), device)
    notes = state.resume(checkpoint) if checkpoint.exists() else {}
    bf16 = choose_bf16(True, device, notes) if bf16 is None else bf16
    notes = {"bf16": bf16, "processor": processor_name()}
    recent: float | None = None

    # Train, and save now and then
    with show_progress("fine-tuning", recipe.steps, "steps") as bar:
        bar.skip(state.step)
        while state.step < recipe.steps:
            torch.manual_seed(recipe.seed * 1_000_003 + state.step)
            loss = state.take_step(real_batch(data, recipe.images, model, device), recipe, bf16)
            bar.advance(1)
            recent = loss if recent is None else 0.98 * recent + 0.02 * loss
            if state.step % recipe.save_every == 0 or state.step == recipe.steps:
                print(f"step {state.step}  squared difference from the labels {recent:.4f}", flush=True)
                state.save(checkpoint, notes)
    return state.average


RealBatch = tuple[DiscriminatorInput, Float[Tensor, "B 25"], Float[Tensor, "B 6"]]
"""Images, cameras and target poses."""


def real_batch(
    data: Sequence[FinetuningData], count: int, model: ModelConfig, device: torch.device
) -> tuple[DiscriminatorInput, Float[Tensor, "B 25"], Float[Tensor, "B 6"]]:
    """Random images of all datasets, with cameras and target poses."""
    sizes = torch.tensor([float(len(one.rows)) for one in data])
    counts = torch.multinomial(sizes, count, replacement=True).bincount(minlength=len(data)).tolist()
    parts = [one.batch(n, model, device) for one, n in zip(data, counts, strict=True) if n]
    images, cameras, targets = zip(*parts, strict=True)
    return concatenate(*images), torch.cat(cameras), torch.cat(targets)


@dataclasses.dataclass
class FinetuningState:
    """What a step of fine-tuning changes; what its checkpoint holds."""

    discriminator: Discriminator
    average: Discriminator
    optimizer: torch.optim.Adam
    run: str
    """Hash of what the run is given."""
    step: int = 0

    @classmethod
    def start(
        cls, discriminator: Discriminator, recipe: PoseFinetuning, run: str, device: torch.device
    ) -> FinetuningState:
        """A copy of a discriminator of which only the pose path is trained."""
        trained = copy.deepcopy(discriminator).to(device)
        average = copy.deepcopy(trained)
        assert trained.pose_path is not None
        parameters = [*trained.pose_path.parameters(), *trained.pose_branch.parameters()]
        for parameter in parameters:
            parameter.requires_grad_(True)
        return cls(trained, average, torch.optim.Adam(parameters, recipe.rate, betas=recipe.betas), run)

    def take_step(self, batch: RealBatch, recipe: PoseFinetuning, bf16: bool) -> float:
        """One update of weights and their average; the loss before it."""
        # Loss and gradients
        images, camera, targets = batch
        with torch.autocast(targets.device.type, torch.bfloat16, enabled=bf16):
            predicted = self.discriminator.predict_pose(images, camera, parts=len(targets))
        loss = pose_loss(predicted.float(), targets)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()

        # Warm-up, then a cosine; the average reaches back further and further at the start
        rate = recipe.rate * min(1.0, (self.step + 1) / recipe.warm_up) * cosine_decay(self.step / recipe.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.step += 1
        beta = min(1.0 - 1.0 / recipe.average, (1.0 + self.step) / (10.0 + self.step))
        update_average(self.average, self.discriminator, beta)
        return float(loss.detach())

    def save(self, path: Path, notes: dict[str, Any]) -> None:
        """Write a checkpoint; `notes` on precision, as JSON."""
        tensors = module_tensors(self.discriminator, "D") | module_tensors(self.average, "D_ema")
        tensors |= optimizer_tensors(self.optimizer, self.discriminator, "adam_D")
        metadata = {"step": str(self.step), "precision": json.dumps(notes), "run": self.run}
        write_tensors(path, tensors, _FORMAT | metadata)

    def resume(self, path: Path) -> dict[str, Any]:
        """Go on from a checkpoint; its notes on precision.

        Raises:
            CheckpointError: it is damaged, or of another run.
        """
        tensors, metadata = read_tensors(path)
        if metadata.get("kind") != _FORMAT["kind"] or metadata.get("run") != self.run:
            raise CheckpointError(f"{path} is of another run.", "Remove it, or give the same data, weights and recipe.")
        fill_module(self.discriminator, tensors, "D", path)
        fill_module(self.average, tensors, "D_ema", path)
        fill_optimizer(self.optimizer, self.discriminator, tensors, "adam_D")
        self.step = int(metadata_json(metadata, "step", path))
        return metadata_json(metadata, "precision", path)


def _run_name(discriminator: Discriminator, data: Sequence[FinetuningData], recipe: PoseFinetuning) -> str:
    """A hash of what a run is given.

    Target poses are left out: they follow from the rest, but for rounding that differs between machines.
    """
    found = hashlib.sha256(json.dumps(dataclasses.asdict(recipe)).encode())
    for tensor in [*discriminator.state_dict().values(), *(one.rows for one in data)]:
        found.update(tensor.cpu().contiguous().numpy().tobytes())
    for one in data:
        found.update(one.data.fingerprint.encode())
    return found.hexdigest()


def main(
    data: Annotated[tuple[Path, ...], tyro.conf.Positional],
    weights: Path,
    out: Path,
    recipe: PoseFinetuning = PoseFinetuning(),
    device: str = "auto",
    bf16: bool | None = None,
) -> None:
    """Write weights whose discriminator predicts body poses of real images better, and their calibration.

    Args:
        data: images with the labels that training reads, one or several datasets; the first one's also calibrate.
        weights: a weights file that training wrote.
        out: the file to write; the checkpoint goes beside it.
        device: cpu, cuda, cuda:1, or auto for the GPU if there is one.
        bf16: convolutions in bf16; None: where that is measured to be faster.
    """
    # The network, and the data with its targets
    check_place(out)
    target = choose_device(device)
    loaded = load_preset_weights(weights)
    discriminator, model = with_pose_path(loaded.discriminator, loaded.generator.config, recipe.pose_blocks)
    keep_freed_memory()
    datasets = []
    for path in data:
        content = TrainingData(path, model, named_preset(model.name).training, 0, device=target, progress=True)
        datasets.append(finetuning_data(discriminator.to(target), model, content, path))

    # Fine-tune, calibrate, save
    checkpoint = out.with_name(out.stem + ".checkpoint.safetensors")
    finetuned = finetune(discriminator, model, datasets, recipe, checkpoint, device=target, bf16=bf16).cpu()
    found = calibrate(finetuned, model, datasets[0].data)
    images = sum(len(one.rows) for one in datasets)
    about = loaded.info.about | {"real_poses": {"steps": recipe.steps, "images": images}}
    save_weights(out, model, loaded.generator, finetuned, about, calibration=found)
    checkpoint.unlink()


if __name__ == "__main__":
    run_script(main)
