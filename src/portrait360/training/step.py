"""One update of generator and discriminator: gradients, optimisers, moving averages (equations 10).

`joint_update` takes the gradients of both networks from one pass; `separate_phases` is the published training.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from portrait360.model.discriminator import DiscriminatorInput
from portrait360.poses.alignment import CanonicalTilt, nod_degrees
from portrait360.runtime.distributed import Ranks
from portrait360.training import schedules
from portrait360.training.losses import discriminator_loss, generator_loss, pose_loss
from portrait360.training.passes import (
    Batch,
    Predictions,
    StepLosses,
    TrainingState,
    autocast,
    blurred,
    generate,
    real_images,
    regularise,
    shared_gradients,
    step_metrics,
)
from portrait360.training.reconstruction import reconstruct

TILT_INTERVAL = 100
"""Steps between two measurements of the canonical heads' tilt; each counts half."""


@torch.no_grad()
def update_average(average: torch.nn.Module, current: torch.nn.Module, beta: float) -> None:
    """Parameters move towards the current ones, buffers are copied (equations 10.11)."""
    averages: list[Tensor] = list(average.parameters())
    newest: list[Tensor] = list(current.parameters())
    torch._foreach_lerp_(averages, newest, 1.0 - beta)  # pyright: ignore[reportPrivateImportUsage]
    for kept, new in zip(average.buffers(), current.buffers(), strict=True):
        kept.copy_(new)


def training_step(state: TrainingState, batch: Batch, ranks: Ranks | None = None) -> dict[str, Tensor]:
    """Gradients, both optimisers, the moving averages. The step does not count when a loss is not finite.

    `batch` is this process's share; the metrics are means over all processes.
    """
    config = state.config
    ranks = ranks or Ranks()
    update = separate_phases if config.separate_phases else joint_update
    metrics = update(state, batch, ranks)
    if not _finite(metrics):
        return metrics
    state.images += config.batch
    state.step += 1
    beta = schedules.ema_beta(state.images, config)
    update_average(state.average, state.generator, beta)
    update_average(state.average_discriminator, state.discriminator, beta)
    state.memory.keep(ranks)
    follow_tilt(state)
    neck, head = nod_degrees(state.memory.tilt)
    return metrics | {"tilt_neck": torch.tensor(neck), "tilt_head": torch.tensor(head)}


def _finite(metrics: dict[str, Tensor]) -> bool:
    losses = [metrics[name] for name in ("g_loss", "d_loss", "pose_loss") if name in metrics]
    return bool(torch.isfinite(torch.stack(losses)).all())


def joint_update(state: TrainingState, batch: Batch, ranks: Ranks) -> dict[str, Tensor]:
    """Both networks from one pass. Nothing is updated when a loss is not finite."""
    for optimizer in (state.g_optimizer, state.d_optimizer):
        optimizer.zero_grad(set_to_none=True)
    if state.config.reconstruction is None:
        metrics = ranks.average(shared_gradients(state, batch))
    else:
        metrics = reconstruct(state, batch, ranks)
    if _finite(metrics):
        ranks.average_gradients((state.generator, state.discriminator))
        ranks.average_(state.generator.backbone.mapping.w_avg)
        _apply_generator(state)
        _apply(state, state.d_optimizer, state.config.d_lr)
    return metrics


def separate_phases(state: TrainingState, batch: Batch, ranks: Ranks) -> dict[str, Tensor]:
    """One network after the other, as published (equations 10.1, 10.7-10.10).

    Each phase generates images of its own, for labels of its own, and ends with a step of its optimiser; so do the
    penalties, every `r1_interval` steps. A loss that is not finite ends the update where it shows.
    """
    config = state.config
    assert batch.drawn is not None, "separate phases need labels of their own"
    for_generator, for_discriminator = batch.drawn
    sigma = schedules.blur_sigma(state.images, config)

    def discriminate(images: DiscriminatorInput, camera: Tensor) -> tuple[Tensor, Tensor]:
        with autocast(config, camera.device):
            return state.discriminator(images, camera)

    # The generator's phase
    state.g_optimizer.zero_grad(set_to_none=True)
    generated = generate(state, for_generator)
    logits, _ = discriminate(blurred(generated.images, sigma, raw=False), for_generator.camera)
    g_loss = generator_loss(config.loss, logits, logits)
    (g_loss + generated.regularisation).backward(inputs=list(state.generator.parameters()))
    metrics = ranks.average({"g_loss": g_loss.detach()})
    if not _finite(metrics):
        return metrics
    ranks.average_gradients((state.generator,))
    _apply_generator(state)

    # The discriminator's phase: losses on new images
    state.d_optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
        shown = generate(state, for_discriminator, gradients=False)
    fake = blurred(shown.images, sigma, raw=False)
    real = blurred(real_images(state, batch), sigma, raw=True)
    fake_logits, fake_poses = discriminate(fake, for_discriminator.camera)
    real_logits, real_poses = discriminate(real, batch.camera)
    d_loss = discriminator_loss(config.loss, real_logits, fake_logits)
    d_pose = pose_loss(fake_poses, shown.body_pose)
    (d_loss + config.pose_loss_weight * d_pose).backward(inputs=list(state.discriminator.parameters()))
    losses = StepLosses(g_loss, d_loss, d_pose)
    predictions = Predictions(real_logits, fake_logits, real_poses)
    metrics = ranks.average(step_metrics(losses, predictions, generated, real, batch))
    if not _finite(metrics):
        return metrics

    # Its updates
    ranks.average_gradients((state.discriminator,))
    ranks.average_(state.generator.backbone.mapping.w_avg)
    _apply(state, state.d_optimizer, config.d_lr)
    if state.step % config.r1_interval == 0:
        state.d_optimizer.zero_grad(set_to_none=True)
        metrics |= ranks.average(regularise(state, real, batch.camera))
        ranks.average_gradients((state.discriminator,))
        _apply(state, state.d_optimizer, config.d_lr)
    return metrics


def _apply_generator(state: TrainingState) -> None:
    """A step of the generator's optimiser; the pose branch stays as it is once its schedule is over."""
    if not schedules.trains_pose_branch(state.images, state.config):
        for p in state.generator.pose_branch.parameters():
            p.grad = None
    _apply(state, state.g_optimizer, state.config.g_lr)


def _apply(state: TrainingState, optimizer: torch.optim.Adam, rate: float) -> None:
    """A step with the gradients that are there, at the current learning rate."""
    factor = schedules.learning_rate_factor(state.images, state.config)
    gradients: list[Tensor] = []
    for group in optimizer.param_groups:
        group["lr"] = rate * factor
        gradients += [p.grad for p in group["params"] if p.grad is not None]
    largest = torch.stack(torch._foreach_norm(gradients, math.inf))  # pyright: ignore[reportPrivateImportUsage]
    if not bool(torch.isfinite(largest).all()):
        for gradient in gradients:
            torch.nan_to_num(gradient, nan=0.0, posinf=1e5, neginf=-1e5, out=gradient)
    optimizer.step()


def follow_tilt(state: TrainingState) -> None:
    """Every `TILT_INTERVAL` steps, measure how far canonical heads lean, once poses are being refined."""
    if state.step % TILT_INTERVAL or schedules.refined_share(state.images, state.config) <= 0 or not state.memory.ready:
        return
    if state.alignment is None:
        state.alignment = CanonicalTilt(state.average.body)
    state.memory.tilt = 0.5 * (state.memory.tilt + state.alignment.measure(state.average))
