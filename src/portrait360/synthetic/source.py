"""Synthetic one-quarter-headshot portraits with exact camera, body pose, mask and depth.

A sample is a function of (seed, index, resolution) alone: the same bytes in any process and any order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from portrait360.geometry.cameras import camera_label
from portrait360.synthetic.assets import makehuman_folder
from portrait360.synthetic.body import AnnyBody
from portrait360.synthetic.library import PartsLibrary
from portrait360.synthetic.render import Renderer
from portrait360.synthetic.scene import SceneBuilder
from portrait360.synthetic.subject import OVERRIDES, Subject, another_view, sample_subject


@dataclass(frozen=True)
class SyntheticSample:
    """One rendered portrait.

    image (H,W,3) uint8, mask (H,W) uint8 (coverage, soft at hair), camera (25,) float32, body_pose (6,)
    float32 exact (neck, head axis-angle), depth (H,W) float32 along the optical axis (0 = background) or
    None, info plain JSON.
    """

    image: np.ndarray
    mask: np.ndarray
    camera: np.ndarray
    body_pose: np.ndarray
    depth: np.ndarray | None
    info: dict[str, Any]


def portrait_camera(yaw: float | int, pitch: float | int) -> np.ndarray:
    """Camera label (25,) float32 on the sphere of radius 2.7 at yaw and pitch (radians), looking at (0,
    0.0649, 0)."""
    return camera_label(yaw, pitch).numpy()[0]


@dataclass(frozen=True)
class Studio:
    """What scenes are built from and rendered with."""

    body: AnnyBody
    parts: PartsLibrary
    builder: SceneBuilder
    renderer: Renderer


class PortraitSource:
    """Renders synthetic portraits. Loads the body model and the parts on first use, once per object.

    `assets` is an installed asset folder; by default the parts are fetched into the user's cache
    (`synthetic.assets`). With `views` above 1, images index * views to index * views + views - 1 show one person
    (`subject.another_view`).
    """

    def __init__(self, assets: Path | None = None, views: int = 1) -> None:
        self._assets = assets
        self._views = views
        self._studio: Studio | None = None

    @property
    def studio(self) -> Studio:
        """The body model, the parts, and what builds and renders scenes of them; loaded on first use."""
        if self._studio is None:
            parts = PartsLibrary(self._assets if self._assets is not None else makehuman_folder())
            body = AnnyBody()
            self._studio = Studio(body, parts, SceneBuilder(body, parts), Renderer(parts.atlas))
        return self._studio

    def describe(self, seed: int, index: int, *, overrides: Mapping[str, Any] | None = None) -> Subject:
        """The subject of image `index` of `seed`, before any mesh is built."""
        person, view = divmod(index, self._views)
        subject = sample_subject(seed, person, self.studio.body, self.studio.parts, overrides)
        return another_view(subject, seed, person, view, overrides)

    def subject(self, seed: int, index: int, *, overrides: Mapping[str, Any] | None = None):
        """Scene of image `index` of `seed`, to be rendered from any camera with `render`.

        `overrides` fixes any of `subject.OVERRIDES`; all else stays as it would be without.
        """
        return self.build(self.describe(seed, index, overrides=overrides))

    def build(self, subject: Subject):
        """Scene of a subject, as described or changed."""
        return self.studio.builder.build(subject)

    def render(self, scene, camera: np.ndarray, resolution: int, *, depth: bool = False) -> SyntheticSample:
        """Render a scene from a camera label (25,)."""
        rendered = self.studio.renderer.render(scene, camera, resolution, with_depth=depth)
        return SyntheticSample(
            rendered.image,
            rendered.mask,
            np.asarray(camera, np.float32).reshape(25),
            scene.body_pose,
            rendered.depth,
            dict(scene.info),
        )

    def draw(
        self,
        seed: int,
        index: int,
        resolution: int,
        *,
        depth: bool = False,
        overrides: Mapping[str, Any] | None = None,
    ) -> SyntheticSample:
        """Render portrait `index` of `seed` from its own camera.

        Raises AssetError when the parts cannot be had, InputError for overrides or resolutions that make no
        sense.
        """
        scene = self.subject(seed, index, overrides=overrides)
        subject = scene.subject
        return self.render(scene, portrait_camera(subject.yaw, subject.pitch), resolution, depth=depth)


__all__ = ["OVERRIDES", "PortraitSource", "SyntheticSample", "portrait_camera"]
