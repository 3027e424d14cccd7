"""The discriminator's pose head, trained on labels directly: a bound for poses that are predicted from images.

    python -m tools.pose_regression TRAIN.zip --held-out HELDOUT.zip --labels train

On the labels that training reads, self-supervised poses must beat it; on the exact ones it is an upper bound.
The camera is given, as in training. A measurement: nothing of it goes into a model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from jaxtyping import Float, UInt8
from torch import Tensor

from portrait360.config import ModelConfig, named_preset
from portrait360.data.dataset import PortraitDataset
from portrait360.evaluation.measures import rotation_errors
from portrait360.model.discriminator import Discriminator, DiscriminatorInput
from portrait360.runtime.files import check_place, write_json
from portrait360.runtime.process import settle_process
from portrait360.runtime.progress import show_progress
from portrait360.runtime.schedule import cosine_decay
from portrait360.runtime.script import run_script
from portrait360.training.augment import mirror_some
from portrait360.training.data import composite
from portrait360.training.losses import pose_loss
from portrait360.types import DatasetError

BATCH = 32
RATE = 1e-3
WARMUP = 200
CHUNK = 100


class Labelled:
    """Images on a plain background, as the discriminator's input, with cameras and body poses."""

    def __init__(self, path: Path, labels: Literal["train", "exact"], model: ModelConfig) -> None:
        dataset = PortraitDataset(path, labels=labels)
        if dataset.resolution < model.resolution:
            raise DatasetError(
                f"{path} is smaller than {model.resolution} pixels.", "Render it at a higher resolution."
            )
        images, masks = dataset.load_arrays(dataset.resolution)
        self.images: UInt8[Tensor, "N 3 R R"]
        self.masks: UInt8[Tensor, "N 1 R R"]
        self.images, self.masks = composite(images, masks, model.plain_background, model.resolution)
        self.cameras, self.poses = dataset.cameras, dataset.body_poses

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Image in [-1, 1], mask in [0, 1], camera and body pose of some images."""
        image, mask = self.images[rows].float() / 127.5 - 1.0, self.masks[rows].float() / 255.0
        return image, mask, self.cameras[rows], self.poses[rows]


def regress(data: Labelled, model: ModelConfig, steps: int, seed: int = 0, *, progress: bool = False) -> Discriminator:
    """A fresh discriminator, its pose head trained by squared error on the labels of `data`, mirrored half the time."""
    torch.manual_seed(seed)
    network = Discriminator(model)
    optimizer = torch.optim.AdamW(network.parameters(), RATE, betas=(0.9, 0.99), weight_decay=0.05)
    with show_progress("regressing", steps, "steps", visible=progress) as bar:
        for step in range(steps):
            decay = cosine_decay(step / steps, 0.02)
            for group in optimizer.param_groups:
                group["lr"] = RATE * decay * min(1.0, (step + 1) / WARMUP)
            batch = data.take(torch.randint(len(data.images), (BATCH,)))
            image, mask, camera, pose = mirror_some(torch.rand(BATCH) < 0.5, *batch)
            _, predicted = network(DiscriminatorInput(image, None, mask), camera)
            optimizer.zero_grad()
            pose_loss(predicted, pose).backward()
            optimizer.step()
            bar.advance(1)
    return network


@torch.no_grad()
def predict(network: Discriminator, data: Labelled) -> Float[Tensor, "N 6"]:
    """Body poses that the network predicts for all images."""
    poses = []
    for rows in torch.arange(len(data.images)).split(CHUNK):
        image, mask, camera, _ = data.take(rows)
        poses.append(network(DiscriminatorInput(image, None, mask), camera)[1])
    return torch.cat(poses)


def errors(predicted: Float[Tensor, "N 6"], true: Float[Tensor, "N 6"]) -> dict[str, float | list[float]]:
    """Degrees: mean angle of neck and head; mean and standard deviation of the error along each of the six axes."""
    neck, head = rotation_errors(predicted, true).mean(dim=0).rad2deg().tolist()
    off = (predicted - true).rad2deg()
    axes = {"bias": off.mean(dim=0), "deviation": off.std(dim=0)}
    return {"neck": round(neck, 2), "head": round(head, 2)} | {
        name: [round(v, 2) for v in values.tolist()] for name, values in axes.items()
    }


def main(
    data: Annotated[Path, tyro.conf.Positional],
    held_out: Path,
    labels: Literal["train", "exact"] = "train",
    steps: int = 4687,
    preset: Literal["cpu-64"] = "cpu-64",
    out: Path | None = None,
) -> None:
    """Write errors (.json) of a pose head that is trained on labels directly, on held-out images with exact poses."""
    if out is not None:
        check_place(out)
    settle_process()
    model = named_preset(preset).model
    network = regress(Labelled(data, labels, model), model, steps, progress=True)
    held = Labelled(held_out, "exact", model)
    result = {"labels": labels, "steps": steps, "batch": BATCH} | errors(predict(network, held), held.poses)
    print(result)
    if out is not None:
        write_json(out, result)


if __name__ == "__main__":
    run_script(main)
