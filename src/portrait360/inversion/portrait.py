"""A portrait from photo files, with a report on how far it can be trusted."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor

from portrait360.evaluation.faces import SAME, FaceNetwork
from portrait360.geometry.cameras import camera_label
from portrait360.inversion.invert import Inversion, Networks, invert_targets, step_count
from portrait360.inversion.optimise import Photo, Recipe, Watch
from portrait360.inversion.photos import RefusedPhoto, UsedPhoto, read_photos
from portrait360.inversion.regressor import load_start
from portrait360.media.images import to_bytes
from portrait360.media.sheets import grid
from portrait360.portrait.model import PortraitModel
from portrait360.portrait.portrait import Portrait
from portrait360.portrait.record import PhotoRecord, PortraitRecord, PortraitTensors
from portrait360.portrait.scene import SceneRenderer
from portrait360.portrait.weights import read_weights_file
from portrait360.runtime.progress import show_progress
from portrait360.types import CheckpointError, InputError

MOST_STEPS = 2000
COMPARISON = "comparison.png"
_YAWS = 8
_CELL = 256
"""Pixels of the images of a comparison."""
_FACE_SIDE = 512
"""Pixels of the images in which faces are compared."""


def portrait_from_photos(
    model: PortraitModel,
    photos: Sequence[str | Path],
    *,
    steps: int | None = None,
    fast: bool = False,
    force: bool = False,
    progress: bool = True,
) -> Portrait:
    """See `PortraitModel.invert`."""
    # The recipe
    if steps is not None and not 1 <= steps <= MOST_STEPS:
        raise InputError(f"`steps` must lie between 1 and {MOST_STEPS}, not be {steps}.", "Try `steps=80`.")
    recipe = Recipe() if steps is None else dataclasses.replace(Recipe(), steps=steps)

    # Photos, and the networks of the weights
    used, refused = read_photos([Path(photo) for photo in photos], force=force)
    weights = read_weights_file(model.info.path)
    if weights.info().sha256 != model.info.sha256:
        raise CheckpointError(f"{model.info.path} has changed since it was loaded.", "Load the model again.")
    # photos are inverted on the CPU
    generator = model.generator if model.device.type == "cpu" else weights.generator()
    networks = Networks.of(generator, weights.discriminator(), load_start(model.info.sha256))

    # The inversion
    targets = [photo.target for photo in used]
    count = 0 if fast else step_count(len(targets), recipe)
    with show_progress("inverting", count, "steps", visible=progress and not fast) as bar:
        result = invert_targets(networks, targets, recipe, fast=fast, watch=Watch(lambda: bar.advance(1)))
    if result.interrupted and progress:
        print("stopped early; the best so far is kept", file=sys.stderr)

    # The portrait, as it would be loaded
    tensors = PortraitTensors(None, result.ws, result.tuned, result.appearance)
    renderer = SceneRenderer.from_layers(result.generator, result.ws, result.appearance, bf16=model.bf16)
    record = PortraitRecord(
        model.info.sha256,
        model.info.model,
        "bf16" if model.bf16 else "float32",
        photos=tuple(_record(file, photo) for file, photo in zip(used, result.photos, strict=True)),
        licence=model.info.licence,
    )
    report = result.as_json() | _report(renderer, used, refused, result)
    return Portrait(renderer, record, tensors, report, {COMPARISON: comparison(renderer, result.photos)})


def _record(file: UsedPhoto, photo: Photo) -> PhotoRecord:
    camera, pose = photo.target.camera[0], photo.target.body_pose[0]
    return PhotoRecord(file.name, tuple(camera.tolist()), tuple(pose.tolist()), file.crop)


def _report(
    renderer: SceneRenderer, used: Sequence[UsedPhoto], refused: Sequence[RefusedPhoto], result: Inversion
) -> dict[str, Any]:
    """What was refused, and warnings."""
    warnings = [f"{photo.name} would have been refused ({photo.warning})" for photo in used if photo.warning]
    distances: dict[str, float] = {}
    try:
        network = FaceNetwork()
    except InputError:
        network = None
    for file, photo in zip(used, result.photos, strict=True):
        if network is None or not file.has_face:
            continue
        found = [
            network.describe(image)
            for image in (photo_image(photo, _FACE_SIDE), same_view(renderer, photo, _FACE_SIDE))
        ]
        if found[0] is None:
            continue
        if found[1] is None:
            warnings.append(f"no face is found in the rendering of {file.name}")
            continue
        distances[file.name] = round(float(np.linalg.norm(found[0] - found[1])), 3)
        if distances[file.name] > SAME:
            warnings.append(f"a face recognition network takes photo and rendering of {file.name} for two people")
    content: dict[str, Any] = {"warnings": warnings}
    if distances:
        content["face_distances"] = distances
    if refused:
        content["refused"] = [dataclasses.asdict(photo) for photo in refused]
    return content


# ---- images ----


def photo_image(photo: Photo, side: int) -> UInt8[ndarray, "S S 3"]:
    """The photo's crop on a grey background."""
    return to_bytes(photo.target.window(1.0, side).image)[0]


def same_view(renderer: SceneRenderer, photo: Photo, side: int) -> UInt8[ndarray, "S S 3"]:
    """The portrait from the photo's camera in the photo's pose."""
    return _rendered(renderer, photo.target.camera, photo.target.body_pose, side)[0]


def _rendered(
    renderer: SceneRenderer, camera: Float[Tensor, "B 25"], body_pose: Float[Tensor, "B 6"] | None, side: int
) -> UInt8[ndarray, "B S S 3"]:
    own, pose = renderer.own_side, body_pose if renderer.posable else None
    out = renderer.render(camera, pose, None if own is not None else side)
    image = out.image
    if own is not None:
        image = torch.nn.functional.interpolate(image, size=(side, side), mode="area")
    return to_bytes(image)


def comparison(renderer: SceneRenderer, photos: Sequence[Photo]) -> UInt8[ndarray, "h w 3"]:
    """A row for each photo: the photo, the portrait from its camera; in the first one eight yaws at rest."""
    rows = []
    blank = np.full((_CELL, _CELL, 3), 255, np.uint8)
    around = camera_label(torch.arange(_YAWS, dtype=torch.float32) * (2.0 * torch.pi / _YAWS))
    for number, photo in enumerate(photos):
        rows += [photo_image(photo, _CELL), same_view(renderer, photo, _CELL)]
        rows += list(_rendered(renderer, around, None, _CELL)) if number == 0 else [blank] * _YAWS
    labels = ["photo", "its camera", *(f"{round(360 / _YAWS * k)}°" for k in range(_YAWS))]
    return grid(np.stack(rows), 2 + _YAWS, column_labels=labels)
