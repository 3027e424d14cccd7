"""A training step with reconstructions: an auto-decoder beside the adversarial training.

Images that show faces own a style each. Styles and generator are fitted together so that a style's portrait, rendered
from its image's camera in its image's pose, is that image. Random portraits, whose styles are drawn like those of the
images, have the discriminator's loss alone, as crops and as whole images from all sides; reconstructions have it with a
smaller weight.
"""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from portrait360.model.discriminator import DiscriminatorInput, concatenate
from portrait360.model.generator import RenderDraws, Scene
from portrait360.runtime.distributed import Ranks
from portrait360.training import schedules
from portrait360.training.losses import discriminator_loss, feature_distance, generator_loss, pose_loss, pyramid_l1
from portrait360.training.passes import Batch, TrainingState, autocast, leaf_of, regularise, render_occupancy
from portrait360.training.people import Crops, Targets
from portrait360.training.styles import keep_styles


@dataclasses.dataclass(frozen=True)
class Rendering:
    """What the generator makes in a step."""

    face: DiscriminatorInput
    """Reconstructed face crops."""
    wide: DiscriminatorInput
    """Reconstructed wide crops."""
    random: DiscriminatorInput
    """Random portraits under the batch's cameras."""


def reconstruct(state: TrainingState, batch: Batch, ranks: Ranks) -> dict[str, Tensor]:
    """Gradients of both networks and of the images' styles, which move at once. The parameters have none before.

    Returns:
        the step's metrics, means over all processes.
    """
    assert state.people is not None
    assert state.config.reconstruction is not None
    assert batch.targets is not None
    table, rows = state.people.table, batch.targets.rows
    device = batch.camera.device

    # All portraits of the step, and the gradients that the discriminator gives and gets
    styles = table.take(rows.cpu())
    rendering = _render(state, batch, styles.to(device))
    metrics, at_images = _discriminate(state, batch, rendering)

    # Losses without the discriminator
    losses = reconstruction_losses(rendering, batch.targets)
    recipe = state.config.reconstruction
    direct = (
        recipe.pixel_weight * losses["pixel_loss"]
        + recipe.mask_weight * losses["mask_loss"]
        + recipe.wide_weight * losses["wide_loss"]
    )
    fakes = concatenate(rendering.face, rendering.random)
    torch.autograd.backward([*fakes.tensors(), direct], [*at_images, None])
    metrics = ranks.average(metrics | {name: value.detach() for name, value in losses.items()})

    # Styles of all processes' images, the same step in each
    assert styles.grad is not None
    if bool(torch.isfinite(metrics["g_loss"])):
        factor = schedules.learning_rate_factor(state.images, state.config)
        table.step(ranks.gather(rows.cpu()), ranks.gather(styles.grad), recipe.style_lr * factor)
        table.note(ranks.gather(rows.cpu()), ranks.gather(face_losses(rendering, batch.targets)))
        keep_styles(state.generator, table)
    return metrics


def _render(state: TrainingState, batch: Batch, styles: Float[Tensor, "R S"]) -> Rendering:
    """Reconstructions of the targets, and random portraits."""
    assert state.people is not None
    assert batch.targets is not None
    config, targets = state.config, batch.targets
    drawn = len(batch.camera) // config.views_per_latent
    random = state.people.table.sample(drawn).to(styles)
    with autocast(config, styles.device):
        # One scene after the other: parts of one tensor would get their gradients in another memory layout
        new, own = (state.generator.scene(w, noise_mode="random") for w in (random, styles))
        return Rendering(
            _views(state, own, targets.face.camera, targets.body_pose, targets.face.images.image.shape[-1]),
            _views(state, own, targets.wide.camera, targets.body_pose, targets.wide.images.image.shape[-1]),
            _views(state, new, batch.camera, batch.coarse_pose, state.model.raw_resolution),
        )


def _views(
    state: TrainingState, scene: Scene, camera: Float[Tensor, "B 25"], pose: Float[Tensor, "B 6"], side: int
) -> DiscriminatorInput:
    seed = torch.full((), state.step, dtype=torch.int32, device=camera.device)
    jitter = torch.rand(len(camera), side * side, device=camera.device)
    draws = RenderDraws(jitter, 0.0, render_occupancy(state, scene, seed))
    plain = state.config.plain_renderer
    out = state.generator.render(scene, camera, pose, resolution=side, draws=draws, plain=plain)
    return DiscriminatorInput(out.image, None, out.mask)


def _discriminate(state: TrainingState, batch: Batch, rendering: Rendering) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The discriminator's gradients, metrics, and the gradients at the generated images."""
    assert state.config.reconstruction is not None
    assert batch.targets is not None
    config, recipe, targets = state.config, state.config.reconstruction, batch.targets
    count = len(targets.rows)

    # Reconstructions beside their own images, random portraits beside random images
    real = concatenate(targets.face.images, DiscriminatorInput(batch.image, None, batch.mask))
    leaf = leaf_of(concatenate(rendering.face, rendering.random))
    camera = torch.cat([targets.face.camera, batch.camera])
    tilt = state.memory.tilt.to(camera)
    poses = torch.cat([targets.body_pose, batch.coarse_pose]) + tilt
    discriminator = state.discriminator
    with autocast(config, camera.device):
        real_maps, fake_maps = discriminator.maps(real, camera), discriminator.maps(leaf, camera)
        real_logits, real_poses = discriminator.from_maps(real_maps, camera)
        fake_logits, fake_poses = discriminator.from_maps(fake_maps, camera)

    # The generator's losses, as gradients at its images
    own = generator_loss(config.loss, real_logits[:count], fake_logits[:count])
    random = generator_loss(config.loss, real_logits[count:], fake_logits[count:])
    features = feature_distance([m[:count] for m in fake_maps], [m[:count].detach() for m in real_maps])
    g_loss = random + recipe.adversarial_weight * own + recipe.feature_weight * features
    at_images = torch.autograd.grad(g_loss, leaf.tensors(), retain_graph=True)

    # The discriminator's own
    d_loss = discriminator_loss(config.loss, real_logits, fake_logits)
    d_pose = pose_loss(fake_poses, poses)
    (d_loss + config.pose_loss_weight * d_pose).backward(inputs=list(discriminator.parameters()))
    right = (real_logits > fake_logits).float()
    metrics = {
        "g_loss": g_loss.detach(),
        "d_loss": d_loss.detach(),
        "pose_loss": d_pose.detach(),
        "feature_loss": features.detach(),
        "accuracy": right[count:].mean(),
        "accuracy_own": right[:count].mean(),
        "real_mask": real.mask[count:].mean(),
        "fake_mask": rendering.random.mask.detach().mean(),
        "real_pose_error": (real_poses.detach() - poses).square().sum(dim=1).mean().sqrt(),
    }
    if state.step % config.r1_interval == 0:
        metrics |= regularise(state, real, camera)
    return metrics, list(at_images)


@torch.no_grad()
def face_losses(rendering: Rendering, targets: Targets) -> Float[Tensor, " R"]:
    """The pixel loss of each face crop, on the CPU."""
    face = targets.face.images
    rows = zip(rendering.face.image.split(1), face.image.split(1), face.mask.split(1), strict=True)
    return torch.stack([pyramid_l1(*row) for row in rows]).float().cpu()


def reconstruction_losses(rendering: Rendering, targets: Targets) -> dict[str, Float[Tensor, ""]]:
    """Differences between reconstructions and their images, inside the images' masks; and of the masks."""

    def masks(shown: DiscriminatorInput, target: Crops) -> Tensor:
        return (shown.mask - target.images.mask).abs().mean()

    face, wide = targets.face.images, targets.wide.images
    return {
        "pixel_loss": pyramid_l1(rendering.face.image, face.image, face.mask),
        "wide_loss": pyramid_l1(rendering.wide.image, wide.image, wide.mask, levels=3),
        "mask_loss": masks(rendering.face, targets.face) + masks(rendering.wide, targets.wide),
    }
