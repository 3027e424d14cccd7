"""A portrait's surface, to be saved."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from portrait360.media.glb import write_glb
from portrait360.media.mesh import Mesh
from portrait360.types import InputError


@dataclass(frozen=True)
class PortraitMesh:
    """A closed triangle mesh of a portrait with a colour at every vertex."""

    surface: Mesh
    """Vertices, faces, normals and colours; world units (docs/conventions.md)."""
    extras: dict[str, Any]
    """JSON that programs find in the file's scene: where the portrait comes from, and its pose."""

    def save(self, path: str | Path) -> Path:
        """Write a .glb file (binary glTF 2.0) that Blender, browsers and game engines open.

        Raises:
            InputError: `path` does not end in .glb, or cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() != ".glb":
            raise InputError(f"`path` must be a .glb file, not {path}.", f"Try {path.with_suffix('.glb')}.")
        write_glb(path, self.surface, extras=self.extras)
        return path

    def __repr__(self) -> str:
        return f"PortraitMesh({len(self.surface.vertices)} vertices, {len(self.surface.faces)} triangles)"
