"""Sets of pictures as the measurements see them: what the encoder and the discriminator say about each one.

Real and generated pictures go the same way: at the model's resolution, before plain grey where the model has no
background of its own, as bytes, then through the same networks. `evaluation/measures.py` compares such sets.
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
from portrait360.geometry.cameras import zoom_camera
from portrait360.media.images import as_bytes, from_bytes
from portrait360.model.discriminator import Discriminator, Pictures
from portrait360.model.generator import Generator, RenderDraws, Scene
from portrait360.model.rendering import Occupancy
from portrait360.portrait.scene import find_matter
from portrait360.poses.calibration import PoseCalibration, calibrated
from portrait360.poses.windows import middle, network_pictures, window_poses, windows_with_detail

WINDOWS = {"head": 0.5, "face": 0.27}
"""Sides of the middle parts of the picture that show the head, and eyes, nose and mouth, for the measures of these."""

KEPT_SIDE = 256
"""Pictures are kept at most at this side, as bytes."""

LEAST_SIDE = 64
"""Fewer pixels than these, or the model's if it has fewer, do not show what is in a middle part."""

_AT_ONCE = 32

Extractor = Callable[[Float[Tensor, "B 3 H H"]], Float[Tensor, "B D"]]
"""Further features of pictures in [-1, 1], for instance Inception's."""


@dataclass(frozen=True)
class SampleSet:
    """N pictures and what is known, and seen, about them. Angles in radians; None = not known."""

    pictures: UInt8[Tensor, "N 3 P P"]
    camera: Float[Tensor, "N 25"]
    """Where they were taken from."""
    features: Float[Tensor, "N F"]
    identity: Float[Tensor, "N I"]
    seen_yaw: Float[Tensor, " N"]
    seen_pitch: Float[Tensor, " N"]
    seen_pose: Float[Tensor, "N 6"]
    """Yaw, pitch and body pose as the encoder sees them."""
    predicted_pose: Float[Tensor, "N 6"]
    """The body pose as the discriminator sees it, told the camera."""
    body_pose: Float[Tensor, "N 6"] | None = None
    """The true one: exact labels, or what the picture was rendered with."""
    coarse_pose: Float[Tensor, "N 6"] | None = None
    head_features: Float[Tensor, "N F"] | None = None
    face_features: Float[Tensor, "N F"] | None = None
    """Features of the middle of the picture, seen by cameras of their own (`WINDOWS`), whatever it shows."""
    further_features: Float[Tensor, "N D"] | None = None

    def __len__(self) -> int:
        return len(self.pictures)

    def take(self, rows: Int[Tensor, " M"]) -> SampleSet:
        """Some of the pictures."""
        return _each(lambda name: None if getattr(self, name) is None else getattr(self, name)[rows])

    @property
    def images(self) -> Float[Tensor, "N 3 P P"]:
        """The pictures in [-1, 1]."""
        return from_bytes(self.pictures)


def _each(get: Callable[[str], Tensor | None]) -> SampleSet:
    return SampleSet(**{field.name: get(field.name) for field in dataclasses.fields(SampleSet)})  # pyright: ignore


def join(parts: Sequence[SampleSet]) -> SampleSet:
    """Sets one after the other; what one of them lacks, the whole lacks."""

    def get(name: str) -> Tensor | None:
        values = [getattr(part, name) for part in parts]
        return None if any(v is None for v in values) else torch.cat(values)

    return _each(get)


@dataclass(frozen=True)
class Judge:
    """The networks that look at pictures of one model."""

    encoder: PortraitEncoder
    discriminator: Discriminator
    further: Extractor | None = None
    calibration: PoseCalibration | None = None
    """Of the discriminator's poses; for real pictures alone."""

    @torch.no_grad()
    def look(
        self,
        pictures: Pictures,
        camera: Float[Tensor, "B 25"],
        closer: dict[str, Float[Tensor, "B 3 _ _"]],
        *,
        body_pose: Float[Tensor, "B 6"] | None = None,
        coarse_pose: Float[Tensor, "B 6"] | None = None,
        known: dict[str, Tensor] | None = None,
    ) -> SampleSet:
        """What is seen in pictures at the model's sizes.

        Args:
            pictures, camera: what to look at, on the networks' device.
            closer: pictures of the middle parts, by the names of `WINDOWS`.
            body_pose, coarse_pose: what is known about them.
            known: what `encodings` gave for these pictures before; else the encoder looks at them.
        """
        stored = as_bytes(pictures.image)
        shown = from_bytes(stored)
        encodings = self.encodings(shown, closer) if known is None else known
        if stored.shape[-1] > KEPT_SIDE:
            stored = as_bytes(F.interpolate(shown, size=(KEPT_SIDE, KEPT_SIDE), mode="area"))
        # one part per picture: the deviation over the minibatch must not depend on the neighbours
        predicted = self.discriminator.predict_pose(pictures, camera, parts=len(stored))
        return SampleSet(
            pictures=stored.cpu(),
            camera=camera.cpu(),
            predicted_pose=predicted.cpu(),
            body_pose=None if body_pose is None else body_pose.cpu(),
            coarse_pose=None if coarse_pose is None else coarse_pose.cpu(),
            **encodings,
        )

    def encodings(
        self, shown: Float[Tensor, "B 3 H H"], closer: dict[str, Float[Tensor, "B 3 _ _"]]
    ) -> dict[str, Tensor]:
        """What does not depend on the model that is measured, by the names of `SampleSet`."""
        seen = self.encoder.encode_both_ways(shown)
        out = {
            "features": seen.features,
            "identity": seen.identity,
            "seen_yaw": seen.camera.yaw,
            "seen_pitch": seen.camera.pitch,
            "seen_pose": seen.body_pose,
        }
        for name, pictures in closer.items():
            out[f"{name}_features"] = self.encoder.encode(from_bytes(as_bytes(pictures))).features
        if self.further is not None:
            out["further_features"] = self.further(shown)
        return {name: value.cpu() for name, value in out.items()}


# ---- real pictures ----


def least_side(model: ModelConfig) -> int:
    """The fewest pixels with which a model's middle parts are looked at: super-resolution has one side only."""
    return model.resolution if model.superresolution is not None else min(model.resolution, LEAST_SIDE)


def windows_of(resolution: int, model: ModelConfig) -> dict[str, int]:
    """The `WINDOWS` that can be looked at in pictures of `resolution` pixels, and their sides there.

    The side is the model's. Where the pictures have fewer pixels, it is halved as far as `least_side`.
    """
    sides = {}
    for name, window in WINDOWS.items():
        side = model.resolution
        while side > resolution * window and side // 2 >= least_side(model):
            side //= 2
        if side <= resolution * window:
            sides[name] = side
    return sides


class RealPictures:
    """Pictures of a dataset, looked at by row."""

    def __init__(self, data: PortraitDataset, exact: PortraitDataset | None, model: ModelConfig) -> None:
        self.data, self.exact, self.model = data, exact, model
        self.windows = windows_of(data.resolution, model)

    def __len__(self) -> int:
        return len(self.data)

    def look(
        self,
        rows: Int[Tensor, " M"],
        judge: Judge,
        advance: Callable[[int], None],
        known: dict[str, Tensor] | None = None,
    ) -> SampleSet:
        """What the judge sees in the pictures of these rows; `known` as in `Judge.look`, for all rows."""
        device = next(judge.encoder.parameters()).device
        windows = windows_with_detail(judge.calibration, self.data.resolution, self.model)
        parts = []
        for start in range(0, len(rows), _AT_ONCE):
            some = rows[start : start + _AT_ONCE]
            image, mask = self._pictures(some)
            cameras = self.data.cameras[some].to(device)
            closer = self._closer(image, mask)
            part = judge.look(
                _to(network_pictures(self.model, image, mask), device),
                cameras,
                {name: pictures.to(device) for name, pictures in closer.items()},
                body_pose=None if self.exact is None else self.exact.body_poses[some],
                coarse_pose=self.data.body_poses[some] if self.data.label_kind == "coarse" else None,
                known=None if known is None else {k: v[start : start + _AT_ONCE] for k, v in known.items()},
            )
            answers = part.predicted_pose[:, None]
            if windows[1:]:
                whole = image.to(device), mask.to(device), cameras
                further = window_poses(judge.discriminator, self.model, *whole, windows[1:])
                answers = torch.cat([answers, further.cpu()], dim=1)
            parts.append(dataclasses.replace(part, predicted_pose=calibrated(answers, judge.calibration)))
            advance(len(some))
        return join(parts)

    def read(self, row: int) -> tuple[UInt8[ndarray, "H W 3"], UInt8[ndarray, "H W"]]:
        """A picture and its mask."""
        return self.data.image(row), self.data.mask(row)

    def _pictures(self, rows: Int[Tensor, " M"]) -> tuple[Tensor, Tensor]:
        """Pictures in [-1, 1] and masks in [0, 1]."""
        images, masks = (
            torch.stack([torch.from_numpy(v.copy()) for v in column])
            for column in zip(*(self.read(row) for row in rows.tolist()), strict=True)
        )
        return images.permute(0, 3, 1, 2).float() / 127.5 - 1.0, masks[:, None].float() / 255.0

    def _closer(self, image: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Middle parts at their sides."""
        found = {}
        for name, side in self.windows.items():
            part = middle(image, WINDOWS[name]), middle(mask, WINDOWS[name])
            found[name] = network_pictures(dataclasses.replace(self.model, resolution=side), *part).image
        return found


def _to(pictures: Pictures, device: torch.device) -> Pictures:
    return pictures.map(lambda t: t.to(device))


# ---- generated pictures ----


@dataclass(frozen=True)
class Drawn:
    """Generated portraits seen in two ways.

    `same`: the camera and pose that the person was drawn for. `random`: others, drawn independently; what counts
    for a person that can be looked at from everywhere.
    """

    same: SampleSet
    random: SampleSet


@dataclass(frozen=True)
class People:
    """Scenes of some persons, the cameras and poses they were drawn for, and where they have matter."""

    scene: Scene
    camera: Float[Tensor, "B 25"]
    body_pose: Float[Tensor, "B 6"]
    draws: RenderDraws


@torch.no_grad()
def draw_people(
    generator: Generator,
    cameras: Float[Tensor, "N 25"],
    count: int,
    draws: torch.Generator,
    *,
    truncation_psi: float = 1.0,
) -> People:
    """New persons as training draws them, conditioned on a camera of the data and a pose of the branch.

    The pose belongs to the camera and a latent of its own (official_model 10.15, `G_predict`).
    """
    camera = cameras[torch.randint(len(cameras), (count,), generator=draws)]
    z, other = torch.randn(2, count, generator.config.z_dim, generator=draws)
    device = next(generator.parameters()).device
    camera, z, other = camera.to(device), z.to(device), other.to(device)
    pose = generator.pose_branch(other, camera)
    seed = int(torch.randint(1 << 31, (1,), generator=draws))
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else None):
        torch.manual_seed(seed)  # of the noise in synthesis layers
        w = generator.map(z, camera, pose, truncation_psi)
        scene = generator.scene(w, noise_mode="random")
    matter = find_matter(generator, scene)
    return People(scene, camera, pose, RenderDraws(occupancy=None if matter is None else Occupancy(matter)))


def closer_camera(camera: Float[Tensor, "B 25"], window: str) -> Float[Tensor, "B 25"]:
    """The camera that sees a middle part of the picture (a name of `WINDOWS`)."""
    return zoom_camera(camera, 1.0 / WINDOWS[window])


@torch.no_grad()
def draw_generated(
    generator: Generator,
    judge: Judge,
    cameras: Float[Tensor, "N 25"],
    count: int,
    seed: int,
    advance: Callable[[int], None],
    *,
    windows: dict[str, int],
    batch: int = 16,
) -> Drawn:
    """Draw `count` persons and look at each in both ways.

    Args:
        generator, judge: the model and what looks at it.
        cameras: the data's, from which cameras are drawn.
        count, seed: how many persons, and which.
        advance: told how many persons are done.
        windows: middle parts to render as well, and their sides (`windows_of`).
        batch: persons at a time.
    """
    draws = torch.Generator().manual_seed(seed)
    has_raw = generator.config.superresolution is not None

    same, random = [], []
    for start in range(0, count, batch):
        people = draw_people(generator, cameras, min(batch, count - start), draws)
        others = draw_views(generator, cameras, len(people.camera), draws)
        for (camera, pose), parts in (((people.camera, people.body_pose), same), (others, random)):
            out = generator.render(people.scene, camera, pose, draws=people.draws)
            closer = {
                name: generator.render(
                    people.scene,
                    closer_camera(camera, name),
                    pose,
                    resolution=None if has_raw else side,
                    draws=people.draws,
                ).image
                for name, side in windows.items()
            }
            pictures = Pictures(out.image, out.raw if has_raw else None, out.mask)
            parts.append(judge.look(pictures, camera, closer, body_pose=pose))
        advance(len(people.camera))
    return Drawn(join(same), join(random))


def draw_views(
    generator: Generator, cameras: Float[Tensor, "N 25"], count: int, draws: torch.Generator
) -> tuple[Float[Tensor, "B 25"], Float[Tensor, "B 6"]]:
    """Cameras of the data and poses of the branch that have to do with nobody."""
    device = next(generator.parameters()).device
    camera = cameras[torch.randint(len(cameras), (count,), generator=draws)].to(device)
    z = torch.randn(count, generator.config.z_dim, generator=draws).to(device)
    return camera, generator.pose_branch(z, camera)
