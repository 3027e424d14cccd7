"""Training checkpoints: safetensors files that hold everything that exact resuming needs."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

import portrait360
from portrait360.config import Preset
from portrait360.runtime.distributed import is_first_process
from portrait360.runtime.tensors import FORMAT, from_json, metadata_json, read_tensors, to_json, write_tensors
from portrait360.types import CheckpointError

_LONGEST_HEADER = 100 * 2**20
"""Bytes; the safetensors library reads no longer ones."""


@dataclass(frozen=True)
class RunRecord:
    """What a run is given besides its preset, and what it measured; it stands in checkpoints and weights."""

    preset: str
    """Name of the preset that it began with."""
    recipe: str
    """`preset`, or `original`."""
    seed: int
    """Of the first weights and of the order of images."""
    data: str = ""
    """Fingerprint of the dataset's labels."""
    labels: str = ""
    """What kind the dataset's labels are of."""
    bf16: bool = False
    """Whether convolutions run in bf16."""
    processor: str = ""
    """On which that was measured."""


@dataclass(frozen=True)
class Checkpoint:
    """A run after so many images and steps."""

    path: Path
    preset: Preset
    """What is trained, with the run's own settings."""
    run: RunRecord
    images: int
    step: int
    tensors: dict[str, Tensor]
    """`training.state.state_tensors`."""


def checkpoint_path(run: Path, images: int) -> Path:
    """Where a run keeps its checkpoint after so many images."""
    return Path(run) / f"checkpoint-{images:010d}.safetensors"


def checkpoints(run: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    return sorted(Path(run).glob("checkpoint-*.safetensors"))


def images_of(path: Path) -> int:
    """After how many images a checkpoint was written, by its name; -1 for a name that does not say."""
    number = path.stem.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


def is_cut_off(path: Path) -> bool:
    """Whether a file is no safetensors file, or shorter or longer than its header says.

    It is found from the header alone: checkpoints have gigabytes, and are looked at whenever one is written.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= _LONGEST_HEADER:
                return True
            header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return path.stat().st_size != 8 + length + max(ends, default=0)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return True


def save_checkpoint(checkpoint: Checkpoint) -> None:
    """Write a checkpoint at its path."""
    metadata = {
        "format": FORMAT,
        "kind": "checkpoint",
        "version": portrait360.__version__,
        "preset": to_json(checkpoint.preset),
        "run": to_json(checkpoint.run),
        "images": json.dumps(checkpoint.images),
        "step": json.dumps(checkpoint.step),
    }
    write_tensors(checkpoint.path, checkpoint.tensors, metadata)


def load_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint of a file.

    Raises:
        CheckpointError: damaged, or not a checkpoint of this project.
    """
    tensors, metadata = read_tensors(path)
    if metadata.get("kind") != "checkpoint":
        raise CheckpointError(f"{path} is not a training checkpoint.", "Name a file like checkpoint-0000010000.")
    preset = from_json(Preset, metadata.get("preset", ""))
    run = from_json(RunRecord, metadata.get("run", ""))
    images, step = (metadata_json(metadata, name, path) for name in ("images", "step"))
    if not (isinstance(images, int) and isinstance(step, int)):
        raise CheckpointError(f"{path} does not say how far training was.", "Use another one.")
    return Checkpoint(Path(path), preset, run, images, step, tensors)


def newest_checkpoint(found: list[Path]) -> Checkpoint:
    """The newest of these files, oldest first, that is whole; says on standard error which ones are skipped.

    Raises:
        CheckpointError: none is.
    """
    problem: CheckpointError | None = None
    broken: list[Path] = []
    for path in reversed(found):
        try:
            checkpoint = load_checkpoint(path)
        except CheckpointError as error:
            problem = problem or error
            broken.append(path)
            continue
        for skipped in broken if is_first_process() else ():
            print(f"warning: {skipped} is broken; training goes on from {path.name}.", file=sys.stderr)
        return checkpoint
    assert problem is not None
    raise problem
