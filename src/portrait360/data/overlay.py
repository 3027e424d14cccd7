"""Draw the outlines of a posed body over an image, to see whether camera and body pose belong to it."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from PIL import Image, ImageDraw
from scipy.ndimage import maximum_filter
from torch import Tensor

from portrait360.geometry.body import BodyTemplate, posed_vertices
from portrait360.geometry.cameras import project
from portrait360.media.sheets import Colour

_OVERSAMPLING = 2
_HIDDEN_BEHIND = 0.012
"""Lines so far (world units) behind the nearest surface are hidden; less would hide lines on the surface."""


def draw_body(
    image: Image.Image,
    body: BodyTemplate,
    camera: Float[Tensor, " 25"],
    body_pose: Float[Tensor, " 6"],
    colour: Colour,
) -> Image.Image:
    """The image with the visible contours of the posed body drawn over it.

    Contours are the edges between faces that point to the camera and faces that do not: the silhouette, and
    inside of it chin, nose and the like.
    """
    # Project the posed body.
    vertices = posed_vertices(body, body_pose[None])
    uv, depth = project(camera[None], vertices)
    side = image.width * _OVERSAMPLING
    points = uv[0].double().numpy() * side
    depths = depth[0].double().numpy()
    faces = body.faces.numpy()

    # Find the contours that nothing hides.
    front = _front_facing(points, faces)
    nearest = depth_image(points, depths, faces[front], side)
    edges = _contours(faces, front)
    visible = _visible(points[edges].mean(axis=1), depths[edges].mean(axis=1), nearest)

    # Draw them, with antialiasing by oversampling.
    lines = Image.new("L", (side, side))
    draw = ImageDraw.Draw(lines)
    for start, end in points[edges[visible]]:
        draw.line([tuple(start), tuple(end)], 255, width=max(2, side // 200))
    lines = lines.resize(image.size, Image.Resampling.BOX)
    outlined = image.copy()
    outlined.paste(Image.new("RGB", image.size, colour), mask=lines)
    return outlined


def _front_facing(points: Float[ndarray, "V 2"], faces: Int[ndarray, "F 3"]) -> Bool[ndarray, " F"]:
    """Faces whose corners run counter-clockwise as seen (negative cross product, as rows point down)."""
    a, b, c = (points[faces[:, corner]] for corner in range(3))
    u, v = b - a, c - a
    return u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0] < 0


def _contours(faces: Int[ndarray, "F 3"], front: Bool[ndarray, " F"]) -> Int[ndarray, "E 2"]:
    """Edges with front faces on one side only."""
    corners = faces[front]
    edges = np.sort(np.concatenate([corners[:, [0, 1]], corners[:, [1, 2]], corners[:, [2, 0]]]), axis=1)
    edges, counts = np.unique(edges, axis=0, return_counts=True)
    return edges[counts == 1]


def depth_image(
    points: Float[ndarray, "V 2"], depths: Float[ndarray, " V"], faces: Int[ndarray, "F 3"], side: int
) -> Float[ndarray, "side side"]:
    """Depth of the nearest face in every pixel, infinity where there is none (painter's algorithm)."""
    image = Image.new("F", (side, side), float("inf"))
    draw = ImageDraw.Draw(image)
    mean = depths[faces].mean(axis=1)
    for index in np.argsort(-mean):
        draw.polygon([tuple(point) for point in points[faces[index]]], fill=float(mean[index]))
    return np.asarray(image)


def _visible(
    places: Float[ndarray, "E 2"], depths: Float[ndarray, " E"], nearest: Float[ndarray, "side side"]
) -> Bool[ndarray, " E"]:
    """Whether places lie in the image and on the surface, or at the silhouette (too steep to compare)."""
    side = len(nearest)
    column, row = np.clip(places.astype(int), 0, side - 1).T
    inside = ((places >= 0) & (places < side)).all(axis=1)
    silhouette = maximum_filter(nearest, size=max(3, side // 100), mode="nearest") == np.inf
    return inside & (silhouette[row, column] | (depths < nearest[row, column] + _HIDDEN_BEHIND))
