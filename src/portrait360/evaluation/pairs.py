"""The same portraits from several cameras: whether identity, colours and depths agree."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from portrait360.config import ModelConfig
from portrait360.encoder.network import PortraitEncoder
from portrait360.evaluation.consistency import View, ray_distance, reprojection_error
from portrait360.evaluation.measures import mean_where
from portrait360.evaluation.metrics import retrieval_top1
from portrait360.evaluation.sampler import PortraitSampler
from portrait360.geometry.cameras import camera_label, yaw_pitch
from portrait360.media.images import as_bytes, from_bytes
from portrait360.poses.windows import network_images
from portrait360.synthetic.source import PortraitSource, portrait_camera

STEP_DEGREES = 20.0
"""Turn between the two views whose pixels are compared."""

FAR_DEGREES = (90.0, 180.0)
"""Turn between the two views whose identities are compared, uniform, to either side."""


@dataclass(frozen=True)
class Pairs:
    """N portraits from three cameras each: somewhere, 20 degrees further, and from another side."""

    first: View
    near: View
    far: View

    def measures(self, encoder: PortraitEncoder) -> dict[str, float]:
        """Numbers of consistency. Colours and depths are compared both ways."""
        there, back = reprojection_error(self.first, self.near), reprojection_error(self.near, self.first)
        here, other = (_identity(encoder, view.image) for view in (self.first, self.far))
        values = {
            "identity_similarity": (here * other).sum(1).mean().item(),
            "reprojection_colour": 0.5 * (mean_where(there.colour) + mean_where(back.colour)),
            "reprojection_depth": 0.5 * (mean_where(there.depth) + mean_where(back.depth)),
            "reprojection_agreement": 0.5 * (mean_where(there.agreement) + mean_where(back.agreement)),
        }
        if len(here) > 1:
            values["identity_retrieval"] = retrieval_top1(other.numpy(), here.numpy())
        return values


def _identity(encoder: PortraitEncoder, images: Float[Tensor, "N 3 H H"]) -> Float[Tensor, "N I"]:
    device = next(encoder.parameters()).device
    return encoder.encode_both_ways(from_bytes(as_bytes(images)).to(device)).identity.cpu()


def three_yaws(yaw: Float[Tensor, " N"], draws: torch.Generator) -> Float[Tensor, "3 N"]:
    """Yaws of the three cameras from that of the first, radians."""
    turn = torch.deg2rad(torch.tensor(FAR_DEGREES))
    far = turn[0] + (turn[1] - turn[0]) * torch.rand(len(yaw), generator=draws)
    side = torch.where(torch.rand(2, len(yaw), generator=draws) < 0.5, -1.0, 1.0)
    return torch.stack([yaw, yaw + side[0] * math.radians(STEP_DEGREES), yaw + side[1] * far])


def join_views(parts: list[View]) -> View:
    """Views one after the other."""
    return View(*(torch.cat([getattr(part, k) for part in parts]) for k in ("image", "mask", "distance", "camera")))


@torch.no_grad()
def generated_pairs(
    sampler: PortraitSampler, count: int, seed: int, advance: Callable[[int], None], batch: int = 16
) -> Pairs:
    """Generated portraits, posed, from three cameras each."""
    draws = torch.Generator().manual_seed(seed)
    views: tuple[list[View], list[View], list[View]] = ([], [], [])
    for start in range(0, count, batch):
        portraits = sampler.portraits(min(batch, count - start), draws)
        yaw, pitch = yaw_pitch(portraits.camera.cpu())
        for turned, parts in zip(three_yaws(yaw, draws), views, strict=True):
            camera = camera_label(turned, pitch)
            label = camera.to(portraits.camera)
            out = sampler.generator.render(portraits.scene, label, portraits.body_pose, draws=portraits.draws)
            parts.append(View(out.image.cpu(), out.mask.clamp(0, 1).cpu(), out.depth.cpu(), camera))
        advance(len(yaw))
    return Pairs(*(join_views(parts) for parts in views))


def synthetic_pairs(
    source: PortraitSource, model: ModelConfig, count: int, seed: int, advance: Callable[[int], None]
) -> Pairs:
    """Synthetic portraits from three cameras each, as a perfect generator of this model's kind would render them.

    At the model's resolution and before its background; light, pose and expression are the same in all views.
    """
    draws = torch.Generator().manual_seed(seed)
    views: tuple[list[View], list[View], list[View]] = ([], [], [])
    for index in range(count):
        # One subject, from three cameras.
        scene = source.subject(seed, index)
        yaw, pitch = scene.subject.yaw, scene.subject.pitch
        for turned, parts in zip(three_yaws(torch.tensor([yaw]), draws), views, strict=True):
            label = portrait_camera(turned.item(), pitch)
            rendered = source.render(scene, label, model.resolution, depth=True)
            if rendered.depth is None:
                raise RuntimeError("the renderer was asked for depth and gave none")

            # As tensors; the soft rim of hair is person in the mask and has no depth: it counts as neither.
            camera = torch.from_numpy(label)[None]
            image = torch.from_numpy(rendered.image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1.0
            mask = torch.from_numpy(rendered.mask.copy())[None, None].float() / 255.0
            depth = torch.from_numpy(np.asarray(rendered.depth, np.float32).copy())[None, None]
            mask = torch.where(depth > 0, mask, mask.clamp(max=0.5))
            parts.append(_at_rays(View(image, mask, ray_distance(depth, camera), camera), model))
        advance(1)
    return Pairs(*(join_views(parts) for parts in views))


def _at_rays(view: View, model: ModelConfig) -> View:
    """A rendered view as the model's images are: its background, and mask and distance at the rays' resolution."""
    shown = network_images(model, view.image, view.mask)
    step = view.distance.shape[-1] // model.raw_resolution
    # of distances no mean is taken: it would lie between surfaces
    distance = view.distance[..., step // 2 :: step, step // 2 :: step] if step > 1 else view.distance
    mask = view.mask[..., step // 2 :: step, step // 2 :: step] if step > 1 else view.mask
    return View(shown.image, mask, distance, view.camera)
