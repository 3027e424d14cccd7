"""The photo's own pixels on the portrait, and its colours where the photo does not reach."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from portrait360.geometry.body import BodyTemplate
from portrait360.geometry.cameras import rays
from portrait360.geometry.conventions import model_points, view_camera
from portrait360.geometry.deformation import apply_field, deformation_field
from portrait360.inversion.optimise import Photo
from portrait360.inversion.regions import HAIR, SKIN, surface_regions
from portrait360.inversion.rendering import View, occupancy_of, render_view
from portrait360.inversion.target import resized
from portrait360.media.images import blur
from portrait360.model.appearance import TINT_SHAPE, PhotoResidual, rounded, surface_points, tint_nodes
from portrait360.model.generator import Generator, Scene

_OPAQUE = 0.9
"""Opacity of portrait and photo from which on a pixel shows a surface."""
_BORDER, _FEATHER = 0.008, 0.006
"""Of the image's side: how far from the outline the photo ends, and the deviation of the blur of its border."""
_FACING, _FACED = 0.25, 0.6
"""Cosines between surface and ray from which the photo counts, and counts in full."""
_SMOOTH = 0.006
"""Of the image's side: deviation of the blur of the depth before normals are taken."""
_DEPTH_SIDE = 512


@torch.no_grad()
def photo_residual(generator: Generator, scene: Scene, photo: Photo, side: int) -> PhotoResidual:
    """What a photo shows beyond the rendering from its camera, at `side` pixels, as files keep it."""
    # Rendering and photo
    target = photo.target.window(1.0, side)
    occupancy = occupancy_of(generator, scene)
    view = render_view(generator, scene, target.camera, target.body_pose, side, occupancy=occupancy, finished=True)
    shown = photo.light.off(target.image, target.mask)
    both = (view.mask > _OPAQUE) & (target.mask > _OPAQUE) & (target.known > _OPAQUE)

    # Weights: away from the outline, and where the surface faces the camera
    border = 2 * max(1, round(_BORDER * side)) + 1
    inner = -F.max_pool2d(-both.float(), border, 1, border // 2)
    camera = view_camera(target.camera, generator.config.camera)
    weight = blur(inner * facing(camera, view.depth), _FEATHER * side)
    weight = torch.minimum(weight, both.float())
    residual = (shown - view.image) * both
    depth = resized(view.depth, min(side, _DEPTH_SIDE))
    return rounded(PhotoResidual(camera, target.body_pose, residual, weight.clamp(0.0, 1.0), depth))


def facing(camera: Float[Tensor, "1 25"], depth: Float[Tensor, "1 1 S S"]) -> Float[Tensor, "1 1 S S"]:
    """How much the surface faces the camera, pixel by pixel: 0 at grazing angles and where depth is steep, to 1."""
    side = depth.shape[-1]
    points = surface_points(camera, depth)[0].T.unflatten(1, (side, side))[None]
    smooth = blur(points, _SMOOTH * side)
    across = F.pad(smooth[..., 2:] - smooth[..., :-2], (1, 1, 0, 0))
    down = F.pad(smooth[..., 2:, :] - smooth[..., :-2, :], (0, 0, 1, 1))
    normal = F.normalize(torch.linalg.cross(across, down, dim=1), dim=1)
    directions = rays(camera, side)[1][0].T.unflatten(1, (side, side))[None]
    cosine = (normal * directions).sum(dim=1, keepdim=True).abs()
    return ((cosine - _FACING) / (_FACED - _FACING)).clamp(0.0, 1.0)


# ---- colours beyond the photo ----

_COLOUR_SIDE = 128
_SLOW = 0.015
"""Of the image's side: deviation of the blur that leaves the residual's colours, not its details."""
_MOST_POINTS = 1500
_NEAR, _ALIKE = 0.15, 0.20
"""Deviations of the kernels: distance at rest in world units, and of rendered colours in units of [-1, 1]."""
_OTHER = 0.02
"""Factor on the kernel between different regions: skin, hair and clothes."""
_SKIN_LIKE = 0.35
"""Distance from the face's median colour below which ears, temples and bald heads are skin."""
_NODES = 8192
_DOUBT = 0.3
"""Weight of no change among the kernels."""


@dataclass(frozen=True)
class ColourChange:
    """How photos change the colours of surfaces, by place at rest and rendered colour: a kernel regression.

    Surfaces that no photo shows take the change of those that are near and of a like colour, so hair follows hair and
    skin follows skin.
    """

    body: BodyTemplate
    places: Float[Tensor, "K 3"]
    colours: Float[Tensor, "K 3"]
    changes: Float[Tensor, "K 3"]
    regions: Int[Tensor, " K"]

    def at(self, places: Float[Tensor, "N 3"], colours: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
        """The change of surfaces at canonical places with rendered colours."""
        near = torch.cdist(places, self.places).square() / _NEAR**2
        alike = torch.cdist(colours, self.colours).square() / _ALIKE**2
        own = surface_regions(self.body, places)
        weights = torch.exp(-0.5 * (near + alike)) * torch.where(own[:, None] == self.regions, 1.0, _OTHER)
        return weights @ self.changes / (weights.sum(dim=1, keepdim=True) + _DOUBT)


@torch.no_grad()
def colour_change(generator: Generator, scene: Scene, photos: list[Photo]) -> ColourChange:
    """How the photos change the colours of what they show."""
    occupancy, parts = occupancy_of(generator, scene), []
    for photo in photos:
        target = photo.target.window(1.0, _COLOUR_SIDE)
        view = render_view(generator, scene, target.camera, target.body_pose, _COLOUR_SIDE, occupancy=occupancy)
        shown = photo.light.off(target.image, target.mask)
        both = ((view.mask > _OPAQUE) & (target.mask > _OPAQUE) & (target.known > _OPAQUE)).float()
        sigma = _SLOW * _COLOUR_SIDE
        slow = blur((shown - view.image) * both, sigma) / blur(both, sigma).clamp_min(0.05)

        # Some of the pixels, at their places at rest
        taken = both.flatten().nonzero()[:, 0]
        taken = taken[:: max(1, len(taken) * len(photos) // _MOST_POINTS)]
        places = at_rest(generator, target.camera, target.body_pose, view)[0, taken]
        parts.append((places, view.image[0].flatten(1).T[taken], slow[0].flatten(1).T[taken]))
    places, colours, changes = (torch.cat(values) for values in zip(*parts, strict=True))
    regions = photo_regions(surface_regions(generator.body, places), colours + changes)
    return ColourChange(generator.body, places, colours, changes, regions)


def photo_regions(regions: Int[Tensor, " K"], colours: Float[Tensor, "K 3"]) -> Int[Tensor, " K"]:
    """Regions of surfaces in a photo: what the body has under hair counts as skin where the photo has its colour."""
    skin = colours[regions == SKIN]
    if not len(skin):
        return regions
    like = (colours - skin.median(dim=0).values).square().sum(dim=1).sqrt() < _SKIN_LIKE
    return torch.where((regions == HAIR) & like, SKIN, regions)


def at_rest(
    generator: Generator, camera: Float[Tensor, "B 25"], body_pose: Float[Tensor, "B 6"], view: View
) -> Float[Tensor, "B M 3"]:
    """The canonical place of what each pixel of a rendering shows."""
    points = surface_points(view_camera(camera, generator.config.camera), view.depth)
    if not generator.config.posable:
        return points
    return apply_field(deformation_field(generator.body, body_pose), points)


@torch.no_grad()
def tint(generator: Generator, scene: Scene, change: ColourChange) -> Float[Tensor, "1 3 nz ny nx"]:
    """The change at the nodes of a canonical grid, by the portrait's own colours there; rounded to float16."""
    nodes = tint_nodes().flatten(0, 2)
    colours = generator.query(scene, model_points(nodes, generator.config.camera)[None])[1][0] * 2.0 - 1.0
    values = torch.cat([change.at(*some) for some in zip(nodes.split(_NODES), colours.split(_NODES), strict=True)])
    return values.T.unflatten(1, TINT_SHAPE)[None].half().float().contiguous()
