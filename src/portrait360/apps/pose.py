"""Body poses of given pictures, predicted by the discriminator's pose head (equations 8.7, 8.8, 14.2).

Photos without a camera are fitted first (`portrait360.photos`): their crop, camera and body pose are the fit's.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor

from portrait360.apps.pose_report import drawn_pictures, json_text, overlay_sheet, table
from portrait360.data.labelled_images import FittedCrop, LabelledImage, Pixels, find_images
from portrait360.geometry.cameras import yaw_pitch
from portrait360.geometry.rotations import axis_angle_to_matrix, geodesic_angle
from portrait360.photos.fit import Fit
from portrait360.photos.reading import read_photo
from portrait360.photos.records import PhotoError
from portrait360.photos.worker import PhotoWorker
from portrait360.portrait.weights import Weights, load_weights
from portrait360.poses.calibration import calibrated
from portrait360.poses.windows import window_poses, windows_with_detail
from portrait360.runtime.files import atomic_write, check_json_place, write_json
from portrait360.runtime.progress import show_progress
from portrait360.runtime.threads import settle_threads
from portrait360.types import BODY_POSE_SIZE, CAMERA_LABEL_SIZE, InputError

FITTED_SIDE = 512
"""Pixels of the crops that are cut out of photos."""
_IMAGE_LIMIT = 1.5
_MASK_SLACK = 0.01
"""Generated pictures and masks may leave their ranges a little; bytes taken for values leave them by far."""


def predict_body_pose(
    weights: Weights,
    images: Float[Tensor, "B 3 H H"],
    masks: Float[Tensor, "B 1 H H"],
    cameras: Float[Tensor, "B 25"],
) -> Float[Tensor, "B 6"]:
    """The body poses that a model's discriminator sees in real pictures (equations 8.8), calibrated if it can be.

    Every picture is predicted by itself, so that its pose does not depend on the others: the minibatch deviation
    (equations 8.4) is then the constant 1e-4, as in the original's scripts, which predict from one picture at a time.
    Where the weights know what middle parts of pictures tell (`poses.calibration`) and the pictures have the pixels,
    those are looked at too.

    Args:
        weights: from `load_weights`, converted ones of the original included.
        images: pictures in [-1, 1] of any size, background included.
        masks: 1 = person, 0 = background, of the same size.
        cameras: camera labels.

    Returns:
        Neck axis-angle, then head axis-angle, radians.

    Raises:
        InputError: shapes, sizes or ranges are others, or a number is not finite.
    """
    _check(images, masks, cameras)
    poses = torch.empty(len(images), BODY_POSE_SIZE)
    model, calibration = weights.generator.config, weights.calibration
    windows = windows_with_detail(calibration, images.shape[-1], model)
    for i in range(len(images)):
        one = slice(i, i + 1)
        seen = window_poses(weights.discriminator, model, images[one], masks[one], cameras[one], windows)
        poses[one] = calibrated(seen, calibration)
    return poses


def estimate_poses(
    paths: Sequence[Path], *, weights: Path | None = None, out: Path | None = None, progress: bool = True
) -> dict[str, dict[str, Any]]:
    """Camera and body pose of pictures; what `portrait360 pose` does.

    With `out`, writes it (JSON) and `NAME.overlay.png` beside it, a sheet with the posed body outlined over the
    pictures, and prints a table; without, prints the JSON, and the table on standard error.

    Args:
        paths: pictures, folders and zips, see `find_images`.
        weights: a weights file; the packaged one when None.
        out: a .json file.
        progress: show how far the work is.

    Returns:
        For each picture: `camera` (25 numbers), `yaw_degrees` and `pitch_degrees` of the camera, `body_pose`
        (6 numbers, radians), `neck_degrees` and `head_degrees` (axis-angle, 3 numbers each), and, where the
        dataset knows body poses, `labels`: the last three by kind of label (exact, coarse, estimated), with the
        angle between prediction and label as `neck_error_degrees` and `head_error_degrees`. For a person in a photo
        without a camera also `crop` (`centre`, right and down, and `side`, pixels), `fit_error` and `confidence`
        (`photos.fit.Fit`); camera and body pose are then the fit's, and several persons get names with #1, #2, ...

    Raises:
        InputError, DatasetError: a picture, camera or mask is missing or broken, or `out` cannot be written.
        CheckpointError: the weights are missing, broken or of another model.
    """
    if not paths:
        raise InputError("something is missing: IMAGE.", "Name a picture, a folder or a zip.")
    overlay = None if out is None else check_json_place(out, ".overlay.png")
    settle_threads()
    pictures = find_images(paths, PhotoFitter())
    _spare_input(pictures, [path for path in (out, overlay) if path is not None])
    networks = load_weights(weights)
    records, poses = {}, []
    visible = progress and sys.stderr.isatty()  # in logs, the table comes soon enough
    with show_progress("predicting", len(pictures), "pictures", visible=visible) as bar:
        for picture in pictures:
            fitted = picture.fitted
            poses.append(_predict(networks, picture) if fitted is None else fitted.body_pose)
            records[picture.name] = _record(picture, poses[-1])
            bar.advance(1)
    if out is None or overlay is None:
        print(json_text(records))
        print(table(records), file=sys.stderr)
        return records
    drawn = len(drawn_pictures(len(pictures)))
    with show_progress("outlining", drawn, "bodies", visible=visible) as bar:
        sheet = overlay_sheet(pictures, torch.stack(poses), networks.generator.body, bar.advance)
    with atomic_write(overlay) as temporary:
        sheet.save(temporary)
        write_json(out, records)
    print(table(records))
    print(f"{out}\n{overlay}  {drawn} of {len(records)}")
    return records


def _predict(networks: Weights, picture: LabelledImage) -> Float[Tensor, " 6"]:
    image, mask = picture.read()
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1.0
    cover = torch.from_numpy(mask.copy())[None, None].float() / 255.0
    return predict_body_pose(networks, pixels, cover, picture.camera[None])[0]


def _record(picture: LabelledImage, pose: Float[Tensor, " 6"]) -> dict[str, Any]:
    yaw, pitch = yaw_pitch(picture.camera[None])
    record = {
        "camera": picture.camera.tolist(),
        "yaw_degrees": round(yaw.rad2deg().item(), 4),
        "pitch_degrees": round(pitch.rad2deg().item(), 4),
        **_pose_entry(pose),
    }
    labels = {kind: _pose_entry(label) | _errors(pose, label) for kind, label in picture.body_poses.items()}
    if picture.fitted is not None:
        x, y, side = picture.fitted.crop
        record["crop"] = {"centre": [round(x, 2), round(y, 2)], "side": round(side, 2)}
        record |= {name: round(getattr(picture.fitted, name), 4) for name in ("fit_error", "confidence")}
    return record | ({"labels": labels} if labels else {})


def _pose_entry(pose: Float[Tensor, " 6"]) -> dict[str, list[float]]:
    neck, head = pose.double().rad2deg().round(decimals=4).split(3)
    return {"body_pose": pose.tolist(), "neck_degrees": neck.tolist(), "head_degrees": head.tolist()}


def _errors(pose: Float[Tensor, " 6"], label: Float[Tensor, " 6"]) -> dict[str, float]:
    """Angle of the rotation between the predicted and the labelled turn of neck and head."""
    first, second = (axis_angle_to_matrix(p.double().unflatten(0, (2, 3))) for p in (pose, label))
    neck, head = geodesic_angle(first, second).rad2deg().tolist()
    return {"neck_error_degrees": round(neck, 4), "head_error_degrees": round(head, 4)}


def _spare_input(pictures: Sequence[LabelledImage], written: Sequence[Path]) -> None:
    """Refuse to write over what is read: photo.json beside photo.png is where the camera comes from."""
    read = {file.resolve() for picture in pictures for file in picture.files}
    for path in written:
        if path.resolve() in read:
            raise InputError(f"{path} is one of the files to read, and would be overwritten.", "Give another --out.")


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
        people = self.worker.fit(self._read(path))
        if not people:
            raise InputError(
                f"nobody was found in {path}, and there is no camera for it.",
                "Take a photo that shows head and shoulders, or, for a portrait that is cropped already, write"
                f' {{"camera": [25 numbers]}} into {path.with_suffix(".json").name} beside it (docs/conventions.md).',
            )
        found = []
        for number, (_, fit) in enumerate(people, start=1):
            crop = fit.square.numbers
            name = str(path) if len(people) == 1 else f"{path}#{number}"
            fitted = FittedCrop(crop, fit.body_pose, fit.fit_error, fit.confidence)

            def read(fit: Fit = fit) -> Pixels:
                picture = self.worker.cut(self._read(path), fit)
                return picture.image, picture.mask

            found.append(LabelledImage(name, fit.camera, read, (path,), fitted=fitted))
        return found

    def _read(self, path: Path) -> UInt8[ndarray, "H W 3"]:
        try:
            return read_photo(path)
        except PhotoError as error:
            raise InputError(
                f"{path} cannot be used: {error.message}", "Give a photo that a viewer can open."
            ) from error
