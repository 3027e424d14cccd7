"""Which part of a person each pixel shows: skin, hair or clothes, by the body that was fitted."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import ndimage
from torch import Tensor

from portrait360.config import CameraConfig
from portrait360.encoder.network import HEAD
from portrait360.geometry.body import BodyTemplate
from portrait360.geometry.conventions import OURS, view_camera
from portrait360.geometry.nearest import nearest_indices
from portrait360.geometry.silhouette import body_faces
from portrait360.inversion.target import Target, resized

SKIN, HAIR, CLOTHES = range(3)
_FACE_DEPTH, _HAIRLINE = 0.035, 0.07
"""Skin on the head: so far in front of the head's joint at least, and at most so far above it, world units."""


def body_regions(body: BodyTemplate) -> Tensor:
    """The region of each triangle of the body: the face and the neck are skin, the rest of the head hair."""
    centres = body.vertices[body.faces].mean(dim=1)
    on_head = body.weights[body.faces].mean(dim=1)
    head = on_head[:, HEAD] > 0.5
    middle = body.joints[HEAD]
    face = head & (centres[:, 2] - middle[2] > _FACE_DEPTH) & (centres[:, 1] - middle[1] < _HAIRLINE)
    neck = ~head & (on_head[:, 1:].sum(dim=1) > 0.5)
    regions = torch.full((len(body.faces),), CLOTHES)
    regions[head] = HAIR
    regions[face | neck] = SKIN
    return regions


def surface_regions(body: BodyTemplate, places: Float[Tensor, "N 3"]) -> Int[Tensor, " N"]:
    """The regions of canonical places: those of the nearest triangles of the body."""
    return body_regions(body)[nearest_indices(places, body.vertices[body.faces])[0]]


def target_regions(
    target: Target, body: BodyTemplate, side: int, model: CameraConfig = OURS
) -> Float[Tensor, "3 1 S S"]:
    """Masks of skin, hair and clothes in a target; pixels off the body belong to the nearest part of it."""
    faces = body_faces(body, view_camera(target.camera, model)[0], target.body_pose[0])
    labels = np.where(faces >= 0, body_regions(body).numpy()[faces], -1)
    if (labels < 0).all():
        return torch.zeros(3, 1, side, side)
    places = np.asarray(ndimage.distance_transform_edt(labels < 0, return_distances=False, return_indices=True))
    nearest = torch.from_numpy(labels[places[0], places[1]])
    masks = torch.stack([(nearest == region).float() for region in (SKIN, HAIR, CLOTHES)])[:, None]
    inside = resized(target.mask * target.known, side)
    return resized(masks, side) * inside
