"""Rewrite a dataset of other conventions in this project's: labels are converted, images and masks stay as they are."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np

from portrait360.data import layout
from portrait360.data.conventions import (
    OURS,
    Conventions,
    causes,
    convert_command,
    converted,
    likely_conventions,
    remaining_problem,
)
from portrait360.data.dataset import decode_image, is_image_file, is_portrait_file, match_masks
from portrait360.data.labels import Labels, read_labels
from portrait360.data.store import Store, open_store
from portrait360.errors import DatasetError, InputError
from portrait360.runtime.files import atomic_write
from portrait360.runtime.job_files import add_member
from portrait360.runtime.progress import show_progress

_NEAR_HALF = (0.25, 0.75)
"""Where the principal point lies in units of the side, if intrinsics in pixels belong to images of that side."""


def convert_dataset(
    path: Path,
    out: Path,
    conventions: Conventions = OURS,
    *,
    masks_path: Path | None = None,
    progress: bool = True,
) -> int:
    """Write a dataset with labels in this project's conventions; all other files are copied byte for byte.

    A backslash in a name becomes '/'. exact.json, which only this project writes, stays where its labels are right
    already.

    Args:
        path: the dataset, a zip or a folder.
        out: the zip to write; it appears when it is complete.
        conventions: what the labels follow.
        masks_path: a separate zip or folder of masks (3DPortraitGAN and PanoHead have one), which is put into masks/.
        progress: show how far the copying is.

    Returns:
        The number of labels.

    Raises:
        InputError: `out` is no zip, is the dataset itself, or cannot be written.
        DatasetError: the dataset is missing or broken, has no masks for images, or its labels do not follow
            `conventions`; nothing is written then.
    """
    # Check the place, and read the labels
    _check_out(path, out)
    store = open_store(path)
    names = store.names()
    images = [name for name in names if is_portrait_file(name)]
    if layout.LABELS_FILE not in names or not images:
        raise DatasetError(
            f"{path} has no dataset.json or no images.", 'It must hold {"labels": [[image name, 31 numbers], ...]}.'
        )
    side = decode_image(store.read(images[0]), f"{images[0]} in {path}", None, "Replace it.").width
    labels = read_labels(store, layout.LABELS_FILE)
    rewritten = {layout.LABELS_FILE: _converted_file(path, labels, conventions, side)}
    if layout.EXACT_FILE in names:
        exact = read_labels(store, layout.EXACT_FILE)
        if not _follow_ours(exact.array, side):
            rewritten[layout.EXACT_FILE] = _converted_file(path, exact, conventions, side)

    # Copy all other files, and the masks
    masks = {} if masks_path is None else _separate_masks(images, masks_path)
    with (
        atomic_write(out) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
        show_progress("copying", len(names) + len(masks), "files", visible=progress) as bar,
    ):
        for name in names:
            add_member(archive, name, rewritten[name] if name in rewritten else store.read(name))
            bar.advance(1)
        for name, (mask_store, mask) in masks.items():
            add_member(archive, name, mask_store.read(mask))
            bar.advance(1)
    return len(labels.rows)


def _check_out(path: Path, out: Path) -> None:
    if out.suffix.lower() != ".zip":
        raise InputError(f"`out` must be a .zip file, not {out}.", f"Try `out={out.with_suffix('.zip')}`.")
    if out.exists() and path.exists() and os.path.samefile(path, out):
        raise InputError(f"{out} is the dataset itself.", "Choose another `out`.")


def _converted_file(path: Path, labels: Labels, conventions: Conventions, side: int) -> bytes:
    """The label file of converted labels. Raises DatasetError when they do not follow our conventions then."""
    # Convert
    where = f"labels of {path}"
    pixels = _side_of_pixels(labels.array, side, where) if conventions.intrinsics == "pixels" else side
    array = converted(labels.array, conventions, pixels)
    if _follow_ours(array, side):
        return layout.encode_labels(labels.rows, array)

    # Say what the labels follow instead
    original = likely_conventions(labels.array, side)
    if original not in (OURS, conventions):
        raise DatasetError(
            f"{where} do not follow the given conventions: by their numbers {causes(original)}.",
            f"Try `{convert_command(path, original)}`.",
        )
    if _follow_ours(labels.array, side):
        raise DatasetError(f"{where} follow the conventions as they are.", "They need no conversion.")
    problem = remaining_problem(array, list(labels.rows))
    raise DatasetError(
        f"{where} are still wrong after the conversion: {problem}.", "Check the conventions that they were made in."
    )


def _side_of_pixels(array: np.ndarray, side: int, where: str) -> float:
    """Side of the images that intrinsics in pixels belong to: these images, or larger ones before they were resized."""
    centres = array[:, [18, 21]].astype(np.float64)
    share = np.median(centres) / side
    if _NEAR_HALF[0] <= share <= _NEAR_HALF[1]:
        return float(side)
    if np.ptp(centres) > 1e-3 * abs(np.median(centres)):
        raise DatasetError(
            f"{where} have principal points around {np.median(centres):.4g} pixels; images have {side}.",
            "Their intrinsics belong to images of another size: divide them by that size yourself.",
        )
    return 2.0 * float(np.median(centres))


def _follow_ours(array: np.ndarray, side: int) -> bool:
    return likely_conventions(array, side) == OURS and remaining_problem(array, [""] * len(array)) is None


def _separate_masks(images: list[str], masks_path: Path) -> dict[str, tuple[Store, str]]:
    """Where the mask of each image goes, and where it comes from."""
    store = open_store(masks_path)
    found = match_masks(images, [name for name in store.names() if is_image_file(name)])
    missing = [image for image in images if image not in found]
    if missing:
        raise DatasetError(
            f"{len(missing)} of {len(images)} images have no mask in {masks_path}, for instance {missing[0]}.",
            "A mask has the path of its image; only the suffix may differ.",
        )
    return {_mask_place(image, mask): (store, mask) for image, mask in found.items()}


def _mask_place(image: str, mask: str) -> str:
    inside = PurePosixPath(image)
    parts = inside.parts[1:] if inside.parts[0] == "images" else inside.parts
    return str(PurePosixPath("masks", *parts).with_suffix(PurePosixPath(mask).suffix))
