"""Portraits from seeds or a portrait file, written as images, video, mesh and record: `portrait360 generate`."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from portrait360.config import Vector3
from portrait360.portrait.arguments import parse_seeds as parse_seeds
from portrait360.portrait.arguments import unnatural_turns
from portrait360.portrait.model import PortraitModel
from portrait360.portrait.options import (
    AT_REST,
    body_pose_from_degrees,
    check_format,
    check_truncation,
    checked_texture,
)
from portrait360.portrait.portrait import Portrait
from portrait360.runtime.files import make_folder, remove_empty_folders
from portrait360.runtime.progress import show_progress


def generate(
    seeds: Sequence[int],
    out: Path,
    *,
    weights: str | Path | None = None,
    truncation: float = 0.7,
    neck: Vector3 = AT_REST,
    head: Vector3 = AT_REST,
    size: int | None = None,
    video: bool = True,
    mesh: bool = True,
    texture: int | None = None,
    format: Literal["glb", "obj"] = "glb",
    device: str = "auto",
    progress: bool = True,
) -> list[Path]:
    """Write `out/seed0000/` for every seed, with the files of `Portrait.save`.

    The same seed and weights give the same images and mesh. A portrait's files appear together when all of them are
    done; those of an earlier portrait in the same folder go.

    Args:
        seeds: see `PortraitModel.sample`.
        out: folder, made when missing.
        weights: a weights file or a run folder; the packaged weights when None.
        truncation: 0 (the average person) to 1 (the full variety).
        neck, head, size, video, mesh, texture, format: see `Portrait.save`.
        device: where the networks run: cpu, cuda, cuda:1, or auto for the GPU if there is one.
        progress: show progress on standard error and a line per portrait on standard output.

    Returns:
        The portraits' folders.

    Raises:
        InputError: an argument is out of range, or the folder cannot be written.
        CheckpointError: the weights are missing, broken or of another model.
    """
    # Check the arguments.
    check_truncation(truncation)
    body_pose_from_degrees(neck, head)  # before the weights are loaded
    checked_texture(texture)
    check_format(format)
    for warning in unnatural_turns(neck, head):
        print(f"warning: {warning}", file=sys.stderr)
    made = make_folder(out)

    # Make one portrait after the other; a run without any leaves no folders.
    folders = []
    try:
        model = PortraitModel.from_pretrained(weights, device=device)
        start = time.monotonic()
        # Logs get a line per portrait anyway; the bar is for people who watch.
        with show_progress("making", len(seeds), "portraits", visible=progress and sys.stderr.isatty()) as bar:
            for seed in seeds:
                portrait = model.sample(seed, truncation=truncation)
                folder = out / f"seed{seed:04d}"
                portrait.save(
                    folder, neck=neck, head=head, size=size, video=video, mesh=mesh, texture=texture, format=format
                )
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


def generate_again(
    file: Path,
    out: Path,
    *,
    weights: str | Path | None = None,
    neck: Vector3 = AT_REST,
    head: Vector3 = AT_REST,
    size: int | None = None,
    video: bool = True,
    mesh: bool = True,
    texture: int | None = None,
    format: Literal["glb", "obj"] = "glb",
    device: str = "auto",
) -> Path:
    """Write the files of `Portrait.save` into `out` for a portrait that was saved, of a seed or from photos.

    Args:
        file: its portrait.safetensors.
        out: folder, made when missing.
        weights: those that the portrait was made with; the packaged weights when None.
        neck, head, size, video, mesh, texture, format: see `Portrait.save`.
        device: as for `generate`.

    Returns:
        The folder.

    Raises:
        InputError: an argument is out of range, or the folder cannot be written.
        CheckpointError: the file or the weights are missing, broken, or do not belong together.
    """
    for warning in unnatural_turns(neck, head):
        print(f"warning: {warning}", file=sys.stderr)
    portrait = Portrait.load(file, weights=weights, device=device)
    return portrait.save(out, neck=neck, head=head, size=size, video=video, mesh=mesh, texture=texture, format=format)
