"""Textured meshes as Wavefront OBJ, for programs that read nothing newer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from PIL import Image

import portrait360
from portrait360.media.glb import TexturedMesh
from portrait360.runtime.files import atomic_write

_FACE = "f {}/{}/{} {}/{}/{} {}/{}/{}"
"""Corner by corner: position, place in the texture, normal."""


def write_obj(
    path: Path, mesh: TexturedMesh, vertices: Float[ndarray, "V 3"], normals: Float[ndarray, "V 3"], *, metres: float
) -> list[Path]:
    """Write an .obj file, and beside it the .mtl and .png files that it names; each appears when it is done.

    Args:
        path: the .obj file.
        mesh: triangles, layout and texture. The format has no joints.
        vertices, normals: of the mesh, posed, world units; positions are written in metres.
        metres: per world unit.

    Returns:
        The files.
    """
    files = [path, path.with_suffix(".mtl"), path.with_suffix(".png")]

    # The .obj file comes last: whoever finds it finds the others.
    with atomic_write(files[2]) as temporary:
        Image.fromarray(mesh.texture).save(temporary, "PNG")
    with atomic_write(files[1]) as temporary:
        temporary.write_text(_material(files[2].name), encoding="utf-8")
    with atomic_write(path) as temporary:
        temporary.write_text(_geometry(files[1].name, mesh, vertices * metres, normals), encoding="utf-8")
    return files


def _material(texture: str) -> str:
    """Matte, coloured by the texture alone."""
    return f"newmtl matte\nKa 0 0 0\nKd 1 1 1\nKs 0 0 0\nillum 1\nmap_Kd {texture}\n"


def _geometry(material: str, mesh: TexturedMesh, vertices: ndarray, normals: ndarray) -> str:
    """Positions and normals of the closed surface, places in the texture, and triangles that refer to them."""
    uv = np.column_stack([mesh.flat.uv[:, 0], 1.0 - mesh.flat.uv[:, 1]])  # v runs up here
    parts = [f"# portrait360 {portrait360.__version__}: metres, Y up, facing +Z\nmtllib {material}\no portrait\n"]
    for key, rows, digits in (("v", vertices, 6), ("vt", uv, 6), ("vn", normals, 4)):
        line = key + f" {{:.{digits}f}}" * rows.shape[1]
        parts.append("\n".join(line.format(*row) for row in rows.tolist()) + "\n")

    # One number each for position, place and normal, from 1.
    place, corner = mesh.flat.faces + 1, mesh.flat.source[mesh.flat.faces] + 1
    numbers = np.stack([corner, place, corner], axis=-1).reshape(len(place), 9).tolist()
    parts.append("usemtl matte\n" + "\n".join(_FACE.format(*row) for row in numbers) + "\n")
    return "".join(parts)
