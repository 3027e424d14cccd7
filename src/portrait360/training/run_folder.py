"""What a run writes: its configuration, checkpoints, weights, log and contact sheets."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

from portrait360.config import Preset
from portrait360.model.mapping import StyleMixture
from portrait360.portrait.weights import save_weights
from portrait360.poses.calibration import PoseCalibration
from portrait360.runtime.distributed import Ranks
from portrait360.runtime.files import make_folder, write_json
from portrait360.training import schedules
from portrait360.training.checkpoints import (
    Checkpoint,
    RunRecord,
    checkpoint_path,
    checkpoints,
    images_of,
    is_cut_off,
    save_checkpoint,
)
from portrait360.training.log import RunLog, pose_sheet, turn_sheet
from portrait360.training.passes import TrainingState
from portrait360.training.state import state_tensors
from portrait360.types import CheckpointError

SHEET_SEEDS = range(8)
CONFIG_FILE = "config.json"


def images_shown(path: Path) -> tuple[int, int]:
    """How many images a run has shown, and how many it is to show in all; zeros where there is no checkpoint.

    Raises:
        CheckpointError: config.json is broken.
    """
    found = [checkpoint for checkpoint in checkpoints(path) if not is_cut_off(checkpoint)]
    if not found:
        return 0, 0
    try:
        content = json.loads((Path(path) / CONFIG_FILE).read_bytes())
        total = float(content["training"]["total_kimg"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} has no readable {CONFIG_FILE}.", "Resume the run, which writes it.") from error
    return images_of(found[-1]), int(total * 1000)


class RunFolder:
    """The folder of a run; of several processes, only the first one writes.

    `config.json` (preset with the run's settings, and record), `checkpoint-*.safetensors`, `weights.safetensors`,
    `log.jsonl`, `sheets/` and `tensorboard/`.
    """

    def __init__(self, path: Path, preset: Preset, run: RunRecord) -> None:
        """Nothing is written before `open`."""
        self.path, self.preset, self.run = path, preset, run
        self.ranks, self.log = Ranks(), None

    def open(self, ranks: Ranks, images: int, run: RunRecord) -> None:
        """Make the folder, write the configuration, and open the log, from which lines after `images` are dropped.

        Args:
            ranks: this process's place among all.
            images: how many the run goes on from.
            run: the record, with what was measured.
        """
        self.ranks, self.run = ranks, run
        make_folder(self.path)
        if ranks.first:
            write_json(self.path / CONFIG_FILE, dataclasses.asdict(self.preset) | {"run": dataclasses.asdict(run)})
            self.log = RunLog(self.path, images)

    @property
    def weights(self) -> Path:
        """Where the averaged networks are."""
        return self.path / "weights.safetensors"

    def report(self, images: int, values: dict[str, float]) -> None:
        """Add a line to the log."""
        if self.log is not None:
            self.log.scalars(images, values)

    def save(self, state: TrainingState) -> None:
        """Write a checkpoint first, then weights; old checkpoints go last. All processes must call it."""
        random_states = self.ranks.random_states()
        if not self.ranks.first:
            return
        path, tensors = checkpoint_path(self.path, state.images), state_tensors(state, random_states)
        save_checkpoint(Checkpoint(path, self.preset, self.run, state.images, state.step, tensors))
        self.write_weights(state, state.memory.calibration())
        self._remove_old_checkpoints(state.images)

    def _remove_old_checkpoints(self, images: int) -> None:
        """Keep the newest whole checkpoints, as many as the preset says.

        Only those up to `images`, the one just written, are counted: `--resume` skipped later ones, which are broken.
        """
        found = [path for path in checkpoints(self.path) if images_of(path) <= images]
        keep = [path for path in found if not is_cut_off(path)][-self.preset.training.keep_checkpoints :]
        for path in found:
            if path not in keep and images_of(path) < images:
                path.unlink()

    def write_weights(self, state: TrainingState, calibration: PoseCalibration | None) -> None:
        """Write the averaged networks, with the raw side that they have been trained at."""
        side = schedules.raw_resolution(state.images, state.model, state.config)
        model = dataclasses.replace(state.model, raw_resolution=side)
        about: dict[str, Any] = dataclasses.asdict(self.run) | {"images": state.images, "step": state.step}
        generator = state.average
        if state.people is not None:
            generator = copy.deepcopy(generator)
            mapping = generator.backbone.mapping
            assert isinstance(mapping, StyleMixture)
            mapping.keep(state.people.table.best())
        save_weights(self.weights, model, generator, state.average_discriminator, about, calibration=calibration)

    def draw_sheets(self, state: TrainingState) -> None:
        """Render the same portraits from all sides, and re-posed; on a CPU only."""
        if self.log is not None and next(state.average.parameters()).device.type == "cpu":
            self.log.sheet(state.images, "turn", turn_sheet(state.average, SHEET_SEEDS))
            self.log.sheet(state.images, "poses", pose_sheet(state.average, range(2)))

    def close(self) -> None:
        """Close the log."""
        if self.log is not None:
            self.log.close()
