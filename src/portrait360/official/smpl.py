"""A user's own SMPL file as the body behind the deformation (equations 1.1, 1.7, 6.2).

Poses are those of smplx: the neck's and the head's turn are joints 12 and 15, all other joints rest, shape is the mean.
The file stays the user's: it falls under the licence of SMPL, and so does what is made of it here.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from portrait360.geometry.body import BodyTemplate
from portrait360.official.smpl_file import not_smpl, read_arrays

JOINTS = 24
NECK, HEAD = 12, 15
MOST_VERTICES = 2**17
"""Also most faces; SMPL has 6890 and 13776."""
LICENCE = "SMPL body model licence; not to be passed on"
_NAMES = ("v_template", "f", "weights", "posedirs", "J_regressor", "kintree_table")


def read_smpl(path: Path) -> BodyTemplate:
    """The body template of an SMPL file (`.pkl` or `.npz`): metres, the neck joint (12) at the origin.

    The zero pose is the file's template; neck and head follow the body pose, pose shapes included, so that
    `posed_vertices` equals smplx's vertices less the neck joint of the zero pose.

    Raises:
        AssetError: missing, not of SMPL's layout (24 joints; any number of vertices), damaged, or refused
            (see `read_arrays`).
    """
    arrays = read_arrays(path, _NAMES)
    try:
        return smpl_template(arrays)
    except ValueError as error:
        raise not_smpl(path, error) from error


def smpl_template(arrays: dict[str, np.ndarray]) -> BodyTemplate:
    """The template of SMPL's arrays under their names in its files.

    Args:
        arrays: v_template (V, 3), f (F, 3), weights (V, 24), posedirs (V, 3, 207), J_regressor (24, V),
            kintree_table (2, 24).

    Raises:
        ValueError: shapes or values that are not SMPL's; the message goes on from "the file is not SMPL:".
    """
    # Check shapes and sizes.
    count = len(arrays["v_template"]) if arrays["v_template"].ndim else 0
    shapes = {
        "v_template": (count, 3), "weights": (count, JOINTS), "posedirs": (count, 3, 9 * (JOINTS - 1)),
        "J_regressor": (JOINTS, count), "kintree_table": (2, JOINTS), "f": (*arrays["f"].shape[:1], 3),
    }  # fmt: skip
    for name, shape in shapes.items():
        if arrays[name].shape != shape or 0 in shape:
            raise ValueError(f"its {name} is {_times(arrays[name].shape)} instead of {_times(shape)}")
    if max(count, len(arrays["f"])) > MOST_VERTICES:
        raise ValueError(f"it has more than {MOST_VERTICES} vertices or faces")

    # Check values.
    template, weights, posedirs, regressor = (
        _finite(arrays, name) for name in ("v_template", "weights", "posedirs", "J_regressor")
    )
    if (weights.sum(1) - 1.0).abs().max() > 1e-3:
        raise ValueError("its weights do not add up to 1 at every vertex")

    # Move the origin to the neck joint.
    joints = regressor @ template
    origin = joints[NECK]
    return BodyTemplate(
        vertices=(template - origin).float(),
        faces=torch.from_numpy(_indices(arrays["f"], count)),
        weights=weights.float(),
        joints=(joints - origin).float(),
        parents=_parents(arrays["kintree_table"]),
        drive=tuple(("neck", 1.0) if k == NECK else ("head", 1.0) if k == HEAD else None for k in range(JOINTS)),
        name="smpl",
        pose_shapes=_pose_shapes(posedirs),
    )


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a single number"


def _finite(arrays: dict[str, np.ndarray], name: str) -> Tensor:
    values = arrays[name].astype(np.float64)
    if not (np.abs(values) < 1e6).all():
        raise ValueError(f"its {name} holds values that are no lengths or shares")
    return torch.from_numpy(values)


def _indices(faces: np.ndarray, vertices: int) -> np.ndarray:
    if faces.dtype.kind not in "iu" or faces.min() < 0 or faces.max() >= vertices:
        raise ValueError(f"its faces (f) do not number vertices from 0 to {vertices - 1}")
    return faces.astype(np.int64)


def _parents(table: np.ndarray) -> tuple[int, ...]:
    """Every joint's parent, -1 for the root, whose entry in the files is 2^32 - 1 or anything else."""
    if table.dtype.kind in "iu":
        parents = (-1, *(int(parent) for parent in table[0, 1:]))
        if all(0 <= parents[k] < k for k in range(1, JOINTS)) and parents[HEAD] == NECK:
            return parents
    raise ValueError("its kintree_table is not SMPL's")


def _pose_shapes(posedirs: Float[Tensor, "V 3 207"]) -> Float[Tensor, "18 V 3"]:
    """Corrections for the entries of (neck rotation - I, head rotation - I); joint k of 1 to 23 has nine each."""
    columns = [9 * (joint - 1) + entry for joint in (NECK, HEAD) for entry in range(9)]
    return posedirs[..., columns].permute(2, 0, 1).float().contiguous()
