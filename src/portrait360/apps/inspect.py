"""What a dataset holds, and whether its labels belong to its images; what `portrait360 dataset inspect` does."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from portrait360.data.dataset import PortraitDataset
from portrait360.data.inspect import inspect_dataset
from portrait360.encoder.label_check import INSPECTION_SAMPLE, check_labels, dataset_sample


def inspect(path: Path, out: Path, *, progress: bool = True) -> dict[str, Any]:
    """Write what shows whether a dataset is right (`data.inspect`), and warn where labels do not fit their images.

    Args:
        path: a zip or folder.
        out: the folder to write; made when missing.
        progress: show how far the decoding is; warnings go to standard error in any case.

    Returns:
        The content of summary.json.

    Raises:
        DatasetError: the dataset is missing, broken or inconsistent, or its labels follow other conventions; nothing is
            written then.
        InputError: the folder cannot be written.
    """
    summary = inspect_dataset(path, out, check_labels=_label_check, progress=progress)
    for warning in summary["label_check"]["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    return summary


def _label_check(dataset: PortraitDataset) -> dict[str, Any]:
    return check_labels(dataset_sample(dataset, INSPECTION_SAMPLE)).as_json()
