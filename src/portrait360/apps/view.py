"""A viewer in the browser, served from this machine; what `portrait360 view` does."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from portrait360.portrait.model import PortraitModel
from portrait360.runtime.files import make_folder, remove_empty_folders
from portrait360.types import InputError

NEEDED = ("starlette", "uvicorn")
HINT = "Install it with: pip install 'portrait360[viewer]'"


def view(
    portrait: Path | None,
    folder: Path,
    *,
    weights: str | Path | None = None,
    port: int = 8080,
    browser: bool = True,
    device: str = "auto",
) -> None:
    """Serve a page that shows portraits, makes them from seeds and photos, and saves them, until Ctrl-C.

    It answers on this machine only, to those who know the address.

    Args:
        portrait: a portrait.safetensors to show first.
        folder: where portraits are saved; those that it holds are listed.
        weights: a weights file or a run folder; the packaged weights when None.
        port: 0 takes a free one.
        browser: whether to open the page.
        device: where the networks run: cpu, cuda, cuda:1, or auto for the GPU if there is one.

    Raises:
        InputError: a package is missing, the port or the folder cannot be used.
        CheckpointError: the weights or the portrait are missing, broken, or do not belong together.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"the viewer needs the package {missing[0]}, which is not installed.", HINT)
    from portrait360.server.serve import serve

    model = PortraitModel.from_pretrained(weights, device=device)
    made = make_folder(folder)
    try:
        serve(model, folder.resolve(), portrait, port=port, browser=browser)
    finally:
        remove_empty_folders(made)
