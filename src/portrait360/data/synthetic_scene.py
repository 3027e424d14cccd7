"""From a subject to triangles: fit every part to the body, pose it, and put all into one mesh with materials.

World units: the origin is the rest neck joint (Anny's `neck02`), and 0.165 units reach from there to the top
of the skull, which makes a metre about 0.75 units.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from portrait360.data.anny_body import (
    BONES,
    EYE_VERTICES,
    NECK,
    SKIN_VERTICES,
    AnnyBody,
    rotation_matrix,
    split_quads,
)
from portrait360.data.synthetic_hair import beard_cover, scalp_cover, smooth_cover, style_hair
from portrait360.data.synthetic_library import PartsLibrary
from portrait360.data.synthetic_proxies import Proxy
from portrait360.data.synthetic_subject import BEARDS, Subject
from portrait360.kernels import raster, shapes

SKULL_HEIGHT = 0.165
FLOOR = -0.62
"""Nothing below this height (world units) is kept; no camera of the portraits sees it."""
_PUSH = 0.008


@dataclass
class Scene:
    """A posed subject in world units.

    `points` and unit `normals` (V,3), `triangles` (F,3), `uv` (F,3,2), `material` (F,); per material its
    `kind`, atlas `slot` and shader `fields`; per vertex `tint` (scalp and beard), `soft` (is hair) and, once
    drawn, `ambient` (sky visibility). `shadow` is the depth map of the key light and its axes, once drawn.
    """

    subject: Subject
    points: np.ndarray
    normals: np.ndarray
    triangles: np.ndarray
    uv: np.ndarray
    material: np.ndarray
    kind: np.ndarray
    slot: np.ndarray
    fields: np.ndarray
    tint: np.ndarray
    tint_colour: np.ndarray
    soft: np.ndarray
    body_pose: np.ndarray
    scale: float
    ambient: np.ndarray | None = None
    shadow: tuple[np.ndarray, np.ndarray] | None = None
    info: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class _Covered:
    """What a garment does to the body: kept triangles, their uv, and how far vertices are pushed in (0-1)."""

    triangles: np.ndarray
    uv: np.ndarray
    push: np.ndarray


class SceneBuilder:
    """Builds scenes; keeps what depends only on the parts (covered skin, mirrored hair, scalp cover)."""

    def __init__(self, body: AnnyBody, parts: PartsLibrary) -> None:
        self.body = body
        self.parts = parts
        self._covered: dict[str, _Covered] = {}
        self._hair: dict[tuple[str, bool], tuple[Proxy, np.ndarray, np.ndarray]] = {}
        self._neutral = body.rest({}, {}, {}).vertices
        short = [name for name in parts.proxies.get("hair", {}) if name.startswith(("short", "afro"))]
        cover = np.zeros(SKIN_VERTICES, np.float32)
        for name in short:
            cover = np.maximum(cover, self.hair(name, False)[2])
        self.stubble = smooth_cover(cover, body.quads)
        self._beards = {style: smooth_cover(beard_cover(self._neutral, style), body.quads, 1) for style in BEARDS}

    def covered(self, garment: Proxy) -> _Covered:
        """Skin left over under `garment`: hidden faces go, and two rings around them are pushed in, so none
        pokes out."""
        if garment.name not in self._covered:
            quads, hidden = self.body.quads, garment.hides
            push = hidden.astype(np.float32)
            for amount in (0.7, 0.35):
                reached = push[quads].max(1, keepdims=True) > amount
                ring = np.where(reached, amount, 0.0).astype(np.float32).repeat(4, 1)
                grown = push.copy()
                np.maximum.at(grown, quads.reshape(-1), ring.reshape(-1))
                push = grown
            keep = ~hidden[quads].all(1)
            self._covered[garment.name] = _Covered(split_quads(quads[keep]), split_quads(self.body.quad_uv[keep]), push)
        return self._covered[garment.name]

    def hair(self, name: str, mirrored: bool) -> tuple[Proxy, np.ndarray, np.ndarray]:
        """A hair part, its skin weights and the scalp cover (13380,) below it."""
        key = (name, mirrored)
        if key not in self._hair:
            proxy = self.parts.proxies["hair"][name]
            if mirrored:
                proxy = proxy.mirrored(self.body.mirror)
            cover = scalp_cover(proxy, self.parts.atlas, self.parts.slots[f"hair/{name}"], self._neutral)
            self._hair[key] = (proxy, proxy.skin_weights(self.body.weights), cover)
        return self._hair[key]

    def build(self, subject: Subject) -> Scene:
        """Put a subject's mesh together."""
        body, parts = self.body, self.parts
        rest = body.rest(subject.phenotype, subject.local, subject.facial)
        vertices = rest.vertices
        pose = body.transforms(rest.joints, _rotations(subject))
        origin = rest.joints[NECK]
        scale = float(SKULL_HEIGHT / (vertices[:SKIN_VERTICES, 1].max() - origin[1]))
        mesh = _Mesh(origin, scale)

        garment = parts.proxies["clothes"][subject.garment.name]
        covered = self.covered(garment)
        skin_normals = np.empty_like(vertices)
        shapes.vertex_normals(vertices, body.triangles, skin_normals)
        pushed = (vertices - skin_normals * (covered.push[:, None] * _PUSH)).astype(np.float32)
        tint = np.zeros(len(vertices), np.float32)
        hair = subject.hair
        if hair.name is not None:
            proxy, hair_weights, cover = self.hair(hair.name, hair.mirrored)
            tint[:SKIN_VERTICES] = cover
        else:
            tint[:SKIN_VERTICES] = self.stubble * hair.stubble
        if hair.beard_cover > 0:
            cover = self._beards[hair.beard] * hair.beard_cover
            tint[:SKIN_VERTICES] = np.maximum(tint[:SKIN_VERTICES], cover)
        posed = _skin(pushed, body.weights, pose)
        mesh.add(
            posed,
            covered.triangles,
            covered.uv,
            raster.SKIN,
            subject.skin.slot,
            subject.skin_fields,
            tint=tint,
        )

        def plain(colour: tuple[float, float, float]) -> np.ndarray:
            fields = np.zeros(raster.MATERIAL_FIELDS, np.float32)
            fields[0:3] = colour
            return fields

        def put(kind: str, name: str, material: int, slot: str, fields: np.ndarray) -> None:
            part = parts.proxies[kind][name]
            points = _skin(part.fit(vertices), part.skin_weights(body.weights), pose)
            mesh.add(points, part.triangles, part.uv, material, parts.slots[slot], fields)

        put("clothes", garment.name, raster.CLOTH, f"clothes/{garment.name}", subject.garment.fields)
        if subject.facial.get("jawOpen", 0.0) > 0.02:
            white = parts.slots["plain/white"]
            tongue = plain((0.32, 0.09, 0.08))
            mesh.add(posed, body.tongue_triangles, body.tongue_uv, raster.PLAIN, white, tongue)
        for teeth in parts.available("teeth", ()):
            put("teeth", teeth, raster.PLAIN, f"teeth/{teeth}", plain((0.85, 0.84, 0.78)))
        for eyes in parts.available("eyes", ()):
            put("eyes", eyes, raster.EYE, f"eyes/{subject.eye_colour}", plain((1.0, 1.0, 1.0)))
        dark = float(subject.brow_colour.mean()) < 0.06
        strand = plain(tuple(subject.brow_colour))
        strand[3], strand[4], strand[14] = (0.8 if dark else 0.5), 4.0, 0.0
        put("eyebrows", subject.brow, raster.FRINGE, f"eyebrows/{subject.brow}", strand)
        lash = plain((0.012, 0.01, 0.009))
        lash[3], lash[4] = 0.3, 4.0
        put("eyelashes", subject.lash, raster.FRINGE, f"eyelashes/{subject.lash}", lash)
        if hair.name is not None:
            centre = vertices[EYE_VERTICES].mean(0) + np.array([0, 0.03, -0.075], np.float32)
            fitted = style_hair(proxy, proxy.fit(vertices), hair, vertices, skin_normals, centre)
            points = _skin(fitted, hair_weights, pose)
            fields = plain(tuple(hair.colour))
            fields[3] = 0.9 if float(hair.colour.mean()) < 0.06 else 0.6
            fields[4], fields[14] = 4.0, 0.035
            head = pose[BONES.index("head")]
            turned = head[:3, :3] @ centre + head[:3, 3]
            mesh.add(
                points,
                proxy.triangles,
                proxy.uv,
                raster.HAIR,
                parts.slots[f"hair/{hair.name}"],
                fields,
                fluff=turned,
            )
        return mesh.scene(subject)


def _rotations(subject: Subject) -> dict[str, np.ndarray]:
    """Bone rotations: a third of the neck's on each of neck01-03, the head's on head, arms lowered."""
    third = rotation_matrix(subject.neck / 3)
    lower, swing, shrug, left_bend, right_bend = subject.arms
    out = {"neck01": third, "neck02": third, "neck03": third, "head": rotation_matrix(subject.head)}
    for side, sign, bend in (("L", 1.0, left_bend), ("R", -1.0, right_bend)):
        out[f"clavicle.{side}"] = rotation_matrix(np.array([0, 0, sign * shrug]))
        out[f"shoulder01.{side}"] = rotation_matrix(np.array([0, 0, -sign * lower * 0.35]))
        out[f"upperarm01.{side}"] = rotation_matrix(np.array([-swing * 0.5, 0, 0])) @ rotation_matrix(
            np.array([0, 0, -sign * lower * 0.65])
        )
        out[f"lowerarm01.{side}"] = rotation_matrix(np.array([-bend, 0, 0]))
    return out


def _skin(points: np.ndarray, weights: np.ndarray, transforms: np.ndarray) -> np.ndarray:
    out = np.empty_like(points)
    shapes.skin_points(points, weights, transforms, out)
    return out


class _Mesh:
    """Collects parts into one mesh in world units."""

    def __init__(self, origin: np.ndarray, scale: float) -> None:
        self._origin, self._scale = origin, scale
        self._points: list[np.ndarray] = []
        self._normals: list[np.ndarray] = []
        self._triangles: list[np.ndarray] = []
        self._uv: list[np.ndarray] = []
        self._material: list[np.ndarray] = []
        self._tint: list[np.ndarray] = []
        self._materials: list[tuple[int, int, np.ndarray]] = []
        self._count = 0

    def add(
        self,
        points: np.ndarray,
        triangles: np.ndarray,
        uv: np.ndarray,
        kind: int,
        slot: int,
        fields: np.ndarray,
        *,
        tint: np.ndarray | None = None,
        fluff: np.ndarray | None = None,
    ) -> None:
        """Add a part in metres. `fluff`: hair normals lean away from this point, as a round shape's do."""
        world = ((points - self._origin) * np.float32(self._scale)).astype(np.float32)
        normals = np.empty_like(world)
        shapes.vertex_normals(world, triangles, normals)
        if fluff is not None:
            away = world - ((fluff - self._origin) * self._scale).astype(np.float32)
            away /= np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-6)
            normals = normals * np.sign((normals * away).sum(1, keepdims=True) + 1e-9) * 0.6 + away * 0.6
            normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-6)
        keep = (world[:, 1] > FLOOR)[triangles].any(1)
        triangles, uv = triangles[keep], uv[keep]
        used = np.zeros(len(world), bool)
        used[triangles.reshape(-1)] = True
        place = np.cumsum(used, dtype=np.int32) - 1
        self._points.append(world[used])
        self._normals.append(normals[used].astype(np.float32))
        self._triangles.append((place[triangles] + self._count).astype(np.int32))
        self._uv.append(uv.astype(np.float32))
        self._material.append(np.full(len(triangles), len(self._materials), np.int32))
        self._tint.append(np.zeros(int(used.sum()), np.float32) if tint is None else tint[used])
        self._materials.append((kind, slot, fields))
        self._count += int(used.sum())

    def scene(self, subject: Subject) -> Scene:
        material = np.concatenate(self._material)
        kind = np.array([m[0] for m in self._materials], np.int32)
        soft = np.concatenate([np.full(len(p), k == raster.HAIR) for p, k in zip(self._points, kind, strict=True)])
        return Scene(
            subject=subject,
            points=np.concatenate(self._points),
            normals=np.concatenate(self._normals),
            triangles=np.concatenate(self._triangles),
            uv=np.ascontiguousarray(np.concatenate(self._uv)),
            material=material,
            kind=kind,
            slot=np.array([m[1] for m in self._materials], np.int32),
            fields=np.stack([m[2] for m in self._materials]).astype(np.float32),
            tint=np.concatenate(self._tint),
            tint_colour=subject.hair.colour.astype(np.float32),
            soft=soft,
            body_pose=np.concatenate([subject.neck, subject.head]).astype(np.float32),
            scale=self._scale,
            info=dict(subject.info),
        )
