"""Configuration of the networks: everything that decides the shape of a generator and its discriminator."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

Resample = Literal["fir", "box"]
Vector3 = tuple[float, float, float]
Box = tuple[Vector3, Vector3]


@dataclass(frozen=True)
class SynthesisConfig:
    """A skip-architecture StyleGAN2 synthesis network from 4x4 up (equations 3)."""

    channels: tuple[int, ...]
    """Feature channels at 4, 8, 16, ... pixels; their count sets the output resolution."""
    resample: Resample = "fir"
    """fir: the original's [1,3,3,1] filters; box: nearest and bilinear, several times cheaper on a CPU."""
    noise: bool = True
    """Add learned per-pixel noise after each convolution."""
    first_output: int = 4
    """Lowest resolution that adds to the output image, pixels."""
    pyramid_from: int | None = None
    """From this resolution on, each gives a tri-grid of twice its side, made by layers that see all three planes, and
    lookups in all of them are averaged (equations 15.3); None: the image of the highest resolution is the tri-grid."""

    @property
    def resolution(self) -> int:
        return 4 * 2 ** (len(self.channels) - 1)


@dataclass(frozen=True)
class RenderConfig:
    """Volume rendering (equations 5) and where rays sample."""

    samples: int = 48
    """Samples per ray in training, evenly spaced."""
    importance_samples: int = 48
    """More samples per ray where the first ones found density; 0 = one pass."""
    quadrature: Literal["midpoint", "point"] = "midpoint"
    """midpoint: the original marcher, neighbours averaged; point: each sample stands for its own interval."""
    box_centre: Vector3 = (0.0, 0.0, 0.0)
    """Centre of the canonical box that the tri-grid covers, world units."""
    box_half: Vector3 = (0.5, 0.5, 0.5)
    """Half of that box's sides, world units."""
    ray_boxes: tuple[Box, ...] = ()
    """Rays sample only inside the union of these boxes in posed space, each two corners; empty = near to far."""
    near: float = 2.25
    """Distance from the camera at which rays begin, world units."""
    far: float = 3.3
    """Distance from the camera at which rays end, world units."""
    crop: float | None = 0.4
    """Canonical |x| and |z| beyond which space is empty (equations 5.5); None = the tri-grid box in all three axes."""
    density_scale: float = 1.0
    """Factor on densities."""
    density_shift: float = -1.0
    """Added to raw densities before the softplus."""
    feature_activation: Literal["none", "sigmoid"] = "none"
    """Activation of rendered features; sigmoid where they are colours."""
    inference_samples: int | None = None
    """Samples per ray at inference; None = as in training."""


@dataclass(frozen=True)
class CameraConfig:
    """The cameras that a model was trained with, and where its world lies in this project's.

    Labels of a model's cameras are in its own world; `geometry.conventions` makes them from this project's labels.
    """

    radius: float = 2.7
    """Distance of every camera from the model's origin, units of its world."""
    focal: float = 5000 / 1024 / 0.75
    """Focal length in units of the image size."""
    look_at: Vector3 = (0.0, 0.0649, 0.0)
    """The point that every camera looks at, in the model's world."""
    origin: Vector3 = (0.0, 0.0, 0.0)
    """Where the model's origin lies in this project's world."""
    scale: float = 1.0
    """Units of the model's world in one unit of this project's."""


@dataclass(frozen=True)
class SuperResolutionConfig:
    """Two modulated blocks on rendered features (equations 7)."""

    input_resolution: int
    """Side to which rendered features are resized first, pixels."""
    channels: tuple[int, int]
    """Feature channels of the two blocks."""
    up_first: bool = False
    """Whether the first block doubles the side as well: four times the input instead of two."""
    resize: Literal["different", "smaller"] = "different"
    """Resize the input when its side is different from input_resolution, or only when it is smaller."""
    filter_buffer: bool = False
    """Keep the resampling filter among the weights, as published files do."""
    clamp: float | None = 256.0
    """Largest magnitude of activations; None = unlimited."""
    resample: Resample = "fir"
    """As for synthesis."""


@dataclass(frozen=True)
class WarpConfig:
    """The grid of an identity warp (`model.warp`): displacements of canonical positions around the head."""

    low: Vector3 = (-0.115, -0.10, -0.12)
    """Lower corner of the grid's box; the outermost nodes lie on its faces."""
    high: Vector3 = (0.115, 0.18, 0.125)
    """Upper corner of the grid's box."""
    shape: tuple[int, int, int] = (18, 20, 18)
    """Nodes along z, y and x."""
    scale: float = 0.01
    """Displacement in world units of a unit output."""
    field_shape: tuple[int, int, int] = (36, 42, 30)
    """Nodes along z, y and x of the deformation field that carries the warp."""


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Conditional residual discriminator with a pose head (equations 8)."""

    channels: tuple[int, ...]
    """Feature channels from the image resolution down to 4 pixels."""
    resample: Resample = "fir"
    """As for synthesis."""
    mapping_layers: int = 8
    """Layers of the network that maps camera and body pose to the conditioning vector."""
    pose_hidden: tuple[int, ...] = (2048, 512, 128, 32)
    """Widths of the pose head's hidden layers."""
    group_size: int = 4
    """Images over which the minibatch standard deviation is taken (equations 8.4)."""
    clamp: float | None = 256.0
    """Largest magnitude of activations; None = unlimited."""
    mirror_once: bool = False
    """False: two trunk passes as in the original, pose on mirrored left views, logit on the views as they are.
    True: left views are mirrored once, with camera and pose, and one pass gives logit and pose: half the work,
    and the logit becomes exactly left/right symmetric."""
    pose_blocks: int = 0
    """Last residual blocks that only the pose head reads through, apart from those of the logit (not in the original);
    0: both read the same features."""


@dataclass(frozen=True)
class OriginalBugs:
    """Faults of the published code that a model may reproduce; docs/original.md shows what each one changes."""

    camera_unmirrored: bool = False
    """The discriminator's pose head gets left views mirrored, but their camera as it is (equations 8.8).
    Published weights were trained that way and predict poses only that way."""
    raw_overwritten: bool = False
    """The raw image that is returned (and given to the discriminator) also holds the first super-resolution block's
    colours, where that block neither resizes nor up-samples (equations 7.5)."""
    first_axis_of_three: bool = False
    """The exact deformation takes cross products along the first axis of size 3: other axes than the coordinates for
    batches of 3 images, or clouds of 3 points (equations 6.7)."""


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides the shape of a generator and its discriminator."""

    name: str
    """What the model is called in files and messages."""
    resolution: int
    """Side of the images, pixels: 4 doubled once per residual block of the discriminator."""
    raw_resolution: int
    """Side of the volume-rendered image, pixels; without super-resolution, that of the images."""
    synthesis: SynthesisConfig
    discriminator: DiscriminatorConfig
    render: RenderConfig = RenderConfig()
    background: SynthesisConfig | None = None
    superresolution: SuperResolutionConfig | None = None
    z_dim: int = 512
    """Width of the latent z."""
    w_dim: int = 512
    """Width of the style w."""
    mapping_layers: int = 2
    """Layers of the mapping network from z to w."""
    mapping_lr_multiplier: float = 0.01
    """Factor on the mapping network's learning rate."""
    mapping_styles: int = 0
    """Learned styles of people, two of which each latent mixes (`model.mapping.StyleMixture`); 0: a mapping network, as
    in the original."""
    conditioning_scale: float = 1.0
    """Factor on camera and body pose before the mapping network; 0 makes the person independent of both."""
    plane_features: int = 32
    """Features of each cell of the tri-grid."""
    plane_depth: int = 3
    """Layers of each of the tri-grid's three planes."""
    symmetric_features: int = 0
    """Tri-grid features that are the same left and right of a portrait; hair, light and looks aside need the others."""
    decoder_hidden: int = 64
    """Width of the hidden layer that decodes features to density and colour."""
    decoder_activation: Literal["softplus", "lrelu"] = "softplus"
    """Activation of that layer."""
    features: int = 32
    """Rendered channels per ray; 3 without super-resolution: the rendered colour is the image."""
    pose_hidden: tuple[int, ...] = (128, 32)
    """Widths of the hidden layers of the generator's pose branch."""
    deformation: Literal["field", "exact", "none"] = "field"
    """field: the inverse deformation from a grid; exact: from the nearest triangle of the body, as published; none: the
    model knows no body pose, neither here nor in its mapping network."""
    thickness: float = 0.25
    """Distance from the body within which the exact deformation moves points, world units."""
    warp: WarpConfig | None = None
    """What a style displaces in canonical space; None: nothing, as in the original. For the deformation `field`."""
    camera: CameraConfig = CameraConfig()
    camera_translation: bool = False
    """A second mapping network predicts how far the camera of a latent is to be moved (equations 15.2)."""
    plain_background: float = 0.0
    """Grey level in [-1, 1] behind the portrait where there is no background network."""
    original_bugs: OriginalBugs = OriginalBugs()

    @property
    def posable(self) -> bool:
        """Whether neck and head can be turned."""
        return self.deformation != "none"

    def with_pose_blocks(self, count: int) -> ModelConfig:
        """The same with so many blocks of a pose path."""
        return dataclasses.replace(self, discriminator=dataclasses.replace(self.discriminator, pose_blocks=count))


def check_model(model: ModelConfig) -> None:
    """Refuse a model whose parts do not fit each other.

    Raises:
        InputError: with the name of the field, what it is and what it should be.
    """
    # Sizes that are counts of something
    for path, config in _parts(model).items():
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            sizes = value if isinstance(value, tuple) else (value,)
            least = 0 if field.name in _MAY_BE_ZERO else 1
            if any(isinstance(size, int) and not isinstance(size, bool) and size < least for size in sizes):
                raise _mistake(f"{path}.{field.name}", f"at least {least}", value)
            if field.name == "channels" and not sizes:
                raise _mistake(f"{path}.{field.name}", "at least one number", value)

    # Sides that must agree
    discriminated = 4 * 2 ** (len(model.discriminator.channels) - 1)
    if model.resolution != discriminated:
        count = len(model.discriminator.channels)
        raise _mistake(
            "model.resolution", f"{discriminated} for {count} `model.discriminator.channels`", model.resolution
        )
    upscaled = model.raw_resolution
    if model.superresolution is not None:
        upscaled = model.superresolution.input_resolution * (4 if model.superresolution.up_first else 2)
    if upscaled != model.resolution:
        name = "raw_resolution" if model.superresolution is None else "superresolution.input_resolution"
        raise _mistake(f"model.{name}", f"one that gives images of {model.resolution} pixels", f"one for {upscaled}")

    # Numbers that are parts of others
    if model.symmetric_features > model.plane_features:
        allowed = f"at most `model.plane_features`, {model.plane_features}"
        raise _mistake("model.symmetric_features", allowed, model.symmetric_features)
    if model.discriminator.pose_blocks >= len(model.discriminator.channels) - 1:
        allowed = f"below {len(model.discriminator.channels) - 1}"
        raise _mistake("model.discriminator.pose_blocks", allowed, model.discriminator.pose_blocks)
    if not 0.0 < model.render.near < model.render.far:
        raise _mistake(
            "model.render.near", f"above 0 and below `model.render.far`, {model.render.far}", model.render.near
        )

    # A pyramid of tri-grids
    if model.synthesis.pyramid_from is not None:
        wanted = 3 * model.plane_features * model.plane_depth
        if set(model.synthesis.channels) != {wanted}:
            raise _mistake("model.synthesis.channels", f"{wanted} each for a pyramid", model.synthesis.channels)
        if model.synthesis.resample != "fir" or model.symmetric_features:
            wrong = model.synthesis.pyramid_from
            raise _mistake("model.synthesis.pyramid_from", "None with box filters or symmetric features", wrong)

    # An identity warp
    if model.warp is not None:
        if model.deformation != "field":
            raise _mistake("model.deformation", "`field` where there is a `model.warp`", model.deformation)
        for name in ("shape", "field_shape"):
            least = 3 if name == "shape" else 2
            if min(getattr(model.warp, name)) < least:
                raise _mistake(f"model.warp.{name}", f"at least {least} each", getattr(model.warp, name))
        if any(low >= high for low, high in zip(model.warp.low, model.warp.high, strict=True)):
            raise _mistake("model.warp.low", f"below `model.warp.high`, {model.warp.high}", model.warp.low)


_MAY_BE_ZERO = {"importance_samples", "mapping_styles", "pose_blocks", "symmetric_features"}


def _parts(model: ModelConfig) -> dict[str, Any]:
    """The model config and the configs in it, by their names."""
    nested = {f"model.{f.name}": getattr(model, f.name) for f in dataclasses.fields(model)}
    return {"model": model} | {name: part for name, part in nested.items() if dataclasses.is_dataclass(part)}


def _mistake(path: str, expected: str, value: object) -> Exception:
    from portrait360.errors import InputError

    return InputError(f"`{path}` must be {expected}, not {value}.", "The preset's own values fit each other.")
