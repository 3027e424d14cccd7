"""What a run writes: its configuration, checkpoints, weights, log and contact sheets."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from portrait360.config import Preset
from portrait360.portrait.weights import save_weights
from portrait360.poses.calibration import PoseCalibration
from portrait360.runtime.distributed import Ranks
from portrait360.runtime.files import make_folder, write_json
from portrait360.training import schedules
from portrait360.training.checkpoints import Checkpoint, RunRecord, checkpoint_path, checkpoints, save_checkpoint
from portrait360.training.log import RunLog, pose_sheet, turn_sheet
from portrait360.training.passes import TrainingState
from portrait360.training.state import state_tensors

SHEET_SEEDS = range(8)


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
            write_json(self.path / "config.json", dataclasses.asdict(self.preset) | {"run": dataclasses.asdict(run)})
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
        for old in checkpoints(self.path)[: -self.preset.training.keep_checkpoints]:
            old.unlink()

    def write_weights(self, state: TrainingState, calibration: PoseCalibration | None) -> None:
        """Write the averaged networks, with the raw side that they have been trained at."""
        side = schedules.raw_resolution(state.images, state.model, state.config)
        model = dataclasses.replace(state.model, raw_resolution=side)
        about: dict[str, Any] = dataclasses.asdict(self.run) | {"images": state.images, "step": state.step}
        networks = state.average, state.average_discriminator
        save_weights(self.weights, model, *networks, about, calibration=calibration)

    def draw_sheets(self, state: TrainingState) -> None:
        """Render the same portraits from all sides, and re-posed; on a CPU only."""
        if self.log is not None and next(state.average.parameters()).device.type == "cpu":
            self.log.sheet(state.images, "turn", turn_sheet(state.average, SHEET_SEEDS))
            self.log.sheet(state.images, "poses", pose_sheet(state.average, range(2)))

    def close(self) -> None:
        """Close the log."""
        if self.log is not None:
            self.log.close()
