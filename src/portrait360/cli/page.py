"""The command `page`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from portrait360.cli.closing import close
from portrait360.cli.early import check_weights_place
from portrait360.errors import CheckpointError, InputError
from portrait360.portrait.arguments import check_truncation, parse_seeds
from portrait360.runtime.process import settle_process

_PLAIN = tyro.conf.arg(help_behavior_hint="")


@dataclass(frozen=True)
class Page:
    """Make a web page that shows portraits in 3D: one file that opens by a double click and works offline.

    The browser renders the volume itself, from every side, with sliders for neck and head. Give a portrait file, or
    seeds, or --model for the generator itself, which then makes new people in the browser.

    Example: portrait360 page --seeds 0-3 --out people.html
    """

    out: Annotated[Path, tyro.conf.arg(metavar="FILE.html")]
    """The page to write."""
    portrait: Annotated[
        Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="PORTRAIT.safetensors", help_behavior_hint="")
    ] = None
    """A portrait that `generate` wrote."""
    seeds: Annotated[str | None, tyro.conf.arg(metavar="LIST", help_behavior_hint="")] = None
    """Seeds and ranges of seeds, for instance 7 or 0-3 or 0,5,7-9; the page lets people choose."""
    model: Annotated[bool, _PLAIN] = False
    """Put the generator into the page."""
    with_mesh: Annotated[bool, _PLAIN] = False
    """Let people download the mesh (.glb), which makes the page larger."""
    weights: Annotated[Path | None, tyro.conf.arg(metavar="W", help_behavior_hint="")] = None
    """Weights (.safetensors), or the folder of a run. Default: those that come with the package."""
    truncation_psi: Annotated[float, tyro.conf.arg(metavar="PSI")] = 0.7
    """For seeds: 0 gives the average person, 1 the full variety with more failures."""
    positional: ClassVar[dict[str, str]] = {"portrait": "PORTRAIT.safetensors"}

    def run(self) -> None:
        # One thing to show
        if (self.portrait is not None) + (self.seeds is not None) + self.model != 1:
            raise InputError(
                "a page shows a portrait file, or `seeds`, or the `model`: give one of them.", "Try `seeds=0-3`."
            )
        if self.model and self.with_mesh:
            raise InputError("a page with the `model` makes people in the browser and has no mesh.", "Leave it out.")

        # What can be checked at once
        if self.portrait is not None and not self.portrait.is_file():
            raise CheckpointError(f"there is no portrait file at {self.portrait}.", "Name a portrait.safetensors.")
        seeds = [] if self.seeds is None else parse_seeds(self.seeds)
        check_truncation(self.truncation_psi)
        check_weights_place(self.weights)

        # Show it
        from portrait360.apps.page import model_page, portrait_page, seeds_page

        settle_process()
        if self.portrait is not None:
            portrait_page(self.portrait, self.out, weights=self.weights, mesh=self.with_mesh)
        elif self.seeds is not None:
            seeds_page(seeds, self.out, weights=self.weights, truncation=self.truncation_psi, mesh=self.with_mesh)
        else:
            model_page(self.out, weights=self.weights)
        what = f"{self.out.stat().st_size / 1e6:.1f} MB: open it in a browser (a double click will do)"
        after = ["page", "--model", "--out", self.out.with_name("model.html")]
        if self.model:
            after = ["generate", "--seeds", "0-3", "--out", self.out.with_name("portraits")]
        close(self.out, what, [*after, *self._weights()])

    def _weights(self) -> list[str | Path]:
        return [] if self.weights is None else ["--weights", self.weights]

    def resume_hint(self) -> str:
        return "nothing was written"
