"""Portraits, or the model itself, as one web page; what `portrait360 page` does."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from portrait360.portrait.model import PortraitModel
from portrait360.portrait.options import check_truncation
from portrait360.portrait.portrait import Portrait
from portrait360.runtime.files import check_place
from portrait360.runtime.progress import show_progress
from portrait360.types import InputError
from portrait360.viewer.maker import maker_payload
from portrait360.viewer.page import page_path, write_page
from portrait360.viewer.payload import check_can_show

MOST_PORTRAITS = 50
"""More would make a page that browsers open slowly."""
FIRST_SEED = 0
"""The person that a page with the model shows first, and as images where it cannot render."""


def portrait_page(portrait: Path, out: Path, *, weights: str | Path | None = None, mesh: bool = False) -> Path:
    """Write a page of a portrait file.

    Args:
        portrait: a portrait.safetensors.
        out: the .html file.
        weights: the weights that it was made with; the packaged ones when None.
        mesh: whether the page offers the mesh for download.

    Raises:
        CheckpointError: the portrait or its weights are missing, damaged or others.
        InputError: the page cannot be written, or cannot render the model.
    """
    check_place(page_path(out))
    return Portrait.load(portrait, weights=weights).page(out, mesh=mesh)


def seeds_page(
    seeds: Sequence[int],
    out: Path,
    *,
    weights: str | Path | None = None,
    truncation: float = 0.7,
    mesh: bool = False,
) -> Path:
    """Write a page with the person of each seed, one of whom is shown at a time.

    Args:
        seeds: see `PortraitModel.sample`.
        out: the .html file.
        weights: a weights file or a run folder; the packaged weights when None.
        truncation: 0 (the average person) to 1 (the full variety).
        mesh: whether the page offers the meshes for download.

    Raises:
        CheckpointError: the weights are missing, broken or of another model.
        InputError: an argument is out of range, the page cannot be written, or cannot render the model.
    """
    # Check the arguments
    check_place(page_path(out))
    check_truncation(truncation)
    if len(seeds) > MOST_PORTRAITS:
        raise InputError(f"a page holds at most {MOST_PORTRAITS} portraits, not {len(seeds)}.", "Give fewer `seeds`.")
    model = PortraitModel.from_pretrained(weights)
    check_can_show(model.generator.config)

    # Make the people
    people = []
    with show_progress("making", len(seeds), "portraits", visible=sys.stderr.isatty()) as bar:
        for seed in seeds:
            people.append(model.sample(seed, truncation=truncation).for_page(mesh=mesh))
            bar.advance(1)
    title = f"Portrait: {people[0].name.lower()}" if len(people) == 1 else f"{len(people)} portraits"
    write_page(out, model.generator, people, title=title)
    return out


def model_page(out: Path, *, weights: str | Path | None = None) -> Path:
    """Write a page with the generator itself: it makes a new person of any seed in the browser.

    Args:
        out: the .html file.
        weights: a weights file or a run folder; the packaged weights when None.

    Raises:
        CheckpointError: the weights are missing, broken or of another model.
        InputError: the page cannot be written, or cannot run the model.
    """
    check_place(page_path(out))
    model = PortraitModel.from_pretrained(weights)
    maker = maker_payload(model.generator)
    first = model.sample(FIRST_SEED).for_page()
    write_page(out, model.generator, [first], title="Portraits of people who do not exist", maker=maker)
    return out
