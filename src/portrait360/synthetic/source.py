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
from portrait360.synthetic.subject import OVERRIDES, Subject, another_view, sample_subject


@dataclass(frozen=True)
class SyntheticSample:
    """One drawn portrait.

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


class PortraitSource:
    """Draws synthetic portraits. Loads the body model and the parts on first use, once per object.

    `assets` is an installed asset folder; by default the parts are fetched into the user's cache
    (`synthetic.assets`). With `views` above 1, pictures index * views to index * views + views - 1 show one person
    (`subject.another_view`).
    """

    def __init__(self, assets: Path | None = None, views: int = 1) -> None:
        self._assets = assets
        self._views = views
        self._loaded: tuple[Any, Any, Any, Any] | None = None

    def _load(self):
        if self._loaded is None:
            from portrait360.synthetic.assets import makehuman_folder
            from portrait360.synthetic.body import AnnyBody
            from portrait360.synthetic.library import PartsLibrary
            from portrait360.synthetic.render import Renderer
            from portrait360.synthetic.scene import SceneBuilder

            parts = PartsLibrary(self._assets if self._assets is not None else makehuman_folder())
            body = AnnyBody()
            self._loaded = (body, parts, SceneBuilder(body, parts), Renderer(parts.atlas))
        return self._loaded

    def describe(self, seed: int, index: int, *, overrides: Mapping[str, Any] | None = None) -> Subject:
        """What picture `index` of `seed` shows, before any mesh is built."""
        body, parts, _, _ = self._load()
        person, view = divmod(index, self._views)
        subject = sample_subject(seed, person, body, parts, overrides)
        return another_view(subject, seed, person, view, overrides)

    def subject(self, seed: int, index: int, *, overrides: Mapping[str, Any] | None = None):
        """Scene of picture `index` of `seed`, to be drawn from any camera with `render`.

        `overrides` fixes any of `subject.OVERRIDES`; all else stays as it would be without.
        """
        return self.build(self.describe(seed, index, overrides=overrides))

    def build(self, subject: Subject):
        """Scene of a subject, as described or changed since."""
        return self._load()[2].build(subject)

    def render(self, scene, camera: np.ndarray, resolution: int, *, depth: bool = False) -> SyntheticSample:
        """Draw a scene as seen by a camera label (25,)."""
        picture = self._load()[3].render(scene, camera, resolution, with_depth=depth)
        return SyntheticSample(
            picture.image,
            picture.mask,
            np.asarray(camera, np.float32).reshape(25),
            scene.body_pose,
            picture.depth,
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
        """Draw portrait `index` of `seed` from its own camera.

        Raises AssetError when the parts cannot be had, InputError for overrides or resolutions that make no
        sense.
        """
        scene = self.subject(seed, index, overrides=overrides)
        subject = scene.subject
        return self.render(scene, portrait_camera(subject.yaw, subject.pitch), resolution, depth=depth)


__all__ = ["OVERRIDES", "PortraitSource", "SyntheticSample", "portrait_camera"]
