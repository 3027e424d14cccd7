"""Camera and body pose of people in images; what `portrait360 pose` does.

Where an image has a camera, the discriminator's pose head predicts the body pose (equations 8.7, 8.8, 14.2).
Photos without one are fitted (`portrait360.photos`): crop, camera and body pose are then the fit's.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor

from portrait360.apps.pose_estimate import PoseEstimate
from portrait360.apps.pose_report import drawn_images, json_text, overlay_sheet, table
from portrait360.data.labelled_images import FittedCrop, LabelledImage, Pixels, find_images
from portrait360.photos.fit import Fit
from portrait360.photos.reading import read_photo
from portrait360.photos.records import PhotoError
from portrait360.photos.upright import turned
from portrait360.photos.worker import Examined, PhotoWorker
from portrait360.portrait.weights import Weights, load_weights
from portrait360.poses.calibration import calibrated
from portrait360.poses.windows import window_poses, windows_with_detail
from portrait360.runtime.files import atomic_write, check_json_place, write_json
from portrait360.runtime.progress import show_progress
from portrait360.types import BODY_POSE_SIZE, CAMERA_LABEL_SIZE, InputError

FITTED_SIDE = 512
"""Pixels of the crops that are cut out of photos."""
_IMAGE_LIMIT = 1.5
_MASK_SLACK = 0.01
"""Generated images and masks may leave their ranges a little; bytes taken for values leave them by far."""


def predict_body_pose(
    weights: Weights,
    images: Float[Tensor, "B 3 H H"],
    masks: Float[Tensor, "B 1 H H"],
    cameras: Float[Tensor, "B 25"],
) -> Float[Tensor, "B 6"]:
    """Predict body poses by a model's discriminator (equations 8.8), calibrated where the weights can be.

    Every image is predicted by itself, so that its pose does not depend on the others: the minibatch deviation
    (equations 8.4) is then the constant 1e-4, as in the original's scripts, which predict from one image at a time.
    Where the weights hold a calibration of centre crops (`poses.calibration`) and the images have the pixels, those
    are used too.

    Args:
        weights: from `load_weights`, converted ones of the original included.
        images: in [-1, 1] of any size, background included.
        masks: 1 = person, 0 = background, of the same size.
        cameras: camera labels.

    Returns:
        Neck axis-angle, then head axis-angle, radians.

    Raises:
        InputError: shapes, sizes or ranges are others, or a number is not finite.
    """
    # Which centre crops help.
    _check(images, masks, cameras)
    poses = torch.empty(len(images), BODY_POSE_SIZE)
    model, calibration = weights.generator.config, weights.calibration
    windows = windows_with_detail(calibration, images.shape[-1], model)

    # One image after the other.
    for i in range(len(images)):
        one = slice(i, i + 1)
        seen = window_poses(weights.discriminator, model, images[one], masks[one], cameras[one], windows)
        poses[one] = calibrated(seen, calibration)
    return poses


def estimate_pose(image: str | Path, *, weights: str | Path | None = None) -> PoseEstimate:
    """Estimate camera and body pose of the person in an image.

    Args:
        image: a photo, in which the largest person is meant; or an image with a camera and a mask, as `estimate_poses`
            takes it.
        weights: a weights file or a run folder; the packaged weights when None.

    Raises:
        InputError, DatasetError: the image cannot be read, or nobody is in it.
        CheckpointError: the weights are missing, broken or of another model.
    """
    images = find_images([Path(image)], PhotoFitter())
    return _estimate(load_weights(weights), images[0])


def estimate_poses(
    paths: Sequence[Path], *, weights: str | Path | None = None, out: Path | None = None, progress: bool = True
) -> list[PoseEstimate]:
    """Estimate camera and body pose of everybody in some images.

    With `out`, writes it (JSON) and `NAME.overlay.png` beside it, a sheet with the posed body outlined over the
    images, and prints a table; without, prints the JSON, and the table on standard error.

    Args:
        paths: images, folders and zips, see `find_images`.
        weights: a weights file or a run folder; the packaged weights when None.
        out: a .json file.
        progress: show how far the work is.

    Raises:
        InputError, DatasetError: an image, camera or mask is missing or broken, or `out` cannot be written.
        CheckpointError: the weights are missing, broken or of another model.
    """
    # What is read must be there, and must not be written over
    if not paths:
        raise InputError("something is missing: `images`.", "Name an image, a folder or a zip.")
    overlay = None if out is None else check_json_place(out, ".overlay.png")
    images = find_images(paths, PhotoFitter())
    _spare_input(images, [path for path in (out, overlay) if path is not None])
    networks = load_weights(weights)

    # Estimate one image after the other
    visible = progress and sys.stderr.isatty()  # in logs, the table comes soon enough
    estimates = []
    with show_progress("predicting", len(images), "images", visible=visible) as bar:
        for image in images:
            estimates.append(_estimate(networks, image))
            bar.advance(1)

    # Print the estimates, or write them
    if out is None or overlay is None:
        print(json_text(estimates))
        print(table(estimates), file=sys.stderr)
        return estimates
    drawn = len(drawn_images(len(images)))
    with show_progress("outlining", drawn, "bodies", visible=visible) as bar:
        sheet = overlay_sheet(images, estimates, networks.generator.body, bar.advance)
    with atomic_write(overlay) as temporary:
        sheet.save(temporary)
        write_json(out, {estimate.name: estimate.as_json() for estimate in estimates})
    print(table(estimates))
    if drawn < len(estimates):
        print(f"{overlay.name} shows {drawn} of {len(estimates)}.")
    return estimates


def _estimate(networks: Weights, image: LabelledImage) -> PoseEstimate:
    pose = _predict(networks, image) if image.fitted is None else image.fitted.body_pose
    return PoseEstimate(image.name, image.camera, pose, image.body_poses, image.fitted)


def _predict(networks: Weights, labelled: LabelledImage) -> Float[Tensor, " 6"]:
    image, mask = labelled.read()
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1.0
    cover = torch.from_numpy(mask.copy())[None, None].float() / 255.0
    return predict_body_pose(networks, pixels, cover, labelled.camera[None])[0]


def _spare_input(images: Sequence[LabelledImage], written: Sequence[Path]) -> None:
    """Refuse to write over what is read: photo.json beside photo.png is where the camera comes from."""
    read = {file.resolve() for image in images for file in image.files}
    for path in written:
        if path.resolve() in read:
            raise InputError(f"{path} is one of the files to read, and would be overwritten.", "Give another `out`.")


def _check(images: Tensor, masks: Tensor, cameras: Tensor) -> None:
    n, side = len(images), images.shape[-1]
    for name, tensor, shape in (
        ("images", images, (n, 3, side, side)),
        ("masks", masks, (n, 1, side, side)),
        ("cameras", cameras, (n, CAMERA_LABEL_SIZE)),
    ):
        if tuple(tensor.shape) != shape:
            raise InputError(
                f"{name} must be {list(shape)}, not {list(tensor.shape)}.",
                "Images are [B, 3, H, H], masks [B, 1, H, H] of the same size, cameras [B, 25].",
            )
        if not (tensor.is_floating_point() and torch.isfinite(tensor).all()):
            raise InputError(f"{name} must be finite floating-point numbers.", "Bytes must be scaled first.")
    if n and images.abs().max() > _IMAGE_LIMIT:
        raise InputError(
            f"images must lie in [-1, 1], but reach {images.abs().max():g}.", "Divide bytes by 127.5 and subtract 1."
        )
    if n and not (masks.min() >= -_MASK_SLACK and masks.max() <= 1.0 + _MASK_SLACK):
        raise InputError(
            f"masks must lie in [0, 1], but reach from {masks.min():g} to {masks.max():g}.", "Divide bytes by 255."
        )


@dataclass
class PhotoFitter:
    """Callable: the persons of a photo, the largest first (`labelled_images.FitPhoto`)."""

    worker: PhotoWorker = field(default_factory=lambda: PhotoWorker(FITTED_SIDE))

    def __call__(self, path: Path) -> list[LabelledImage]:
        """Fit everybody in a photo.

        Raises:
            InputError: the photo cannot be read, nobody is in it, or mediapipe is not installed.
        """
        # Find everybody, and fit a camera and a pose to each
        seen = self.worker.look(self._read(path))
        people = [person for person in seen.people if isinstance(person, Examined)]
        if not people:
            raise InputError(
                f"nobody was found in {path}, and there is no camera for it.",
                "Take a photo that shows head and shoulders, or, for a portrait that is cropped already, write"
                f' {{"camera": [25 numbers]}} into {path.with_suffix(".json").name} beside it (docs/conventions.md).',
            )

        # Cut them out of the photo when their pixels are wanted
        found = []
        for number, person in enumerate(people, start=1):
            fit = person.fit
            name = str(path) if len(people) == 1 else f"{path}#{number}"
            fitted = FittedCrop(fit.square.numbers, fit.body_pose, fit.fit_error, fit.confidence, seen.turned)

            def read(fit: Fit = fit) -> Pixels:
                cut = self.worker.cut(turned(self._read(path), seen.turned), fit)
                return cut.image, cut.mask

            found.append(LabelledImage(name, fit.camera, read, (path,), fitted=fitted))
        return found

    def _read(self, path: Path) -> UInt8[ndarray, "H W 3"]:
        try:
            return read_photo(path)
        except PhotoError as error:
            raise InputError(
                f"{path} cannot be used: {error.message}", "Give a photo that a viewer can open."
            ) from error
