"""Portraits from seeds, written as pictures, video, mesh and record."""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import portrait360
from portrait360.config import ModelConfig
from portrait360.geometry.cameras import camera_label
from portrait360.media.sheets import grid, save_png
from portrait360.portrait.portrait import MESH_STEP, Portrait, Vector3, mesh_box, render_bytes
from portrait360.portrait.weights import load_generator
from portrait360.runtime.device import choose_device
from portrait360.runtime.files import atomic_folder, make_folder, remove_empty_folders, write_json
from portrait360.runtime.memory import keep_freed_memory
from portrait360.runtime.precision import worth_bf16
from portrait360.runtime.progress import show_progress
from portrait360.runtime.threads import settle_threads
from portrait360.types import InputError

VIEW_YAWS = tuple(range(0, 360, 45))
"""Degrees, the front first; positive towards the person's left."""
VIDEO_FRAMES = 72
FRAMES_PER_SECOND = 24
LARGEST_SEED = 2**32 - 1
MOST_SEEDS = 10_000
LARGEST_ANGLE = 90.0
DEFAULT_SIZE = 512
"""Side of the images of models that render at any side."""
SIZES = (64, 2048)
"""Least and largest side that can be asked for."""


def parse_seeds(text: str) -> list[int]:
    """Seeds from text like `7`, `0-3` or `0,5,7-9`: in that order, each once.

    Raises:
        InputError: not of this form, out of range, or too many.
    """
    seeds: dict[int, None] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part, re.ASCII)
        if match is None:
            raise InputError(
                f"--seeds takes whole numbers of at least 0 and ranges of them, not {text!r}.",
                "Try --seeds 0-3 or --seeds 0,5,7-9.",
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise InputError(f"the range of seeds {part.strip()!r} runs backwards.", f"Try {last}-{first}.")
        if last > LARGEST_SEED:
            raise InputError(f"the seed {last} is above the largest, {LARGEST_SEED}.", "Use a smaller one.")
        if last - first + 1 + len(seeds) > MOST_SEEDS:
            raise InputError(f"--seeds {text} asks for more than {MOST_SEEDS} portraits.", "Make them in several runs.")
        seeds.update(dict.fromkeys(range(first, last + 1)))
    return list(seeds)


def body_pose_from_degrees(neck: Vector3, head: Vector3) -> Tensor:
    """A body pose (6,) in radians from two axis-angle vectors in degrees.

    Raises:
        InputError: not finite, or a turn by more than 90 degrees.
    """
    for name, vector in (("--neck", neck), ("--head", head)):
        angle = math.sqrt(sum(value * value for value in vector))
        if not math.isfinite(angle) or angle > LARGEST_ANGLE:
            raise InputError(
                f"{name} takes three angles in degrees that turn by at most {LARGEST_ANGLE:.0f} in all,"
                f" not {' '.join(f'{value:g}' for value in vector)}.",
                f"Try {name} 0 20 0, which turns to the person's left.",
            )
    return torch.deg2rad(torch.tensor([*neck, *head], dtype=torch.float64)).float()


def rendering_size(config: ModelConfig, size: int | None) -> int | None:
    """Side of the rays for images of `size` pixels (None: the default); None for models that have a side of their own.

    Raises:
        InputError: out of range, or not the side of a model that has its own.
    """
    if config.superresolution is not None:
        if size is not None and size != config.resolution:
            raise InputError(
                f"{config.name} makes images of {config.resolution} pixels, not {size}.", "Leave out --size."
            )
        return None
    side = DEFAULT_SIZE if size is None else size
    if not SIZES[0] <= side <= SIZES[1]:
        raise InputError(f"--size must lie between {SIZES[0]} and {SIZES[1]}, not be {side}.", "Try --size 512.")
    return side


def generate(
    seeds: Sequence[int],
    out: Path,
    *,
    weights: Path | None = None,
    truncation_psi: float = 0.7,
    neck: Vector3 = (0.0, 0.0, 0.0),
    head: Vector3 = (0.0, 0.0, 0.0),
    size: int | None = None,
    video: bool = True,
    mesh: bool = True,
    device: str = "cpu",
    progress: bool = True,
) -> list[Path]:
    """Write `out/seed0000/` for every seed: views.png, turntable.mp4, portrait.glb and portrait.json.

    The same seed and weights give the same pictures and mesh. A portrait's files appear together when all of
    them are done; files of an earlier run with the same names are replaced.

    Args:
        seeds: at least 0.
        out: folder, made when missing.
        weights: a weights file; the packaged one when None.
        truncation_psi: 0 (the average person) to 1 (the full variety).
        neck, head: axis-angle in degrees; all zero is the canonical body.
        size: side of each view, pixels (default: 512, or the model's own if it has one); the video has half of it.
        video, mesh: whether to write turntable.mp4 and portrait.glb.
        device: where the networks run: cpu, cuda, cuda:1, or auto for the GPU if there is one.
        progress: show progress on standard error and a line per portrait on standard output.

    Returns:
        The portraits' folders.

    Raises:
        InputError: an argument is out of range, or the folder cannot be written.
        CheckpointError: the weights are missing, broken or of another model.
    """
    if not 0.0 <= truncation_psi <= 1.0:
        raise InputError(
            f"--truncation-psi must lie between 0 and 1, not be {truncation_psi:g}.",
            "Try --truncation-psi 0.7.",
        )
    pose = body_pose_from_degrees(neck, head)
    place = choose_device(device)
    settle_threads()
    keep_freed_memory()
    made = make_folder(out)
    folders = []
    try:
        generator, info = load_generator(weights)
        generator.to(place)
        side = rendering_size(generator.config, size)
        start = time.monotonic()
        bf16 = place.type == "cpu" and worth_bf16(generator.config)
        # Logs get a line per portrait anyway; the bar is for people who watch.
        with show_progress("making", len(seeds), "portraits", visible=progress and sys.stderr.isatty()) as bar:
            for seed in seeds:
                portrait = Portrait.from_seed(generator, seed, truncation_psi, bf16=bf16)
                record = {
                    "seed": seed,
                    "truncation_psi": truncation_psi,
                    "weights": {"sha256": info["sha256"]},
                    "model": generator.config.name,
                    "convolutions": "bf16" if bf16 else "float32",
                }
                folder = out / f"seed{seed:04d}"
                with atomic_folder(folder) as temporary:
                    write_portrait(temporary, portrait, pose, record, side=side, video=video, mesh=mesh)
                folders.append(folder)
                bar.advance(1)
                if progress:
                    spent = time.monotonic() - start
                    left = spent / len(folders) * (len(seeds) - len(folders))
                    print(f"{folder}  {len(folders)} of {len(seeds)}, {left:.0f} s left", flush=True)
    except BaseException:
        remove_empty_folders(made)
        raise
    return folders


def write_portrait(
    folder: Path,
    portrait: Portrait,
    pose: Tensor,
    record: dict[str, Any],
    *,
    side: int | None = None,
    video: bool = True,
    mesh: bool = True,
) -> None:
    """Write one portrait's files into an existing folder.

    Args:
        folder: where to.
        portrait: what to render.
        pose: body pose (6,) in radians; all zero is the canonical body.
        record: what portrait.json and the mesh's extras start with (where the portrait comes from).
        side: of the views' rays; None for the model's own. The video has half of it.
        video, mesh: whether to write turntable.mp4 and portrait.glb.
    """
    body_pose = pose if pose.any() else None
    views = camera_label(torch.deg2rad(torch.tensor(VIEW_YAWS, dtype=torch.float32)))
    pictures = np.concatenate(list(render_bytes(portrait, views, body_pose, side)))
    save_png(folder / "views.png", grid(pictures, len(VIEW_YAWS)))
    files = ["views.png"]
    if video:
        from portrait360.media.video import write_video  # half a second of imports that pictures alone do not need

        turn = torch.arange(VIDEO_FRAMES, dtype=torch.float32) * (2.0 * math.pi / VIDEO_FRAMES)
        half = None if side is None else side // 2
        frames = (frame for batch in render_bytes(portrait, camera_label(turn), body_pose, half) for frame in batch)
        write_video(folder / "turntable.mp4", frames, frames_per_second=FRAMES_PER_SECOND)
        files.append("turntable.mp4")
    record = {
        **record,
        "body_pose": {
            "radians": pose.tolist(),
            "degrees": torch.rad2deg(pose.double()).round(decimals=4).tolist(),
        },
        "package_version": portrait360.__version__,
    }
    if mesh:
        from portrait360.media.glb import write_glb
        from portrait360.media.mesh import extract_mesh

        low, high = mesh_box(portrait.bounds, pose, portrait.body)
        with torch.inference_mode():
            surface = extract_mesh(lambda points: portrait.query(points, body_pose), low, high, step=MESH_STEP)
        write_glb(folder / "portrait.glb", surface, extras=record)
        files.append("portrait.glb")
    cameras = [{"yaw_degrees": yaw, "camera": label} for yaw, label in zip(VIEW_YAWS, views.tolist(), strict=True)]
    write_json(folder / "portrait.json", {**record, "views": cameras, "files": [*files, "portrait.json"]})
