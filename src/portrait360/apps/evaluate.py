"""How good a model is; what `portrait360 evaluate` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from portrait360.evaluation import evaluate as evaluation


def evaluate(
    data: str | Path,
    *,
    weights: str | Path | None = None,
    out: str | Path | None = None,
    quick: bool = False,
    inception: str | Path | None = None,
    encoder: str | Path | None = None,
    device: str = "auto",
    progress: bool = True,
) -> dict[str, Any]:
    """Measure a model against held-out images.

    Args:
        data: a dataset that training has not seen; exact labels, if it has them, are the truth about body poses.
        weights: what to measure: a weights file or a run folder; the packaged weights when None.
        out: a .json file to write; a sheet of images goes to NAME.png beside it. Nothing is written when None.
        quick: minutes instead of the better part of an hour, with fewer images.
        inception: your file of the Inception network, for FID and KID as papers have them.
        encoder: another portrait encoder than the packaged one.
        device: where the networks run: cpu, cuda, cuda:1, or auto for the GPU if there is one.
        progress: show how far the work is.

    Returns:
        What `out` holds; docs/evaluation.md explains every key.

    Raises:
        InputError, DatasetError, CheckpointError: something given is missing, broken, too small or does not fit, or
            `out` cannot be written.
    """
    return evaluation.evaluate(
        Path(data),
        None if out is None else Path(out),
        weights=weights,
        quick=quick,
        inception=None if inception is None else Path(inception),
        encoder=None if encoder is None else Path(encoder),
        device=device,
        progress=progress,
    )
