"""Images together with the camera and the mask that belong to them, wherever those lie.

One image or all of a place, in any of three forms:

- an image with `NAME.json` beside it that holds {"camera": [25 numbers]}, and as its mask `NAME.mask.png` or, when
  there is none, its own alpha channel;
- a dataset, zip or folder, as `PortraitDataset` reads it;
- test data of the original (equations 13.5), zip or folder: aligned_images/, mask/ with the same names, and
  result.json with a `camera_pose` of 4x4 numbers for each; the intrinsics are the original's constant ones.

Nothing is assumed where a camera or a mask is missing: that is an error, unless the caller can fit photos.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor

from portrait360.data.dataset import PortraitDataset, decode_image, exact_poses, is_image_file
from portrait360.data.labels import check_camera, read_json
from portrait360.data.layout import LABELS_FILE
from portrait360.data.store import Store, open_store
from portrait360.geometry.cameras import camera_label
from portrait360.runtime.files import explained_os_errors
from portrait360.types import DatasetError, InputError

Pixels = tuple[UInt8[ndarray, "H H 3"], UInt8[ndarray, "H H"]]

RESULT_FILE = "result.json"
_ALIGNED, _MASKS = "aligned_images", "mask"
_MASK_ENDING = ".mask.png"
_FOLDERS_UP = 3
"""The label file of an image lies in one of so many folders above it (three for images/00000/00000012.webp)."""


@dataclass(frozen=True)
class LabelledImage:
    """An image with camera and mask, its pixels still in the file."""

    name: str
    """As the user may call it: the path, for a zip the path of the zip and that inside of it."""
    camera: Float[Tensor, " 25"]
    read: Callable[[], Pixels]
    """Decode image (RGB) and mask (255 = person), squares of equal size. Raises DatasetError when they are not."""
    files: tuple[Path, ...]
    """Files that image, mask and labels come from."""
    body_poses: dict[str, Float[Tensor, " 6"]] = field(default_factory=dict)
    """Body poses that the dataset gives, radians, by kind (exact, coarse, estimated)."""
    fitted: FittedCrop | None = None
    """Where the image was cut out of a photo, and the body pose that was fitted there."""


@dataclass(frozen=True)
class FittedCrop:
    """A person who was found in a photo without labels (`portrait360.photos`)."""

    crop: tuple[float, float, float]
    """Centre (right, down) and side, in pixels of the upright photo."""
    body_pose: Float[Tensor, " 6"]
    fit_error: float
    confidence: float
    turned: int = 0
    """Degrees by which the photo was turned counter-clockwise to be upright."""


FitPhoto = Callable[[Path], list[LabelledImage]]
"""The persons of a photo without labels; raises InputError when there are none."""


def find_images(paths: Sequence[Path], fit_photo: FitPhoto | None = None) -> list[LabelledImage]:
    """The images at these paths in the order given, each once; of folders and zips all images.

    Args:
        paths: images, folders and zips.
        fit_photo: what to make of an image for which there is no camera; None: that is an error.

    Raises:
        InputError: nothing is there, it is no image, or a camera or mask is missing.
        DatasetError: a label file, a dataset or a result.json is broken.
    """
    places = _Places(fit_photo)
    found: dict[str, LabelledImage] = {}
    for path in paths:
        for image in _images_at(Path(path), places):
            found.setdefault(image.name, image)
    return list(found.values())


def _images_at(path: Path, places: _Places) -> Iterator[LabelledImage]:
    if not path.exists():
        raise InputError(f"there is no image, folder or zip at {path}.", "Check the path.")
    if path.is_file() and (zipfile.is_zipfile(path) or path.suffix.lower() == ".zip"):
        yield from places.collection(path).all(path)
    elif path.is_file():
        yield from _single(path, places)
    elif (path / LABELS_FILE).is_file() or (path / RESULT_FILE).is_file():
        yield from places.collection(path).all(path)
    else:
        names = sorted(entry for entry in path.iterdir() if is_image_file(entry.name) and entry.is_file())
        images = [entry for entry in names if not entry.name.endswith(_MASK_ENDING)]
        if not images:
            raise InputError(
                f"{path} holds neither images nor a dataset.json or result.json.",
                "Name an image, a dataset, or a folder with WebP, PNG or JPEG files.",
            )
        for image in images:
            yield from _single(image, places)


def _single(path: Path, places: _Places) -> list[LabelledImage]:
    if not is_image_file(path.name):
        raise InputError(f"{path} is not an image.", "Name a WebP, PNG or JPEG file, a folder or a zip.")
    if path.with_suffix(".json").is_file():
        return [_beside(path)]
    place = path.absolute()
    for root in place.parents[:_FOLDERS_UP]:
        inside = place.relative_to(root).as_posix()
        original = inside.startswith(f"{_ALIGNED}/") and (root / RESULT_FILE).is_file()
        if original or (root / LABELS_FILE).is_file():
            return [places.collection(root).one(inside, str(path))]
    if places.fit_photo is not None:
        return places.fit_photo(path)
    raise InputError(
        f"there is no camera for {path}.",
        f'Write {{"camera": [25 numbers]}} into {path.with_suffix(".json").name} beside it'
        " (see docs/conventions.md), or name an image of a dataset.",
    )


# ---- an image by itself ----


def _beside(path: Path) -> LabelledImage:
    """An image with its camera in NAME.json and its mask in NAME.mask.png or in its alpha channel."""
    sidecar, mask = path.with_suffix(".json"), path.with_name(path.stem + _MASK_ENDING)
    content = _read_sidecar(sidecar)
    if not isinstance(content, dict) or "camera" not in content:
        raise DatasetError(f"{sidecar} holds no camera.", 'Write {"camera": [25 numbers]} into it.')
    camera = torch.from_numpy(check_camera(content["camera"], str(sidecar)))
    has_mask = mask.is_file()
    if not has_mask and not _has_alpha(path):
        raise InputError(
            f"there is no mask for {path}.",
            f"Put {mask.name} (white = person) beside it, or give it an alpha channel.",
        )

    def read() -> Pixels:
        image = _open(path, None)
        grey = _open(mask, "L") if has_mask else image.convert("RGBA").getchannel("A")
        return _square_pair(image.convert("RGB"), grey, str(path))

    return LabelledImage(str(path), camera, read, (path, sidecar, *([mask] if has_mask else [])))


def _read_sidecar(path: Path) -> Any:
    try:
        with explained_os_errors(path):
            return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path} is not valid JSON: {error}.", "Mend the file.") from error


def _open(path: Path, mode: str | None) -> Image.Image:
    with explained_os_errors(path):
        content = path.read_bytes()
    return decode_image(content, str(path), mode, "Name a WebP, PNG or JPEG file that a viewer can open.")


def _has_alpha(path: Path) -> bool:
    image = _open(path, None)
    return image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info


def _square_pair(image: Image.Image, mask: Image.Image, name: str) -> Pixels:
    if image.width != image.height:
        raise DatasetError(
            f"{name} has {image.width}x{image.height} pixels; expected a square.",
            "Crop the image to the square that its camera belongs to.",
        )
    if mask.size != image.size:
        raise DatasetError(
            f"the mask of {name} has {mask.width}x{mask.height} pixels, the image {image.width}x{image.height}.",
            "Both must have the same size.",
        )
    return np.asarray(image), np.asarray(mask)


# ---- images that share a label file ----


class _Places:
    """Datasets and folders of the original that were opened already."""

    def __init__(self, fit_photo: FitPhoto | None) -> None:
        self.fit_photo = fit_photo
        self._opened: dict[Path, _Dataset | _Original] = {}

    def collection(self, root: Path) -> _Dataset | _Original:
        """The dataset or the original's test data in a zip or folder."""
        key = root.absolute()
        if key not in self._opened:
            store = open_store(root)
            original = RESULT_FILE in store.names() and LABELS_FILE not in store.names()
            self._opened[key] = _Original(store) if original else _Dataset(root)
        return self._opened[key]


class _Dataset:
    """Images of a dataset with the body poses that it knows."""

    def __init__(self, path: Path) -> None:
        self._data = PortraitDataset(path)
        if not self._data.has_masks:
            raise DatasetError(
                f"{path} has no masks, without which no body pose can be predicted.",
                "Put them into masks/ with the names of the images.",
            )
        self._poses: dict[str, Tensor] = {}
        if self._data.has_body_poses:
            self._poses[self._data.label_kind] = self._data.body_poses
            exact = exact_poses(path, self._data)
            if exact is not None:
                self._poses["exact"] = exact
        self._rows = {self._data.name(row): row for row in range(len(self._data))}

    def all(self, shown: Path) -> Iterator[LabelledImage]:
        for name in self._rows:
            yield self.one(name, str(shown / name))

    def one(self, inside: str, shown: str) -> LabelledImage:
        """The image `inside` the dataset, called `shown`."""
        if inside not in self._rows:
            raise InputError(
                f"{shown} is not among the images of the dataset {self._data.path}.", "Name an image, not a mask."
            )
        row = self._rows[inside]
        root = self._data.path
        files = [root / LABELS_FILE, root / inside] if root.is_dir() else [root]
        poses = {kind: values[row] for kind, values in self._poses.items()}
        data = self._data
        return LabelledImage(shown, data.cameras[row], lambda: (data.image(row), data.mask(row)), tuple(files), poses)


class _Original:
    """Test data as the original's scripts read them (equations 13.5)."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._results = read_json(store, RESULT_FILE)
        names = [name for name in store.names() if is_image_file(name)]
        self._images = [name for name in names if name.startswith(f"{_ALIGNED}/")]
        self._masks = {_stem(name): name for name in names if name.startswith(f"{_MASKS}/")}
        if not self._images:
            raise DatasetError(
                f"{store.path} has no images in {_ALIGNED}/.",
                f"Expected {_ALIGNED}/, {_MASKS}/ with the same names, and {RESULT_FILE}.",
            )

    def all(self, shown: Path) -> Iterator[LabelledImage]:
        for name in self._images:
            yield self.one(name, str(shown / name))

    def one(self, inside: str, shown: str) -> LabelledImage:
        """The image `inside` the folder, called `shown`."""
        name = inside.removeprefix(f"{_ALIGNED}/")
        mask = self._masks.get(_stem(inside))
        if mask is None:
            raise InputError(f"there is no mask for {shown}.", f"Put it into {_MASKS}/ with the same name.")
        root = self._store.path
        files = [root / RESULT_FILE, root / inside, root / mask] if root.is_dir() else [root]

        def read() -> Pixels:
            image, grey = (
                decode_image(self._store.read(file), f"{file} in {root}", mode, "Replace it.")
                for file, mode in ((inside, "RGB"), (mask, "L"))
            )
            return _square_pair(image, grey, shown)

        return LabelledImage(shown, self._camera(name), read, tuple(files))

    def _camera(self, name: str) -> Float[Tensor, " 25"]:
        results = self._results if isinstance(self._results, dict) else {}
        entry = results.get(name)
        pose = entry.get("camera_pose") if isinstance(entry, dict) else None
        if pose is None:
            raise InputError(
                f"there is no camera for {name} in {RESULT_FILE} of {self._store.path}.",
                'Expected {"' + name + '": {"camera_pose": [4 rows of 4 numbers]}}.',
            )
        where = f"the entry {name} of {RESULT_FILE} in {self._store.path}"
        shaped = isinstance(pose, list) and [len(row) if isinstance(row, list) else 0 for row in pose] == [4] * 4
        if not shaped:
            raise DatasetError(f"{where} has a camera_pose that is not 4 rows of 4 numbers.", "Mend this entry.")
        numbers = [value for row in pose for value in row]
        return torch.from_numpy(check_camera(numbers + camera_label(0.0)[0, 16:].tolist(), where))


def _stem(name: str) -> str:
    """What an image and its mask share: the path below aligned_images/ or mask/ without the suffix."""
    return str(PurePosixPath(*PurePosixPath(name).parts[1:]).with_suffix(""))
