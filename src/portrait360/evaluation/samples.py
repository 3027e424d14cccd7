"""Sets of images with what the encoder and the discriminator predict for each one.

Real and generated images go the same way: at the model's resolution, on a grey background where the model has no
background of its own, as bytes, then through the same networks. `evaluation/measures.py` compares such sets.
Generated images come from `evaluation/sampler.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from numpy import ndarray
from torch import Tensor

from portrait360.config import ModelConfig
from portrait360.data.dataset import PortraitDataset
from portrait360.encoder.network import PortraitEncoder
from portrait360.media.images import as_bytes, from_bytes
from portrait360.model.discriminator import Discriminator, DiscriminatorInput
from portrait360.poses.calibration import PoseCalibration, calibrated
from portrait360.poses.windows import centre_crop, network_images, window_poses, windows_with_detail

WINDOWS = {"head": 0.5, "face": 0.27}
"""Sides of the centre crops that show the head, and eyes, nose and mouth, for the measures of these."""

KEPT_SIDE = 256
"""Images are kept at most at this side, as bytes."""

LEAST_SIDE = 64
"""Fewer pixels than these, or the model's if it has fewer, do not show what is in a centre crop."""

MEASURED_SIDE = 128
"""Models that render any side are measured at this one at least, whatever side they were trained on."""

_AT_ONCE = 32

Extractor = Callable[[Float[Tensor, "B 3 H H"]], Float[Tensor, "B D"]]
"""Further features of images in [-1, 1], for instance Inception's."""


@dataclass(frozen=True)
class SampleSet:
    """N images with their labels and predictions. Angles in radians; None = not known."""

    pixels: UInt8[Tensor, "N 3 P P"]
    camera: Float[Tensor, "N 25"]
    """Camera labels."""
    features: Float[Tensor, "N F"]
    identity: Float[Tensor, "N I"]
    encoder_yaw: Float[Tensor, " N"]
    encoder_pitch: Float[Tensor, " N"]
    encoder_pose: Float[Tensor, "N 6"]
    """Yaw, pitch and body pose that the encoder predicts."""
    discriminator_pose: Float[Tensor, "N 6"]
    """The body pose that the discriminator predicts, conditioned on the camera."""
    body_pose: Float[Tensor, "N 6"] | None = None
    """The true one: exact labels, or what the image was rendered with."""
    coarse_pose: Float[Tensor, "N 6"] | None = None
    head_features: Float[Tensor, "N F"] | None = None
    face_features: Float[Tensor, "N F"] | None = None
    """Features of the centre crops of `WINDOWS`, whatever they show."""
    further_features: Float[Tensor, "N D"] | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, rows: Int[Tensor, " M"]) -> SampleSet:
        """Some of the images."""
        return _each(lambda name: None if getattr(self, name) is None else getattr(self, name)[rows])

    @property
    def images(self) -> Float[Tensor, "N 3 P P"]:
        """The images in [-1, 1]."""
        return from_bytes(self.pixels)


def _each(get: Callable[[str], Tensor | None]) -> SampleSet:
    return SampleSet(**{field.name: get(field.name) for field in dataclasses.fields(SampleSet)})  # pyright: ignore


def join(parts: Sequence[SampleSet]) -> SampleSet:
    """Sets one after the other; what one of them lacks, the whole lacks."""

    def get(name: str) -> Tensor | None:
        values = [getattr(part, name) for part in parts]
        return None if any(v is None for v in values) else torch.cat(values)

    return _each(get)


@dataclass(frozen=True)
class Predictors:
    """The networks whose predictions measure the images of one model."""

    encoder: PortraitEncoder
    discriminator: Discriminator
    further: Extractor | None = None
    calibration: PoseCalibration | None = None
    """Of the discriminator's poses; for real images only."""

    @torch.no_grad()
    def predict(
        self,
        images: DiscriminatorInput,
        camera: Float[Tensor, "B 25"],
        zoomed: dict[str, Float[Tensor, "B 3 _ _"]],
        *,
        body_pose: Float[Tensor, "B 6"] | None = None,
        coarse_pose: Float[Tensor, "B 6"] | None = None,
        known: dict[str, Tensor] | None = None,
    ) -> SampleSet:
        """Predict features and poses of images at the model's sizes.

        Args:
            images, camera: on the networks' device.
            zoomed: zoomed crops of the same images, by the names of `WINDOWS`.
            body_pose, coarse_pose: their labels, as far as they are known.
            known: cached `encodings` of these images; without them the encoder runs.
        """
        # As bytes, so that real and generated images are rounded alike.
        stored = as_bytes(images.image)
        shown = from_bytes(stored)
        encodings = self.encodings(shown, zoomed) if known is None else known
        if stored.shape[-1] > KEPT_SIDE:
            stored = as_bytes(F.interpolate(shown, size=(KEPT_SIDE, KEPT_SIDE), mode="area"))

        # One part per image: the deviation over the minibatch must not depend on the neighbours.
        side = self.discriminator.resolution
        if stored.shape[-1] != side:
            images = images.map(lambda v: F.interpolate(v, size=(side, side), mode="area"))
        predicted = self.discriminator.predict_pose(images, camera, parts=len(stored))
        return SampleSet(
            pixels=stored.cpu(),
            camera=camera.cpu(),
            discriminator_pose=predicted.cpu(),
            body_pose=None if body_pose is None else body_pose.cpu(),
            coarse_pose=None if coarse_pose is None else coarse_pose.cpu(),
            **encodings,
        )

    def encodings(
        self, shown: Float[Tensor, "B 3 H H"], zoomed: dict[str, Float[Tensor, "B 3 _ _"]]
    ) -> dict[str, Tensor]:
        """Predictions that do not depend on the measured model, by the names of `SampleSet`."""
        encoding = self.encoder.encode_both_ways(shown)
        out = {
            "features": encoding.features,
            "identity": encoding.identity,
            "encoder_yaw": encoding.camera.yaw,
            "encoder_pitch": encoding.camera.pitch,
            "encoder_pose": encoding.body_pose,
        }
        for name, images in zoomed.items():
            out[f"{name}_features"] = self.encoder.encode(from_bytes(as_bytes(images))).features
        if self.further is not None:
            out["further_features"] = self.further(shown)
        return {name: value.cpu() for name, value in out.items()}


# ---- real images ----


def measured_model(model: ModelConfig, resolution: int) -> ModelConfig:
    """The model with the side at which its images are measured, beside data of `resolution` pixels."""
    side = min(max(model.resolution, MEASURED_SIDE), resolution)
    if model.superresolution is not None or side <= model.resolution:
        return model
    return dataclasses.replace(model, resolution=side, raw_resolution=side)


def least_side(model: ModelConfig) -> int:
    """The fewest pixels with which a model's centre crops are measured: super-resolution has one side only."""
    return model.resolution if model.superresolution is not None else min(model.resolution, LEAST_SIDE)


def windows_of(resolution: int, model: ModelConfig) -> dict[str, int]:
    """The `WINDOWS` that can be measured in images of `resolution` pixels, and their sides there.

    The side is the model's. Where the images have fewer pixels, it is halved as far as `least_side`.
    """
    sides = {}
    for name, window in WINDOWS.items():
        side = model.resolution
        while side > resolution * window and side // 2 >= least_side(model):
            side //= 2
        if side <= resolution * window:
            sides[name] = side
    return sides


class RealImages:
    """The images of a dataset, with predictions by row."""

    def __init__(self, data: PortraitDataset, exact: PortraitDataset | None, model: ModelConfig) -> None:
        self.data, self.exact, self.model = data, exact, model
        self.windows = windows_of(data.resolution, model)

    def __len__(self) -> int:
        return len(self.data)

    def predict(
        self,
        rows: Int[Tensor, " M"],
        predictors: Predictors,
        advance: Callable[[int], None],
        known: dict[str, Tensor] | None = None,
    ) -> SampleSet:
        """Predictions for the images of these rows; `known` as in `Predictors.predict`, for all rows."""
        device = next(predictors.encoder.parameters()).device
        side, trained = predictors.discriminator.resolution, self.model
        if side != trained.resolution:
            trained = dataclasses.replace(trained, resolution=side, raw_resolution=side)
        windows = windows_with_detail(predictors.calibration, self.data.resolution, trained)
        parts = []
        for start in range(0, len(rows), _AT_ONCE):
            # Whole images and zoomed crops through encoder and discriminator.
            some = rows[start : start + _AT_ONCE]
            image, mask = self.load(some)
            cameras = self.data.cameras[some].to(device)
            zoomed = self.zoomed(image, mask)
            part = predictors.predict(
                _to(network_images(self.model, image, mask), device),
                cameras,
                {name: images.to(device) for name, images in zoomed.items()},
                body_pose=None if self.exact is None else self.exact.body_poses[some],
                coarse_pose=self.data.body_poses[some] if self.data.label_kind == "coarse" else None,
                known=None if known is None else {k: v[start : start + _AT_ONCE] for k, v in known.items()},
            )

            # Poses of all windows, calibrated to one pose per image.
            answers = part.discriminator_pose[:, None]
            if windows[1:]:
                whole = image.to(device), mask.to(device), cameras
                further = window_poses(predictors.discriminator, trained, *whole, windows[1:])
                answers = torch.cat([answers, further.cpu()], dim=1)
            parts.append(dataclasses.replace(part, discriminator_pose=calibrated(answers, predictors.calibration)))
            advance(len(some))
        return join(parts)

    def read(self, row: int) -> tuple[UInt8[ndarray, "H W 3"], UInt8[ndarray, "H W"]]:
        """An image and its mask."""
        return self.data.image(row), self.data.mask(row)

    def load(self, rows: Int[Tensor, " M"]) -> tuple[Tensor, Tensor]:
        """Images in [-1, 1] and masks in [0, 1]."""
        images, masks = (
            torch.stack([torch.from_numpy(v.copy()) for v in column])
            for column in zip(*(self.read(row) for row in rows.tolist()), strict=True)
        )
        return images.permute(0, 3, 1, 2).float() / 127.5 - 1.0, masks[:, None].float() / 255.0

    def zoomed(self, image: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """The zoomed crops at their sides, for the names of `WINDOWS` that the dataset has the pixels for."""
        found = {}
        for name, side in self.windows.items():
            part = centre_crop(image, WINDOWS[name]), centre_crop(mask, WINDOWS[name])
            found[name] = network_images(dataclasses.replace(self.model, resolution=side), *part).image
        return found


def _to(images: DiscriminatorInput, device: torch.device) -> DiscriminatorInput:
    return images.map(lambda t: t.to(device))
