"""The discriminator: logits for image, raw image and mask under camera and body pose, and the pose (equations 8)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from portrait360.config import DiscriminatorConfig, ModelConfig
from portrait360.geometry.cameras import is_left, mirror_body_pose, mirror_camera
from portrait360.model.generator import select
from portrait360.model.layers import POSE_OUTPUT_SCALE, Conv, FullyConnected, fir_kernel, perceptron, resize
from portrait360.model.mapping import MappingNetwork
from portrait360.types import CAMERA_LABEL_SIZE, InputError


@dataclass(frozen=True)
class DiscriminatorInput:
    """What the discriminator gets. `raw` is None for models without super-resolution."""

    image: Float[Tensor, "B 3 H H"]
    raw: Float[Tensor, "B 3 R R"] | None
    mask: Float[Tensor, "B 1 R2 R2"]

    def tensors(self) -> list[Tensor]:
        return [t for t in (self.image, self.raw, self.mask) if t is not None]

    def map(self, function) -> DiscriminatorInput:
        """The same function on every tensor."""
        return DiscriminatorInput(
            function(self.image), None if self.raw is None else function(self.raw), function(self.mask)
        )


def concatenate(*parts: DiscriminatorInput) -> DiscriminatorInput:
    """The samples of one after those of the other; without raw images if one has none."""
    raws = [part.raw for part in parts if part.raw is not None]
    return DiscriminatorInput(
        torch.cat([part.image for part in parts]),
        torch.cat(raws) if len(raws) == len(parts) else None,
        torch.cat([part.mask for part in parts]),
    )


class DiscriminatorBlock(nn.Module):
    """Residual block that halves the side (equations 8.3)."""

    def __init__(self, image_channels: int, width: int, out: int, config: DiscriminatorConfig) -> None:
        super().__init__()
        options = {"clamp": config.clamp, "resample": config.resample}
        if config.resample == "fir":
            self.register_buffer("resample_filter", fir_kernel())
        if image_channels:
            self.fromrgb = Conv(image_channels, width, 1, **options)
        self.conv0 = Conv(width, width, 3, **options)
        self.conv1 = Conv(width, out, 3, down=True, **options)
        self.skip = Conv(width, out, 1, activation="linear", down=True, resample=config.resample)

    def forward(self, x: Float[Tensor, "B I H W"]) -> Float[Tensor, "B O H2 W2"]:
        if hasattr(self, "fromrgb"):
            x = self.fromrgb(x)
        residual = self.skip(x, gain=math.sqrt(0.5))
        return residual + self.conv1(self.conv0(x), gain=math.sqrt(0.5))


def minibatch_std(x: Float[Tensor, "B C H W"], group_size: int, parts: int = 1) -> Float[Tensor, "B C1 H W"]:
    """Append the mean standard deviation over interleaved groups of samples as one channel (equations 8.4).

    A part of the batch that the group size does not divide falls back to the largest divisor.
    """
    n, c, h, w = x.shape
    size = n // parts
    group = min(group_size, size)
    while size % group:
        group -= 1
    y = x.float().reshape(parts, group, size // group, c, h, w)
    y = (y - y.mean(dim=1, keepdim=True)).square().mean(dim=1)
    y = (y + 1e-8).sqrt().mean(dim=(2, 3, 4)).to(x.dtype)
    return torch.cat([x, y.repeat(1, group).reshape(n, 1, 1, 1).expand(n, 1, h, w)], dim=1)


def _through(blocks: nn.Module, sides: list[int], x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
    """Features after the blocks of these sides."""
    for side in sides:
        x = blocks.get_submodule(f"b{side}")(x)
    return x


class FlatFeatures(nn.Module):
    """Input of the heads: a convolution of the last features and of their minibatch deviation, flattened."""

    def __init__(self, width: int, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.group_size = config.group_size
        self.conv = Conv(width + 1, width, 3, clamp=config.clamp, resample=config.resample)

    def flatten(self, x: Float[Tensor, "B C 4 4"], parts: int) -> Float[Tensor, "B F"]:
        x = self.conv(minibatch_std(x, self.group_size, parts))
        return x.float().contiguous(memory_format=torch.contiguous_format).flatten(1)


class Epilogue(FlatFeatures):
    def __init__(self, width: int, config: DiscriminatorConfig) -> None:
        super().__init__(width, config)
        self.fc = FullyConnected(width * 16, width, activation="lrelu")
        self.out = FullyConnected(width, width)

    def score(self, flat: Float[Tensor, "B F"], condition: Float[Tensor, "B C"]) -> Float[Tensor, "B 1"]:
        x = self.out(self.fc(flat))
        return (x * condition).sum(dim=1, keepdim=True) / math.sqrt(condition.shape[1])


class PoseBranch(nn.Module):
    """Body pose from the trunk's flat features and the camera (equations 8.7)."""

    def __init__(self, in_features: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.net = perceptron([in_features + CAMERA_LABEL_SIZE, *hidden, 6], POSE_OUTPUT_SCALE)

    def forward(self, flat: Float[Tensor, "B F"], camera: Float[Tensor, "B 25"]) -> Float[Tensor, "B 6"]:
        return self.net(torch.cat([flat, camera], dim=1))


class PosePath(FlatFeatures):
    """Residual blocks for the pose head alone, from the features of a side on, beside those for logits."""

    def __init__(self, sides: list[int], config: DiscriminatorConfig) -> None:
        super().__init__(config.channels[-1], config)
        self.sides = sides
        widths = config.channels[-len(sides) - 1 :]
        for i, side in enumerate(sides):
            self.add_module(f"b{side}", DiscriminatorBlock(0, widths[i], widths[i + 1], config))

    def forward(self, x: Float[Tensor, "B C S S"], parts: int = 1) -> Float[Tensor, "B F"]:
        return self.flatten(_through(self, self.sides, x), parts)


class Discriminator(nn.Module):
    """forward(images, camera) -> (logits [B, 1], predicted body pose [B, 6]). Names follow equations 12.7."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        config = model.discriminator
        self.config = config
        self.bugs = model.original_bugs
        self.resolution = model.resolution
        self.has_raw = model.superresolution is not None
        if config.resample == "fir":
            self.register_buffer("resample_filter", fir_kernel())
        self.sides = [model.resolution // 2**i for i in range(len(config.channels) - 1)]
        for i, side in enumerate(self.sides):
            channels = (7 if self.has_raw else 4) if i == 0 else 0
            block = DiscriminatorBlock(channels, config.channels[i], config.channels[i + 1], config)
            self.add_module(f"b{side}", block)
        width = config.channels[-1]
        self.b4 = Epilogue(width, config)
        self.mapping = MappingNetwork(0, width, config.mapping_layers, average=False)
        self.shared = len(self.sides) - config.pose_blocks
        """Number of blocks that logits and poses share."""
        self.pose_path = PosePath(self.sides[self.shared :], config) if config.pose_blocks else None
        self.pose_branch = PoseBranch(width * 16, config.pose_hidden)

    def trunk(self, images: DiscriminatorInput, parts: int = 1) -> Float[Tensor, "B F"]:
        """Flat features of image, raw image and mask at the image's side (equations 8.1), for logits.

        The batch consists of `parts` equal parts (real, generated) whose minibatch statistics are kept apart.
        """
        return self._for_logits(self.early(images), parts)

    def early(self, images: DiscriminatorInput) -> Float[Tensor, "B C S S"]:
        """Features after the blocks that logits and poses share."""
        return _through(self, self.sides[: self.shared], self.layers(images))

    def layers(self, images: DiscriminatorInput) -> Float[Tensor, "B _I H H"]:
        """What the first block gets: image, raw image and mask at the image's side."""
        mask = resize(images.mask, self.resolution) * 2.0 - 1.0
        layers = [images.image]
        if images.raw is not None:
            layers.append(resize(images.raw, self.resolution))
        x = torch.cat([*layers, mask], dim=1)
        if self.config.resample == "box":
            x = x.contiguous(memory_format=torch.channels_last)
        return x

    def _for_logits(self, x: Float[Tensor, "B C S S"], parts: int) -> Float[Tensor, "B F"]:
        return self.b4.flatten(_through(self, self.sides[self.shared :], x), parts)

    def _for_poses(self, x: Float[Tensor, "B C S S"], parts: int) -> Float[Tensor, "B F"]:
        return self._for_logits(x, parts) if self.pose_path is None else self.pose_path(x, parts)

    def predict_pose(
        self, images: DiscriminatorInput, camera: Float[Tensor, "B 25"], parts: int = 1
    ) -> Float[Tensor, "B 6"]:
        """Predicted body pose: left views are mirrored, predicted, mirrored back (equations 8.8)."""
        left = is_left(camera)
        flat = self._for_poses(self.early(images.map(lambda t: select(left, t.flip(3), t))), parts)
        pose = self.pose_branch(flat, self._branch_camera(camera, left))
        return select(left, mirror_body_pose(pose), pose)

    def _branch_camera(self, camera: Tensor, left: Tensor) -> Tensor:
        """Mirrored images come with a mirrored camera; the original leaves it as it was (equations 8.8)."""
        return camera if self.bugs.camera_unmirrored else select(left, mirror_camera(camera), camera)

    def forward(
        self,
        images: DiscriminatorInput,
        camera: Float[Tensor, "B 25"],
        body_pose: Float[Tensor, "B 6"] | None = None,
        parts: int = 1,
    ):
        """Conditioned on `body_pose`, or else on the detached prediction (equations 8.9). `parts`: see `trunk`."""
        if not self.config.mirror_once:
            predicted = self.predict_pose(images, camera, parts)
            condition = self.mapping(None, camera, predicted.detach() if body_pose is None else body_pose)
            return self.b4.score(self.trunk(images, parts), condition), predicted
        return self.from_maps(self.maps(images, camera), camera, body_pose, parts)

    def maps(self, images: DiscriminatorInput, camera: Float[Tensor, "B 25"]) -> list[Float[Tensor, "B _C _S _S"]]:
        """Features after each residual block, left views mirrored (models with `mirror_once`)."""
        left = is_left(camera)
        x = self.layers(images.map(lambda t: select(left, t.flip(3), t)))
        maps = []
        for side in self.sides:
            x = self.get_submodule(f"b{side}")(x)
            maps.append(x)
        return maps

    def from_maps(
        self,
        maps: list[Float[Tensor, "B _C _S _S"]],
        camera: Float[Tensor, "B 25"],
        body_pose: Float[Tensor, "B 6"] | None = None,
        parts: int = 1,
    ):
        """What `forward` returns, from the features of `maps`."""
        left = is_left(camera)
        seen = select(left, mirror_camera(camera), camera)
        flat = self.b4.flatten(maps[-1], parts)
        read = flat if self.pose_path is None else self.pose_path(maps[self.shared - 1], parts)
        pose = self.pose_branch(read, self._branch_camera(camera, left))
        given = pose.detach() if body_pose is None else select(left, mirror_body_pose(body_pose), body_pose)
        logits = self.b4.score(flat, self.mapping(None, seen, given))
        return logits, select(left, mirror_body_pose(pose), pose)


def with_pose_path(discriminator: Discriminator, model: ModelConfig, blocks: int) -> tuple[Discriminator, ModelConfig]:
    """A copy with residual blocks for the pose head alone, and the model that it belongs to.

    The new blocks begin as copies of the shared ones, so its predictions are those of the given one at first.

    Args:
        discriminator, model: the network and its model; a pose path that it has already grows, but never shrinks.
        blocks: how many of the last residual blocks the pose head gets; at least the first one stays shared.

    Raises:
        InputError: it has too few blocks.
    """
    if not 0 < blocks < len(discriminator.sides):
        raise InputError(
            f"a pose path of {blocks} blocks does not fit {model.name}.",
            f"It takes 1 to {len(discriminator.sides) - 1}.",
        )

    # New blocks begin as copies of the shared ones.
    model = model.with_pose_blocks(max(blocks, model.discriminator.pose_blocks))
    tensors = discriminator.state_dict()
    new = Discriminator(model).to(next(discriminator.parameters()).device)
    for name in new.state_dict():
        if name not in tensors:
            source = name.removeprefix("pose_path.")
            tensors[name] = tensors[f"b4.{source}" if source.startswith("conv.") else source]
    new.load_state_dict(tensors)
    return new.eval().requires_grad_(False), model
