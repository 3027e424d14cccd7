"""Configuration of training: the recipe, with lengths in thousands of images (kimg)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from portrait360.config.model import ModelConfig


@dataclass(frozen=True)
class RawRamp:
    """The side of the volume-rendered image grows from the model's raw_resolution to another one."""

    final: int
    """Side at the end, pixels."""
    start_kimg: float
    """When it begins to grow."""
    kimg: float
    """How long it grows, linearly."""


@dataclass(frozen=True)
class ReconstructionConfig:
    """Images that show faces are also reconstructed, each from a style of its own (training/reconstruction.py)."""

    images: int = 8
    """Images reconstructed in a step, over all processes, besides the random portraits of `batch`."""
    people: int = 100000
    """How many images get a style at most: the dataset's first ones within `yaw`."""
    yaw: float = 45.0
    """Degrees to either side of the front within which images are reconstructed."""
    window: tuple[float, float] = (0.22, 0.34)
    """Smallest and largest side of the face crops that are reconstructed, in units of the image's."""
    wide_window: tuple[float, float] = (0.6, 1.0)
    """The same of further crops, at half of the model's side: hair, neck and shoulders."""
    style_lr: float = 0.3
    """Learning rate of the styles, whose numbers have a deviation of about 1."""
    pixel_weight: float = 16.0
    """Weight of the difference of face crops over a pyramid."""
    feature_weight: float = 3.0
    """Weight of the distance in the discriminator's features."""
    mask_weight: float = 4.0
    """Weight of the difference of masks."""
    wide_weight: float = 6.0
    """Weight of the difference of the wide crops."""
    adversarial_weight: float = 0.5
    """Weight of the adversarial loss of reconstructions; random portraits have 1."""

    def __post_init__(self) -> None:
        # Every number by itself
        for name, value in vars(self).items():
            numbers = value if isinstance(value, tuple) else (value,)
            if not all(math.isfinite(number) and number >= 0 for number in numbers):
                raise _mistake(f"reconstruction.{name}", "a number of at least 0", value)

        # Counts, crops and the kernel
        for name in ("images", "people"):
            if getattr(self, name) < 1:
                raise _mistake(f"reconstruction.{name}", "at least 1", getattr(self, name))
        for name in ("window", "wide_window"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise _mistake(
                    f"reconstruction.{name}", "two numbers above 0 and up to 1, the smaller first", (low, high)
                )


@dataclass(frozen=True)
class TrainingConfig:
    """One training recipe. Lengths are in thousands of images shown to the discriminator (kimg)."""

    total_kimg: float = 25000.0
    """Length of the whole training; `kimg` is short for it."""
    batch: int = 32
    """Images in a step, over all processes."""
    views_per_latent: int = 1
    """Images rendered from each generated portrait in a step, each from its own camera and body pose."""
    loss: Literal["nonsaturating", "relativistic"] = "nonsaturating"
    """nonsaturating: StyleGAN2's loss; relativistic: each generated image against a real one (R3GAN)."""
    g_lr: float = 0.0025
    """Learning rate of the generator."""
    d_lr: float = 0.002
    """Learning rate of the discriminator."""
    betas: tuple[float, float] = (0.0, 0.99)
    """Adam's decays."""
    d_betas: tuple[float, float] | None = None
    """Adam's decays for the discriminator; None = as for the generator."""
    lr_decay_kimg: float = 0.0
    """Length of a final cosine decay of both learning rates to a tenth; 0 = constant."""
    r1_gamma: float = 1.0
    """Weight of the gradient penalty R1 on images."""
    r1_gamma_mask: float = 1.0
    """Weight of the gradient penalty R1 on masks."""
    r1_interval: int = 16
    """Steps from one gradient penalty to the next (lazy regularisation)."""
    ema_kimg: float = 10.0
    """Half-life of the moving average of weights."""
    ema_rampup: float | None = 0.05
    """The half-life is at most this share of the images shown so far; None = always `ema_kimg`."""
    swap_probability: float = 0.7
    """Probability that a portrait is conditioned on another image's camera and pose, after `swap_fade_kimg`."""
    swap_fade_kimg: float = 1000.0
    """Over which that probability falls from 1."""
    background_swap_probability: float = 0.2
    """Probability that the background has another portrait's style."""
    blur_sigma: float = 10.0
    """Width at the start of the blur on all images that the discriminator gets, pixels."""
    blur_fade_kimg: float = 200.0
    """Over which the blur fades."""
    density_noise: float = 1.0
    """Deviation at the start of the noise on raw densities."""
    density_noise_fade_kimg: float = 200.0
    """Over which the noise fades."""
    pose_preg_weight: float = 0.5
    """Weight of L_preg, which pulls the pose branch's poses to the labels."""
    pose_preg_kimg: float = 200.0
    """L_preg has its whole weight until then and fades over as long again."""
    pose_loss_weight: float = 1.0
    """Weight of the discriminator's pose loss on generated images."""
    pose_branch_kimg: float | None = None
    """The generator's pose branch is trained until then and stays as it is afterwards; None = always trained."""
    raw_ramp: RawRamp | None = None
    separate_phases: bool = False
    """Generator and discriminator each get generated images of their own, under labels drawn anew (equations 10.1).

    False: both are updated from one pass, in which the generated images have the cameras of the real ones. True goes
    with the non-saturating loss and whole images only."""
    coarse_pose_probability: float = 0.0
    """Share of images rendered with a noisy pose label of the dataset instead of the pose branch's pose: keeps the
    range of poses wide while the branch is trained (0 = the original)."""
    pose_refine_kimg: float | None = None
    """From then on, fading in over a quarter as long again, noisy pose labels are replaced by the discriminator's
    predictions for real images (poses/memory.py), corrected for the tilt of the canonical heads (poses/alignment.py).
    None = the original: labels stay what they are."""
    pose_match_weight: float = 0.0
    """Weight of the energy distance between the pose branch's poses and the refined ones (0 = the original)."""
    style_average_decay: float = 0.998
    """Decay of the moving average of styles, to which truncation pulls."""
    mirror: bool = True
    """Mirror half of the images."""
    yaw_repeats: int = 1
    """How often an image may come in an epoch, so that rare sides of people are shown as often as common ones
    (data/sampling.py); 1 = every image once. For photos, most of which show faces."""
    zoom_probability: float = 0.0
    """Share of images of which only the centre is shown, real and generated alike, with the focal length raised to
    match: the discriminator gets larger faces. It wants a dataset larger than the model by 1 / the first window, and
    smaller windows only where crops are not much smaller than the model's images (training/data.py)."""
    face_zoom_probability: float = 0.0
    """Share of the images taken from the front that show only the smallest of `zoom_windows`, which then no other
    image does; the rest is zoomed by the others."""
    zoom_windows: tuple[float, ...] = (0.6, 0.42, 0.27)
    """Sides of the centre crops in units of the image's: the head with its hair, the face, its eyes and mouth."""
    reconstruction: ReconstructionConfig | None = None
    """An auto-decoder beside the adversarial training, from the weights of a first one; None = the original."""
    plain_renderer: bool = False
    """Render by the readable twin of the fused CPU renderer (to compare speeds)."""
    occupancy: bool = False
    """Skip the space where a portrait has no visible density (fused CPU renderer only)."""
    bf16: bool = False
    """Allow convolutions in bf16; they are used where that is measured to be faster (runtime/precision.py)."""
    cuda_graphs: bool = False
    """On a GPU, replay steps as CUDA graphs (training/graphs.py); not with separate phases."""
    checkpoint_kimg: float = 10.0
    """From one checkpoint to the next."""
    sheet_kimg: float = 10.0
    """From one contact sheet to the next."""
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept."""

    def __post_init__(self) -> None:
        _check(self)


_COUNTS = ("batch", "views_per_latent", "r1_interval", "yaw_repeats", "keep_checkpoints")
_ABOVE_ZERO = ("total_kimg", "g_lr", "d_lr", "checkpoint_kimg", "sheet_kimg")
_PROBABILITIES = (
    "swap_probability",
    "background_swap_probability",
    "coarse_pose_probability",
    "zoom_probability",
    "face_zoom_probability",
    "style_average_decay",
)


def _check(recipe: TrainingConfig) -> None:
    """Refuse a recipe with a number out of its range, or with parts that exclude each other.

    Raises:
        InputError: with the name of the field, what it is and what it should be.
    """
    # Every number by itself
    for name, value in vars(recipe).items():
        numbers = [v for v in (value if isinstance(value, tuple) else (value,)) if isinstance(v, (int, float))]
        if not all(math.isfinite(number) and number >= 0 for number in numbers):
            raise _mistake(name, "a number of at least 0", value)
        if name in _COUNTS and min(numbers) < 1:
            raise _mistake(name, "at least 1", value)
        if name in _ABOVE_ZERO and min(numbers) <= 0:
            raise _mistake(name, "above 0", value)
        if name in _PROBABILITIES and max(numbers) > 1:
            raise _mistake(name, "between 0 and 1", value)
        if name.endswith("betas") and any(number >= 1 for number in numbers):
            raise _mistake(name, "two numbers of at least 0 and below 1", value)

    # What goes together
    windows = recipe.zoom_windows
    if not all(0 < w < 1 for w in windows) or list(windows) != sorted(windows, reverse=True) or not windows:
        raise _mistake("zoom_windows", "numbers between 0 and 1, the largest first", windows)
    if recipe.batch % recipe.views_per_latent:
        raise _mistake("batch", f"a multiple of `training.views_per_latent`, {recipe.views_per_latent}", recipe.batch)
    if recipe.separate_phases and (recipe.loss != "nonsaturating" or recipe.zoom_probability > 0):
        raise _mistake("separate_phases", "off, or separate phases with the non-saturating loss and whole images", True)
    if recipe.separate_phases and recipe.reconstruction is not None:
        raise _mistake("separate_phases", "off where there is a `training.reconstruction`", True)


def check_lengths(kimg: float | None, max_minutes: float | None) -> None:
    """Refuse a length of a run that is not above 0. Raises InputError."""
    from portrait360.errors import InputError

    if max_minutes is not None and not 0 < max_minutes < math.inf:
        raise InputError(f"`max_minutes` must be above 0, not {max_minutes:g}.", "Try `max_minutes=60`.")
    if kimg is not None and not 0 < kimg < math.inf:
        raise InputError(f"`kimg` must be above 0, not {kimg}.", "It is the length of training in thousand images.")


def _mistake(name: str, expected: str, value: object) -> Exception:
    from portrait360.errors import InputError

    return InputError(f"`training.{name}` must be {expected}, not {value}.", "Leave it out for the preset's value.")


def original_recipe(model: ModelConfig) -> TrainingConfig:
    """The published training of 10.1 to 10.13, its three stages in one run.

    The pose branch is trained for 6,000 kimg. The raw image grows from 10,000 to 11,000 kimg as far as the
    super-resolution takes it.
    """
    side = model.raw_resolution if model.superresolution is None else model.superresolution.input_resolution
    return TrainingConfig(
        total_kimg=14000.0,
        d_lr=0.002 * 16 / 17,
        d_betas=(0.0, 0.99 ** (16 / 17)),
        pose_branch_kimg=6000.0,
        raw_ramp=RawRamp(side, 10000.0, 1000.0) if side > model.raw_resolution else None,
        separate_phases=True,
    )


@dataclass(frozen=True)
class Preset:
    """A model and the recipe that trains it."""

    model: ModelConfig
    training: TrainingConfig = field(default_factory=TrainingConfig)
