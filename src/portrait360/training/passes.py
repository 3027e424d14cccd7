"""What a step of training computes on the device: generated images, logits, losses and their gradients
(equations 10).

Both networks get their gradients from the same forward pass: the discriminator evaluates generated images once, the
generator takes the gradient at the images, the discriminator the gradient at its weights. `separate_gradients` is the
readable twin that runs the two networks one after the other; both give the same gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from portrait360.config import ModelConfig, TrainingConfig
from portrait360.media.images import blur
from portrait360.model.discriminator import Discriminator, DiscriminatorInput, concatenate
from portrait360.model.fused import TRAINING_CELLS, can_fuse, occupied_cells
from portrait360.model.generator import Generator, RenderDraws, Scene
from portrait360.model.layers import resize
from portrait360.model.rendering import Occupancy
from portrait360.poses.alignment import CanonicalTilt
from portrait360.poses.memory import PoseMemory, mismatch
from portrait360.training import schedules
from portrait360.training.augment import swap_some
from portrait360.training.losses import discriminator_loss, generator_loss, gradient_penalties, pose_loss
from portrait360.training.people import People, Targets


@dataclass(frozen=True)
class Labels:
    """Cameras and noisy body poses that images are generated for."""

    camera: Float[Tensor, "B 25"]
    coarse_pose: Float[Tensor, "B 6"]


@dataclass(frozen=True)
class Batch:
    """Real images with labels, for which images are generated too."""

    image: Float[Tensor, "B 3 H H"]
    mask: Float[Tensor, "B 1 H H"]
    camera: Float[Tensor, "B 25"]
    coarse_pose: Float[Tensor, "B 6"]
    drawn: tuple[Labels, Labels] | None = None
    """Labels for the generator's and the discriminator's phase instead, where they are separate."""
    targets: Targets | None = None
    """Images to reconstruct, where some are."""


@dataclass(frozen=True)
class StepInputs:
    """What the CPU decides for a step before the device computes it; tensors on the device."""

    schedule: schedules.ScheduleValues
    coarse_pose: Float[Tensor, "B 6"]
    """The labels' poses, some of them replaced by refined ones."""
    matched: Float[Tensor, "N 31"] | None
    """Cameras and poses that the pose branch is pulled to."""
    tilt: Float[Tensor, "6"]
    """Of the canonical heads."""
    pose_regularisation: Float[Tensor, ""]
    match_weight: Float[Tensor, ""]
    swap_probability: Float[Tensor, ""]
    seed: Int[Tensor, ""]
    """Of the samples taken in unoccupied cells."""


@dataclass(frozen=True)
class StepOutputs:
    """What the device computes in a step, besides gradients."""

    metrics: dict[str, Tensor]
    poses: tuple[Float[Tensor, "B 6"], Float[Tensor, "B 6"], Float[Tensor, "B 6"]]
    """Predicted poses of real and of generated images, and the generated ones' true poses."""


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
    people: People | None = None
    """Styles of images, where some are reconstructed."""
    recorded: Callable[[TrainingState, Batch, StepInputs], StepOutputs] | None = None
    """Takes the place of `compute`: recordings of it (training/graphs.py)."""


@dataclass(frozen=True)
class Generated:
    """Generated images with their true poses, and the loss on the pose branch's."""

    images: DiscriminatorInput
    body_pose: Float[Tensor, "B 6"]
    """The poses that the images were rendered with, plus the tilt of the canonical heads."""
    regularisation: Float[Tensor, ""]


def autocast(config: TrainingConfig, device: torch.device) -> torch.autocast:
    """bf16 convolutions where the recipe asks for them; everything delicate stays in float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.bf16)


def decide(state: TrainingState, batch: Batch | Labels) -> StepInputs:
    """Inputs of this step from the memory of poses and the schedules."""
    config, device = state.config, batch.camera.device
    refined = schedules.refined_share(state.images, config)
    matched, coarse_pose = None, batch.coarse_pose
    if config.pose_match_weight > 0 and refined > 0 and state.memory.ready:
        matched = state.memory.draw_many().to(device)
    if config.coarse_pose_probability > 0:
        coarse_pose = state.memory.refine(batch.camera, coarse_pose, refined)

    def number(value: float) -> Tensor:
        return torch.full((), value, device=device)

    return StepInputs(
        schedules.schedule_values(state.images, state.step, state.model, config),
        coarse_pose,
        matched,
        state.memory.tilt.to(device),
        number(schedules.pose_regularisation(state.images, config)),
        number(config.pose_match_weight * refined),
        number(schedules.swap_probability(state.images, config)),
        torch.full((), state.step, dtype=torch.int32, device=device),
    )


def generate(
    state: TrainingState, batch: Batch | Labels, inputs: StepInputs | None = None, *, gradients: bool = True
) -> Generated:
    """Images of new latents with the labels' cameras and the pose branch's body poses (equations 10.1, 10.2).

    With `inputs`, nothing waits for the device, and the same operations run whatever numbers the tensors hold.
    `gradients`: whether the generator will learn from them.
    """
    inputs = inputs or decide(state, batch)
    config, generator = state.config, state.generator
    n, views, device = batch.camera.shape[0], config.views_per_latent, batch.camera.device

    # Latents and body poses; the branch's poses are pulled to the labels and to the refined poses
    z = torch.randn(n // views, state.model.z_dim, device=device)
    pose = generator.pose_branch(z.repeat_interleave(views, dim=0), batch.camera)
    regularisation = inputs.pose_regularisation * pose_loss(pose, batch.coarse_pose)
    if inputs.matched is not None:
        regularisation = regularisation + inputs.match_weight * mismatch(generator, inputs.matched)
    if config.coarse_pose_probability > 0:
        coarse = torch.rand(n, 1, device=device) < config.coarse_pose_probability
        pose = torch.where(coarse, inputs.coarse_pose, pose)

    # Styles: some are conditioned on the neighbour's labels, some have the neighbour's background
    swapped = torch.rand(n // views, device=device) < inputs.swap_probability
    camera, condition = swap_some(swapped, batch.camera[::views], pose[::views])
    w = generator.map(z, camera, condition)
    generator.backbone.mapping.update_average(w, config.style_average_decay)
    behind = torch.rand(n // views, device=device) < config.background_swap_probability
    (w_background,) = swap_some(behind, w)

    # Images
    side = inputs.schedule.raw_resolution
    with autocast(config, device):
        scene = generator.scene(w, w_background, noise_mode="random", gradients=gradients)
        occupancy = render_occupancy(state, scene, inputs.seed)
        draws = RenderDraws(
            torch.rand(n, side * side, device=device), inputs.schedule.density_noise, occupancy, gradients
        )
        out = generator.render(scene, batch.camera, pose, resolution=side, draws=draws, plain=config.plain_renderer)
    raw = None if state.model.superresolution is None else out.raw
    return Generated(DiscriminatorInput(out.image, raw, out.mask), pose + inputs.tilt, regularisation)


def render_occupancy(state: TrainingState, scene: Scene, seed: Int[Tensor, ""]) -> Occupancy | None:
    """Cells of the tri-grid that rays visit, where the recipe skips the others."""
    if not state.config.occupancy or state.config.plain_renderer or not can_fuse(scene.tri_grid, None):
        return None
    cells = occupied_cells(scene.tri_grids, state.generator.decoder, state.model.render, TRAINING_CELLS)
    return Occupancy(cells, seed)


def real_images(state: TrainingState, batch: Batch) -> DiscriminatorInput:
    """Real image, raw image and mask at the sizes of the generated ones (equations 10.4)."""
    side = schedules.raw_resolution(state.images, state.model, state.config)
    raw = None if state.model.superresolution is None else resize(batch.image, side)
    return DiscriminatorInput(batch.image, raw, resize(batch.mask, side))


def blurred(images: DiscriminatorInput, sigma: float, *, raw: bool) -> DiscriminatorInput:
    """The blur of 10.3: real raw images are blurred, generated ones and masks never."""
    return DiscriminatorInput(
        blur(images.image, sigma),
        blur(images.raw, sigma) if raw and images.raw is not None else images.raw,
        images.mask,
    )


def leaf_of(images: DiscriminatorInput) -> DiscriminatorInput:
    return images.map(lambda t: t.detach().requires_grad_(True))


def regularise(state: TrainingState, real: DiscriminatorInput, camera: Tensor) -> dict[str, Tensor]:
    """Lazy R1 on image, raw image and mask; gradients are added to the discriminator's (equations 10.9)."""
    config, leaf = state.config, leaf_of(real)
    with autocast(config, camera.device):
        logits, _ = state.discriminator(leaf, camera)
    tensors = leaf.tensors()
    penalties = [penalty.mean() for penalty in gradient_penalties(logits, tensors)]
    gammas = [config.r1_gamma] * (len(tensors) - 1) + [config.r1_gamma_mask]
    total = torch.stack([0.5 * gamma * penalty for gamma, penalty in zip(gammas, penalties, strict=True)]).sum()
    (total * config.r1_interval).backward()
    return {"r1": torch.stack(penalties).sum().detach()}


@dataclass(frozen=True)
class StepLosses:
    """Scalar losses of a step."""

    generator: Float[Tensor, ""]
    discriminator: Float[Tensor, ""]
    pose: Float[Tensor, ""]


@dataclass(frozen=True)
class Predictions:
    """What the discriminator predicts in a step."""

    real_logits: Float[Tensor, "B 1"]
    fake_logits: Float[Tensor, "B 1"]
    real_poses: Float[Tensor, "B 6"]


def step_metrics(
    losses: StepLosses, predictions: Predictions, generated: Generated, real: DiscriminatorInput, batch: Batch
) -> dict[str, Tensor]:
    """The numbers that a run logs."""
    real_logits, fake_logits = predictions.real_logits.detach(), predictions.fake_logits.detach()
    errors = predictions.real_poses.detach() - batch.coarse_pose
    return {
        "g_loss": losses.generator.detach(),
        "d_loss": losses.discriminator.detach(),
        "pose_loss": losses.pose.detach(),
        "pose_regularisation": generated.regularisation.detach(),
        "real_logit": real_logits.mean(),
        "fake_logit": fake_logits.mean(),
        "accuracy": (real_logits > fake_logits).float().mean(),
        "real_mask": real.mask.mean(),
        "fake_mask": generated.images.mask.detach().mean(),
        "coarse_error": errors.square().sum(dim=1).mean().sqrt(),
    }


def shared_gradients(state: TrainingState, batch: Batch) -> dict[str, Tensor]:
    """Gradients of both networks from one pass through each. The parameters have none before."""
    outputs = (state.recorded or compute)(state, batch, decide(state, batch))
    if state.config.pose_refine_kimg is not None:
        state.memory.note(batch.camera, *outputs.poses, batch.coarse_pose)
    return outputs.metrics


def compute(state: TrainingState, batch: Batch, inputs: StepInputs) -> StepOutputs:
    """The part of `shared_gradients` that runs on the device, whatever numbers the tensors hold."""
    # Images, and what the discriminator predicts
    config, sigma = state.config, inputs.schedule.blur_sigma
    generated = generate(state, batch, inputs)
    real = blurred(real_images(state, batch), sigma, raw=True)
    shown = blurred(generated.images, sigma, raw=False)
    leaf = leaf_of(shown)
    with autocast(config, batch.camera.device):
        # Two calls: the generator's gradient then never passes through the real half.
        real_logits, real_poses = state.discriminator(real, batch.camera)
        fake_logits, fake_poses = state.discriminator(leaf, batch.camera)

    # Losses, and the gradients of both networks
    g_loss = generator_loss(config.loss, real_logits, fake_logits)
    d_loss = discriminator_loss(config.loss, real_logits, fake_logits)
    d_pose = pose_loss(fake_poses, generated.body_pose.detach())
    at_images = torch.autograd.grad(g_loss, leaf.tensors(), retain_graph=True)
    (d_loss + config.pose_loss_weight * d_pose).backward(inputs=list(state.discriminator.parameters()))
    torch.autograd.backward([*shown.tensors(), generated.regularisation], [*at_images, None])

    # Metrics and penalties
    predictions = Predictions(real_logits, fake_logits, real_poses)
    metrics = step_metrics(StepLosses(g_loss, d_loss, d_pose), predictions, generated, real, batch)
    if inputs.schedule.penalties:
        metrics |= regularise(state, real, batch.camera)
    return StepOutputs(metrics, (real_poses.detach(), fake_poses.detach(), generated.body_pose.detach()))


def separate_gradients(state: TrainingState, batch: Batch) -> dict[str, Tensor]:
    """The readable twin of `shared_gradients`: generator loss, then discriminator loss, each by plain backward."""
    config, n = state.config, batch.camera.shape[0]
    sigma = schedules.blur_sigma(state.images, config)

    def discriminate(fake: DiscriminatorInput) -> tuple[Tensor, Tensor, Tensor]:
        with autocast(config, batch.camera.device):
            logits, poses = state.discriminator(concatenate(real, fake), batch.camera.repeat(2, 1), parts=2)
        return logits[:n], logits[n:], poses[n:]

    # The generator
    generated = generate(state, batch)
    real = blurred(real_images(state, batch), sigma, raw=True)
    shown = blurred(generated.images, sigma, raw=False)
    real_logits, fake_logits, _ = discriminate(shown)
    g_loss = generator_loss(config.loss, real_logits, fake_logits)
    (g_loss + generated.regularisation).backward(inputs=list(state.generator.parameters()))

    # The discriminator, on the same images
    real_logits, fake_logits, poses = discriminate(shown.map(lambda t: t.detach()))
    d_loss = discriminator_loss(config.loss, real_logits, fake_logits)
    d_pose = pose_loss(poses, generated.body_pose.detach())
    (d_loss + config.pose_loss_weight * d_pose).backward()
    if state.step % config.r1_interval == 0:
        regularise(state, real, batch.camera)
    return {"g_loss": g_loss.detach(), "d_loss": d_loss.detach()}
