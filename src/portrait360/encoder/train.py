"""Train the portrait encoder on synthetic portraits that show each person several times.

    portrait360 dataset synth --count 32000 --resolution 128 --seed 20002 --views 4 --out train.zip
    python -m portrait360.encoder.train train.zip --out encoder.safetensors

On a GPU, with processes that prepare the batches, one for each processor core but two:

    python -m portrait360.encoder.train train.zip --out encoder.safetensors --device cuda --workers 14

Several processes share every batch (on a CPU, one process of one thread for each core is fastest):

    torchrun --nproc-per-node 2 -m portrait360.encoder.train train.zip --out encoder.safetensors

Every step is a function of the seed, its number and the state before it, so a stopped run continues exactly (on one
thread of a CPU to the last bit: sums over several, and on GPUs, may differ there).
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import tyro
from jaxtyping import Float
from torch import Tensor

from portrait360.encoder.augment import PhotoBatch
from portrait360.encoder.batches import EncoderData, EncoderTraining, batches
from portrait360.encoder.files import load_encoder, save_encoder
from portrait360.encoder.network import (
    POSE_UNIT,
    CameraEstimate,
    EncoderConfig,
    PortraitEncoder,
    landmark_places,
    to_view,
)
from portrait360.geometry.body import BodyTemplate, load_body
from portrait360.geometry.cameras import cam2world
from portrait360.geometry.rotations import axis_angle_to_matrix
from portrait360.runtime.device import choose_device
from portrait360.runtime.distributed import Ranks, join, own_gpu
from portrait360.runtime.memory import keep_freed_memory
from portrait360.runtime.precision import choose_bf16, processor_name
from portrait360.runtime.progress import show_progress
from portrait360.runtime.schedule import cosine_decay
from portrait360.runtime.script import run_script
from portrait360.runtime.tensors import fill_module, module_tensors, read_tensors, write_tensors
from portrait360.types import CheckpointError

_CPU, _ALONE = torch.device("cpu"), Ranks()
_FORMAT = {"format": "portrait360", "kind": "encoder-checkpoint"}


def contrastive_loss(identity: Float[Tensor, "B I"], temperature: float) -> Float[Tensor, ""]:
    """InfoNCE (van den Oord 2018): rows 2i and 2i + 1 show one person, all others are other people."""
    logits = identity @ identity.T / temperature
    logits = logits - torch.eye(len(logits), device=logits.device) * 1e4
    partner = torch.arange(len(logits), device=logits.device) ^ 1
    return F.cross_entropy(logits, partner)


def encoder_losses(
    encoder: PortraitEncoder,
    photos: PhotoBatch,
    poses: Float[Tensor, "B 6"],
    temperature: float,
    body: BodyTemplate,
) -> dict[str, Float[Tensor, ""]]:
    """The losses that train the encoder; poses are the faintest in images and weigh the most."""
    predicted = encoder(photos.image)
    camera, truth = predicted.camera, photos.camera
    true_pose = to_view(poses, truth)

    def robust(error: Tensor) -> Tensor:
        return F.smooth_l1_loss(error, torch.zeros_like(error), beta=0.3)

    # Turns, directions, places and outlines of both
    turns = [turns_in_view(*whose) for whose in ((camera, predicted.view_pose), (truth, true_pose))]
    directions = [torch.stack([yaw.cos(), yaw.sin()], dim=1) for yaw in (camera.yaw, truth.yaw)]
    places = landmark_places(body, truth.label(), poses)
    inside = ((places > 0.0) & (places < 1.0)).all(dim=2, keepdim=True)
    side = predicted.mask_logits.shape[-1]
    mask = F.interpolate(photos.mask, size=(side, side), mode="area")

    # Each loss in units of its usual error
    losses = {
        "yaw": 2.0 * robust((directions[0] - directions[1]) / 0.5),
        "pitch": robust((camera.pitch - truth.pitch) / 0.2),
        "roll": robust((camera.roll - truth.roll) / 0.2),
        "scale": robust((camera.scale / truth.scale).log() / 0.3),
        "offset": robust((camera.offset - truth.offset) / 0.08),
        "pose": 8.0 * robust((predicted.view_pose - true_pose) / POSE_UNIT),
        "turns": 2.0 * robust((turns[0] - turns[1]) / 0.1),
        "landmarks": 4.0 * robust((predicted.landmarks - places) * inside / 0.05),
        "mask": 4.0 * F.binary_cross_entropy_with_logits(predicted.mask_logits, mask),
        "identity": contrastive_loss(predicted.identity, temperature),
        "blur": 0.5 * robust((predicted.blur / photos.blur).log2()),
    }
    if predicted.cover_logits is not None:
        losses["cover"] = 2.0 * F.binary_cross_entropy_with_logits(predicted.cover_logits, photos.covered)
    return losses


def turns_in_view(camera: CameraEstimate, view_pose: Float[Tensor, "B 6"]) -> Float[Tensor, "B 2 3 3"]:
    """Rotations of neck and head against the camera, which is what images show.

    `view_pose` has the neck against the torso and the head against the neck, each with half of the error of their sum.
    """
    body_in_view = cam2world(camera.label())[:, :3, :3].mT
    neck, head = axis_angle_to_matrix(view_pose.unflatten(1, (2, 3))).unbind(1)
    # in the axes of the camera a turn of the body is R^T N R, and R^T N H = (R^T N R) (R^T H R) R^T
    neck = neck @ body_in_view
    return torch.stack([neck, neck @ body_in_view.mT @ head @ body_in_view], dim=1)


def learning_rate(step: int, recipe: EncoderTraining) -> float:
    """Linear warm-up, then a cosine down to zero."""
    if step < recipe.warm_up:
        return recipe.rate * (step + 1) / recipe.warm_up
    done = (step - recipe.warm_up) / max(1, recipe.steps - recipe.warm_up)
    return recipe.rate * cosine_decay(done)


@dataclass
class EncoderState:
    """What a step of training changes; what its checkpoint holds."""

    encoder: PortraitEncoder
    optimizer: torch.optim.AdamW
    step: int = 0

    @classmethod
    def start(
        cls, config: EncoderConfig, recipe: EncoderTraining, init: Path | None, device: torch.device
    ) -> EncoderState:
        """A new encoder, or that of a file.

        Raises:
            CheckpointError: the file holds no encoder, or one of another size.
        """
        torch.manual_seed(recipe.seed)
        encoder = (PortraitEncoder(config) if init is None else _started(init, config)).to(device)
        optimizer = torch.optim.AdamW(encoder.parameters(), lr=recipe.rate, weight_decay=recipe.weight_decay)
        return cls(encoder, optimizer)

    def take_step(
        self, photos: PhotoBatch, poses: Float[Tensor, "B 6"], recipe: EncoderTraining, body: BodyTemplate, ranks: Ranks
    ) -> dict[str, Float[Tensor, ""]]:
        """One update; the losses before it, on the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, recipe)
        losses = encoder_losses(self.encoder, photos, poses, recipe.temperature, body)
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        ranks.average_gradients((self.encoder,))
        torch.nn.utils.clip_grad_norm_(self.encoder.parameters(), 10.0)
        self.optimizer.step()
        self.step += 1
        return losses

    def save(self, path: Path, notes: dict[str, Any]) -> None:
        """Write a checkpoint; `notes` on precision, as JSON."""
        tensors = module_tensors(self.encoder, "encoder")
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam/{index}/{name}": value for name, value in state.items()}
        write_tensors(path, tensors, _FORMAT | {"step": str(self.step), "precision": json.dumps(notes)})

    def resume(self, path: Path) -> dict[str, Any]:
        """Go on from a checkpoint; its notes on precision."""
        # Weights
        tensors, metadata = read_tensors(path)
        fill_module(self.encoder, {k: v for k, v in tensors.items() if k.startswith("encoder/")}, "encoder", path)

        # Adam's moments, in the parameters' memory format as they were: GPUs take them together only then
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("adam/"):
                _, index, key = name.split("/")
                state.setdefault(int(index), {})[key] = value
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        for index, values in state.items():
            for key, value in values.items():
                if value.dim():
                    values[key] = torch.empty_like(parameters[index], requires_grad=False).copy_(value)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.step = int(metadata["step"])
        return json.loads(metadata.get("precision", "{}"))


def train_encoder(
    data: EncoderData,
    out: Path,
    config: EncoderConfig,
    recipe: EncoderTraining,
    *,
    stop_after: int | None = None,
    init: Path | None = None,
    device: torch.device = _CPU,
    workers: int = 0,
    ranks: Ranks = _ALONE,
    average: Path | None = None,
    average_share: float = 0.3,
    bf16: bool | None = False,
) -> PortraitEncoder:
    """Train and write `out`; continue from the checkpoint beside it, if one is there, and remove it at the end.

    Of several processes, each normalises its own part of a batch and contrasts the persons in it; gradients are
    averaged over all, running statistics where a checkpoint is written. The first one writes.

    Args:
        data: from `EncoderData.load`.
        out: the encoder's file.
        config, recipe: sizes and recipe; they must be those of the checkpoint.
        stop_after: stop at this step, with a checkpoint and without the final file.
        init: an encoder's file to start from instead of random weights.
        device: where it is trained; a checkpoint may be continued on another one.
        workers: processes that prepare batches, as for `batches`; with one thread, the result is the same.
        ranks: this process's place among several that train together.
        average: an encoder's file whose weights are averaged with the trained ones at the end (`average_weights`).
        average_share: how much of that.
        bf16: whether convolutions run in bf16; None: where that is faster, as the checkpoint says or as measured.

    Raises:
        CheckpointError: `init` or `average` is no encoder, or one of another size.
        InputError: the processes do not divide the persons of a batch.
    """
    # Start, or go on from the checkpoint
    ranks.share(recipe.people)
    other = None if average is None else _started(average, config).to(device)
    state = EncoderState.start(config, recipe, init, device)
    checkpoint = out.with_name(out.stem + ".checkpoint.safetensors")
    notes = state.resume(checkpoint) if checkpoint.exists() else {}
    state.encoder.bf16 = _all_agree(choose_bf16(True, device, notes), ranks) if bf16 is None else bf16
    last = recipe.steps if stop_after is None else min(stop_after, recipe.steps)
    source = batches(state.step, last - state.step, data, recipe, workers=workers, device=device, ranks=ranks)

    # Train; then average, standardise the features, and write
    _take_steps(state, source, recipe, last, checkpoint, ranks)
    state.encoder.bf16 = False
    if state.step == recipe.steps and ranks.first:
        if other is not None:
            average_weights(state.encoder, other, average_share)
        _fit_features(state.encoder, data, recipe, device, workers)
        save_encoder(out, state.encoder.eval(), {"steps": state.step, "images": len(data.images)})
        checkpoint.unlink()
    ranks.wait()
    return state.encoder


def _take_steps(
    state: EncoderState,
    source: Iterator[tuple[PhotoBatch, Tensor]],
    recipe: EncoderTraining,
    last: int,
    checkpoint: Path,
    ranks: Ranks,
) -> None:
    """Train on all batches; save and print the losses every `save_every` steps and at the last one."""
    body = load_body().to(next(state.encoder.parameters()).device)
    notes = {"bf16": state.encoder.bf16, "processor": processor_name()}
    means: Tensor | None = None
    with show_progress("training", recipe.steps, "steps", visible=ranks.first) as bar:
        bar.skip(state.step)
        start = time.monotonic()
        for photos, poses in source:
            # One step; its losses stay on the device: a GPU is waited for only where they are printed
            losses = state.take_step(photos, poses, recipe, body, ranks)
            values = torch.stack(list(losses.values())).detach().double()
            means = values if means is None else 0.98 * means + 0.02 * values
            bar.advance(1)

            # Save and print now and then
            if state.step % recipe.save_every and state.step != last:
                continue
            _average_statistics(state.encoder, ranks)
            if ranks.first:
                text = "  ".join(f"{name} {value:.3f}" for name, value in zip(losses, means.tolist(), strict=True))
                print(f"step {state.step}  {(time.monotonic() - start) / 60:.1f} min  {text}", flush=True)
                state.save(checkpoint, notes)


@torch.no_grad()
def average_weights(encoder: PortraitEncoder, other: PortraitEncoder, share: float) -> None:
    """Move all weights and running statistics by `share` of the way to another encoder's, in place.

    Between an encoder and the one that it was trained from, in a straight line, lie encoders that predict better for
    unusual images than the trained one, and nearly as well for usual ones (WiSE-FT, Wortsman 2022).
    """
    theirs = other.state_dict()
    for name, values in encoder.state_dict().items():
        if values.is_floating_point():
            values.lerp_(theirs[name], share)


def _all_agree(choice: bool, ranks: Ranks) -> bool:
    """Whether all processes chose it."""
    return ranks.average({"choice": torch.tensor(float(choice))})["choice"].item() > 0.99


def _average_statistics(encoder: PortraitEncoder, ranks: Ranks) -> None:
    for buffer in encoder.buffers():
        if buffer.is_floating_point():
            ranks.average_(buffer)


def _started(path: Path, config: EncoderConfig) -> PortraitEncoder:
    """The encoder of a file, grown to `config`.

    What it lacks changes nothing at first: further blocks, and features around landmarks. An encoder that does not
    predict covered parts yet starts with 1 in 50.
    """
    # Refuse other sizes
    given, _ = load_encoder(path)
    changes = {name: getattr(config, name) for name in ("sees_covers", "further_blocks", "around")}
    if (
        dataclasses.replace(given.config, **changes) != config
        or any(one < other for one, other in zip(config.depths, given.config.depths, strict=True))
        or given.config.around not in (0, config.around)
    ):
        raise CheckpointError(f"{path} is an encoder of another size.", "Give its `config`.")
    if given.config.sees_covers and not config.sees_covers:
        raise CheckpointError(f"{path} predicts what is covered.", "Give `config.sees_covers`.")

    # Rows and columns that it lacks
    state = given.state_dict()
    if config.sees_covers and not given.config.sees_covers:
        weight, bias = state["numbers.weight"], state["numbers.bias"]
        state["numbers.weight"] = torch.cat([weight, torch.zeros_like(weight[:1])])
        state["numbers.bias"] = torch.cat([bias, bias.new_tensor([-4.0])])
    encoder = PortraitEncoder(config)
    hidden = state["hidden.weight"]
    unread = encoder.hidden.in_features - hidden.shape[1]
    state["hidden.weight"] = torch.cat([hidden, hidden.new_zeros(len(hidden), unread)], dim=1)
    encoder.load_state_dict(encoder.state_dict() | state)
    return encoder


@torch.no_grad()
def _fit_features(
    encoder: PortraitEncoder,
    data: EncoderData,
    recipe: EncoderTraining,
    device: torch.device,
    workers: int,
    steps: int = 60,
) -> None:
    """Give every feature mean 0 and deviation 1 over images like photos."""
    encoder.eval()
    encoder.feature_mean.zero_()  # of an encoder that another one was made from
    encoder.feature_scale.fill_(1.0)
    source = batches(recipe.steps, steps, data, recipe, workers=workers, device=device)
    features = torch.cat([encoder(photos.image).features for photos, _ in source])
    encoder.feature_mean.copy_(features.mean(0))
    encoder.feature_scale.copy_(1.0 / features.std(0).clamp_min(1e-3))


def main(
    data: Annotated[tuple[Path, ...], tyro.conf.Positional],
    out: Path,
    *,
    config: EncoderConfig = EncoderConfig(sees_covers=True),  # noqa: B008 - frozen
    recipe: EncoderTraining = EncoderTraining(),  # noqa: B008 - frozen
    init: Path | None = None,
    device: str = "auto",
    workers: int = 0,
    average: Path | None = None,
    average_share: float = 0.3,
    bf16: bool | None = None,
) -> None:
    """Train a portrait encoder on datasets made with --views.

    Args:
        data: one or several, of other persons each.
        init: go on from this encoder's file.
        device: cpu, cuda, cuda:1, or auto for the GPU if there is one.
        workers: processes that prepare batches; 0: the training process does.
        average: at the end, average the weights with those of this encoder's file.
        average_share: how much of that.
        bf16: convolutions in bf16; None: where that is measured to be faster.
    """
    # The device, and the other processes
    target = own_gpu(choose_device(device))
    ranks = join(target)
    keep_freed_memory()
    if target.type == "cuda":
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True

    # Train
    content = EncoderData.load_all(data, config.resolution)
    options: dict[str, Any] = {"init": init, "average": average, "average_share": average_share, "bf16": bf16}
    try:
        train_encoder(content, out, config, recipe, device=target, workers=workers, ranks=ranks, **options)
    finally:
        ranks.leave()


if __name__ == "__main__":
    run_script(main)
