"""Sensitivity of the measures: images are corrupted in known ways, and each measure should notice its own.

    python -m tools.corruptions heldout.zip --out docs/measurements/corruptions.json

Images are compared with other real images, as a model's are; portraits in 3D are the synthetic ones (consistency)
and those of the packaged model (geometry). Needs a dataset of `portrait360 dataset synth`, whose subjects can be
rendered again without their hair.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from jaxtyping import Float, Int
from torch import Tensor

from portrait360.data.dataset import PortraitDataset
from portrait360.encoder.files import load_encoder
from portrait360.evaluation import measures
from portrait360.evaluation.faces import Describer, FaceNetwork, Faces, face_measures, frontal_rows, on_plain
from portrait360.evaluation.geometry import Solid, against_bodies, geometry_measures, portrait_geometry
from portrait360.evaluation.pairs import Pairs, synthetic_pairs
from portrait360.evaluation.plan import COARSE_STEP, SEEDS
from portrait360.evaluation.samples import Predictors, RealImages, SampleSet, measured_model
from portrait360.geometry.cameras import yaw_pitch
from portrait360.media.images import blur
from portrait360.portrait.scene import SceneRenderer
from portrait360.portrait.weights import load_weights
from portrait360.runtime.files import check_place, write_json
from portrait360.runtime.precision import processor_name
from portrait360.runtime.process import settle_process
from portrait360.runtime.progress import show_progress
from portrait360.runtime.script import run_script
from portrait360.synthetic.assets import makehuman_folder
from portrait360.synthetic.source import PortraitSource, portrait_camera
from portrait360.types import DatasetError

NOTHING, ONE_FACE = "nothing", "one face for all"
_BLOB_CENTRE, _BLOB_RADIUS = (0.15, 0.15, 0.0), 0.036
_FLAT = -0.04
_TOO_FAR = 0.005
_NARROW = 0.045
_TO_MEAN = 0.15
"""What is left of differences between faces where all have nearly one."""
_NOSE_BEFORE_AXIS = math.radians(45.0)

Scores = dict[str, dict[str, float]]
"""Per corruption, the values of the measures."""


# ---- images ----


class Corrupted(RealImages):
    """Images of a dataset, changed on the way: `change` gets and gives image (H, W, 3) and mask (H, W) as bytes."""

    def __init__(self, real: RealImages, change: Callable[[int], tuple[np.ndarray, np.ndarray]]) -> None:
        super().__init__(real.data, real.exact, real.model)
        self._change = change

    def read(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        return self._change(row)


def blurred(real: RealImages, row: int, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """An image blurred by a Gaussian of `sigma` pixels of the model's resolution."""
    image, mask = real.read(row)
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()
    width = sigma * real.data.resolution / real.model.resolution * math.sqrt(2.0 * math.log(2.0))
    return blur(pixels, width)[0].permute(1, 2, 0).round().byte().numpy(), mask


def noisy(real: RealImages, row: int, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """An image with Gaussian noise of `sigma` levels."""
    image, mask = real.read(row)
    noise = np.random.default_rng(row).normal(0.0, sigma, image.shape)
    return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8), mask


def hairless(source: PortraitSource, real: RealImages, row: int) -> tuple[np.ndarray, np.ndarray]:
    """The subject of an image rendered again, bald."""
    index = int(Path(real.data.name(row)).stem)
    rendered = source.draw(int(real.data.meta["seed"]), index, real.data.resolution, overrides={"hair": None})
    return rendered.image, rendered.mask


def one_face(source: PortraitSource, real: RealImages, row: int) -> tuple[np.ndarray, np.ndarray]:
    """The subject of an image rendered again with a face near the mean.

    Sex, age, ancestry, complexion, hair and clothes stay.
    """
    index, seed = int(Path(real.data.name(row)).stem), int(real.data.meta["seed"])
    subject = source.describe(seed, index)
    alike = dataclasses.replace(
        subject,
        local={name: _TO_MEAN * value for name, value in subject.local.items()},
        facial={name: _TO_MEAN * value for name, value in subject.facial.items()},
        complexion=dataclasses.replace(subject.complexion, mottle=_TO_MEAN * subject.complexion.mottle),
        brow=source.describe(0, 0).brow,
        phenotype=subject.phenotype | {"weight": 0.5, "muscle": 0.5},
    )
    camera = portrait_camera(subject.yaw, subject.pitch)
    rendered = source.render(source.build(alike), camera, real.data.resolution)
    return rendered.image, rendered.mask


def faces_behind(real: RealImages, rows: Int[Tensor, " N"], seed: int) -> Int[Tensor, " N"]:
    """Rows in which images of the back of the head give way to images of faces, which keep the back's camera."""
    yaw, _ = yaw_pitch(real.data.cameras[rows])
    fronts = rows[yaw.abs() < _NOSE_BEFORE_AXIS]
    chosen = fronts[torch.randint(len(fronts), (len(rows),), generator=torch.Generator().manual_seed(seed))]
    return torch.where(yaw.abs() > measures.BEHIND, chosen, rows)


def image_scores(
    real: RealImages,
    source: PortraitSource,
    predictors: Predictors,
    count: int,
    seed: int,
    advance: Callable[[int], None],
) -> Scores:
    """Measures of one half of the images, corrupted, against the other half."""
    # Two halves of the images, and seeds for the changes.
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(seed + 1))
    here, rows = real.predict(order[:count], predictors, advance), order[count : 2 * count]
    plain = real.predict(rows, predictors, advance)
    draws = torch.Generator().manual_seed(seed)
    mixed = torch.randperm(count, generator=draws)
    few = torch.randint(max(2, count // 10), (count,), generator=draws)

    # Each corruption of the second half.
    def corrupted(change: Callable[[int], tuple[np.ndarray, np.ndarray]]) -> SampleSet:
        return Corrupted(real, change).predict(rows, predictors, advance)

    behind = dataclasses.replace(real.predict(faces_behind(real, rows, seed), predictors, advance), camera=plain.camera)
    sets = {
        NOTHING: plain,
        "blur of 2 pixels": corrupted(lambda row: blurred(real, row, 2.0)),
        "noise of 12 levels": corrupted(lambda row: noisy(real, row, 12.0)),
        "no hair": corrupted(lambda row: hairless(source, real, row)),
        "faces on backs": behind,
        ONE_FACE: corrupted(lambda row: one_face(source, real, row)),
        "a tenth of the persons": plain.take(few),
        "cameras shuffled": dataclasses.replace(plain, camera=plain.camera[mixed]),
    }
    if plain.body_pose is not None:
        sets["poses shuffled"] = dataclasses.replace(plain, body_pose=plain.body_pose[mixed])
        sets["poses halved"] = dataclasses.replace(plain, body_pose=0.5 * plain.body_pose)

    # Every measure against the first half.
    return {name: measures.set_measures(here, samples, seed) for name, samples in sets.items()}


# ---- faces ----


def face_scores(
    real: RealImages,
    source: PortraitSource,
    network: Describer,
    count: int,
    seed: int,
    advance: Callable[[int], None],
) -> Scores:
    """Measures of faces of one half of the frontal images, corrupted, against the other half."""
    # Two halves of the frontal images.
    frontal = frontal_rows(real.data.cameras)
    count = min(count, len(frontal) // 2)
    order = frontal[torch.randperm(len(frontal), generator=torch.Generator().manual_seed(seed + 1))]
    rows = order[count : 2 * count]

    # Each corruption of the second half.
    def found(chosen: Int[Tensor, " N"], source: RealImages) -> Faces:
        images = (on_plain(*source.read(row), real.model) for row in chosen.tolist())
        return Faces.of(images, network, advance)

    here, plain = found(order[:count], real), found(rows, real)
    draws = np.random.default_rng(seed)
    few = draws.integers(max(2, len(plain.descriptors) // 10), size=len(plain.descriptors))
    alike = found(rows, Corrupted(real, lambda row: one_face(source, real, row)))
    sets = {
        NOTHING: plain,
        "blur of 2 pixels": found(rows, Corrupted(real, lambda row: blurred(real, row, 2.0))),
        "a tenth of the persons": Faces(plain.images, plain.descriptors[few]),
        ONE_FACE: alike,
    }

    # Every measure against the first half.
    return {name: face_measures(here, faces) for name, faces in sets.items()}


# ---- portraits in 3D ----


def pair_scores(pairs: Pairs, predictors: Predictors) -> Scores:
    """Measures of consistency of portraits as they are, and of portraits that change with the camera."""
    moved = dataclasses.replace(pairs.far, image=pairs.far.image.roll(1, dims=0))
    glued = dataclasses.replace(pairs.near, image=pairs.first.image)
    far = dataclasses.replace(pairs.near, distance=pairs.near.distance + _TOO_FAR)
    flat = dataclasses.replace(pairs.near, distance=pairs.near.distance.clamp(max=_flat_distance(pairs)))
    return {
        NOTHING: pairs.measures(predictors.encoder),
        "another person from the other side": dataclasses.replace(pairs, far=moved).measures(predictors.encoder),
        "images that follow the camera": dataclasses.replace(pairs, near=glued).measures(predictors.encoder),
        "distances 0.005 too far": dataclasses.replace(pairs, near=far).measures(predictors.encoder),
        "a nearer second surface": dataclasses.replace(pairs, near=flat).measures(predictors.encoder),
    }


def _flat_distance(pairs: Pairs) -> float:
    """A distance that a quarter of all surfaces are beyond."""
    return pairs.near.distance[pairs.near.mask > 0.9].quantile(0.75).item()


@dataclass(frozen=True)
class Changed:
    """A portrait whose density is changed on the way: (points, density) to density."""

    portrait: Solid
    change: Callable[[Tensor, Tensor], Tensor]

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        return self.portrait.bounds

    @property
    def body(self):
        return self.portrait.body

    def query(
        self, points: Float[Tensor, "N 3"], body_pose: Float[Tensor, "6"] | None = None
    ) -> tuple[Float[Tensor, " N"], Float[Tensor, "N 3"]]:
        density, colour = self.portrait.query(points, body_pose)
        return self.change(points, density), colour


def floating_ball(points: Tensor, density: Tensor) -> Tensor:
    inside = (points - points.new_tensor(_BLOB_CENTRE)).norm(dim=1) < _BLOB_RADIUS
    return torch.where(inside, torch.full_like(density, 1000.0), density)


def flat_back(points: Tensor, density: Tensor) -> Tensor:
    return torch.where((points[:, 2] < _FLAT) & (points[:, 1] > 0.06), torch.zeros_like(density), density)


def narrow_head(points: Tensor, density: Tensor) -> Tensor:
    return torch.where((points[:, 0].abs() > _NARROW) & (points[:, 1] > 0.06), torch.zeros_like(density), density)


def mesh_scores(portraits: Sequence[Solid], advance: Callable[[int], None]) -> Scores:
    """Measures of geometry of the packaged model's portraits, as they are and changed."""
    changes: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        NOTHING: lambda _, density: density,
        "a floating ball": floating_ball,
        "a flat back of the head": flat_back,
        "a narrow head": narrow_head,
    }
    out = {}
    for name, change in changes.items():
        found = []
        for portrait in portraits:
            found.append(portrait_geometry(Changed(portrait, change), COARSE_STEP))
            advance(1)
        out[name] = geometry_measures(against_bodies(found))[0]
    return out


# ---- the table ----


def collected(per_seed: list[Scores]) -> dict[str, dict[str, list[float]]]:
    """Mean and standard deviation over the seeds of each measure, per corruption."""
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for scores in per_seed:
        for corruption, found in scores.items():
            for name, value in measures.finite(found).items():
                values[corruption][name].append(value)
    return {c: {name: list(measures.spread(v)) for name, v in found.items()} for c, found in values.items()}


def measure_corruptions(
    data: Path, *, count: int = 600, faces: int = 200, pairs: int = 32, meshes: int = 6
) -> dict[str, Any]:
    """The whole table.

    Args:
        data: a dataset of `portrait360 dataset synth` with at least 2 x `count` images (else fewer are used).
        count: images per set and seed.
        faces: frontal images per set and seed in the table of faces.
        pairs, meshes: portraits per seed in the tables of consistency and geometry.

    Returns:
        `about`, and per table (`pictures`, `faces`, `consistency`, `geometry`) per corruption the mean and
        deviation of every measure over the seeds.

    Raises:
        DatasetError: not a synthetic dataset with exact labels.
        AssetError: the parts of synthetic portraits cannot be had.
        InputError: the extra `faces` is not installed.
    """
    # Networks, data and the subjects of the data.
    networks, (encoder, info) = load_weights(), load_encoder()
    dataset = PortraitDataset(data)
    if "seed" not in dataset.meta or dataset.meta.get("views_per_subject", 1) != 1:
        raise DatasetError(f"{data} does not record its subjects.", "Render it with `portrait360 dataset synth`.")
    predictors = Predictors(encoder, networks.discriminator)
    networks.generator.config = measured_model(networks.generator.config, dataset.resolution)
    real = RealImages(dataset, PortraitDataset(data, labels="exact"), networks.generator.config)
    source = PortraitSource(makehuman_folder())

    # How much can be measured.
    count = min(count, len(dataset) // 2)
    network, faces = FaceNetwork(), min(faces, len(frontal_rows(dataset.cameras)) // 2)
    work = len(SEEDS) * (7 * count + 4 * faces + pairs + 4 * meshes)

    # Every table for every seed.
    tables: dict[str, list[Scores]] = {"pictures": [], "faces": [], "consistency": [], "geometry": []}
    with show_progress("measuring", work, "images and meshes") as bar:
        for seed in SEEDS:
            tables["pictures"].append(image_scores(real, source, predictors, count, seed, bar.advance))
            tables["faces"].append(face_scores(real, source, network, faces, seed, bar.advance))
            synthetic = synthetic_pairs(source, real.model, pairs, 900_000_001 + seed, bar.advance)
            tables["consistency"].append(pair_scores(synthetic, predictors))
            people = [SceneRenderer.from_seed(networks.generator, seed * meshes + i) for i in range(meshes)]
            tables["geometry"].append(mesh_scores(people, bar.advance))

    # Mean and deviation over the seeds.
    about = {"machine": processor_name(), "data": data.name, "pictures": count, "faces": faces,
             "pairs": pairs, "meshes": meshes,
             "seeds": list(SEEDS), "encoder": info["sha256"], "weights": networks.info.sha256}  # fmt: skip
    return {"about": about} | {name: collected(scores) for name, scores in tables.items()}


def main(
    data: Annotated[Path, tyro.conf.Positional],
    out: Path,
    count: int = 600,
    faces: int = 200,
    pairs: int = 32,
    meshes: int = 6,
) -> None:
    """Write every measure (.json) for images and portraits that are corrupted in known ways."""
    settle_process()
    check_place(out)
    write_json(out, measure_corruptions(data, count=count, faces=faces, pairs=pairs, meshes=meshes))


if __name__ == "__main__":
    run_script(main)
