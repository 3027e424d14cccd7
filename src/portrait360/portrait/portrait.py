"""A portrait for people who use one: images, video, mesh and files, with angles in degrees."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from portrait360.config import Vector3
from portrait360.geometry.cameras import camera_label
from portrait360.media.sheets import grid, save_png
from portrait360.model.generator import Generator
from portrait360.portrait.camera import Camera
from portrait360.portrait.options import (
    AT_REST,
    body_pose_from_degrees,
    check_format,
    check_posable,
    checked_size,
    checked_texture,
)
from portrait360.portrait.record import (
    PortraitRecord,
    PortraitTensors,
    listed_files,
    posed_json,
    read_portrait_file,
    write_portrait_file,
)
from portrait360.portrait.scene import MESH_STEP, SceneRenderer, render_bytes
from portrait360.portrait.weights import DEFAULT_WEIGHTS, load_generator
from portrait360.runtime.device import choose_device
from portrait360.runtime.files import atomic_folder, write_json
from portrait360.runtime.tensors import file_sha256
from portrait360.types import BODY_POSE_SIZE, CAMERA_LABEL_SIZE, CheckpointError, InputError, RenderOutput

if TYPE_CHECKING:
    from portrait360.portrait.solid import PortraitMesh
    from portrait360.viewer.payload import PagePortrait

VIEWS = 8
"""Views on views.png, one each 45 degrees."""
VIDEO_FRAMES = 72
FRAMES_PER_SECOND = 24
_NOTEBOOK_SIZE, _NOTEBOOK_YAWS = 256, (0.0, 35.0)


@dataclass(frozen=True, repr=False)
class Portrait:
    """A person in 3D, to be seen from every side and re-posed at neck and head.

    Made by `PortraitModel.sample`, or loaded from a file. Equal portraits render to equal bytes. In a notebook it shows
    itself from the front and in three-quarter view.

    Turns of `neck` and `head` (against the neck) are axis-angle vectors in degrees: X nods down, Y turns to the
    person's left, Z tilts to their right. `size` is the side of an image in pixels; models with super-resolution have
    one size only.
    """

    renderer: SceneRenderer
    """The scene in tensors."""
    record: PortraitRecord
    """Where the portrait comes from."""
    tensors: PortraitTensors | None = None
    """What it is synthesized from, if that is more than the scene's style."""
    report: dict[str, Any] = field(default_factory=dict)
    """How it was made from photos: losses, times, warnings; empty for others."""
    sheets: dict[str, UInt8[np.ndarray, "H W 3"]] = field(default_factory=dict)
    """Further images that `save` writes, by the names of their files."""

    # ---- files ----

    @classmethod
    def load(cls, path: str | Path, *, weights: str | Path | None = None, device: str = "auto") -> Portrait:
        """Load a portrait.safetensors.

        Args:
            path: the file.
            weights: the weights that the portrait was made with, a file or a run folder; the packaged ones when None.
            device: where the networks run: cpu, cuda, cuda:1, or auto for the GPU if there is one.

        Raises:
            CheckpointError: the file is missing, damaged or no portrait, or the weights are others.
        """
        tensors, record = read_portrait_file(Path(path))
        generator, info = load_generator(weights)
        if info.sha256 != record.weights_sha256 or not _fits(tensors, generator):
            raise CheckpointError(
                f"{path} was made with other weights ({record.model}, SHA-256 {record.weights_sha256[:12]}...)"
                f" than {info.path}.",
                "Give the file of those weights as `weights`.",
            )
        generator = with_tuned(generator, tensors.tuned).to(choose_device(device))
        return cls(portrait_renderer(generator, tensors, bf16=record.convolutions == "bf16"), record, tensors)

    def save(
        self,
        folder: str | Path,
        *,
        neck: Vector3 = AT_REST,
        head: Vector3 = AT_REST,
        size: int | None = None,
        video: bool = True,
        mesh: bool = True,
        texture: int | None = None,
        format: Literal["glb", "obj"] = "glb",
    ) -> Path:
        """Write views.png, turntable.mp4, portrait.glb, portrait.safetensors and portrait.json.

        The files appear together when all of them are done; those of an earlier portrait in the folder go.

        Args:
            folder: made when missing.
            neck: turn in degrees. portrait.safetensors holds the person at rest.
            head: turn against the neck, in the same way.
            size: side of each view (default: 512, or the model's own); the video has half of it.
            video: whether to write turntable.mp4.
            mesh: whether to write portrait.glb.
            texture: side of the mesh's texture in texels: 256, 512, 1024 (the default) or 2048.
            format: of the mesh; obj writes portrait.obj, portrait.mtl and portrait.png instead of portrait.glb.

        Returns:
            The folder.

        Raises:
            InputError: an argument is out of range, or the folder cannot be written.
        """
        pose = self._pose(neck, head)
        side, texels = self._rays(size), checked_texture(texture)
        check_format(format)
        folder = Path(folder)
        earlier = listed_files(folder)
        with atomic_folder(folder) as temporary:
            # What people look at: the files that portrait.json lists
            save_png(temporary / "views.png", self._views(VIEWS, pose, side))
            files = ["views.png"]
            if video:
                self._turn(temporary / "turntable.mp4", pose, None if side is None else side // 2)
                files.append("turntable.mp4")
            if mesh:
                self._mesh(pose, texels).save(temporary / f"portrait.{format}")
                files += ["portrait.obj", "portrait.mtl", "portrait.png"] if format == "obj" else ["portrait.glb"]
            for name, sheet in self.sheets.items():
                save_png(temporary / name, sheet)
                files.append(name)

            # What makes them again
            tensors = self.tensors or PortraitTensors(self.w)
            write_portrait_file(temporary / "portrait.safetensors", tensors, self.record)
            cameras = [
                {"yaw_degrees": yaw, "camera": label}
                for yaw, label in zip(range(0, 360, 360 // VIEWS), _around(VIEWS).tolist(), strict=True)
            ]
            content = posed_json(self.record, pose) | {"views": cameras, "files": [*files, "portrait.json"]}
            if self.report:
                content |= {"inversion": self.report}
            write_json(temporary / "portrait.json", content)

        # Leave nothing of an earlier portrait beside this one
        for name in earlier.difference(files):
            (folder / name).unlink(missing_ok=True)
        return folder

    def page(self, path: str | Path, *, mesh: bool = False) -> Path:
        """Write a web page that shows the portrait: one .html file that works offline and asks the network for nothing.

        The page renders the volume itself, from every side and under any pose of neck and head.

        Args:
            path: the .html file.
            mesh: whether the page offers the mesh for download, which makes it larger.

        Raises:
            InputError: `path` does not end in .html or cannot be written, or the model has networks behind the volume.
        """
        from portrait360.viewer.page import page_path, write_page

        path = page_path(path)
        shown = self.for_page(mesh=mesh)
        write_page(path, self.renderer.generator, [shown], title=f"Portrait: {shown.name.lower()}")
        return path

    def for_page(self, *, mesh: bool = False) -> PagePortrait:
        """What a page needs of the portrait (`viewer.page.write_page` takes several).

        Args:
            mesh: whether the page offers the mesh for download.

        Raises:
            InputError: a page cannot render the model.
        """
        from portrait360.viewer.page import FALLBACK_SIDE
        from portrait360.viewer.payload import PagePortrait, check_can_show

        check_can_show(self.renderer.generator.config)
        views = np.concatenate(list(render_bytes(self.renderer, _around(VIEWS), None, FALLBACK_SIDE)))
        seed = self.record.seed
        return PagePortrait(
            name="A person" if seed is None else f"Seed {seed}",
            scene=self.renderer.scene,
            occupied=self.renderer.cells,
            views=tuple(views),
            record=self.record.as_json(),
            mesh=self.mesh().to_glb() if mesh else None,
            appearance=self.renderer.appearance,
        )

    # ---- images ----

    def render(
        self,
        *,
        yaw: float = 0.0,
        pitch: float = 0.0,
        roll: float = 0.0,
        neck: Vector3 = AT_REST,
        head: Vector3 = AT_REST,
        size: int | None = None,
    ) -> Image.Image:
        """Render an image.

        Args:
            yaw: of the camera, degrees: 0 is the front, positive towards the person's left.
            pitch: of the camera, degrees: positive is above.
            roll: of the camera, degrees.
            neck: turn in degrees.
            head: turn against the neck, in the same way.
            size: side in pixels (default: 512, or the model's own).

        Raises:
            InputError: an argument is out of range.
        """
        # Degrees to labels and radians.
        label = Camera(yaw, pitch, roll).label[None]
        side, pose = self._rays(size), _at_rest_none(self._pose(neck, head))

        return Image.fromarray(next(render_bytes(self.renderer, label, pose, side))[0])

    def views(
        self, count: int = VIEWS, *, neck: Vector3 = AT_REST, head: Vector3 = AT_REST, size: int | None = None
    ) -> Image.Image:
        """Render a contact sheet: `count` views all around from the front, in rows of at most eight.

        Args:
            count: at least 1.
            neck: turn in degrees.
            head: turn against the neck, in the same way.
            size: side of each view in pixels (default: 512, or the model's own).

        Raises:
            InputError: an argument is out of range.
        """
        if count < 1:
            raise InputError(f"`count` must be at least 1, not {count}.", "Try `count=8`.")
        return Image.fromarray(self._views(count, self._pose(neck, head), self._rays(size)))

    def turntable(
        self, path: str | Path, *, neck: Vector3 = AT_REST, head: Vector3 = AT_REST, size: int | None = None
    ) -> Path:
        """Write a video (.mp4, H.264) of one turn, three seconds long.

        Args:
            path: the file.
            neck: turn in degrees.
            head: turn against the neck, in the same way.
            size: side of the video in pixels (default: 512, or the model's own).

        Raises:
            InputError: an argument is out of range, or the file cannot be written.
        """
        self._turn(Path(path), self._pose(neck, head), self._rays(size))
        return Path(path)

    def render_tensors(
        self,
        camera_labels: Tensor | Sequence[float] | Sequence[Sequence[float]],
        body_poses: Tensor | Sequence[float] | Sequence[Sequence[float]] | None = None,
        *,
        resolution: int | None = None,
        plain: bool = False,
    ) -> RenderOutput:
        """Render images, masks and depths as float32 tensors, NCHW; images in [-1, 1], masks in [0, 1].

        Args:
            camera_labels: `Camera.label`, one [25] or several [B, 25].
            body_poses: neck then head, axis-angle in radians; one [6] for all cameras or one each [B, 6]; at rest when
                None.
            resolution: side of the rays; the model's own with super-resolution, 256 without, when None.
            plain: render by the slow exact renderer.

        Raises:
            InputError: a tensor has another shape.
        """
        # Without poses.
        cameras = _rows(camera_labels, CAMERA_LABEL_SIZE, "camera_labels")
        if body_poses is None:
            return self.renderer.render(cameras, None, resolution, plain=plain)

        # One pose for all cameras, or one each.
        poses = _rows(body_poses, BODY_POSE_SIZE, "body_poses")
        check_posable(poses, self.renderer.posable, self.record.model)
        if not self.renderer.posable:
            return self.renderer.render(cameras, None, resolution, plain=plain)
        if len(poses) not in (1, len(cameras)):
            raise InputError(
                f"`body_poses` must hold one pose, or one for each of {len(cameras)} cameras, not {len(poses)}.",
                "Give tensors of equal length.",
            )
        return self.renderer.render(cameras, poses.expand(len(cameras), -1), resolution, plain=plain)

    # ---- the 3D ----

    def mesh(
        self,
        *,
        texture: int | None = None,
        neck: Vector3 = AT_REST,
        head: Vector3 = AT_REST,
    ) -> PortraitMesh:
        """Extract the surface as a closed triangle mesh with a texture; `mesh().save("person.glb")` writes it.

        The mesh is that of the person at rest. Its joints root, neck and head carry the pose, so that other programs
        can change it.

        Args:
            texture: side of the texture in texels: 256, 512, 1024 (the default) or 2048.
            neck: turn in degrees.
            head: turn against the neck, in the same way.

        Raises:
            InputError: an argument is out of range, or there is nothing solid.
        """
        return self._mesh(self._pose(neck, head), checked_texture(texture))

    @property
    def w(self) -> Float[Tensor, "1 S"]:
        """The style that the scene was synthesized from; `PortraitModel.synthesize` makes a portrait of one."""
        return self.renderer.scene.w.cpu()

    # ---- how it shows itself ----

    def __repr__(self) -> str:
        known = {"seed": self.record.seed, "truncation": self.record.truncation_psi, "model": self.record.model}
        return f"Portrait({', '.join(f'{k}={v!r}' for k, v in known.items() if v is not None)})"

    def _repr_png_(self) -> bytes:
        """The front and a three-quarter view, for notebooks."""
        labels = torch.stack([Camera(yaw).label for yaw in _NOTEBOOK_YAWS])
        side = None if self.renderer.own_side is not None else _NOTEBOOK_SIZE
        images = np.concatenate(list(render_bytes(self.renderer, labels, None, side)))
        buffer = io.BytesIO()
        Image.fromarray(grid(images, len(images))).save(buffer, "PNG")
        return buffer.getvalue()

    # ---- parts ----

    def _rays(self, size: int | None) -> int | None:
        return checked_size(size, self.renderer.own_side, self.record.model)

    def _pose(self, neck: Vector3, head: Vector3) -> Float[Tensor, " 6"]:
        pose = body_pose_from_degrees(neck, head)
        check_posable(pose, self.renderer.posable, self.record.model)
        return pose

    def _views(self, count: int, pose: Tensor, side: int | None) -> UInt8[np.ndarray, "H W 3"]:
        parts = render_bytes(self.renderer, _around(count), _at_rest_none(pose), side)
        return grid(np.concatenate(list(parts)), min(count, VIEWS))

    def _turn(self, path: Path, pose: Tensor, side: int | None) -> None:
        from portrait360.media.video import write_video  # half a second of imports that images alone do not need

        turn = torch.arange(VIDEO_FRAMES, dtype=torch.float32) * (2.0 * math.pi / VIDEO_FRAMES)
        parts = render_bytes(self.renderer, camera_label(turn), _at_rest_none(pose), side)
        write_video(path, (frame for part in parts for frame in part), frames_per_second=FRAMES_PER_SECOND)

    def _mesh(self, pose: Tensor, texels: int) -> PortraitMesh:
        from portrait360.portrait.solid import PortraitMesh, textured_mesh  # half a second, as above

        textured = textured_mesh(self.renderer, texels, step=MESH_STEP)
        name = "portrait" if self.record.seed is None else f"portrait {self.record.seed}"
        extras = {"name": name, "licence": self._licence()} | posed_json(self.record, pose)
        return PortraitMesh(textured, name, extras, pose)

    def _licence(self) -> str:
        packaged = self.record.weights_sha256 == file_sha256(DEFAULT_WEIGHTS)
        return "Apache-2.0" if packaged else "as the weights that made it"


def portrait_renderer(generator: Generator, tensors: PortraitTensors, *, bf16: bool) -> SceneRenderer:
    """The scene of a portrait; `generator` has the tuned tensors already."""
    if tensors.ws is not None:
        return SceneRenderer.from_layers(generator, tensors.ws, tensors.appearance, bf16=bf16)
    assert tensors.w is not None
    return SceneRenderer.from_w(generator, tensors.w, bf16=bf16)


def with_tuned(generator: Generator, tuned: dict[str, Tensor]) -> Generator:
    """The generator with tensors of a portrait in place of its own."""
    if tuned:
        generator.load_state_dict(generator.state_dict() | tuned)
    return generator


def _fits(tensors: PortraitTensors, generator: Generator) -> bool:
    """Whether a portrait's tensors have the shapes of a generator."""
    own = generator.state_dict()
    if any(name not in own or own[name].shape != value.shape for name, value in tensors.tuned.items()):
        return False
    width, layers = generator.config.w_dim, generator.backbone.synthesis.num_ws
    if tensors.ws is not None:
        return tensors.ws.shape[1:] == (layers, width)
    return tensors.w is not None and tensors.w.shape[1] == width


def _around(count: int) -> Float[Tensor, "B 25"]:
    """Cameras all around, the front first."""
    return camera_label(torch.deg2rad(torch.arange(count, dtype=torch.float32) * (360.0 / count)))


def _at_rest_none(pose: Float[Tensor, " 6"]) -> Tensor | None:
    """The canonical body is rendered without a deformation."""
    return pose if pose.any() else None


def _rows(values: Any, width: int, name: str) -> Float[Tensor, "B width"]:
    tensor = torch.as_tensor(values, dtype=torch.float32, device="cpu")
    rows = tensor[None] if tensor.dim() == 1 else tensor
    if rows.dim() != 2 or rows.shape[1] != width or not len(rows):
        raise InputError(f"`{name}` must be [B, {width}], not {list(tensor.shape)}.", "See docs/conventions.md.")
    return rows
