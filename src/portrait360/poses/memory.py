"""The discriminator's latest predicted poses: estimates of the true body poses of the data.

Its pose head is trained on generated images, whose poses are known exactly, so predictions for real images do not carry
the errors of the dataset's labels. They are conditional means, which vary less than poses do; the error on a generated
image from the same side is added back. In a linear Gaussian model the poses drawn here have the
data's distribution exactly where the generated ones have it: it is the fixed point (docs/training.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from portrait360.geometry.cameras import FOCAL
from portrait360.model.generator import Generator
from portrait360.poses.calibration import PoseCalibration, fit_calibration
from portrait360.runtime.distributed import Ranks
from portrait360.types import BODY_POSE_SIZE, CAMERA_LABEL_SIZE

CAPACITY = 1024
"""Images of either kind that are remembered; the oldest go first."""
NEIGHBOURS = 12
"""Poses and errors are drawn from so many images from nearly the same side."""
LARGEST = math.radians(40.0)
"""Refined poses stay within this, per axis."""
STRAIGHTENED = 0.25
"""Share of the canonical heads' tilt that is left for the heads to correct."""
POSE_UNIT, DIRECTION_UNIT = 0.15, 0.5
"""Radians, and distance between unit directions, that count the same in the energy distance."""
MATCHED = 128
"""Poses on either side of the energy distance in one step."""


@dataclass(frozen=True)
class SharedTurns:
    """How the dataset's labels share turns between neck and head."""

    nod: float
    """Mean nod of the head minus mean nod of the neck, radians."""
    spread: tuple[float, float, float]
    """Deviation of the head's turn minus the neck's, per axis, radians."""


class _Ring:
    """Rows of (camera label, six numbers), the newest `CAPACITY` of them."""

    def __init__(self, rows: Tensor | None = None, added: int = 0) -> None:
        width = CAMERA_LABEL_SIZE + BODY_POSE_SIZE
        self.rows = torch.zeros(CAPACITY, width) if rows is None else rows
        self.added = added

    @property
    def full(self) -> bool:
        return self.added >= CAPACITY

    def add(self, rows: Float[Tensor, "N 31"]) -> None:
        where = (torch.arange(len(rows)) + self.added) % CAPACITY
        self.rows[where] = rows.detach().to(self.rows)
        self.added += len(rows)

    def near(self, cameras: Float[Tensor, "B 25"]) -> Float[Tensor, "B 6"]:
        """The six numbers of a random one of the rows whose cameras are nearest to each camera."""
        likeness = _directions(cameras) @ _directions(self.rows[:, :CAMERA_LABEL_SIZE]).T
        nearest = likeness.topk(NEIGHBOURS, dim=1).indices
        pick = torch.randint(NEIGHBOURS, (len(cameras), 1))
        return self.rows[nearest.gather(1, pick)[:, 0], CAMERA_LABEL_SIZE:]


class PoseMemory:
    """Predicted poses of real images, their labels, and the errors on generated ones; whole images, not zoomed."""

    def __init__(self) -> None:
        self.seen, self.errors, self.labels = _Ring(), _Ring(), _Ring()
        self.tilt = torch.zeros(6)
        """Body pose by which canonical heads differ from the template: generated images show their pose plus this."""
        self.shared: SharedTurns | None = None
        """How drawn poses share turns between neck and head."""
        self._noted: list[tuple[_Ring, Tensor]] = []

    @property
    def ready(self) -> bool:
        """Whether there are enough rows to draw from."""
        return self.seen.full and self.errors.full

    def note(
        self,
        cameras: Float[Tensor, "B 25"],
        real: Float[Tensor, "B 6"],
        generated: Float[Tensor, "B 6"],
        truth: Float[Tensor, "B 6"],
        coarse: Float[Tensor, "B 6"],
    ) -> None:
        """Remember a step's poses.

        Args:
            cameras: of real and generated images alike.
            real: predicted poses of the real images.
            generated: predicted poses of the generated images.
            truth: true poses of the generated images.
            coarse: noisy labels of the real images.
        """
        self._noted = [
            (self.seen, torch.cat([cameras, real], dim=1).detach().float()),
            (self.errors, torch.cat([cameras, truth - generated], dim=1).detach().float()),
            (self.labels, torch.cat([cameras, coarse], dim=1).detach().float()),
        ]

    def keep(self, ranks: Ranks) -> None:
        """Gather the rows of all processes in this step, so that all remember the same."""
        for ring, rows in self._noted:
            rows = ranks.gather(rows).cpu()
            ring.add(rows[~is_zoomed(rows[:, :CAMERA_LABEL_SIZE])])
        self._noted = []

    def draw(self, cameras: Float[Tensor, "B 25"]) -> Float[Tensor, "B 6"]:
        """Random poses to render so that images show nearly the real images' poses from these cameras.

        They correct most of the canonical heads' tilt. Correcting all of it would leave the heads as they lean.
        Correcting none would render poses that are off by the whole tilt; predictions, and the next poses with them,
        would drift towards their mean.

        How neck and head share a turn hardly shows (a neck that leans back under a head that nods forward looks like
        both at rest), so it is taken from the labels (`SharedTurns`).
        """
        cameras = cameras.detach().cpu().float()
        poses = self._share(self.seen.near(cameras) + self.errors.near(cameras))
        return (poses + (STRAIGHTENED - 1.0) * self.tilt).clamp(-LARGEST, LARGEST)

    def _share(self, poses: Float[Tensor, "B 6"]) -> Float[Tensor, "B 6"]:
        """Drawn poses with another share of each turn for the head; sums of both turns stay.

        With it, the difference between the turns of head and neck has the labels' mean nod, and no more than the
        labels' spread, over all remembered poses.
        """
        if self.shared is None:
            return poses
        remembered = _head_less_neck((self.seen.rows + self.errors.rows)[:, CAMERA_LABEL_SIZE:])
        mean = remembered.mean(dim=0)
        narrower = (torch.tensor(self.shared.spread) / remembered.std(dim=0)).clamp_max(1.0)
        wanted = mean.clone()
        wanted[0] = self.shared.nod
        change = wanted + narrower * (_head_less_neck(poses) - mean) - _head_less_neck(poses)
        return poses + 0.5 * torch.cat([-change, change], dim=1)

    def refine(
        self, cameras: Float[Tensor, "B 25"], coarse: Float[Tensor, "B 6"], share: float
    ) -> Float[Tensor, "B 6"]:
        """Coarse poses, of which `share` (a probability) are replaced by drawn ones; all stay until `ready`."""
        if share <= 0.0 or not self.ready:
            return coarse
        chosen = torch.rand(len(coarse), 1) < share
        return torch.where(chosen.to(coarse.device), self.draw(cameras).to(coarse), coarse)

    def draw_many(self) -> Float[Tensor, "N 31"]:
        """Cameras of MATCHED remembered images, and poses drawn for them: targets of the pose branch."""
        cameras = self.seen.rows[torch.randint(CAPACITY, (MATCHED,)), :CAMERA_LABEL_SIZE]
        return torch.cat([cameras, self.draw(cameras)], dim=1)

    def calibration(self) -> PoseCalibration | None:
        """The correction of poses predicted for real images (`poses.calibration`); None until there are enough."""
        if not self.seen.full:
            return None
        predicted, labels = (ring.rows[:, CAMERA_LABEL_SIZE:] for ring in (self.seen, self.labels))
        return fit_calibration(predicted[:, None], labels)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it."""
        return {"poses/tilt": self.tilt} | {
            f"poses/{name}/{part}": value
            for name, ring in (("seen", self.seen), ("errors", self.errors), ("labels", self.labels))
            for part, value in (("rows", ring.rows), ("added", torch.tensor(ring.added)))
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> PoseMemory:
        """The memory of a checkpoint; an empty one where the checkpoint has none."""
        memory = cls()
        if "poses/seen/rows" in tensors:
            memory.tilt = tensors["poses/tilt"].clone()
            for name in ("seen", "errors", "labels"):
                rows = tensors[f"poses/{name}/rows"].reshape(CAPACITY, -1).clone()
                setattr(memory, name, _Ring(rows, int(tensors[f"poses/{name}/added"])))
        return memory


def shared_turns(poses: Float[Tensor, "N 6"]) -> SharedTurns:
    """How labels share turns. A bias common to neck and head leaves no trace in it."""
    difference = _head_less_neck(poses.double())
    x, y, z = difference.std(dim=0).tolist()
    return SharedTurns(float(difference[:, 0].mean()), (x, y, z))


def _head_less_neck(poses: Float[Tensor, "N 6"]) -> Float[Tensor, "N 3"]:
    """Head's rotation vector minus the neck's; the nod comes first."""
    return poses[:, 3:] - poses[:, :3]


def mismatch(generator: Generator, drawn: Float[Tensor, "N 31"]) -> Float[Tensor, ""]:
    """Energy distance between the pose branch's poses for random latents and poses drawn for the same cameras.

    Székely and Rizzo, Energy statistics (2013), on (pose, direction of the camera); without the part that does
    not depend on the branch. Differentiable in the branch.
    """
    cameras, wanted = drawn[:, :CAMERA_LABEL_SIZE], drawn[:, CAMERA_LABEL_SIZE:]
    z = torch.randn(len(drawn), generator.config.z_dim, device=drawn.device)
    directions = _directions(cameras) / DIRECTION_UNIT
    predicted = torch.cat([generator.pose_branch(z, cameras) / POSE_UNIT, directions], dim=1)
    return energy_distance(predicted, torch.cat([wanted / POSE_UNIT, directions], dim=1))


def energy_distance(x: Float[Tensor, "N D"], y: Float[Tensor, "M D"]) -> Float[Tensor, ""]:
    """2 E|x - y| - E|x - x'|, unbiased; what is missing, E|y - y'|, does not depend on x."""
    n = len(x)
    return 2.0 * _distances(x, y).mean() - _distances(x, x).sum() / (n * (n - 1))


def _distances(x: Tensor, y: Tensor) -> Tensor:
    squares = x.square().sum(dim=1)[:, None] + y.square().sum(dim=1)[None] - 2.0 * x @ y.T
    return (squares.clamp_min(0.0) + 1e-8).sqrt()


def _directions(cameras: Float[Tensor, "B 25"]) -> Float[Tensor, "B 3"]:
    """Unit vectors from the neck to the cameras."""
    return F.normalize(cameras[:, 3:12:4], dim=1)


def is_zoomed(cameras: Float[Tensor, "B 25"]) -> Bool[Tensor, " B"]:
    """Whether an image is a centre crop, by its focal length."""
    return cameras[:, 16] > 1.05 * FOCAL
