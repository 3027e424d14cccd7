"""From a scene to an image, a mask and a depth map, by the kernels of `kernels.raster`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from portrait360.kernels import raster, shading, surroundings
from portrait360.synthetic.background import background
from portrait360.synthetic.light import radiance, spread_directions
from portrait360.synthetic.scene import Scene
from portrait360.synthetic.textures import linear_table
from portrait360.types import InputError

SUPERSAMPLING = 2
_SHADOW_SIDE = 640
_SHADOW_EXTENT = 1.25
_SKY_SIDE = 96
_SKY_DIRECTIONS = 26
_SKY_BIAS = 0.009
_BRIGHT = 0.34
"""Green radiance of the bright parts of people (their upper fifth) at which exposure changes nothing."""
_BRIGHTEST = 0.85
"""Most that exposure makes of the brightest parts (the upper 3 %)."""
_WHITE = 2.2
"""Radiance scale of the tone curve's upper end."""
_CONTRAST = 0.45
"""Of the tone curve's S."""


@dataclass(frozen=True)
class RenderedImage:
    """image (R,R,3) uint8 sRGB, mask (R,R) uint8 coverage, depth (R,R) float32 along the optical axis or
    None."""

    image: np.ndarray
    mask: np.ndarray
    depth: np.ndarray | None


class Renderer:
    """Renders scenes; keeps its buffers between images of one size."""

    def __init__(self, atlas: np.ndarray) -> None:
        self._atlas = atlas
        self._linear = linear_table()
        self._buffers: dict[int, tuple[np.ndarray, ...]] = {}

    def render(self, scene: Scene, camera: np.ndarray, resolution: int, *, with_depth: bool = False) -> RenderedImage:
        """Render `scene` from a camera label (25,).

        Raises InputError when the label or the resolution cannot be rendered.
        """
        camera = np.asarray(camera, np.float64).reshape(-1)
        if camera.shape != (25,) or not np.isfinite(camera).all():
            raise InputError("A camera label has 25 finite numbers.", "See docs/conventions.md for the label.")
        if not 16 <= resolution <= 2048:
            raise InputError(f"The resolution must lie between 16 and 2048, not {resolution}.", "Use 128 or 256.")

        # the camera, and what is rendered once per scene
        side = resolution * SUPERSAMPLING
        rotation, origin, focal = camera[:16].reshape(4, 4)[:3, :3], camera[[3, 7, 11]], float(camera[16])
        screen = _to_screen(scene.points, rotation, origin, focal, side)
        if scene.light is None:
            scene.light = self._surroundings_light(scene)

        # layers of each sample
        level = np.empty(len(scene.triangles), np.uint8)
        raster.texture_levels(screen, scene.triangles, scene.uv, level)
        buffers = self._get_buffers(side)
        layers, rgba = shading.Layers(*buffers[:4]), buffers[4]
        raster.raster_layers(
            screen,
            scene.triangles,
            scene.uv,
            scene.material,
            scene.kind,
            scene.slot,
            level,
            self._atlas,
            side,
            *layers,
        )

        # light, then samples to pixels
        surroundings = scene.subject.lighting.surroundings
        view = shading.View(side, origin, rotation, focal)
        surface = _surface(scene, level, *scene.light)
        shading.shade(surface, self._atlas, self._linear, layers, view, self._key_light(scene), surroundings, rgba)
        grid = rgba.reshape(side, side, 4)
        rows = grid[0::2] + grid[1::2]
        small = (rows[:, 0::2] + rows[:, 1::2]) * np.float32(0.25)
        image, mask = self._develop(scene, small, resolution)
        depth = self._depth(scene, rotation, origin, focal, resolution) if with_depth else None
        return RenderedImage(image, mask, depth)

    def _get_buffers(self, side: int) -> tuple[np.ndarray, ...]:
        if side not in self._buffers:
            n, k = side * side, raster.MAX_LAYERS
            self._buffers = {
                side: (
                    np.zeros(n, np.int32),
                    np.empty((n, k), np.float32),
                    np.empty((n, k), np.int32),
                    np.empty((n, k, 2), np.float32),
                    np.zeros((n, 4), np.float32),
                )
            }
        buffers = self._buffers[side]
        buffers[0][:] = 0
        buffers[4][:] = 0
        return buffers

    def _develop(self, scene: Scene, rgba: np.ndarray, resolution: int) -> tuple[np.ndarray, np.ndarray]:
        """Exposure, background, filmic tone curve, sensor noise, quantisation."""
        subject = scene.subject
        alpha = rgba[..., 3:]
        # a photographer's exposure: by what is bright, most of the way, without burning the brightest
        solid = alpha[..., 0] > 0.5
        exposure = subject.exposure
        if solid.any():
            bright, brightest = np.quantile(rgba[..., 1][solid], [0.8, 0.97])
            exposure *= float(np.clip((_BRIGHT / max(bright, 1e-3)) ** 0.7, 0.5, 3.5))
            exposure = min(exposure, _BRIGHTEST / max(float(brightest), 1e-3))
        linear = rgba[..., :3] * exposure + background(subject.background_seed, resolution) * (1 - alpha)
        out = _tone_curve(linear)
        noise = np.random.default_rng([subject.noise_seed, resolution])
        out = out + noise.standard_normal(out.shape, dtype=np.float32) * np.float32(subject.noise)
        image = (np.clip(out, 0, 1) * 255 + 0.5).astype(np.uint8)
        return image, (np.clip(alpha[..., 0], 0, 1) * 255 + 0.5).astype(np.uint8)

    def _depth(
        self, scene: Scene, rotation: np.ndarray, origin: np.ndarray, focal: float, resolution: int
    ) -> np.ndarray:
        """Depth at pixel centres of what is at least half opaque; 0 where there is nothing."""
        screen = _to_screen(scene.points, rotation, origin, focal, resolution)
        depth, _ = self._nearest(scene, screen, True, 128, resolution)
        return np.where(np.isfinite(depth), depth, 0).astype(np.float32).reshape(resolution, resolution)

    def _nearest(
        self, scene: Scene, screen: np.ndarray, perspective: bool, threshold: int, side: int
    ) -> tuple[np.ndarray, np.ndarray]:
        depth = np.full(side * side, np.inf, np.float64)
        face = np.full(side * side, -1, np.int32)
        raster.raster_depth(
            screen,
            scene.triangles,
            scene.uv,
            scene.material,
            scene.kind,
            scene.slot,
            self._atlas,
            perspective,
            threshold,
            side,
            depth,
            face,
        )
        return depth, face

    def _key_light(self, scene: Scene) -> shading.KeyLight:
        """The key light with its shadow map, which is rendered once per scene."""
        light = scene.subject.lighting
        if scene.shadow is None:
            axes = _axes(light.direction)
            screen = _orthographic(scene.points, axes, _SHADOW_EXTENT, _SHADOW_SIDE)
            depth, _ = self._nearest(scene, screen, False, 128, _SHADOW_SIDE)
            scene.shadow = depth.astype(np.float32), axes
        depth, axes = scene.shadow
        texel = _SHADOW_EXTENT / _SHADOW_SIDE
        bias = (0.9 + 0.4 * light.stride) * texel
        return shading.KeyLight(light.direction, light.colour, depth, axes, 1 / texel, _SHADOW_SIDE, light.stride, bias)

    def _surroundings_light(self, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
        """Share of the surroundings that each vertex sees (V,), and the mean radiance of what it sees (V,3), both
        cosine weighted, from depth maps of a few directions around the subject."""
        # Add up the light of each direction where its depth map leaves a vertex open.
        around, count = scene.subject.lighting.surroundings, len(scene.points)
        total, seen = np.zeros(count, np.float32), np.zeros(count, np.float32)
        irradiance = np.zeros((count, 3), np.float32)
        for direction in spread_directions(_SKY_DIRECTIONS):
            axes = _axes(direction)
            screen = _orthographic(scene.points, axes, _SHADOW_EXTENT, _SKY_SIDE)
            depth, _ = self._nearest(scene, screen, False, 128, _SKY_SIDE)
            surroundings.add_direction(
                scene.points,
                scene.normals,
                scene.soft,
                direction,
                radiance(around, direction),
                axes,
                _SKY_SIDE / _SHADOW_EXTENT,
                depth.astype(np.float32),
                _SKY_SIDE,
                np.float32(_SKY_BIAS),
                total,
                seen,
                irradiance,
            )

        # Shares and means; what hides is not black: a little of the light between reaches every place.
        total = np.maximum(total, 1e-6)
        visible = np.where(total < 1e-5, 0.3, seen / total)
        mean = (around.sky + around.ground) / 2
        return (
            (0.12 + 0.88 * visible).astype(np.float32),
            (0.88 * irradiance / total[:, None] + 0.12 * mean).astype(np.float32),
        )


def _surface(scene: Scene, level: np.ndarray, open_sky: np.ndarray, irradiance: np.ndarray) -> shading.Surface:
    return shading.Surface(
        scene.normals,
        scene.triangles,
        scene.uv,
        scene.material,
        scene.kind,
        scene.slot,
        level,
        scene.fields,
        scene.tint,
        scene.tint_colour,
        scene.tone,
        scene.place,
        open_sky,
        irradiance,
    )


def _tone_curve(linear: np.ndarray) -> np.ndarray:
    """Pixel values from linear light: a soft shoulder above, sRGB's gamma, and the gentle S of a print."""
    value = np.clip(linear * (1 + linear / _WHITE**2) / (1 + 0.62 * linear), 0, 1) ** (1 / 2.2)
    return value + _CONTRAST * value * (1 - value) * (2 * value - 1)


def _to_screen(points: np.ndarray, rotation: np.ndarray, origin: np.ndarray, focal: float, side: int) -> np.ndarray:
    """World points -> sample coordinates and depth along the optical axis, (V,3) float64."""
    local = np.einsum("vi,ij->vj", points.astype(np.float64) - origin, rotation)
    z = np.maximum(local[:, 2:], 1e-6)
    return np.concatenate([(local[:, :2] / z * focal + 0.5) * side, z], 1)


def _axes(direction: np.ndarray) -> np.ndarray:
    """Rows right, down, away for an orthographic view from `direction`."""
    away = -np.asarray(direction, np.float64)
    helper = np.array([0.0, 1.0, 0.0]) if abs(away[1]) < 0.95 else np.array([1.0, 0.0, 0.0])
    right = np.cross(helper, away)
    right /= np.sqrt((right * right).sum())
    return np.stack([right, np.cross(away, right), away]).astype(np.float32)


def _orthographic(points: np.ndarray, axes: np.ndarray, extent: float, side: int) -> np.ndarray:
    """World points -> samples and depth of an orthographic view whose middle is the world origin, (V,3)."""
    x, y, z = points.T
    local = np.empty((len(points), 3), np.float64)
    for i in range(3):
        local[:, i] = axes[i, 0] * x + axes[i, 1] * y + axes[i, 2] * z
    local[:, :2] = (local[:, :2] / extent + 0.5) * side
    return local
