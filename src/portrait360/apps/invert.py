"""A portrait from photos of a person, written as images, video, mesh and record; what `portrait360 invert` does."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from portrait360.config import Vector3
from portrait360.portrait.arguments import unnatural_turns
from portrait360.portrait.model import PortraitModel
from portrait360.portrait.options import AT_REST, body_pose_from_degrees
from portrait360.portrait.portrait import Portrait
from portrait360.runtime.files import make_folder, remove_empty_folders


def invert(
    photos: Sequence[Path],
    out: Path,
    *,
    weights: str | Path | None = None,
    steps: int | None = None,
    fast: bool = False,
    force: bool = False,
    neck: Vector3 = AT_REST,
    head: Vector3 = AT_REST,
    size: int | None = None,
    video: bool = True,
    mesh: bool = True,
    progress: bool = True,
) -> Portrait:
    """Write the portrait of a person in photos into `out`: the files of `Portrait.save`, and comparison.png.

    The files appear together when all of them are done.

    Args:
        photos: one photo, or several of the same person.
        out: folder, made when missing.
        weights: a weights file or a run folder; the packaged weights when None.
        steps, fast, force: see `PortraitModel.invert`.
        neck, head, size, video, mesh: see `Portrait.save`.
        progress: show progress and warnings on standard error.

    Raises:
        InputError: an argument is out of range, no photo can be used, or the folder cannot be written.
        CheckpointError: the weights are missing, broken or of another model.
    """
    # Check the arguments and the place before the long work
    body_pose_from_degrees(neck, head)
    for warning in unnatural_turns(neck, head):
        print(f"warning: {warning}", file=sys.stderr)
    made = make_folder(out)
    try:
        model = PortraitModel.from_pretrained(weights, device="cpu")
        portrait = model.invert(photos, steps=steps, fast=fast, force=force, progress=progress)
        portrait.save(out, neck=neck, head=head, size=size, video=video, mesh=mesh)
    except BaseException:
        remove_empty_folders(made)
        raise

    # Say what came of it
    if progress:
        for photo in portrait.report.get("refused", []):
            print(f"left out: {photo['name']} ({photo['reason']}): {photo['detail']}", file=sys.stderr)
        for warning in portrait.report["warnings"]:
            print(f"warning: {warning}", file=sys.stderr)
    return portrait
