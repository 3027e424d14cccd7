"""`portrait360 bench`: every preset in its own process, a table, and JSON."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Column, Table

import portrait360
from portrait360.bench.training import DEFAULT_PRESETS, FORMS, training_jobs
from portrait360.config import PRESETS, named_preset
from portrait360.runtime.device import choose_device
from portrait360.runtime.files import check_place, write_json
from portrait360.runtime.precision import convolution_seconds, processor_name
from portrait360.runtime.progress import show_progress
from portrait360.runtime.tensors import to_json
from portrait360.types import Portrait360Error

VIEWS = ("first view, posed", "further view, canonical", "further view, posed")
CANONICAL_FIRST = "first view, canonical"
"""The first view of a model that knows no body pose."""


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    work = 8 * 2 * 9 * 64 * 64 * 32 * 32 / 1e9  # of `convolution_seconds`, in GFLOP
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "portrait360": portrait360.__version__,
        "gflops_float32": round(work / convolution_seconds(torch.float32), 1),
        "gflops_bf16": round(work / convolution_seconds(torch.bfloat16), 1),
    }


def bench(out: Path, quick: bool = False, presets: Sequence[str] = tuple(PRESETS)) -> dict[str, Any]:
    """Time `presets`, write the numbers to `out` (JSON) and print a table.

    `quick`: each stage once after a warm-up, and the exact renderer only for the smallest published preset; otherwise
    the shortest of five, and exact images beside the fast ones for every published preset. Weights are random, with a
    density shaped like a head (see `bench.scene`).

    Returns:
        What is written: {"machine", "quick", "presets": {name: {"rays", "stages" and "views" in seconds, "peak_mib",
        "exact": {...}}}}.

    Raises:
        InputError: an unknown preset, or `out` cannot be written.
        Portrait360Error: a preset could not be timed (for instance for want of memory).
    """
    # Jobs: every preset, and the exact renderer for original ones.
    _check(presets)
    jobs = [(name, False) for name in presets]
    originals = [name for name in presets if named_preset(name).model.render.quadrature == "midpoint"]
    if quick and originals:  # the quickest one
        originals = [min(originals, key=lambda name: named_preset(name).model.resolution)]
    jobs += [(name, True) for name in originals]

    # Time each in a process of its own.
    result: dict[str, Any] = {"machine": machine(), "quick": quick, "presets": {}}
    check_place(out)
    with show_progress("timing", len(jobs), "runs") as bar:
        for name, exact in jobs:
            found = run_job({"preset": name, "repeats": 1 if quick else 5, "exact": exact})
            if exact:
                result["presets"][name]["exact"] = found
            else:
                result["presets"][name] = found
            bar.advance(1)

    # Write and print.
    write_json(out, result)
    Console().print(table(result))
    return result


def bench_training(
    out: Path, quick: bool = False, presets: Sequence[str] = DEFAULT_PRESETS, device: str = "auto"
) -> dict[str, Any]:
    """Images per second of training `presets`, beside the published recipe in plain PyTorch with the same networks.

    Returns:
        What is written to `out` (JSON): {"machine", "quick", "device", "training": {preset: {form: see
        `bench.training.time_training`}}}.

    Raises:
        InputError: an unknown preset or device, or `out` cannot be written.
        Portrait360Error: a preset could not be timed (for instance for want of memory).
    """
    # Jobs: every preset in both forms.
    _check(presets)
    about = str(choose_device(device))
    result: dict[str, Any] = {"machine": machine(), "quick": quick, "device": about, "training": {}}
    jobs = training_jobs(presets, quick, device)
    check_place(out)

    # Time each in a process of its own.
    with show_progress("timing", len(jobs), "runs") as bar:
        for job in jobs:
            result["training"].setdefault(job["preset"], {})[job["form"]] = run_job(job, "training")
            bar.advance(1)

    # Write and print.
    write_json(out, result)
    Console().print(training_table(result))
    return result


def _check(presets: Sequence[str]) -> None:
    for name in presets:
        named_preset(name)


def run_job(job: dict[str, Any], worker: str = "worker") -> dict[str, Any]:
    """The worker's result, from a process of its own."""
    name = job["preset"]
    own = [] if name in PRESETS else [to_json(named_preset(name))]  # the other process has not registered it
    command = [sys.executable, "-m", f"portrait360.bench.{worker}", json.dumps(job), *own]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise Portrait360Error(f"{name} could not be timed: {last}.", "Is there enough memory for it?")
    return json.loads(done.stdout.strip().splitlines()[-1])


def table(result: dict[str, Any]) -> Table:
    """Rows: presets; the exact twins below the fast ones, with how much slower they are."""
    about = result["machine"]
    title = f"{about['processor']}, {about['threads']} threads, torch {about['torch']}; seconds"
    shown = Table(Column("preset", no_wrap=True), "rays", *VIEWS, "peak MiB", "PSNR dB", title=title)
    for name, found in result["presets"].items():
        views = found["views"]
        side = str(found["rays"])
        cells = ["" if v is None else f"{v:.2f}" for v in shown_views(views)]
        shown.add_row(name, f"{side}²", *cells, f"{found['peak_mib']:.0f}", "")
        exact = found.get("exact")
        if exact:
            pairs = zip(shown_views(exact["views"]), shown_views(views), strict=True)
            cells = ["" if v is None or fast is None else f"{v:.1f} ({v / fast:.0f}x)" for v, fast in pairs]
            quality = " / ".join(f"{value:.0f}" for value in exact["psnr_db"].values())
            shown.add_row("  exact", f"{side}²", *cells, f"{exact['peak_mib']:.0f}", quality)
    return shown


def shown_views(views: dict[str, float]) -> list[float | None]:
    """Seconds in the order of `VIEWS`, those of heads without a pose for want of posed ones; None: there is none."""
    return [views.get(VIEWS[0], views.get(CANONICAL_FIRST)), *(views.get(name) for name in VIEWS[1:])]


def training_table(result: dict[str, Any]) -> Table:
    """One row for each preset: images per second in both forms, and their ratio."""
    about = result["machine"]
    title = f"training on {result['device']}, {about['processor']}, {about['threads']} threads; images per second"
    shown = Table(Column("preset", no_wrap=True), "ours", "original recipe, plain", "ratio", "peak MiB", title=title)
    for name, found in result["training"].items():
        ours, plain = (found[form] for form in FORMS)
        rates = [form["images_per_second"] for form in (ours, plain)]
        peaks = f"{ours['peak_mib']:.0f} / {plain['peak_mib']:.0f}"
        shown.add_row(name, f"{rates[0]:.2f}", f"{rates[1]:.2f}", f"{rates[0] / rates[1]:.1f}", peaks)
    return shown
