"""What changes over training, as pure functions of the number of images shown (equations 10)."""

from __future__ import annotations

from dataclasses import dataclass

from portrait360.config import ModelConfig, TrainingConfig
from portrait360.runtime.schedule import cosine_decay


def _progress(images: int, kimg: float) -> float:
    return 1.0 if kimg <= 0 else min(images / (1000.0 * kimg), 1.0)


@dataclass(frozen=True)
class ScheduleValues:
    """Values of the schedules that decide which operations a step consists of.

    Weights and probabilities are left out: they come to the device as numbers.
    """

    raw_resolution: int
    """Side of the volume-rendered image, pixels."""
    density_noise: float
    """Deviation of the noise on raw densities."""
    blur_sigma: float
    """Width of the blur, pixels."""
    penalties: bool
    """Whether the step ends with R1."""


def schedule_values(images: int, step: int, model: ModelConfig, config: TrainingConfig) -> ScheduleValues:
    """Values of the schedules below after so many images and steps."""
    return ScheduleValues(
        raw_resolution(images, model, config),
        density_noise(images, config),
        blur_sigma(images, config),
        step % config.r1_interval == 0,
    )


def swap_probability(images: int, config: TrainingConfig) -> float:
    """Probability that a portrait is conditioned on another image's labels: from 1 to the config's (equations 10.2)."""
    a = _progress(images, config.swap_fade_kimg)
    return (1.0 - a) + a * config.swap_probability


def blur_sigma(images: int, config: TrainingConfig) -> float:
    """Width of the blur on the discriminator's images, in pixels: fades to 0 (equations 10.3)."""
    return config.blur_sigma * (1.0 - _progress(images, config.blur_fade_kimg))


def density_noise(images: int, config: TrainingConfig) -> float:
    """Standard deviation of the noise on raw densities: fades to 0 (equations 10.6)."""
    return config.density_noise * (1.0 - _progress(images, config.density_noise_fade_kimg))


def pose_regularisation(images: int, config: TrainingConfig) -> float:
    """Weight of L_preg: full for `pose_preg_kimg`, then linearly to 0 over as long again (equations 10.7)."""
    if config.pose_preg_kimg <= 0:
        return 0.0
    return config.pose_preg_weight * min(max(2.0 - images / (1000.0 * config.pose_preg_kimg), 0.0), 1.0)


def refined_share(images: int, config: TrainingConfig) -> float:
    """Share of noisy pose labels replaced by refined ones: from 0 at `pose_refine_kimg` to 1 a quarter later."""
    start = config.pose_refine_kimg
    if start is None:
        return 0.0
    return min(max((images - 1000.0 * start) / max(250.0 * start, 1.0), 0.0), 1.0)


def ema_beta(images: int, config: TrainingConfig) -> float:
    """Share of the old average that stays in one step (equations 10.11)."""
    half_life = 1000.0 * config.ema_kimg
    if config.ema_rampup is not None:
        half_life = min(half_life, config.ema_rampup * images)
    return 0.5 ** (config.batch / max(half_life, 1e-8))


def learning_rate_factor(images: int, config: TrainingConfig) -> float:
    """1, and over the last `lr_decay_kimg` a cosine down to 0.1."""
    if config.lr_decay_kimg <= 0:
        return 1.0
    left = config.total_kimg - images / 1000.0
    a = max(1.0 - left / config.lr_decay_kimg, 0.0)
    return cosine_decay(a, 0.1)


def raw_resolution(images: int, model: ModelConfig, config: TrainingConfig) -> int:
    """Side of the volume-rendered image, pixels (equations 10.5)."""
    ramp = config.raw_ramp
    if ramp is None:
        return model.raw_resolution
    a = _progress(max(images - int(1000 * ramp.start_kimg), 0), ramp.kimg)
    return round(model.raw_resolution * (1.0 - a) + ramp.final * a)


def trains_pose_branch(images: int, config: TrainingConfig) -> bool:
    """Whether the generator's pose branch is still trained (stage 1 of equations 10.13)."""
    return config.pose_branch_kimg is None or images < 1000.0 * config.pose_branch_kimg
