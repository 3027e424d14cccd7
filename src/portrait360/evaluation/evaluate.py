"""How good a model is: draw pictures, look at them and at real ones, compare; what `portrait360 evaluate` does."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import platform
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

import portrait360
from portrait360.data.dataset import PortraitDataset
from portrait360.encoder.files import load_encoder
from portrait360.evaluation import measures
from portrait360.evaluation.faces import (
    LEAST_SIDE,
    TRUNCATION,
    FaceNetwork,
    Faces,
    data_faces,
    face_measures,
    frontal_rows,
    generated_faces,
)
from portrait360.evaluation.geometry import MeshStatistics, against_bodies, geometry_measures, portrait_geometry
from portrait360.evaluation.inception import load_inception
from portrait360.evaluation.measures import MEASURES
from portrait360.evaluation.pairs import generated_pairs, synthetic_pairs
from portrait360.evaluation.report import sheet, table
from portrait360.evaluation.samples import (
    WINDOWS,
    Drawn,
    Extractor,
    Judge,
    RealPictures,
    SampleSet,
    draw_generated,
    draw_people,
    least_side,
)
from portrait360.geometry.cameras import SECTORS
from portrait360.portrait.scene import SceneRenderer, find_matter
from portrait360.portrait.weights import Weights, load_weights
from portrait360.runtime.cache import cache_folder
from portrait360.runtime.device import choose_device
from portrait360.runtime.files import atomic_write, check_json_place, write_json
from portrait360.runtime.memory import keep_freed_memory
from portrait360.runtime.precision import processor_name
from portrait360.runtime.progress import Progress, show_progress
from portrait360.runtime.tensors import read_tensors, write_tensors
from portrait360.runtime.threads import settle_threads
from portrait360.synthetic.assets import installed_makehuman_folder
from portrait360.types import DatasetError, InputError, Portrait360Error

FORMAT_VERSION = 1
_LOOKS = "both ways"
"""How the encoder looks at pictures; what it saw in another way is not taken from the cache."""
SEEDS = (0, 1, 2)
COARSE_STEP = 0.0035
"""World units between the points of meshes: heads measure the same within 0.001 as with `generate`'s step, in half the
time."""
FEWEST = 40
"""Fewer pictures than this cannot be split and compared."""


@dataclass(frozen=True)
class Plan:
    """How much is drawn for each of the SEEDS."""

    pictures: int
    """Persons drawn, and real pictures on each side of a comparison."""
    pairs: int
    meshes: int
    faces: int
    """Faces of generated people at each truncation, and of the data, in all."""


FULL = Plan(pictures=3500, pairs=170, meshes=60, faces=1000)
QUICK = Plan(pictures=250, pairs=32, meshes=4, faces=120)


@dataclass
class Collected:
    """Values of every measure, one per seed: of the model, and of real pictures in its place."""

    values: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    floors: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    known: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Floors that no seed changes: mean and standard deviation."""

    def add(self, values: dict[str, float], floors: dict[str, float]) -> None:
        for there, new in ((self.values, values), (self.floors, floors)):
            for name, value in measures.finite(new).items():
                there[name].append(value)

    def records(self) -> dict[str, dict[str, Any]]:
        """For each measure its mean and deviation over the seeds, the same of real pictures, unit and direction."""
        out: dict[str, dict[str, Any]] = {}
        for name, about in MEASURES.items():
            if name not in self.values:
                continue
            value, deviation = measures.spread(self.values[name])
            record: dict[str, Any] = {"value": value, "spread": deviation, "floor": None, "floor_spread": None}
            if name in self.floors:
                record["floor"], record["floor_spread"] = measures.spread(self.floors[name])
            elif name in self.known:
                record["floor"], record["floor_spread"] = self.known[name]
            out[name] = record | {"unit": about.unit, "better": about.better}
        return out


def evaluate(
    data: Path,
    out: Path | None,
    *,
    weights: str | Path | None = None,
    quick: bool = False,
    inception: Path | None = None,
    encoder: Path | None = None,
    device: str = "auto",
    progress: bool = True,
    plan: Plan | None = None,
) -> dict[str, Any]:
    """Measure a model against held-out pictures; write `out` and a sheet of pictures beside it, print the table.

    Args:
        data: a dataset that training has not seen; exact labels, if it has them, are the truth about body poses.
        out: a .json file; `NAME.png` beside it shows pictures. Nothing is written or printed when None.
        weights: what to measure, a file or a run folder; the packaged weights when None.
        quick: minutes instead of the better part of an hour, with fewer pictures.
        inception: the user's file of the Inception network, for the numbers that papers give.
        encoder: another portrait encoder than the packaged one.
        device: where the networks run: cpu, cuda, cuda:1, or auto for the GPU if there is one.
        progress: show how far the work is.
        plan: other numbers of pictures than those of `quick`.

    Returns:
        What `out` holds; docs/evaluation.md explains every key.

    Raises:
        InputError, DatasetError, CheckpointError: an input is missing, broken or unfit, or `out` cannot be written.
    """
    pictures = None if out is None else check_json_place(out, ".png")
    start = time.monotonic()
    settle_threads()
    keep_freed_memory()
    run = _prepare(data, weights, inception, encoder, device, plan or (QUICK if quick else FULL))
    with show_progress("measuring", run.work, "pictures and meshes", visible=progress) as bar:
        collected, shown = _measure(run, bar)
    result = {
        "format": "portrait360-evaluation",
        "version": FORMAT_VERSION,
        "about": run.about | {"quick": quick, "seconds": round(time.monotonic() - start, 1)},
        "measures": collected.records(),
        "sectors": shown.sectors,
        "missing": run.missing,
    }
    if out is None or pictures is None:
        return result
    with atomic_write(pictures) as temporary:
        sheet(shown.real, shown.generated).save(temporary)
        write_json(out, result)
    print(table(result))
    print(f"{out}\n{pictures}")
    return result


# ---- preparation ----


@dataclass(frozen=True)
class Run:
    """Everything that a measurement needs."""

    weights: Weights
    judge: Judge
    real: RealPictures
    plan: Plan
    recognition: FaceNetwork | None
    about: dict[str, Any]
    missing: dict[str, str]
    """Measures that cannot be had, and why."""
    cache_key: str

    @property
    def work(self) -> int:
        """Steps of the progress bar."""
        pairs = self.plan.pairs * (1 if "consistency floor" in self.missing else 2)
        faces = 0 if self.recognition is None else 4 * self.plan.faces
        return len(self.pool()) + len(SEEDS) * (self.plan.pictures + pairs + self.plan.meshes) + faces

    def pool(self) -> Int[Tensor, " M"]:
        """The real pictures in use: enough that the halves of every seed differ."""
        order = torch.randperm(len(self.real.data), generator=torch.Generator().manual_seed(0))
        return order[: 3 * self.plan.pictures]


def _prepare(
    data: Path, weights: str | Path | None, inception: Path | None, encoder_file: Path | None, device: str, plan: Plan
) -> Run:
    networks = load_weights(weights)
    encoder, encoder_info = load_encoder(encoder_file)
    dataset = PortraitDataset(data)
    model = networks.generator.config
    if len(dataset) < FEWEST:
        raise DatasetError(
            f"{data} has {len(dataset)} pictures; measuring wants at least {FEWEST}.",
            "Draw more: portrait360 dataset synth --count 4000 --resolution 256 --seed 77 --out heldout.zip",
        )
    if dataset.resolution < model.resolution:
        raise DatasetError(
            f"{data} has pictures of {dataset.resolution} pixels; {model.name} makes {model.resolution}.",
            "Draw the dataset at a higher resolution.",
        )
    dataset.mask(0)  # says so if there are none
    missing: dict[str, str] = {}
    exact = _exact(data, missing)
    recognition = _recognition(dataset, missing)
    frontal = len(frontal_rows(dataset.cameras))
    plan = dataclasses.replace(
        plan, pictures=min(plan.pictures, len(dataset) // 2), faces=min(plan.faces, frontal // 2)
    )
    place = choose_device(device)
    networks.generator.to(place)
    networks.discriminator.to(place)
    further, inception_sha = None, ""
    if inception is not None:
        further = _inception(inception, place)
        inception_sha = hashlib.sha256(inception.read_bytes()).hexdigest()
    else:
        missing["inception"] = "no --inception file was given"
    judge = Judge(encoder.to(place), networks.discriminator, further, networks.calibration)
    real = RealPictures(dataset, exact, model)
    for name, window in WINDOWS.items():
        if name not in real.windows:
            missing[f"frechet_{name}"] = f"needs pictures of {math.ceil(least_side(model) / window)} pixels"
    if installed_makehuman_folder() is None:
        missing["consistency floor"] = "the synthetic parts are not installed (dataset synth fetches them)"
    info = networks.info
    about = {
        "weights": {"model": info.model, "sha256": info.sha256, "about": info.about, "file": _name(weights)},
        "data": {"file": data.name, "pictures": len(dataset), "resolution": dataset.resolution,
                 "label_kind": dataset.label_kind, "fingerprint": dataset.fingerprint()},
        "encoder": encoder_info["sha256"],
        "pictures": plan.pictures,
        "pairs": plan.pairs,
        "meshes": plan.meshes,
        "faces": 0 if recognition is None else plan.faces,
        "seeds": list(SEEDS),
        "package": portrait360.__version__,
        "machine": {"processor": processor_name(), "threads": torch.get_num_threads(), "device": str(place),
                    "torch": torch.__version__, "python": platform.python_version()},
    }  # fmt: skip
    model_part = (model.resolution, model.background is None, model.plain_background, model.discriminator.mirror_once)
    shas = (dataset.fingerprint(), encoder_info["sha256"], inception_sha)
    parts = (
        FORMAT_VERSION,
        _LOOKS,
        sorted(WINDOWS.items()),
        sorted(real.windows.items()),
        plan.pictures,
        *shas,
        *model_part,
    )
    return Run(
        networks, judge, real, plan, recognition, about, missing, hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
    )


def _name(weights: str | Path | None) -> str:
    return "packaged" if weights is None else Path(weights).name


def _exact(data: Path, missing: dict[str, str]) -> PortraitDataset | None:
    try:
        return PortraitDataset(data, labels="exact")
    except DatasetError:
        missing["body pose, real pictures"] = "the dataset has no exact body poses"
        return None


def _recognition(dataset: PortraitDataset, missing: dict[str, str]) -> FaceNetwork | None:
    """The face recognition network, if it is installed and the data show faces."""
    if dataset.resolution < LEAST_SIDE:
        missing["faces"] = f"needs images of {LEAST_SIDE} pixels"
        return None
    if len(frontal_rows(dataset.cameras)) < FEWEST:
        missing["faces"] = f"needs {FEWEST} images from within 30 degrees of the front"
        return None
    try:
        return FaceNetwork()
    except InputError as error:
        missing["faces"] = f"{error.message} {error.hint}"
        return None


def _inception(path: Path, device: torch.device) -> Extractor:
    network = load_inception(path).to(device)
    return lambda images: torch.cat([network(some) for some in images.split(16)])


# ---- measuring ----


@dataclass(frozen=True)
class Shown:
    """What goes into the sheet and beside the measures."""

    real: SampleSet
    generated: Drawn
    sectors: dict[str, dict[str, Any]]


def _measure(run: Run, bar: Progress) -> tuple[Collected, Shown]:
    pool = run.pool()
    real = _look_at_real(run, pool, bar.advance)
    collected, count = Collected(), run.plan.pictures
    generator, cameras = run.weights.generator, run.real.data.cameras
    drawn: list[Drawn] = []
    for seed in SEEDS:
        order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed + 1))
        here, there = real.take(order[:count]), real.take(order[count : 2 * count])
        floors = measures.set_measures(here, there, seed)
        drawn.append(draw_generated(generator, run.judge, cameras, count, seed, bar.advance, windows=run.real.windows))
        same, random = drawn[-1].same, drawn[-1].random
        values = measures.fidelity(here, same, seed)
        further = measures.set_measures(here, random, seed)
        values |= {name if f"{name}_random" not in MEASURES else f"{name}_random": v for name, v in further.items()}
        floors |= {f"{name}_random": v for name, v in floors.items() if f"{name}_random" in MEASURES}
        collected.add(values | measures.real_pose_truth(there), floors)
        collected.add(*_consistency(run, seed, bar.advance))
        shape, collected.known = _geometry(run, seed, bar.advance)
        collected.add(shape, {})
    if run.recognition is not None:
        collected.add(*_faces(run, run.recognition, bar.advance))
    sectors = _sectors([d.random for d in drawn], real)
    return collected, Shown(real, drawn[0], sectors)


def _look_at_real(run: Run, pool: Int[Tensor, " M"], advance: Callable[[int], None]) -> SampleSet:
    """The pool as the networks see it; what the encoder says is kept in the user's cache for the next time."""
    path = cache_folder() / "evaluation" / f"{run.cache_key}.safetensors"
    known = None
    if path.exists():
        with contextlib.suppress(Portrait360Error):  # a damaged cache is made anew
            known = read_tensors(path)[0]
    real = run.real.look(pool, run.judge, advance, known)
    if known is None:
        tensors = {name: getattr(real, name) for name in _CACHED if getattr(real, name) is not None}
        with contextlib.suppress(Portrait360Error):  # no room or no permission: then without
            write_tensors(path, tensors, {"format": "portrait360", "kind": "evaluation-cache"})
    return real


_CACHED = (
    "features",
    "identity",
    "seen_yaw",
    "seen_pitch",
    "seen_pose",
    "head_features",
    "face_features",
    "further_features",
)


def _sectors(generated: list[SampleSet], real: SampleSet) -> dict[str, dict[str, Any]]:
    """Errors of the camera per sector of yaw, mean over the seeds, and those of real pictures."""
    per_seed = [measures.sector_errors(samples) for samples in generated]
    data = measures.sector_errors(real)
    out: dict[str, dict[str, Any]] = {}
    for name in SECTORS:
        entry: dict[str, Any] = {"pictures": sum(int(one[name]["pictures"] or 0) for one in per_seed)}
        for key in ("yaw_error", "pitch_error"):
            values = [float(v) for one in per_seed if (v := one[name][key]) is not None]
            entry[key] = fmean(values) if values else None
            entry[f"{key}_real"] = data[name][key]
        out[name] = entry
    return out


def _consistency(run: Run, seed: int, advance: Callable[[int], None]) -> tuple[dict[str, float], dict[str, float]]:
    generator, count = run.weights.generator, run.plan.pairs
    pairs = generated_pairs(generator, run.real.data.cameras, count, seed, advance)
    values = pairs.measures(run.judge.encoder)
    parts = installed_makehuman_folder()
    if parts is None:
        return values, {}
    from portrait360.synthetic.source import PortraitSource

    # far from the seeds that people draw datasets with
    reference = synthetic_pairs(PortraitSource(parts), generator.config, count, 900_000_001 + seed, advance)
    return values, reference.measures(run.judge.encoder)


def _faces(run: Run, network: FaceNetwork, advance: Callable[[int], None]) -> tuple[dict[str, float], dict[str, float]]:
    """Faces of generated people at both truncations, and one half of the data's, each against the other half."""
    generator, cameras, count = run.weights.generator, run.real.data.cameras, run.plan.faces
    here, there = _data_faces(run, network, advance)
    values, floors = {}, {}
    for suffix, psi in (("", 1.0), ("_truncated", TRUNCATION)):
        found = generated_faces(generator, cameras, count, SEEDS[0], network, advance, truncation_psi=psi)
        values |= face_measures(here, found, suffix)
        floors |= face_measures(here, there, suffix)
    return values, floors


def _data_faces(run: Run, network: FaceNetwork, advance: Callable[[int], None]) -> tuple[Faces, Faces]:
    """Two halves of the data's faces; their descriptors are kept in the user's cache for the next time."""
    data, count = run.real.data, run.plan.faces
    rows = frontal_rows(data.cameras)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    path = cache_folder() / "evaluation" / f"faces-{run.cache_key}-{count}.safetensors"
    if path.exists():
        with contextlib.suppress(Portrait360Error, KeyError):  # a damaged cache is made anew
            kept = read_tensors(path)[0]
            advance(2 * count)
            return Faces(count, kept["here"].numpy()), Faces(count, kept["there"].numpy())
    here, there = (
        data_faces(data, some, run.weights.generator.config, network, advance)
        for some in (rows[:count], rows[count : 2 * count])
    )
    tensors = {"here": torch.from_numpy(here.descriptors), "there": torch.from_numpy(there.descriptors)}
    with contextlib.suppress(Portrait360Error):  # no room or no permission: then without
        write_tensors(path, tensors, {"format": "portrait360", "kind": "evaluation-cache"})
    return here, there


def _geometry(
    run: Run, seed: int, advance: Callable[[int], None]
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    generator = run.weights.generator
    draws = torch.Generator().manual_seed(seed)
    found: list[MeshStatistics] = []
    for _ in range(run.plan.meshes):
        scene = draw_people(generator, run.real.data.cameras, 1, draws).scene
        found.append(portrait_geometry(SceneRenderer(generator, scene, find_matter(generator, scene)), COARSE_STEP))
        advance(1)
    return geometry_measures(against_bodies(found))
