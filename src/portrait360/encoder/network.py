"""The portrait encoder: predicts camera, body pose, outline and identity from one image of a person from any side.

A small residual network trained on synthetic portraits (`encoder/train.py`). It is the measuring instrument of
`portrait360 evaluate`: generated images have no labels, and face detectors fail on side and rear views.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from portrait360.geometry.body import BodyTemplate, bone_transforms
from portrait360.geometry.cameras import FOCAL, cam2world, camera_label, mirror_body_pose, project
from portrait360.runtime.device import constant
from portrait360.types import InputError

HEAD, NECK, TORSO = 4, 3, 0
LANDMARKS: tuple[tuple[int, tuple[float, float, float]], ...] = (
    (HEAD, (0.0, 0.075, 0.125)),  # nose
    (HEAD, (0.0, 0.035, 0.1)),  # chin
    (HEAD, (0.028, 0.095, 0.1)),  # eyes
    (HEAD, (-0.028, 0.095, 0.1)),
    (HEAD, (0.064, 0.079, 0.0125)),  # ears
    (HEAD, (-0.064, 0.079, 0.0125)),
    (HEAD, (0.0, 0.165, 0.028)),  # top
    (HEAD, (0.0, 0.11, -0.05)),  # back
    (NECK, (0.0, 0.0537, 0.0188)),  # where the head turns
    (TORSO, (0.0, -0.05, 0.05)),  # throat
    (TORSO, (0.0, -0.02, -0.055)),  # nape
    (TORSO, (0.15, -0.1, -0.01)),  # shoulders
    (TORSO, (-0.15, -0.1, -0.01)),
    (TORSO, (0.0, -0.13, 0.08)),  # chest
    (TORSO, (0.0, -0.13, -0.08)),  # back
)
"""Points of the packaged body: the bone (`geometry.body.BODY_BONES`) that each moves with, and its place at rest, world
units. The encoder locates them, visible or hidden; their places show how head and neck are turned."""

AROUND, AROUND_STEP = 3, 1 / 32
"""Places in a row about a landmark, and their distance, in units of the image's side."""

_MIRROR_LANDMARKS = [LANDMARKS.index((bone, (-x, y, z))) for bone, (x, y, z) in LANDMARKS]

POSE_UNIT = 0.2
"""Body poses are predicted in units of so many radians, about their standard deviation."""


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of a portrait encoder."""

    resolution: int = 128
    stem: int = 24
    channels: tuple[int, ...] = (32, 64, 128, 256)
    """Channels at 1/4, 1/8, 1/16 and 1/32 of the resolution."""
    blocks: int = 2
    mask_channels: int = 24
    hidden: int = 320
    identity: int = 128
    further_blocks: tuple[int, ...] = ()
    """Blocks that stages have beyond `blocks`, one number a stage; empty: none. They start as the identity."""
    around: int = 0
    """Numbers read at each of AROUND x AROUND places about every landmark; 0: none."""
    sees_covers: bool = False
    """Whether it predicts how much of the person objects in front hide."""

    def __post_init__(self) -> None:
        if len(self.further_blocks) not in (0, len(self.channels)) or min(self.further_blocks, default=0) < 0:
            raise InputError(
                f"further_blocks has {self.further_blocks} for {len(self.channels)} stages.",
                "Give one number for each stage, 0 for none.",
            )

    @property
    def features(self) -> int:
        """Width of the feature vector: the means of all stages but the first."""
        return sum(self.channels[1:])

    @property
    def depths(self) -> tuple[int, ...]:
        """Blocks of each stage."""
        return tuple(self.blocks + more for more in self.further_blocks or [0] * len(self.channels))


@dataclass(frozen=True)
class CameraEstimate:
    """Where an image was taken from, against the crop of the datasets: angles in radians, (B,) each.

    The crop is that of `camera_label(yaw, pitch, roll)`, enlarged `scale` times about its centre and then moved by
    `offset` (B, 2), in units of the image's side, right and down.
    """

    yaw: Float[Tensor, " B"]
    pitch: Float[Tensor, " B"]
    roll: Float[Tensor, " B"]
    scale: Float[Tensor, " B"]
    offset: Float[Tensor, "B 2"]

    def label(self) -> Float[Tensor, "B 25"]:
        """The camera as a label of 25 numbers: the scale is in the focal length, the offset in the principal point."""
        label = camera_label(self.yaw, self.pitch, self.roll).clone()
        label[:, 16] = label[:, 20] = FOCAL * self.scale
        label[:, 18] = 0.5 + self.offset[:, 0]
        label[:, 21] = 0.5 + self.offset[:, 1]
        return label


@dataclass(frozen=True)
class Encoded:
    """What the encoder predicts for images."""

    camera: CameraEstimate
    body_pose: Float[Tensor, "B 6"]
    """Neck, then head axis-angle, radians."""
    view_pose: Float[Tensor, "B 6"]
    """The same with the axes in camera coordinates (right, down, forward)."""
    landmarks: Float[Tensor, "B K 2"]
    """Where the LANDMARKS are in the image, right and down, 0 to 1; undefined for points outside of it."""
    mask_logits: Float[Tensor, "B 1 M M"]
    """At half of the encoder's resolution."""
    identity: Float[Tensor, "B I"]
    """Unit vectors; the cosine of two is the likeness of the persons, clothes and hair included."""
    features: Float[Tensor, "B F"]
    """For distances between distributions of images; each number has unit variance over the training images."""
    blur: Float[Tensor, " B"]
    """Standard deviation of the blur, in pixels of the encoder's resolution."""
    cover_logits: Float[Tensor, " B"] | None = None
    """Logit of the share of the person that objects in front hide; None if the encoder does not predict it."""

    @property
    def covered(self) -> Float[Tensor, " B"] | None:
        """Share of the person that objects in front hide, 0 to 1; None if the encoder does not predict it."""
        return None if self.cover_logits is None else self.cover_logits.sigmoid()

    def mask(self, side: int) -> Float[Tensor, "B 1 S S"]:
        """Share of each pixel that shows the person, at `side` pixels."""
        logits = F.interpolate(self.mask_logits, size=(side, side), mode="bilinear", align_corners=False)
        return logits.sigmoid()


class _Block(nn.Module):
    """Residual block of two 3x3 convolutions with batch normalisation (He 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.skip = None
        if stride != 1 or inputs != outputs:
            self.skip = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Float[Tensor, "B I H W"]) -> Float[Tensor, "B O H2 W2"]:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + (x if self.skip is None else self.skip(x)))


def _squeeze(inputs: int, outputs: int) -> nn.Sequential:
    """Fewer channels, so that what is where can be read by a matrix."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class PortraitEncoder(nn.Module):
    """forward(images (B,3,R,R) in [-1, 1]) -> `Encoded`; images of other sizes go through `encode`."""

    feature_mean: Tensor
    feature_scale: Tensor
    bf16 = False
    """Whether its convolutions run in bf16, for faster training; predictions are float32."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config

        # The residual trunk; further blocks start as the identity
        self.stem = nn.Sequential(
            nn.Conv2d(3, config.stem, 3, 2, 1, bias=False), nn.BatchNorm2d(config.stem), nn.ReLU()
        )
        stages, inputs = [], config.stem
        for outputs, depth in zip(config.channels, config.depths, strict=True):
            blocks = [_Block(inputs, outputs, 2)]
            blocks += [_Block(outputs, outputs, 1) for _ in range(depth - 1)]
            for block in blocks[config.blocks :]:
                nn.init.zeros_(block.norm2.weight)
            stages.append(nn.Sequential(*blocks))
            inputs = outputs
        self.stages = nn.ModuleList(stages)

        # From the last maps to all numbers: cos and sin of yaw; pitch, roll, log scale, offset; pose; log2 of blur;
        # logit of what is covered
        cells = (config.resolution // 2 ** (len(config.channels) + 1)) ** 2
        self.squeeze = _squeeze(inputs, 64)
        self.squeeze_finer = _squeeze(config.channels[-2], 24)
        local = len(LANDMARKS) * AROUND**2 * config.around
        self.hidden = nn.Linear(64 * cells + 24 * 4 * cells + 2 * len(LANDMARKS) + local, config.hidden)
        self.hidden_further = nn.Sequential(
            nn.Linear(config.hidden, 128), nn.ReLU(), nn.Linear(128, config.hidden), nn.ReLU()
        )
        self.numbers = nn.Linear(config.hidden, 2 + 3 + 2 + 6 + 1 + config.sees_covers)
        self.identity = nn.Linear(64 * cells + sum(config.channels[1:]), config.identity)

        # A feature pyramid for outline and landmarks
        width = config.mask_channels
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in (config.stem, *config.channels))
        self.smooth = nn.Conv2d(width, width, 3, 1, 1)
        self.outline = nn.Conv2d(width, 1, 3, 1, 1)
        self.points = nn.Conv2d(width, len(LANDMARKS), 1)
        self.around = nn.Conv2d(width, config.around, 1) if config.around else None

        # Mean and deviation of the features over the training images
        self.register_buffer("feature_mean", torch.zeros(config.features))
        self.register_buffer("feature_scale", torch.ones(config.features))
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - torch's stubs lack it

    def forward(self, images: Float[Tensor, "B 3 R R"]) -> Encoded:
        # Convolutions
        with torch.autocast(images.device.type, torch.bfloat16) if self.bf16 else nullcontext():
            maps = [self.stem(images.contiguous(memory_format=torch.channels_last))]
            for stage in self.stages:
                maps.append(stage(maps[-1]))
            places = self.squeeze(maps[-1]).flatten(1).float()
            finer = self.squeeze_finer(maps[-2]).flatten(1).float()
            pyramid = self._pyramid(maps).float()

        # Landmarks, and all numbers from what is known by then
        means = torch.cat([m.float().mean(dim=(2, 3)) for m in maps[2:]], dim=1)
        landmarks = soft_places(self.points(pyramid))
        known = [places, finer, 4.0 * (landmarks - 0.5).flatten(1)]
        if self.around is not None:
            known.append(read_around(self.around(pyramid), landmarks.detach()))
        hidden = F.relu(self.hidden(torch.cat(known, dim=1)))
        numbers = self.numbers(hidden + self.hidden_further(hidden))

        # Their meanings
        camera = CameraEstimate(
            yaw=torch.atan2(numbers[:, 1], numbers[:, 0]),
            pitch=numbers[:, 2],
            roll=numbers[:, 3],
            scale=numbers[:, 4].exp(),
            offset=numbers[:, 5:7],
        )

        # All predictions
        return Encoded(
            camera=camera,
            body_pose=to_body(numbers[:, 7:13] * POSE_UNIT, camera),
            view_pose=numbers[:, 7:13] * POSE_UNIT,
            landmarks=landmarks,
            mask_logits=self.outline(pyramid),
            identity=F.normalize(self.identity(torch.cat([places, means], dim=1)), dim=1),
            features=self.standardised(means),
            blur=torch.exp2(numbers[:, 13]),
            cover_logits=numbers[:, 14] if self.config.sees_covers else None,
        )

    def standardised(self, means: Float[Tensor, "B F"]) -> Float[Tensor, "B F"]:
        """Stage means less their mean over the training images, in units of their deviation there."""
        return (means - self.feature_mean) * self.feature_scale

    def _pyramid(self, maps: list[Tensor]) -> Float[Tensor, "B C M M"]:
        """From coarse to fine, each map added to the up-sampled coarser ones (feature pyramid, Lin 2017)."""
        x = self.lateral[-1](maps[-1])
        for lateral, finer in zip(list(self.lateral)[-2::-1], maps[-2::-1], strict=True):
            x = F.interpolate(F.relu(x), scale_factor=2.0, mode="nearest") + lateral(finer)
        return F.relu(self.smooth(F.relu(x)))

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "B 3 H H"], batch: int = 64) -> Encoded:
        """Images of any size, some at a time; larger ones are averaged down, smaller ones bilinearly enlarged."""
        parts = []
        for some in images.split(batch):
            parts.append(self(resample(some, self.config.resolution)))
        return _joined(parts)

    def encode_twice(self, images: Float[Tensor, "B 3 H H"], batch: int = 64) -> tuple[Encoded, Encoded]:
        """`encode`, and its predictions for the mirrored images, mirrored back."""
        return self.encode(images, batch), mirror_encoded(self.encode(images.flip(3), batch))

    def encode_both_ways(self, images: Float[Tensor, "B 3 H H"], batch: int = 64) -> Encoded:
        """The mean of both predictions of `encode_twice`: somewhat more exact, at twice the time.

        The features are the images' own.
        """
        return mean_encoded(*self.encode_twice(images, batch))


def resample(images: Float[Tensor, "B C H H"], side: int) -> Float[Tensor, "B C S S"]:
    """Images at `side` pixels: the mean over each pixel's area when shrinking, bilinear when enlarging."""
    if images.shape[-1] == side:
        return images
    if images.shape[-1] > side:
        return F.interpolate(images, size=(side, side), mode="area")
    return F.interpolate(images, size=(side, side), mode="bilinear", align_corners=False)


def soft_places(logits: Float[Tensor, "B K M M"]) -> Float[Tensor, "B K 2"]:
    """Mean place under the softmax of each map: right and down, 0 to 1 (integral regression, Sun 2018)."""
    side = logits.shape[-1]
    weights = logits.flatten(2).softmax(dim=2).unflatten(2, (side, side))
    centres = (torch.arange(side, device=logits.device) + 0.5) / side
    return torch.stack([(weights.sum(2) * centres).sum(2), (weights.sum(3) * centres).sum(2)], dim=2)


def read_around(maps: Float[Tensor, "B C M M"], places: Float[Tensor, "B K 2"]) -> Float[Tensor, "B N"]:
    """Values of maps at AROUND x AROUND places about each of some places, bilinearly; 0 outside.

    The surroundings of a landmark show how a head is turned more exactly than its predicted place (pose-indexed
    features, Dollar 2010).
    """
    steps = (torch.arange(AROUND, device=maps.device) - (AROUND - 1) / 2) * AROUND_STEP
    offsets = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1).flatten(0, 1)
    grid = 2.0 * (places[:, :, None] + offsets) - 1.0
    return F.grid_sample(maps, grid, align_corners=False).flatten(1)


def landmark_places(
    body: BodyTemplate, camera: Float[Tensor, "B 25"], pose: Float[Tensor, "B 6"]
) -> Float[Tensor, "B K 2"]:
    """Where the LANDMARKS of a posed body are in the image of a camera."""
    motions = bone_transforms(body, pose)
    points = torch.stack([motions[:, b, :, :3] @ constant(x, pose) + motions[:, b, :, 3] for b, x in LANDMARKS], dim=1)
    return project(camera, points)[0]


def to_view(pose: Float[Tensor, "B 6"], camera: CameraEstimate) -> Float[Tensor, "B 6"]:
    """The axes of a body pose in camera coordinates.

    That is how images show turns: a nod is a turn in the image from the side, and a foreshortening from the front. A
    network that had to predict body axes for every yaw learned next to nothing about poses.
    """
    rotation = cam2world(camera.label())[:, :3, :3]
    return torch.einsum("bji,bpj->bpi", rotation, pose.unflatten(1, (2, 3))).flatten(1)


def to_body(view_pose: Float[Tensor, "B 6"], camera: CameraEstimate) -> Float[Tensor, "B 6"]:
    """The inverse of `to_view`."""
    rotation = cam2world(camera.label())[:, :3, :3]
    return torch.einsum("bij,bpj->bpi", rotation, view_pose.unflatten(1, (2, 3))).flatten(1)


def _joined(parts: list[Encoded]) -> Encoded:
    def cat(get) -> Tensor:
        return torch.cat([get(part) for part in parts])

    camera = CameraEstimate(
        cat(lambda e: e.camera.yaw),
        cat(lambda e: e.camera.pitch),
        cat(lambda e: e.camera.roll),
        cat(lambda e: e.camera.scale),
        cat(lambda e: e.camera.offset),
    )
    return Encoded(
        camera,
        cat(lambda e: e.body_pose),
        cat(lambda e: e.view_pose),
        cat(lambda e: e.landmarks),
        cat(lambda e: e.mask_logits),
        cat(lambda e: e.identity),
        cat(lambda e: e.features),
        cat(lambda e: e.blur),
        None if parts[0].cover_logits is None else cat(lambda e: e.cover_logits),
    )


def mirror_encoded(encoded: Encoded) -> Encoded:
    """The same for the mirrored images."""
    camera = encoded.camera
    flip = encoded.camera.offset.new_tensor([-1.0, 1.0])
    landmarks = encoded.landmarks[:, _MIRROR_LANDMARKS]
    return dataclasses.replace(
        encoded,
        camera=CameraEstimate(-camera.yaw, camera.pitch, -camera.roll, camera.scale, camera.offset * flip),
        body_pose=mirror_body_pose(encoded.body_pose),
        view_pose=mirror_body_pose(encoded.view_pose),  # about a camera's axes, too
        landmarks=torch.stack([1.0 - landmarks[..., 0], landmarks[..., 1]], dim=-1),
        mask_logits=encoded.mask_logits.flip(3),
    )


def mean_encoded(one: Encoded, two: Encoded) -> Encoded:
    """Of two estimates of the same; the features are those of the first."""

    def middle(get: Callable[[Encoded], Tensor]) -> Tensor:
        return 0.5 * (get(one) + get(two))

    # Angles that wrap around
    yaws = [torch.stack([e.camera.yaw.cos(), e.camera.yaw.sin()]) for e in (one, two)]
    cosine, sine = yaws[0] + yaws[1]

    # Everything else: scales and blur geometrically, identities as unit vectors
    return Encoded(
        camera=CameraEstimate(
            yaw=torch.atan2(sine, cosine),
            pitch=middle(lambda e: e.camera.pitch),
            roll=middle(lambda e: e.camera.roll),
            scale=middle(lambda e: e.camera.scale.log()).exp(),
            offset=middle(lambda e: e.camera.offset),
        ),
        body_pose=middle(lambda e: e.body_pose),
        view_pose=middle(lambda e: e.view_pose),
        landmarks=middle(lambda e: e.landmarks),
        mask_logits=middle(lambda e: e.mask_logits),
        identity=F.normalize(middle(lambda e: e.identity), dim=1),
        features=one.features,
        blur=middle(lambda e: e.blur.log2()).exp2(),
        cover_logits=None if one.cover_logits is None else middle(_cover_logits),
    )


def _cover_logits(encoded: Encoded) -> Tensor:
    assert encoded.cover_logits is not None
    return encoded.cover_logits


def crop_grid(camera: CameraEstimate, side: int) -> Float[Tensor, "B S S 2"]:
    """Where each pixel of the crop that `camera` describes lies in the plain crop (roll 0, scale 1, offset 0).

    For `torch.nn.functional.grid_sample` (align_corners=False): x right and y down, [-1, 1] across the image.
    """
    centres = (torch.arange(side, device=camera.yaw.device) + 0.5) / side - 0.5
    v, u = torch.meshgrid(centres, centres, indexing="ij")
    x = (u[None] - camera.offset[:, 0, None, None]) / camera.scale[:, None, None]
    y = (v[None] - camera.offset[:, 1, None, None]) / camera.scale[:, None, None]
    cosine, sine = camera.roll.cos()[:, None, None], camera.roll.sin()[:, None, None]
    # a rolled camera's right axis is cos right + sin down, its down axis cos down - sin right
    return 2.0 * torch.stack([cosine * x - sine * y, sine * x + cosine * y], dim=-1)
