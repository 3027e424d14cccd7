"""What a step of training computes on the device: generated pictures, verdicts, losses and their gradients
(equations 10).

Both networks get their gradients from the same forward pass: the generated pictures are judged once, the generator
takes the gradient at the pictures, the discriminator the gradient at its weights. `separate_gradients` is the readable
twin that runs the two networks one after the other; both give the same gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from portrait360.config import ModelConfig, TrainingConfig
from portrait360.media.images import blur
from portrait360.model.discriminator import Discriminator, Pictures, concatenate
from portrait360.model.fused import TRAINING_CELLS, can_fuse, occupied_cells
from portrait360.model.generator import Generator, RenderDraws
from portrait360.model.layers import resize
from portrait360.model.rendering import Occupancy
from portrait360.poses.alignment import CanonicalTilt
from portrait360.poses.memory import PoseMemory, mismatch
from portrait360.training import schedules
from portrait360.training.augment import swap_some
from portrait360.training.losses import discriminator_loss, generator_loss, gradient_penalties, pose_loss


@dataclass(frozen=True)
class Labels:
    """What pictures are generated for."""

    camera: Float[Tensor, "B 25"]
    coarse_pose: Float[Tensor, "B 6"]


@dataclass(frozen=True)
class Batch:
    """Real pictures with labels, for which pictures are generated too."""

    image: Float[Tensor, "B 3 H H"]
    mask: Float[Tensor, "B 1 H H"]
    camera: Float[Tensor, "B 25"]
    coarse_pose: Float[Tensor, "B 6"]
    drawn: tuple[Labels, Labels] | None = None
    """What the generator's and the discriminator's phases generate for instead, where they are separate."""


@dataclass(frozen=True)
class Given:
    """What the CPU decides for a step before the device computes it, on the device."""

    moment: schedules.Moment
    coarse_pose: Float[Tensor, "B 6"]
    """The labels' poses, some of them refined."""
    matched: Float[Tensor, "N 31"] | None
    """Cameras and poses that the pose branch is pulled to."""
    tilt: Float[Tensor, "6"]
    """Of the canonical heads."""
    pose_regularisation: Float[Tensor, ""]
    match_weight: Float[Tensor, ""]
    swap_probability: Float[Tensor, ""]
    seed: Int[Tensor, ""]
    """Of the samples taken in space that is held to be empty."""


@dataclass(frozen=True)
class Outcome:
    """What the device says of a step, besides gradients."""

    metrics: dict[str, Tensor]
    seen: tuple[Float[Tensor, "B 6"], Float[Tensor, "B 6"], Float[Tensor, "B 6"]]
    """The discriminator's poses of real and of generated pictures, and the generated ones' true poses."""


@dataclass
class TrainingState:
    """Everything that a step changes; what a checkpoint holds."""

    model: ModelConfig
    config: TrainingConfig
    generator: Generator
    discriminator: Discriminator
    average: Generator
    average_discriminator: Discriminator
    g_optimizer: torch.optim.Adam
    d_optimizer: torch.optim.Adam
    images: int = 0
    step: int = 0
    memory: PoseMemory = field(default_factory=PoseMemory)
    alignment: CanonicalTilt | None = None
    recorded: Callable[[TrainingState, Batch, Given], Outcome] | None = None
    """What takes the place of `compute`: recordings of it (training/graphs.py)."""


@dataclass(frozen=True)
class Generated:
    pictures: Pictures
    body_pose: Float[Tensor, "B 6"]
    """What the pictures show: the poses that they were rendered with, and the tilt of the canonical heads."""
    regularisation: Float[Tensor, ""]


def autocast(config: TrainingConfig, device: torch.device) -> torch.autocast:
    """bf16 convolutions where the recipe asks for them; everything delicate stays in float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.bf16)


def decide(state: TrainingState, batch: Batch | Labels) -> Given:
    """What the memory of poses and the schedules say for this step."""
    config, device = state.config, batch.camera.device
    refined = schedules.refined_share(state.images, config)
    matched, coarse_pose = None, batch.coarse_pose
    if config.pose_match_weight > 0 and refined > 0 and state.memory.ready:
        matched = state.memory.draw_many().to(device)
    if config.coarse_pose_probability > 0:
        coarse_pose = state.memory.refine(batch.camera, coarse_pose, refined)

    def number(value: float) -> Tensor:
        return torch.full((), value, device=device)

    return Given(
        schedules.moment(state.images, state.step, state.model, config),
        coarse_pose,
        matched,
        state.memory.tilt.to(device),
        number(schedules.pose_regularisation(state.images, config)),
        number(config.pose_match_weight * refined),
        number(schedules.swap_probability(state.images, config)),
        torch.full((), state.step, dtype=torch.int32, device=device),
    )


def generate(
    state: TrainingState, batch: Batch | Labels, given: Given | None = None, *, gradients: bool = True
) -> Generated:
    """Pictures of new latents seen with the labels' cameras, with the pose branch's body poses (equations 10.1, 10.2).

    With `given`, what the CPU has decided, nothing waits for the device, and the same work is done whatever numbers
    the tensors hold. `gradients`: whether the generator will learn from them.
    """
    given = given or decide(state, batch)
    config, generator, moment = state.config, state.generator, given.moment
    device = batch.camera.device
    n, views = batch.camera.shape[0], config.views_per_latent
    z = torch.randn(n // views, state.model.z_dim, device=device)
    pose = generator.pose_branch(z.repeat_interleave(views, dim=0), batch.camera)
    regularisation = given.pose_regularisation * pose_loss(pose, batch.coarse_pose)
    if given.matched is not None:
        regularisation = regularisation + given.match_weight * mismatch(generator, given.matched)
    if config.coarse_pose_probability > 0:
        coarse = torch.rand(n, 1, device=device) < config.coarse_pose_probability
        pose = torch.where(coarse, given.coarse_pose, pose)

    swapped = torch.rand(n // views, device=device) < given.swap_probability
    camera, condition = swap_some(swapped, batch.camera[::views], pose[::views])
    w = generator.map(z, camera, condition)
    generator.backbone.mapping.update_average(w, config.style_average_decay)
    behind = torch.rand(n // views, device=device) < config.background_swap_probability
    (w_background,) = swap_some(behind, w)

    with autocast(config, device):
        scene = generator.scene(w, w_background, noise_mode="random", gradients=gradients)
        side = moment.raw_resolution
        occupancy = None
        if config.occupancy and can_fuse(scene.tri_grid, None) and not config.plain_renderer:
            render = state.model.render
            cells = occupied_cells(scene.tri_grid, generator.decoder, render, TRAINING_CELLS)
            occupancy = Occupancy(cells, given.seed)
        draws = RenderDraws(
            torch.rand(n, side * side, device=device),
            moment.density_noise,
            occupancy,
            gradients,
        )
        out = generator.render(scene, batch.camera, pose, resolution=side, draws=draws, plain=config.plain_renderer)
    raw = None if state.model.superresolution is None else out.raw
    return Generated(Pictures(out.image, raw, out.mask), pose + given.tilt, regularisation)


def real_pictures(state: TrainingState, batch: Batch) -> Pictures:
    """Real image, raw image and mask at the sizes of the generated ones (equations 10.4)."""
    side = schedules.raw_resolution(state.images, state.model, state.config)
    raw = None if state.model.superresolution is None else resize(batch.image, side)
    return Pictures(batch.image, raw, resize(batch.mask, side))


def blurred(pictures: Pictures, sigma: float, *, raw: bool) -> Pictures:
    """The blur of equations 10.3: real raw images are blurred, generated ones and masks never."""
    return Pictures(
        blur(pictures.image, sigma),
        blur(pictures.raw, sigma) if raw and pictures.raw is not None else pictures.raw,
        pictures.mask,
    )


def _leaf(pictures: Pictures) -> Pictures:
    return pictures.map(lambda t: t.detach().requires_grad_(True))


def regularise(state: TrainingState, real: Pictures, camera: Tensor) -> dict[str, Tensor]:
    """Lazy R1 on image, raw image and mask; gradients are added to the discriminator's (equations 10.9)."""
    config, leaf = state.config, _leaf(real)
    with autocast(config, camera.device):
        logits, _ = state.discriminator(leaf, camera)
    tensors = leaf.tensors()
    penalties = [penalty.mean() for penalty in gradient_penalties(logits, tensors)]
    gammas = [config.r1_gamma] * (len(tensors) - 1) + [config.r1_gamma_mask]
    total = torch.stack([0.5 * gamma * penalty for gamma, penalty in zip(gammas, penalties, strict=True)]).sum()
    (total * config.r1_interval).backward()
    return {"r1": torch.stack(penalties).sum().detach()}


def step_metrics(
    g_loss: Tensor,
    d_loss: Tensor,
    d_pose: Tensor,
    generated: Generated,
    real_logits: Tensor,
    fake_logits: Tensor,
    real: Pictures,
    real_poses: Tensor,
    batch: Batch,
) -> dict[str, Tensor]:
    """The numbers that a run logs."""
    return {
        "g_loss": g_loss.detach(), "d_loss": d_loss.detach(), "pose_loss": d_pose.detach(),
        "pose_regularisation": generated.regularisation.detach(),
        "real_logit": real_logits.detach().mean(), "fake_logit": fake_logits.detach().mean(),
        "accuracy": (real_logits > fake_logits).float().mean(),
        "real_mask": real.mask.mean(), "fake_mask": generated.pictures.mask.detach().mean(),
        "coarse_error": (real_poses.detach() - batch.coarse_pose).square().sum(dim=1).mean().sqrt(),
    }  # fmt: skip


def shared_gradients(state: TrainingState, batch: Batch) -> dict[str, Tensor]:
    """Gradients of both networks from one pass through each. The parameters have none before."""
    outcome = (state.recorded or compute)(state, batch, decide(state, batch))
    if state.config.pose_refine_kimg is not None:
        state.memory.note(batch.camera, *outcome.seen, batch.coarse_pose)
    return outcome.metrics


def compute(state: TrainingState, batch: Batch, given: Given) -> Outcome:
    """The part of `shared_gradients` that runs on the device, whatever numbers the tensors hold."""
    config = state.config
    generated = generate(state, batch, given)
    sigma = given.moment.blur_sigma
    real = blurred(real_pictures(state, batch), sigma, raw=True)
    shown = blurred(generated.pictures, sigma, raw=False)
    leaf = _leaf(shown)
    with autocast(config, batch.camera.device):
        # Two calls: the generator's gradient then never passes through the real half.
        real_logits, real_poses = state.discriminator(real, batch.camera)
        fake_logits, fake_poses = state.discriminator(leaf, batch.camera)
    g_loss = generator_loss(config.loss, real_logits, fake_logits)
    d_loss = discriminator_loss(config.loss, real_logits, fake_logits)
    d_pose = pose_loss(fake_poses, generated.body_pose.detach())
    at_pictures = torch.autograd.grad(g_loss, leaf.tensors(), retain_graph=True)
    (d_loss + config.pose_loss_weight * d_pose).backward(inputs=list(state.discriminator.parameters()))
    torch.autograd.backward([*shown.tensors(), generated.regularisation], [*at_pictures, None])
    metrics = step_metrics(g_loss, d_loss, d_pose, generated, real_logits, fake_logits, real, real_poses, batch)
    if given.moment.penalties:
        metrics |= regularise(state, real, batch.camera)
    return Outcome(metrics, (real_poses.detach(), fake_poses.detach(), generated.body_pose.detach()))


def separate_gradients(state: TrainingState, batch: Batch) -> dict[str, Tensor]:
    """The readable twin of `shared_gradients`: generator loss, then discriminator loss, each by plain backward."""
    config = state.config
    n = batch.camera.shape[0]
    generated = generate(state, batch)
    sigma = schedules.blur_sigma(state.images, config)
    real = blurred(real_pictures(state, batch), sigma, raw=True)
    shown = blurred(generated.pictures, sigma, raw=False)

    def judge(fake: Pictures) -> tuple[Tensor, Tensor, Tensor]:
        with autocast(config, batch.camera.device):
            logits, poses = state.discriminator(concatenate(real, fake), batch.camera.repeat(2, 1), parts=2)
        return logits[:n], logits[n:], poses[n:]

    real_logits, fake_logits, _ = judge(shown)
    g_loss = generator_loss(config.loss, real_logits, fake_logits)
    (g_loss + generated.regularisation).backward(inputs=list(state.generator.parameters()))
    detached = shown.map(lambda t: t.detach())
    real_logits, fake_logits, poses = judge(detached)
    d_loss = discriminator_loss(config.loss, real_logits, fake_logits)
    d_pose = pose_loss(poses, generated.body_pose.detach())
    (d_loss + config.pose_loss_weight * d_pose).backward()
    if state.step % config.r1_interval == 0:
        regularise(state, real, batch.camera)
    return {"g_loss": g_loss.detach(), "d_loss": d_loss.detach()}
