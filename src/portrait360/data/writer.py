"""Write a dataset zip: the same content gives the same bytes, and nothing half-written stays."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

import portrait360
from portrait360.data import layout
from portrait360.runtime.files import atomic_write
from portrait360.runtime.job_files import add_member
from portrait360.types import BODY_POSE_SIZE, CAMERA_LABEL_SIZE, DatasetError


class DatasetWriter:
    """Collects images in order; `open_writer` gives one and finishes the file.

    Members lie in the zip as image, mask, depth by index, then dataset.json, exact.json and meta.json.
    """

    def __init__(self, archive: zipfile.ZipFile, resolution: int) -> None:
        self._archive = archive
        self._resolution = resolution
        self._labels: list[np.ndarray] = []
        self._body_poses: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._labels)

    def add(
        self,
        image: UInt8[ndarray, "H W 3"],
        mask: UInt8[ndarray, "MH MW"],
        camera: Float[ndarray, " 25"],
        body_pose: Float[ndarray, " 6"],
        depth: Float[ndarray, "DH DW"] | None = None,
    ) -> None:
        """Encode and append one image with its mask (255 = person), camera label and body pose.

        Raises:
            DatasetError: a size is not the resolution of the dataset, or a label is not finite.
        """
        # Check the sizes.
        expected = (self._resolution, self._resolution)
        for what, array in (("image", image), ("mask", mask), ("depth", depth)):
            if array is not None and array.shape[:2] != expected:
                raise DatasetError(
                    f"the {what} {len(self)} has {array.shape[1]}x{array.shape[0]} pixels,"
                    f" not {self._resolution}x{self._resolution}.",
                    "Resize it before writing.",
                )

        # Encode and append.
        self.add_encoded(
            layout.encode_image(image),
            layout.encode_mask(mask),
            camera,
            body_pose,
            None if depth is None else layout.encode_depth(depth),
        )

    def add_encoded(
        self,
        image: bytes,
        mask: bytes,
        camera: Float[ndarray, " 25"],
        body_pose: Float[ndarray, " 6"],
        depth: bytes | None = None,
    ) -> None:
        """Append one image whose files are encoded already (see `layout`)."""
        index = len(self)
        label = np.concatenate([camera, body_pose]).astype(np.float32)
        if label.shape != (CAMERA_LABEL_SIZE + BODY_POSE_SIZE,) or not np.isfinite(label).all():
            raise DatasetError(
                f"the label of image {index} must be 31 finite numbers, not {label.tolist()}.",
                "Check the camera and the body pose that were given.",
            )
        add_member(self._archive, layout.image_name(index), image)
        add_member(self._archive, layout.mask_name(index), mask)
        if depth is not None:
            add_member(self._archive, layout.depth_name(index), depth)
        self._labels.append(label)

    def set_training_poses(self, body_poses: Float[ndarray, "N 6"]) -> None:
        """Let training read these coarse body poses; those given with the images become the exact ones."""
        if len(body_poses) != len(self):
            raise DatasetError(
                f"there are {len(body_poses)} coarse body poses for {len(self)} images.",
                "Give one per image.",
            )
        self._body_poses = body_poses

    def body_poses(self) -> Float[ndarray, "N 6"]:
        """The body poses given with the images so far."""
        return self._label_array()[:, CAMERA_LABEL_SIZE:]

    def finish(self, meta: dict) -> None:
        """Write the label files and meta.json (called once, by `open_writer`).

        Raises:
            DatasetError: there is no image.
        """
        if not self._labels:
            raise DatasetError("there is no image to write.", "A dataset needs at least one.")
        names = [layout.image_name(index) for index in range(len(self))]
        labels = self._label_array()
        if self._body_poses is None:
            add_member(self._archive, layout.LABELS_FILE, layout.encode_labels(names, labels))
        else:
            coarse = np.concatenate([labels[:, :CAMERA_LABEL_SIZE], self._body_poses], axis=1)
            add_member(self._archive, layout.LABELS_FILE, layout.encode_labels(names, coarse))
            add_member(self._archive, layout.EXACT_FILE, layout.encode_labels(names, labels))
        fixed = {
            "format": layout.FORMAT,
            "format_version": layout.FORMAT_VERSION,
            "version": portrait360.__version__,
            "count": len(self),
            "resolution": self._resolution,
        }
        add_member(self._archive, layout.META_FILE, layout.encode_meta({**meta, **fixed}))

    def _label_array(self) -> np.ndarray:
        return np.stack(self._labels) if self._labels else np.zeros((0, 31), np.float32)


@contextlib.contextmanager
def open_writer(path: Path, *, resolution: int, meta: dict) -> Iterator[DatasetWriter]:
    """Write a dataset to a zip that appears under `path` only when the block ends well.

    Args:
        path: the zip to write; its folder is made when missing.
        resolution: side of the images in pixels.
        meta: what meta.json holds beside format, version, count and resolution: at least "generator" and
            "label_kind" ("exact", "coarse" or "estimated"). It may be filled until the block ends.

    Raises:
        InputError: the file cannot be written, for instance because the disk is full.
    """
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        writer = DatasetWriter(archive, resolution)
        yield writer
        writer.finish(meta)
