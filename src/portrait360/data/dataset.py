"""Read datasets: this project's zips and folders, and those of EG3D, PanoHead and 3DPortraitGAN."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor

from portrait360.data import layout
from portrait360.data.conventions import OURS, check_conventions, convert_command
from portrait360.data.labels import read_json, read_labels
from portrait360.data.store import Store, open_store
from portrait360.runtime.words import counted
from portrait360.types import BODY_POSE_SIZE, CAMERA_LABEL_SIZE, DatasetError

_IMAGE_SUFFIXES = frozenset({".webp", ".png", ".jpg", ".jpeg"})
_MASK_FOLDERS = ("masks", "mask", "seg", "segs")
"""Folders of masks: ours, and those of tools that segment."""
_FOLDERS = ("images", "aligned_images", "depth", *_MASK_FOLDERS)
_MASK_ENDINGS = ("_seg", "_mask", ".mask", ".seg", "-mask")
"""What tools that segment append to the name of the image."""


class PortraitDataset:
    """Images with masks, camera labels and body poses, in the order of their sorted names.

    Safe to use from many threads, after a fork, and in spawned workers (it can be pickled).

    Attributes:
        cameras: (N, 25) float32 camera labels.
        body_poses: (N, 6) float32 body poses in radians; zeros when `has_body_poses` is False.
        meta: content of meta.json; {"label_kind": "estimated"} for datasets without one.
        resolution: side of the images in pixels.
    """

    def __init__(
        self, path: Path, *, labels: Literal["train", "exact"] = "train", masks_path: Path | None = None
    ) -> None:
        """Open a dataset and check everything except the pixels.

        Args:
            path: a zip or folder with `dataset.json`; images may lie at any path.
            labels: "train" reads dataset.json, whose body poses may be coarse; "exact" wants the exact ones.
            masks_path: a separate zip or folder of masks with the same stems (as 3DPortraitGAN and PanoHead have it).

        Raises:
            DatasetError: it is missing, broken, incomplete or inconsistent, has no exact labels, or its labels do not
                follow this project's conventions (`conventions.check_conventions`).
        """
        # Find the images.
        path = Path(path)
        self.path = path
        self._store = open_store(path)
        files = self._store.names()
        self._images = [name for name in files if is_portrait_file(name)]
        if not self._images:
            raise DatasetError(f"{path} has no images.", "Expected WebP, PNG or JPEG files beside dataset.json.")

        # Read and match the labels.
        self.meta = self._read_meta(files)
        self.label_kind = str(self.meta.get("label_kind", "estimated"))
        labels_file = self._labels_file(files, labels)
        array = self._match_labels(labels_file)
        self.has_body_poses = array.shape[1] > CAMERA_LABEL_SIZE
        poses = array[:, CAMERA_LABEL_SIZE:] if self.has_body_poses else np.zeros((len(array), BODY_POSE_SIZE))
        self.cameras: Float[Tensor, "N 25"] = torch.from_numpy(array[:, :CAMERA_LABEL_SIZE].copy())
        self.body_poses: Float[Tensor, "N 6"] = torch.from_numpy(poses.astype(np.float32))

        # Find masks, depths and the resolution.
        self._mask_store, self._masks = self._find_masks(files, Path(masks_path) if masks_path else None)
        depths = {_key(name): name for name in files if name.startswith("depth/")}
        self._depths = [depths.get(_key(name)) for name in self._images]
        self.resolution = self._open_image(self._images[0]).width

        # Refuse what is meant otherwise.
        check_conventions(path, array, self._images, self.resolution)

    def __len__(self) -> int:
        return len(self._images)

    @property
    def has_masks(self) -> bool:
        """Whether every image has a mask."""
        return self._mask_store is not None

    def fingerprint(self) -> str:
        """Changes when any file of the dataset does; see `Store.fingerprint`."""
        return self._store.fingerprint()

    def name(self, index: int) -> str:
        """The path of an image inside the dataset, with '/' between folders."""
        return self._images[index]

    def image(self, index: int) -> UInt8[ndarray, "H W 3"]:
        """Decode an image, RGB. Raises DatasetError when it is broken or differs in size."""
        return np.asarray(self._decode_image(index))

    def mask(self, index: int) -> UInt8[ndarray, "H W"]:
        """Decode a mask, 255 = person. Raises DatasetError when it is missing, broken or differs in size."""
        return np.asarray(self._decode_mask(index))

    def encoded(self, index: int) -> tuple[tuple[str, bytes], tuple[str, bytes]]:
        """Suffix and bytes of an image and of its mask, as they lie in the dataset."""
        if self._mask_store is None:
            raise self._no_masks()
        image, mask = self._images[index], self._masks[index]
        return (
            (PurePosixPath(image).suffix.lower(), self._store.read(image)),
            (PurePosixPath(mask).suffix.lower(), self._mask_store.read(mask)),
        )

    def depth(self, index: int) -> Float[ndarray, "H W"] | None:
        """Depth in world units, 0 = background; None when the dataset has no depth."""
        name = self._depths[index]
        if name is None:
            return None
        image = self._check_size(_decode(self._store, name, None), name)
        return np.asarray(image, np.float32) / float(self.meta.get("depth_scale", layout.DEPTH_SCALE))

    def load_arrays(
        self,
        resolution: int | None = None,
        workers: int = 2,
        *,
        masks: bool = True,
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[UInt8[Tensor, "N 3 R R"], UInt8[Tensor, "M 1 R R"]]:
        """Decode all images into memory, averaged down to `resolution` (N * R * R * 4 bytes).

        Args:
            resolution: side in pixels, at most that of the dataset; its own when None.
            workers: threads that decode.
            masks: when False, masks are not read and the second tensor is empty (M = 0).
            progress: called with (images done, all images) from the calling thread.

        Raises:
            DatasetError: an image is broken, masks are missing, or the dataset is smaller than `resolution`.
        """
        # Check that the dataset has what is asked for.
        side = self.resolution if resolution is None else resolution
        if not 1 <= side <= self.resolution:
            raise DatasetError(
                f"{self.path} has images of {self.resolution}x{self.resolution} pixels; {side}x{side} was asked for.",
                "Choose a resolution that is not larger, or make the dataset anew with larger images.",
            )
        if masks and not self.has_masks:
            raise self._no_masks()

        # Decode.
        return stack_images(
            len(self), self._decode_image, self._decode_mask if masks else None, side, workers, progress
        )

    def _read_meta(self, files: Iterable[str]) -> dict:
        if layout.META_FILE not in files:
            return {"label_kind": "estimated"}
        meta = read_json(self._store, layout.META_FILE)
        if not isinstance(meta, dict):
            raise DatasetError(f"meta.json in {self.path} must hold an object.", "Make the dataset anew.")
        return meta

    def _labels_file(self, files: Iterable[str], labels: str) -> str:
        if labels == "exact":
            if layout.EXACT_FILE in files:
                return layout.EXACT_FILE
            if self.label_kind != "exact":
                raise DatasetError(
                    f"{self.path} has no exact body poses; its labels are {self.label_kind}.",
                    "Use a synthetic dataset (`portrait360 dataset synth`), which knows them.",
                )
        if layout.LABELS_FILE not in files:
            raise DatasetError(
                f"{self.path} has no dataset.json.",
                'It must lie at the top and hold {"labels": [[image name, 31 numbers], ...]}.',
            )
        return layout.LABELS_FILE

    def _match_labels(self, labels_file: str) -> np.ndarray:
        """Labels in the order of the images; every image needs one and every label an image."""
        labels = read_labels(self._store, labels_file)
        missing = [name for name in self._images if name not in labels.rows]
        if missing:
            raise DatasetError(
                f"{len(missing)} of {len(self._images)} images in {self.path} have no label in {labels_file},"
                f" for instance {missing[0]}.",
                "Add their labels or take these images out.",
            )
        extra = sorted(set(labels.rows) - set(self._images))
        if extra:
            raise DatasetError(
                f"{counted(len(extra), 'label')} without an image in {labels_file} of {self.path}, for example"
                f" {extra[0]}.",
                "Add these images or take their labels out.",
            )
        return labels.array[[labels.rows[name] for name in self._images]]

    def _find_masks(self, files: Iterable[str], masks_path: Path | None) -> tuple[Store | None, list[str]]:
        if masks_path is not None:
            store = open_store(masks_path)
            masks = [name for name in store.names() if is_image_file(name)]
        else:
            store = self._store
            masks = [name for name in files if is_image_file(name) and _is_mask(name)]
            if not masks:
                return None, []
        found = match_masks(self._images, masks)
        missing = [name for name in self._images if name not in found]
        if missing:
            raise DatasetError(
                f"{len(missing)} of {len(self._images)} images have no mask in {store.path},"
                f" for instance {missing[0]}.",
                "A mask has the path of its image; only the suffix may differ.",
            )
        return store, [found[name] for name in self._images]

    def _open_image(self, name: str) -> Image.Image:
        image = _decode(self._store, name, "RGB")
        if image.width != image.height:
            raise DatasetError(
                f"{name} in {self.path} has {image.width}x{image.height} pixels; expected a square.",
                "Crop the images to squares first.",
            )
        return image

    def _decode_image(self, index: int) -> Image.Image:
        name = self._images[index]
        return self._check_size(self._open_image(name), name)

    def _decode_mask(self, index: int) -> Image.Image:
        if self._mask_store is None:
            raise self._no_masks()
        name = self._masks[index]
        return self._check_size(_decode(self._mask_store, name, "L"), name)

    def _check_size(self, image: Image.Image, name: str) -> Image.Image:
        if image.size != (self.resolution, self.resolution):
            raise DatasetError(
                f"{name} in {self.path} has {image.width}x{image.height} pixels, others"
                f" {self.resolution}x{self.resolution}.",
                "All images and masks of a dataset must have the same size.",
            )
        return image

    def _no_masks(self) -> DatasetError:
        return DatasetError(
            f"{self.path} has no masks, and training needs them.",
            "Put them beside the images (masks/ with the same names), or join a separate zip of masks:"
            f" `{convert_command(self.path, OURS, masks='MASKS.zip')}`.",
        )


def exact_poses(path: Path, dataset: PortraitDataset) -> Float[Tensor, "N 6"] | None:
    """Exact body poses, radians, when the dataset has them."""
    if dataset.label_kind == "exact":
        return dataset.body_poses
    try:
        return PortraitDataset(path, labels="exact").body_poses
    except DatasetError:
        if dataset.label_kind == "coarse":
            raise
        return None


def _decode(store: Store, name: str, mode: str | None) -> Image.Image:
    return decode_image(store.read(name), f"{name} in {store.path}", mode, "Replace it, or take it and its label out.")


def decode_image(content: bytes, where: str, mode: str | None, hint: str) -> Image.Image:
    """Decode WebP, PNG or JPEG, converted to `mode` if one is given.

    Raises:
        DatasetError: broken, something else, or suspiciously large; `where` names the image, `hint` helps.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=("WEBP", "PNG", "JPEG"))
            image.load()
            return image if mode is None or image.mode == mode else image.convert(mode)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError, Warning) as error:
        raise DatasetError(f"{where} is not a readable image: {error}.", hint) from error


def stack_images(
    count: int,
    image: Callable[[int], Image.Image],
    mask: Callable[[int], Image.Image] | None,
    side: int,
    workers: int,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[UInt8[Tensor, "N 3 R R"], UInt8[Tensor, "M 1 R R"]]:
    """Images and masks as `image` and `mask` decode them, averaged down to `side`; see `load_arrays`."""
    # Room for all, filled row by row.
    images = torch.empty((count, 3, side, side), dtype=torch.uint8)
    masks = torch.empty((0 if mask is None else count, 1, side, side), dtype=torch.uint8)
    to_images, to_masks = images.numpy(), masks.numpy()

    def load(index: int) -> None:
        to_images[index] = np.asarray(_shrink(image(index), side, Image.Resampling.LANCZOS)).transpose(2, 0, 1)
        if mask is not None:
            to_masks[index, 0] = np.asarray(_shrink(mask(index), side, Image.Resampling.BILINEAR))

    # Decode in threads; the first failure stops the others.
    with ThreadPoolExecutor(max(1, workers), "decode") as pool:
        try:
            for done, _ in enumerate(pool.map(load, range(count)), start=1):
                if progress is not None:
                    progress(done, count)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return images, masks


def _shrink(image: Image.Image, side: int, filter: Image.Resampling) -> Image.Image:
    """Average down: whole factors take the exact mean of each block, others the antialiasing filter."""
    if image.width == side:
        return image
    if image.width % side == 0:
        return image.reduce(image.width // side)
    return image.resize((side, side), filter)


def is_image_file(name: str) -> bool:
    """Whether a file of this name is an image (and not hidden)."""
    path = PurePosixPath(name)
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return path.suffix.lower() in _IMAGE_SUFFIXES and not hidden


def is_portrait_file(name: str) -> bool:
    """Whether a file of a dataset is one of its images, not a mask or a depth."""
    return is_image_file(name) and not _is_mask(name) and not name.startswith("depth/")


def _is_mask(name: str) -> bool:
    return name.startswith(tuple(f"{folder}/" for folder in _MASK_FOLDERS))


def match_masks(images: Sequence[str], masks: Sequence[str]) -> dict[str, str]:
    """The mask of each image, as far as there is one.

    A mask has the path of its image apart from the suffix and from a first folder such as images/ or masks/; else that
    path with an ending such as `_seg`; else, where file names are unique, the same file name in any folder.
    """
    # Names that masks go by, the surest last
    ways = [
        {_stem(name): name for name in masks} if _unique(images) and _unique(masks) else {},
        {_without_ending(_key(name)): name for name in masks},
        {_key(name): name for name in masks},
    ]

    # The surest one for each image
    found = {}
    for image in images:
        names = [way.get(key) for way, key in zip(ways, (_stem(image), _key(image), _key(image)), strict=True)]
        if any(names):
            found[image] = next(name for name in reversed(names) if name is not None)
    return found


def _stem(name: str) -> str:
    """The file name without suffix and without what masks have at its end."""
    return _without_ending(PurePosixPath(name).with_suffix("").name)


def _unique(names: Sequence[str]) -> bool:
    return len({_stem(name) for name in names}) == len(names)


def _without_ending(key: str) -> str:
    ending = next((ending for ending in _MASK_ENDINGS if key.endswith(ending)), "")
    return key.removesuffix(ending)


def _key(name: str) -> str:
    """What an image and its mask share: the path without suffix and without a first folder like images/ or masks/."""
    path = PurePosixPath(name)
    parts = path.parts[1:] if path.parts[0] in _FOLDERS else path.parts
    return str(PurePosixPath(*parts).with_suffix(""))
