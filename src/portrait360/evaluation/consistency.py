"""Agreement between two images of one scene. Pixels of one view are lifted by their distance and looked up in another.

In a scene that is truly three-dimensional, a surface point has one place and, under light that is fixed in the world,
one colour; what is left is the error of interpolation between pixels. An image painted per view - features that
follow the camera - disagrees in colour where its depth still fits, and in depth where it does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from portrait360.geometry.cameras import cam2world, intrinsics, project, rays
from portrait360.types import CAMERA_LABEL_SIZE, InputError

SOLID = 0.9
"""Mask above which a pixel shows the person. Below, distance and colour mix with what lies behind."""

EMPTY = 0.1
"""Mask below which a pixel shows the background."""

TOLERANCE = 0.01
"""Difference in distance, world units (14 mm), up to which two views see the same surface.

It allows for soft densities: the mean distance of a ray in hair or in a density that rises over a few
millimetres depends on the side that the ray comes from. It is below the relief that a flat face lacks: a nose stands
out by 0.03, a chin over the neck by 0.05. Half of the distance's spread between the four pixels of a look-up comes on
top: what half a pixel sideways changes on a slanting surface.
"""

STEEP = 4.0
"""Change of distance per pixel, in pixel sizes, beyond which pixels are left out: edges where the surface jumps,
and surfaces at less than 14 degrees to the ray. Between such pixels there is nothing to interpolate."""


@dataclass(frozen=True)
class View:
    """B images with what is known about them, float32.

    image [B, 3, H, W] in [-1, 1], H = W at least R; mask [B, 1, R, R] in 0..1; distance [B, 1, R, R] along the ray in
    world units (`RenderOutput.depth`; anything finite where the mask is low); camera [B, 25].

    Raises:
        InputError: shapes do not go together, or numbers are not finite.
    """

    image: Tensor
    mask: Tensor
    distance: Tensor
    camera: Tensor

    def __post_init__(self) -> None:
        # The shapes that go together.
        batch, side = len(self.camera), self.distance.shape[-1]
        wanted = {
            "mask": (batch, 1, side, side),
            "distance": (batch, 1, side, side),
            "camera": (batch, CAMERA_LABEL_SIZE),
            "image": (batch, 3, self.image.shape[-1], self.image.shape[-1]),
        }

        # Check shapes and numbers.
        for name, shape in wanted.items():
            values = getattr(self, name)
            if tuple(values.shape) != shape:
                raise InputError(
                    f"the {name} of a view should have shape {shape}, not {tuple(values.shape)}.",
                    "Give image [B, 3, H, H], mask and distance [B, 1, R, R] and camera [B, 25] of the same images.",
                )
            if not torch.isfinite(values).all():
                raise InputError(
                    f"the {name} of a view holds numbers that are not finite.",
                    "A model that renders them is broken: use an earlier checkpoint.",
                )
        if side < 2 or self.image.shape[-1] < side:
            raise InputError(
                f"an image of {self.image.shape[-1]} pixels does not go with a mask of {side}.",
                "Images are at least as large as their masks, and masks at least 2 pixels wide.",
            )

    def reduced(self) -> View:
        """The same with the image at the mask's resolution, by area."""
        side = self.mask.shape[-1]
        if self.image.shape[-1] == side:
            return self
        return View(F.interpolate(self.image, size=(side, side), mode="area"), self.mask, self.distance, self.camera)


@dataclass(frozen=True)
class Reprojection:
    """How well a second view confirms a first one, per image [B]; NaN where no pixel can be compared.

    Pixels of the person in the first view are compared when the second could confirm them: they land inside its
    frame, are not hidden there behind something that the first view also knows of, and neither view has an edge there.
    """

    colour: Tensor
    """Mean absolute difference of colour where both see the same surface, levels of 255."""
    depth: Tensor
    """Median absolute difference of distance where the second view has a surface at all, world units."""
    agreement: Tensor
    """Share of the compared pixels where both see the same surface."""
    compared: Tensor
    """Share of the first view's person that could be compared."""
    hidden: Tensor
    """Share of the first view's person that the second has behind something else."""


def ray_distance(depth: Tensor, camera: Tensor) -> Tensor:
    """Distance along the ray from depth along the optical axis, as datasets hold it.

    Args:
        depth: [B, 1, R, R] world units; 0 = background, which stays 0.
        camera: [B, 25].

    Returns:
        [B, 1, R, R] world units.

    Raises:
        InputError: shapes do not go together.
    """
    side = depth.shape[-1]
    if depth.shape != (len(camera), 1, side, side) or camera.shape[1:] != (CAMERA_LABEL_SIZE,):
        raise InputError(
            f"depth {tuple(depth.shape)} and camera {tuple(camera.shape)} do not go together.",
            "Give depth [B, 1, R, R] and camera [B, 25].",
        )
    _, directions = rays(camera, side)
    axis = cam2world(camera)[:, None, :3, 2]
    cosine = (directions * axis).sum(-1) / axis.norm(dim=-1)
    return depth / cosine.reshape(-1, 1, side, side)


def reprojection_error(first: View, second: View) -> Reprojection:
    """How the second view of the same scenes, seen from other cameras, confirms the first.

    Every pixel of the first view with a mask above SOLID is lifted to a world point, which the second view has at
    some place in its image; its distance, colour and mask there come by bilinear interpolation.

    - Its distance is the point's within the tolerance: both see the same surface.
    - It has background there, or a surface behind the point: it has nothing where the first view has a surface.
      That counts as disagreement, and as difference of depth in the second case.
    - It has a surface much nearer. If the first view looks through that surface, they disagree; otherwise the
      point is hidden and is left out.

    Not symmetric: call it both ways and average for a number per pair. The images may be larger than the masks;
    they are reduced by area first, so that colours belong to the rays that gave the distances.

    Raises:
        InputError: the views hold different numbers of images.
    """
    # Check that the views belong together.
    if len(first.camera) != len(second.camera):
        raise InputError(
            f"{len(first.camera)} images cannot be compared with {len(second.camera)}.",
            "Give two views of the same scenes, in the same order.",
        )

    # Lift the pixels of the first view, and look them up in the second.
    first, second = first.reduced(), second.reduced()
    origins, directions = rays(first.camera, first.distance.shape[-1])
    points = origins + directions * first.distance.flatten(1)[..., None]
    person = (first.mask > SOLID).flatten(1)
    there = _look_up(second, points)

    # Pixels that the second view hides behind something that the first view does not refute.
    eye = cam2world(second.camera)[:, None, :3, 3]
    nearer = there.surface & (there.gap < -2.0 * there.tolerance)
    obstacle = eye + F.normalize(points - eye, dim=-1) * there.distance[..., None]
    back = _look_up(first, obstacle)
    refuted = back.empty | (back.surface & (back.gap > back.tolerance))
    usable = _smooth(first).flatten(1)
    hidden = usable & nearer & ~refuted

    # Compare the others.
    compared = usable & (there.surface | there.empty) & ~hidden
    same = compared & there.surface & (there.gap.abs() <= there.tolerance)
    measured = compared & there.surface
    difference = (first.image.flatten(2) - there.colour).abs().mean(1) * 127.5
    medians = [gap[chosen].abs().quantile(0.5) if chosen.any() else gap.new_tensor(float("nan"))
               for gap, chosen in zip(there.gap, measured, strict=True)]  # fmt: skip
    return Reprojection(
        colour=_share(difference * same, same),
        depth=torch.stack(medians) if medians else points.new_zeros(0),
        agreement=_share(same, compared),
        compared=_share(compared, person),
        hidden=_share(hidden, person),
    )


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """Sum over sum, per image; NaN of nothing."""
    return part.sum(1).float() / whole.sum(1)


@dataclass(frozen=True)
class _Lookup:
    """What a view has at the places [B, N] where it would see given points. `gap` = distance - the points' own."""

    colour: Tensor
    distance: Tensor
    gap: Tensor
    tolerance: Tensor
    surface: Tensor
    empty: Tensor


def _look_up(view: View, points: Tensor) -> _Lookup:
    """Look up where `view` sees the points [B, N, 3]; outside of the frame there is neither surface nor emptiness."""
    # Project the points.
    side = view.mask.shape[-1]
    position, depth = project(view.camera, points)
    x, y = (position * side - 0.5).unbind(-1)
    inside = (depth > 0) & (x >= 0) & (x <= side - 1) & (y >= 0) & (y <= side - 1)
    x, y = torch.where(inside, x, 0.0), torch.where(inside, y, 0.0)

    # Weights of the four pixels around each place.
    column, row = x.floor().clamp_max(side - 2), y.floor().clamp_max(side - 2)
    right, below = x - column, y - row
    weights = torch.stack(
        [(1 - right) * (1 - below), right * (1 - below), (1 - right) * below, right * below], dim=-1
    )  # fmt: skip

    # Interpolate colour and distance.
    index = (row * side + column).long()
    pixels = torch.cat([view.image, view.mask, view.distance], dim=1).flatten(2)
    corners = torch.stack(
        [pixels.gather(2, (index + step)[:, None].expand(-1, 5, -1)) for step in (0, 1, side, side + 1)], dim=-1
    )
    values = (corners * weights[:, None]).sum(-1)

    # Surface or background.
    masks, distances = corners[:, 3], corners[:, 4]
    spread = distances.amax(-1) - distances.amin(-1)
    solid = (masks > SOLID).all(-1) & (distances > 0).all(-1)
    eye = cam2world(view.camera)[:, None, :3, 3]
    return _Lookup(
        colour=values[:, :3],
        distance=values[:, 4],
        gap=values[:, 4] - (points - eye).norm(dim=-1),
        tolerance=TOLERANCE + 0.5 * spread,
        surface=inside & solid & (spread <= STEEP * _pixel_size(view, values[:, 4])),
        empty=inside & (masks < EMPTY).all(-1),
    )


def _smooth(view: View) -> Tensor:
    """Pixels [B, 1, R, R] that show the person, as do their eight neighbours, with no jump of distance among them."""
    nearest, farthest = -F.max_pool2d(-view.distance, 3, 1, 1), F.max_pool2d(view.distance, 3, 1, 1)
    solid = (-F.max_pool2d(-view.mask, 3, 1, 1) > SOLID) & (nearest > 0)
    pixel = _pixel_size(view, view.distance.flatten(1)).reshape_as(view.distance)
    return solid & (farthest - nearest <= 2.0 * STEEP * pixel)


def _pixel_size(view: View, distance: Tensor) -> Tensor:
    """Width in world units that a pixel covers at a distance [B, N]."""
    return distance / (intrinsics(view.camera)[:, 0, 0, None] * view.mask.shape[-1])
