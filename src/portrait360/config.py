"""Typed configuration of models and training, the recipes and the presets. Values only: no registries, no class names.

`portrait360.runtime.tensors` writes and reads them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from portrait360.types import InputError

Resample = Literal["fir", "box"]
Vector3 = tuple[float, float, float]
Box = tuple[Vector3, Vector3]


@dataclass(frozen=True)
class SynthesisConfig:
    """A skip-architecture StyleGAN2 synthesis network from 4x4 up (official_model 3)."""

    channels: tuple[int, ...]
    """Feature channels at 4, 8, 16, ... pixels; the length sets the output resolution."""
    resample: Resample = "fir"
    """`fir`: the original's [1,3,3,1] filters; `box`: nearest/bilinear, several times cheaper on a CPU."""
    noise: bool = True
    first_output: int = 4
    """Lowest resolution that adds to the output image."""

    @property
    def resolution(self) -> int:
        return 4 * 2 ** (len(self.channels) - 1)


@dataclass(frozen=True)
class RenderConfig:
    """Volume rendering (official_model 5) and where rays sample."""

    samples: int = 48
    importance_samples: int = 48
    quadrature: Literal["midpoint", "point"] = "midpoint"
    """`midpoint`: the original marcher, neighbours averaged; `point`: each sample stands for its own interval."""
    box_centre: Vector3 = (0.0, 0.0, 0.0)
    box_half: Vector3 = (0.5, 0.5, 0.5)
    """The canonical box that the tri-grid covers."""
    ray_boxes: tuple[Box, ...] = ()
    """Rays sample only inside the union's chord through these posed-space boxes; empty = `near`..`far`."""
    near: float = 2.25
    far: float = 3.3
    crop: float | None = 0.4
    """Canonical |x| and |z| beyond which space is empty (5.5); None = the tri-grid box in all three axes."""
    density_scale: float = 1.0
    density_shift: float = -1.0
    feature_activation: Literal["none", "sigmoid"] = "none"
    inference_samples: int | None = None
    """Samples per ray at inference, if more than in training."""


@dataclass(frozen=True)
class SuperResolutionConfig:
    """Two modulated blocks on rendered features (official_model 7)."""

    input_resolution: int
    channels: tuple[int, int]
    up_first: bool = False
    resize: Literal["different", "smaller"] = "different"
    filter_buffer: bool = False
    clamp: float | None = 256.0
    resample: Resample = "fir"


@dataclass(frozen=True)
class WarpConfig:
    """The grid of an identity warp (`model.warp`): displacements of canonical positions around the head."""

    low: Vector3 = (-0.115, -0.10, -0.12)
    high: Vector3 = (0.115, 0.18, 0.125)
    """Corners of the grid's box, which are its outermost nodes."""
    shape: tuple[int, int, int] = (18, 20, 18)
    """Nodes along z, y and x."""
    scale: float = 0.01
    """Displacement in world units of a unit output."""
    field_shape: tuple[int, int, int] = (36, 42, 30)
    """Nodes along z, y and x of the deformation field that carries the warp."""


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Conditional residual discriminator with a pose head (official_model 8)."""

    channels: tuple[int, ...]
    """Feature channels from the image resolution down to 4 pixels."""
    resample: Resample = "fir"
    mapping_layers: int = 8
    pose_hidden: tuple[int, ...] = (2048, 512, 128, 32)
    group_size: int = 4
    clamp: float | None = 256.0
    mirror_once: bool = False
    """False: two trunk passes as in the original, pose on mirrored left views, logit on the views as they are.
    True: left views are mirrored once, with camera and pose, and one pass gives logit and pose: half the work,
    and the logit becomes exactly left/right symmetric."""
    pose_blocks: int = 0
    """Last residual blocks that poses are read through apart from those of verdicts (not in the original). 0: poses
    are read from the features that verdicts are read from."""


@dataclass(frozen=True)
class OriginalBugs:
    """Faults of the published code that a model may reproduce; docs/original.md shows what each one changes."""

    camera_unmirrored: bool = False
    """The discriminator's pose head sees left views mirrored, but their camera as it is (official_model 8.8).
    Published weights were trained that way and predict poses only that way."""
    raw_overwritten: bool = False
    """The raw picture that is returned (and judged) also holds the first super-resolution block's colours, where that
    block neither resizes nor up-samples (7.5)."""
    first_axis_of_three: bool = False
    """The exact deformation takes cross products along the first axis of size 3: other axes than the coordinates for
    batches of 3 pictures, or clouds of 3 points (6.7)."""


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides the shape of a generator and its discriminator."""

    name: str
    resolution: int
    raw_resolution: int
    synthesis: SynthesisConfig
    discriminator: DiscriminatorConfig
    render: RenderConfig = RenderConfig()
    background: SynthesisConfig | None = None
    superresolution: SuperResolutionConfig | None = None
    z_dim: int = 512
    w_dim: int = 512
    mapping_layers: int = 2
    mapping_lr_multiplier: float = 0.01
    conditioning_scale: float = 1.0
    """Factor on camera and body pose before the mapping network; 0 makes the person independent of both."""
    plane_features: int = 32
    plane_depth: int = 3
    symmetric_features: int = 0
    """Plane features that are the same left and right of a portrait; hair, light and looks aside need the others."""
    decoder_hidden: int = 64
    decoder_activation: Literal["softplus", "lrelu"] = "softplus"
    features: int = 32
    """Rendered channels per ray. 3 without super-resolution: the rendered colour is the picture."""
    pose_hidden: tuple[int, ...] = (128, 32)
    deformation: Literal["field", "exact"] = "field"
    thickness: float = 0.25
    warp: WarpConfig | None = None
    """What a style moves in canonical space; None: nothing, as in the original. Needs the deformation `field`."""
    plain_background: float = 0.0
    """Grey level in [-1, 1] behind the portrait where there is no background network."""
    original_bugs: OriginalBugs = OriginalBugs()

    def with_pose_blocks(self, count: int) -> ModelConfig:
        """The same with so many blocks of a pose path."""
        judge = dataclasses.replace(self.discriminator, pose_blocks=count)
        return dataclasses.replace(self, discriminator=judge)


@dataclass(frozen=True)
class RawRamp:
    """Side of the volume-rendered picture, from the model's to `final`, linearly over `kimg` from `start_kimg` on."""

    final: int
    start_kimg: float
    kimg: float


@dataclass(frozen=True)
class TrainingConfig:
    """One training recipe. Lengths are in thousands of images shown to the discriminator (kimg)."""

    total_kimg: float = 25000.0
    batch: int = 32
    views_per_latent: int = 1
    """Pictures rendered from each generated portrait in a step, each from its own camera and body pose."""
    loss: Literal["nonsaturating", "relativistic"] = "nonsaturating"
    g_lr: float = 0.0025
    d_lr: float = 0.002
    betas: tuple[float, float] = (0.0, 0.99)
    d_betas: tuple[float, float] | None = None
    """The discriminator's, if they differ."""
    lr_decay_kimg: float = 0.0
    """Length of a final cosine decay of both learning rates to a tenth; 0 = constant."""
    r1_gamma: float = 1.0
    r1_gamma_mask: float = 1.0
    r1_interval: int = 16
    ema_kimg: float = 10.0
    ema_rampup: float | None = 0.05
    swap_probability: float = 0.7
    swap_fade_kimg: float = 1000.0
    background_swap_probability: float = 0.2
    blur_sigma: float = 10.0
    blur_fade_kimg: float = 200.0
    density_noise: float = 1.0
    density_noise_fade_kimg: float = 200.0
    pose_preg_weight: float = 0.5
    pose_preg_kimg: float = 200.0
    pose_loss_weight: float = 1.0
    pose_branch_kimg: float | None = None
    """The generator's pose branch learns until then and stays as it is afterwards; None = it always learns."""
    raw_ramp: RawRamp | None = None
    separate_phases: bool = False
    """Generator and discriminator each judge pictures of their own, under labels drawn anew (10.1); False: both learn
    from one pass, in which the generated pictures have the cameras of the real ones. Goes with the non-saturating loss
    and whole pictures only."""
    coarse_pose_probability: float = 0.0
    """Share of pictures rendered with a coarse pose of the dataset instead of the pose branch's: keeps the range of
    poses wide while the branch learns (0 = the original)."""
    pose_refine_kimg: float | None = None
    """From then on, fading in over a quarter as long again, coarse poses are replaced by those that the discriminator
    sees in real pictures (poses/memory.py), corrected for the tilt of the canonical heads
    (poses/alignment.py). None = the original: coarse poses stay what they are."""
    pose_match_weight: float = 0.0
    """Weight of the energy distance between the pose branch's poses and the refined ones (0 = the original)."""
    style_average_decay: float = 0.998
    mirror: bool = True
    yaw_repeats: int = 1
    """How often a picture may come in an epoch, so that rare sides of people are seen as often as common ones
    (training/data.py); 1 = every picture once. For photos, most of which show faces."""
    zoom_probability: float = 0.0
    """Share of pictures of which only the middle is shown, real and generated alike, with the focal length raised to
    match: the discriminator sees faces larger. It wants a dataset larger than the model by 1 / the first window, and
    closer windows only where they are not much smaller than the model's pictures (training/data.py)."""
    face_zoom_probability: float = 0.0
    """Share of the pictures taken from the front that show only the smallest of `zoom_windows`, which then no other
    picture does; the rest is zoomed by the others. Details of faces are what is learned last."""
    zoom_windows: tuple[float, ...] = (0.6, 0.42, 0.27)
    """Sides of that middle part in units of the picture's: the head with its hair, the face, its eyes
    and mouth."""
    plain_renderer: bool = False
    """Render by the readable twin of the fused CPU renderer (to compare speeds)."""
    occupancy: bool = False
    """Skip the space where a portrait has no visible density (fused CPU renderer only)."""
    bf16: bool = False
    """Convolutions in bf16 where that is faster (runtime/precision.py)."""
    cuda_graphs: bool = False
    """On a GPU, replay steps as CUDA graphs (training/graphs.py); not with separate phases."""
    checkpoint_kimg: float = 10.0
    sheet_kimg: float = 10.0
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        if self.separate_phases and (self.loss != "nonsaturating" or self.zoom_probability > 0):
            raise ValueError("separate phases go with the non-saturating loss and whole pictures")


def original_recipe(model: ModelConfig) -> TrainingConfig:
    """The published training of 10.1 to 10.13, its three stages in one run: the pose branch learns for 6,000 kimg, the
    raw picture grows from 10,000 to 11,000 kimg as far as the super-resolution takes it."""
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
    model: ModelConfig
    training: TrainingConfig = field(default_factory=TrainingConfig)


def stylegan_channels(base: int, maximum: int, resolution: int) -> tuple[int, ...]:
    """min(base / r, maximum) at r = 4, 8, ..., resolution (official_model 3.7)."""
    sides = []
    side = 4
    while side <= resolution:
        sides.append(side)
        side *= 2
    return tuple(min(base // s, maximum) for s in sides)


def _original(resolution: int, background: int, superresolution: SuperResolutionConfig) -> Preset:
    model = ModelConfig(
        name=f"original-{resolution}",
        resolution=resolution,
        raw_resolution=64,
        synthesis=SynthesisConfig(stylegan_channels(32768, 512, 256)),
        background=SynthesisConfig(stylegan_channels(16384, 512, background)),
        superresolution=superresolution,
        discriminator=DiscriminatorConfig(stylegan_channels(32768, 512, resolution)[::-1]),
        deformation="exact",
        original_bugs=OriginalBugs(camera_unmirrored=True),
    )
    return Preset(model, original_recipe(model))


_PORTRAIT_RENDER = RenderConfig(
    samples=48,
    importance_samples=0,
    quadrature="point",
    box_centre=(0.0, -0.025, 0.015),
    box_half=(0.20, 0.235, 0.155),
    ray_boxes=(
        ((-0.14, -0.05, -0.13), (0.14, 0.21, 0.165)),
        ((-0.20, -0.26, -0.125), (0.20, 0.0, 0.15)),
    ),
    crop=None,
    density_scale=40.0,
    density_shift=-1.0,
    inference_samples=96,
)

_SMALL_TRAINING = TrainingConfig(
    total_kimg=1000.0,
    batch=16,
    views_per_latent=2,
    loss="relativistic",
    g_lr=0.002,
    d_lr=0.002,
    lr_decay_kimg=30.0,
    r1_gamma=0.02,
    r1_gamma_mask=0.02,
    r1_interval=16,
    ema_kimg=4.0,
    swap_fade_kimg=100.0,
    blur_sigma=2.0,
    blur_fade_kimg=8.0,
    density_noise=0.0,
    density_noise_fade_kimg=0.0,
    pose_loss_weight=10.0,
    pose_preg_kimg=100.0,
    coarse_pose_probability=0.5,
    pose_refine_kimg=160.0,
    pose_match_weight=0.3,
    style_average_decay=0.995,
    zoom_probability=0.67,
    face_zoom_probability=0.5,
    occupancy=True,
    bf16=True,
    cuda_graphs=True,
)


def _portrait_256() -> Preset:
    """With super-resolution and a background network of its own."""
    return Preset(
        model=ModelConfig(
            name="portrait-256",
            resolution=256,
            raw_resolution=64,
            z_dim=128,
            w_dim=256,
            mapping_lr_multiplier=0.1,
            conditioning_scale=0.0,
            synthesis=SynthesisConfig((208, 208, 176, 112, 80, 56), "box", noise=False, first_output=16),
            background=SynthesisConfig((96, 96, 64, 48, 32), "box", noise=False, first_output=16),
            plane_features=16,
            plane_depth=3,
            decoder_hidden=32,
            decoder_activation="lrelu",
            features=16,
            render=_PORTRAIT_RENDER,
            superresolution=SuperResolutionConfig(64, (64, 32), up_first=True, clamp=None, resample="box"),
            discriminator=DiscriminatorConfig(
                (24, 48, 80, 128, 160, 208, 208),
                "box",
                mapping_layers=2,
                pose_hidden=(256, 64),
                clamp=None,
                mirror_once=True,
            ),
            pose_hidden=(64, 32),
        ),
        training=dataclasses.replace(_SMALL_TRAINING, total_kimg=5000.0, ema_kimg=10.0),
    )


def _cpu_64() -> Preset:
    return Preset(
        model=ModelConfig(
            name="cpu-64",
            resolution=64,
            raw_resolution=64,
            z_dim=64,
            w_dim=128,
            mapping_lr_multiplier=0.1,
            conditioning_scale=0.0,
            synthesis=SynthesisConfig((192, 192, 128, 96, 64, 32), "box", noise=False, first_output=16),
            plane_features=16,
            plane_depth=3,
            symmetric_features=8,
            decoder_hidden=32,
            decoder_activation="lrelu",
            features=3,
            render=dataclasses.replace(_PORTRAIT_RENDER, feature_activation="sigmoid"),
            discriminator=DiscriminatorConfig(
                (32, 64, 128, 192, 192),
                "box",
                mapping_layers=2,
                pose_hidden=(128, 64),
                clamp=None,
                mirror_once=True,
            ),
            pose_hidden=(64, 32),
        ),
        training=dataclasses.replace(_SMALL_TRAINING, lr_decay_kimg=50.0, r1_gamma=0.05, r1_gamma_mask=0.05),
    )


def _portrait_128() -> Preset:
    """`cpu-64` at twice its side, its tri-grid twice as fine: a run can start from its weights (`train --init`)."""
    base = _cpu_64()
    synthesis, discriminator = base.model.synthesis, base.model.discriminator
    model = dataclasses.replace(
        base.model,
        name="portrait-128",
        resolution=128,
        raw_resolution=128,
        synthesis=dataclasses.replace(synthesis, channels=(*synthesis.channels, 32)),
        discriminator=dataclasses.replace(discriminator, channels=(32, *discriminator.channels)),
    )
    training = dataclasses.replace(base.training, total_kimg=5000.0, ema_kimg=10.0, r1_gamma=0.1, r1_gamma_mask=0.1)
    return Preset(model, training)


_SR_512 = SuperResolutionConfig(128, (256, 128), up_first=True)
_SR_256 = SuperResolutionConfig(128, (128, 64), resize="smaller", filter_buffer=True)
_SR_128 = SuperResolutionConfig(64, (128, 64), filter_buffer=True)

PRESETS: dict[str, Preset] = {
    preset.model.name: preset
    for preset in (
        _original(512, 128, _SR_512),
        _original(256, 128, _SR_256),
        _original(128, 64, _SR_128),
        _portrait_256(),
        _portrait_128(),
        _cpu_64(),
    )
}
"""Presets that users can name. `original-*` are the published networks; the others are this project's."""

_registered: dict[str, Preset] = {}


def register_preset(preset: Preset) -> None:
    """Let `named_preset` find a preset of one's own by its model's name, in this process; for experiments and tests.

    `PRESETS` stays as it is; a name of it is not to be had.
    """
    if preset.model.name in PRESETS:
        raise ValueError(f"{preset.model.name} is the name of a preset of the package")
    _registered[preset.model.name] = preset


def named_preset(name: str) -> Preset:
    """A preset of `PRESETS`, or one that was registered.

    Raises:
        InputError: there is none of this name.
    """
    found = PRESETS.get(name) or _registered.get(name)
    if found is None:
        raise InputError(f"there is no preset {name!r}.", f"Known presets: {', '.join(PRESETS)}.")
    return found
