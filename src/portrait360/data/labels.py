"""Read and check the JSON label files of a dataset."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from portrait360.data.store import Store, with_slashes
from portrait360.types import BODY_POSE_SIZE, CAMERA_LABEL_SIZE, DatasetError

_ORTHONORMAL_TOLERANCE = 5e-3
"""Real labels carry TF32 and printing errors of some 5e-4; a wrong axis order or scale is far beyond this."""

_LAST_ROW_TOLERANCE = 1e-4
_LARGEST = 1e6


@dataclass(frozen=True)
class Labels:
    """`array` (N, 31 or 25) float32; `rows` maps the name of an image to its row."""

    rows: dict[str, int]
    array: np.ndarray


def read_json(store: Store, name: str) -> Any:
    """Parse a JSON file of a dataset. Raises DatasetError when it is not JSON."""
    try:
        return json.loads(store.read(name))
    except (ValueError, RecursionError) as error:
        raise DatasetError(
            f"{name} in {store.path} is not valid JSON: {error}.", "Mend the file or make the dataset anew."
        ) from error


def read_labels(store: Store, name: str) -> Labels:
    """Read {"labels": [[image name, 31 or 25 numbers], ...]} and check every number.

    What the numbers mean is not checked; see `conventions.check_conventions`.

    Raises:
        DatasetError: the structure, a count, a number or a camera is wrong; the message names the entry.
    """
    # Take the list of labels.
    where = f"{name} in {store.path}"
    content = read_json(store, name)
    entries = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise DatasetError(
            f'{where} must hold {{"labels": [[image name, 31 numbers], ...]}} with at least one entry.',
            "Labels are needed for every image; an EG3D dataset made without labels cannot be used.",
        )

    # Check entry by entry.
    rows: dict[str, int] = {}
    numbers: list[list[float]] = []
    for index, entry in enumerate(entries):
        image, label = _check_entry(entry, index, where)
        if numbers and len(label) != len(numbers[0]):
            raise DatasetError(
                f"entry {index} ({image}) of {where} has {len(label)} numbers, the entries before it"
                f" {len(numbers[0])}.",
                "All entries must have the same count: 31 (camera and body pose) or 25 (camera only).",
            )
        if image in rows:
            raise DatasetError(f"{where} has two labels for {image}.", "Take one of them out.")
        rows[image] = index
        numbers.append(label)

    # Check all cameras at once.
    array = np.asarray(numbers, np.float64)
    names = list(rows)
    _check_cameras(array, lambda index: f"entry {index} ({names[index]}) of {where}")
    return Labels(rows, array.astype(np.float32))


def check_camera(label: Any, where: str) -> Float[ndarray, " 25"]:
    """One camera label that came from a JSON file, as float32.

    Args:
        label: what the file holds, a list of 25 numbers if it is right.
        where: what holds the camera, for messages.

    Raises:
        DatasetError: not 25 finite numbers, or not a camera.
    """
    if not isinstance(label, list) or len(label) != CAMERA_LABEL_SIZE:
        came = f"{len(label)} entries" if isinstance(label, list) else f"a {type(label).__name__}"
        raise DatasetError(
            f"the camera in {where} must be a list of {CAMERA_LABEL_SIZE} numbers, not {came}.",
            "16 of the camera-to-world matrix, row by row, then 9 of the intrinsics divided by the image size.",
        )
    _check_numbers(label, f"the camera in {where}", "Mend it.")
    array = np.asarray([label], np.float64)
    _check_cameras(array, lambda _: where)
    return array[0].astype(np.float32)


def _check_entry(entry: Any, index: int, where: str) -> tuple[str, list[float]]:
    """Name, with '/' between folders, and numbers of an entry; PanoHead's tools write numbers as strings."""
    pair = isinstance(entry, list) and len(entry) == 2
    if not (pair and isinstance(entry[0], str) and isinstance(entry[1], list)):
        raise DatasetError(f"entry {index} of {where} must be [image name, list of 31 numbers].", "Mend this entry.")
    label: list[Any] = entry[1]
    if len(label) not in (CAMERA_LABEL_SIZE, CAMERA_LABEL_SIZE + BODY_POSE_SIZE):
        raise DatasetError(
            f"entry {index} ({entry[0]}) of {where} has {len(label)} numbers; expected 31 (25 for the camera"
            " and 6 for the body pose) or 25 (camera only).",
            "Mend this entry.",
        )
    label = [_number(value) if isinstance(value, str) else value for value in label]
    _check_numbers(label, f"entry {index} ({entry[0]}) of {where}", "Mend or remove this entry.")
    return with_slashes(entry[0]), label


def _number(text: str) -> float | str:
    """The number that a string holds; the string itself where it holds none."""
    try:
        return float(text)
    except ValueError:
        return text


def _check_numbers(label: list, where: str, hint: str) -> None:
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in label):
        raise DatasetError(f"{where} holds something that is not a number.", hint)
    if not all(-_LARGEST < value < _LARGEST for value in label):
        raise DatasetError(f"{where} holds NaN, infinity or a huge number.", hint)


def _check_cameras(array: np.ndarray, describe: Callable[[int], str]) -> None:
    # Rotations.
    pose = array[:, :16].reshape(-1, 4, 4)
    rotation = pose[:, :3, :3]
    gram = np.abs(rotation.transpose(0, 2, 1) @ rotation - np.eye(3)).max(axis=(1, 2))
    skewed = (gram > _ORTHONORMAL_TOLERANCE) | (np.linalg.det(rotation) < 0)
    _report(
        skewed,
        describe,
        "has a camera whose 3x3 part is not a rotation (orthonormal, determinant +1)",
        "The first 16 numbers are the camera-to-world matrix, row by row, with axes right, down, forward.",
    )

    # The last row of the matrices.
    last_row = np.abs(pose[:, 3] - np.array([0, 0, 0, 1])).max(axis=1) > _LAST_ROW_TOLERANCE
    _report(
        last_row,
        describe,
        "has a camera-to-world matrix whose last row is not 0 0 0 1",
        "The matrix must be stored row by row.",
    )

    # Intrinsics.
    intrinsics = array[:, 16:25].reshape(-1, 3, 3)
    wrong = (intrinsics[:, 0, 0] <= 0) | (intrinsics[:, 1, 1] <= 0)
    wrong |= np.abs(intrinsics[:, 2] - np.array([0, 0, 1])).max(axis=1) > _LAST_ROW_TOLERANCE
    _report(
        wrong,
        describe,
        "has wrong intrinsics",
        "Numbers 17 to 25 are [f, 0, 0.5, 0, f, 0.5, 0, 0, 1] with f divided by the image size.",
    )


def _report(bad: np.ndarray, describe: Callable[[int], str], what: str, hint: str) -> None:
    if bad.any():
        raise DatasetError(f"{describe(int(np.argmax(bad)))} {what}.", hint)
