"""The command `view`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from portrait360.cli.early import check_device_name, check_folder_place, check_weights_place
from portrait360.errors import CheckpointError, InputError
from portrait360.runtime.process import settle_process

_LARGEST_PORT = 65535


@dataclass(frozen=True)
class View:
    """Look at portraits in the browser, make new ones from seeds and photos there, and save them.

    Serves a page from this machine, to this machine alone, for weights of any kind: where the browser cannot render
    them, it gets images. Ctrl-C ends it; a portrait that is being made from photos is finished first.

    Example: portrait360 view --weights original.safetensors
    """

    portrait: Annotated[
        Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="PORTRAIT.safetensors", help_behavior_hint="")
    ] = None
    """A portrait that `generate` or `invert` wrote, to be shown first."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("portraits")
    """Folder in which portraits are saved; those that it holds can be chosen in the page."""
    weights: Annotated[Path | None, tyro.conf.arg(metavar="W", help_behavior_hint="")] = None
    """Weights (.safetensors), or the folder of a run. Default: those that come with the package."""
    port: Annotated[int, tyro.conf.arg(metavar="N")] = 8080
    """Port of the page; 0 takes a free one."""
    browser: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = True
    """Do not open the browser."""
    device: Annotated[str, tyro.conf.arg(metavar="D")] = "auto"
    """cpu, cuda, cuda:1, or auto: the GPU if there is one."""
    positional: ClassVar[dict[str, str]] = {"portrait": "PORTRAIT.safetensors"}

    def run(self) -> None:
        if not 0 <= self.port <= _LARGEST_PORT:
            raise InputError(f"`port` must lie between 0 and {_LARGEST_PORT}, not be {self.port}.", "Try `port=8080`.")
        if self.portrait is not None and not self.portrait.is_file():
            raise CheckpointError(f"there is no portrait file at {self.portrait}.", "Name a portrait.safetensors.")
        check_weights_place(self.weights)
        check_folder_place(self.out)
        check_device_name(self.device)
        from portrait360.apps.view import view

        settle_process()
        view(
            self.portrait,
            self.out,
            weights=self.weights,
            port=self.port,
            browser=self.browser,
            device=self.device,
        )

    def resume_hint(self) -> str:
        return f"what was saved is in {self.out}"
