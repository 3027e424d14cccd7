"""Labels as other people's tools write them: the inverse of `data.conventions.converted`, written independently."""

from __future__ import annotations

import numpy as np

from portrait360.data.conventions import Conventions


def foreign(labels: np.ndarray, conventions: Conventions, side: int) -> np.ndarray:
    """This project's labels (N, 25 or 31) in other conventions, matrix by matrix, in float64."""
    rows = []
    for label in labels.astype(np.float64):
        matrix, rest = label[:16].reshape(4, 4).copy(), label[16:].copy()
        if conventions.axes == "opengl":
            matrix = matrix @ np.diag([1.0, -1.0, -1.0, 1.0])
        if conventions.matrix == "w2c":
            matrix = np.linalg.inv(matrix)
        if conventions.intrinsics == "pixels":
            rest[:6] *= side
        if conventions.pose == "degrees":
            rest[9:] *= 180.0 / np.pi
        rows.append(np.concatenate([matrix.reshape(-1), rest]))
    return np.stack(rows)
