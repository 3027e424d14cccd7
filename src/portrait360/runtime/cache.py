"""Where portrait360 keeps what it has fetched or prepared for the user."""

from __future__ import annotations

import os
import sys
from pathlib import Path

CACHE_VARIABLE = "PORTRAIT360_CACHE"


def cache_folder() -> Path:
    """The folder of everything portrait360 keeps for the user: PORTRAIT360_CACHE, or the platform's cache
    folder."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "portrait360"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "portrait360"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "portrait360"
