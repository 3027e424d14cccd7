"""How good a model is: generate images, compare them with real ones; what `portrait360 evaluate` does."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from portrait360.evaluation import measures
from portrait360.evaluation.collected import Collected
from portrait360.evaluation.faces import TRUNCATION, FaceNetwork, face_measures, generated_faces
from portrait360.evaluation.feature_cache import real_faces, real_samples
from portrait360.evaluation.geometry import MeshStatistics, against_bodies, geometry_measures, portrait_geometry
from portrait360.evaluation.measures import MEASURES
from portrait360.evaluation.pairs import generated_pairs, synthetic_pairs
from portrait360.evaluation.plan import COARSE_STEP, FULL, QUICK, SEEDS, Plan
from portrait360.evaluation.report import sheet, table
from portrait360.evaluation.sampler import GeneratedSamples, generate_samples
from portrait360.evaluation.samples import SampleSet
from portrait360.evaluation.setup import FORMAT_VERSION, Setup, prepare
from portrait360.geometry.cameras import SECTORS
from portrait360.portrait.scene import SceneRenderer, find_matter
from portrait360.runtime.files import atomic_write, check_json_place, write_json
from portrait360.runtime.progress import Progress, show_progress
from portrait360.synthetic.assets import installed_makehuman_folder
from portrait360.synthetic.source import PortraitSource

_FIRST_REFERENCE_SEED = 900_000_001
"""Of the synthetic portraits that consistency is compared with: far from the seeds of people's datasets."""


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
    """Measure a model against held-out images; write `out` and a sheet of images beside it, print the table.

    Args:
        data: a dataset apart from the training data; exact labels, if it has them, are the truth about body poses.
        out: a .json file; `NAME.png` beside it shows images. Nothing is written or printed when None.
        weights: what to measure, a file or a run folder; the packaged weights when None.
        quick: minutes instead of the better part of an hour, with fewer images.
        inception: the user's file of the Inception network, for the numbers that papers give.
        encoder: another portrait encoder than the packaged one.
        device: where the networks run: cpu, cuda, cuda:1, or auto for the GPU if there is one.
        progress: show how far the work is.
        plan: other numbers of images than those of `quick`.

    Returns:
        What `out` holds; docs/evaluation.md explains every key.

    Raises:
        InputError, DatasetError, CheckpointError: an input is missing, broken or unfit, or `out` cannot be written.
    """
    # Check the place of the results, then measure.
    image_file = None if out is None else check_json_place(out, ".png")
    start = time.monotonic()
    setup = prepare(data, weights, inception, encoder, device, plan or (QUICK if quick else FULL))
    with show_progress("measuring", setup.work, "images and meshes", visible=progress) as bar:
        collected, shown = _measure(setup, bar)

    # Write both files and print the table.
    result = {
        "format": "portrait360-evaluation",
        "version": FORMAT_VERSION,
        "about": setup.about | {"quick": quick, "seconds": round(time.monotonic() - start, 1)},
        "measures": collected.records(),
        "sectors": shown.sectors,
        "missing": setup.missing,
    }
    if out is None or image_file is None:
        return result
    with atomic_write(image_file) as temporary:
        sheet(shown.real, shown.generated).save(temporary, "PNG")
        write_json(out, result)
    print(table(result))
    return result


@dataclass(frozen=True)
class Shown:
    """What goes into the sheet and beside the measures."""

    real: SampleSet
    generated: GeneratedSamples
    sectors: dict[str, dict[str, Any]]


def _measure(setup: Setup, bar: Progress) -> tuple[Collected, Shown]:
    """Every measure for every seed."""
    pool = setup.pool()
    real = real_samples(setup, pool, bar.advance)
    collected, count = Collected(), setup.plan.images
    generated: list[GeneratedSamples] = []
    for seed in SEEDS:
        # Images: one half of the data against generated ones and against the other half.
        order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed + 1))
        here, there = real.take(order[:count]), real.take(order[count : 2 * count])
        samples = generate_samples(
            setup.sampler, setup.predictors, count, seed, bar.advance, windows=setup.real.windows
        )
        generated.append(samples)
        collected.add(*_image_measures(here, there, samples, seed))

        # Portraits in 3D: agreement between views, and meshes.
        collected.add(*_consistency(setup, seed, bar.advance))
        shape, collected.known = _geometry(setup, seed, bar.advance)
        collected.add(shape, {})

    # Faces are compared once, and cameras by sector over all seeds.
    if setup.recognition is not None:
        collected.add(*_faces(setup, setup.recognition, bar.advance))
    sectors = _sectors([samples.random for samples in generated], real)
    return collected, Shown(real, generated[0], sectors)


def _image_measures(
    here: SampleSet, there: SampleSet, generated: GeneratedSamples, seed: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Measures of generated images against one half of the data, and of the other half in their place."""
    values = measures.fidelity(here, generated.same, seed)
    further = measures.set_measures(here, generated.random, seed)
    values |= {name if f"{name}_random" not in MEASURES else f"{name}_random": v for name, v in further.items()}
    floors = measures.set_measures(here, there, seed)
    floors |= {f"{name}_random": v for name, v in floors.items() if f"{name}_random" in MEASURES}
    return values | measures.real_pose_truth(there), floors


def _sectors(generated: list[SampleSet], real: SampleSet) -> dict[str, dict[str, Any]]:
    """Errors of the camera per sector of yaw, mean over the seeds, and those of real images."""
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


def _consistency(setup: Setup, seed: int, advance: Callable[[int], None]) -> tuple[dict[str, float], dict[str, float]]:
    """Agreement between views of generated portraits, and of synthetic ones if their parts are installed."""
    count, encoder = setup.plan.pairs, setup.predictors.encoder
    values = generated_pairs(setup.sampler, count, seed, advance).measures(encoder)
    parts = installed_makehuman_folder()
    if parts is None:
        return values, {}
    reference = synthetic_pairs(PortraitSource(parts), setup.real.model, count, _FIRST_REFERENCE_SEED + seed, advance)
    return values, reference.measures(encoder)


def _faces(
    setup: Setup, network: FaceNetwork, advance: Callable[[int], None]
) -> tuple[dict[str, float], dict[str, float]]:
    """Faces of generated portraits at both truncations, and one half of the data's, each against the other half."""
    here, there = real_faces(setup, network, advance)
    values, floors = {}, {}
    for suffix, psi in (("", 1.0), ("_truncated", TRUNCATION)):
        found = generated_faces(setup.sampler, setup.plan.faces, SEEDS[0], network, advance, truncation_psi=psi)
        values |= face_measures(here, found, suffix)
        floors |= face_measures(here, there, suffix)
    return values, floors


def _geometry(
    setup: Setup, seed: int, advance: Callable[[int], None]
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Shapes of meshes, and mean and standard deviation of those of synthetic bodies."""
    generator = setup.weights.generator
    draws = torch.Generator().manual_seed(seed)
    found: list[MeshStatistics] = []
    for _ in range(setup.plan.meshes):
        scene = setup.sampler.portraits(1, draws).scene
        found.append(portrait_geometry(SceneRenderer(generator, scene, find_matter(generator, scene)), COARSE_STEP))
        advance(1)
    return geometry_measures(against_bodies(found))
