"""Fixtures of the tests of photos."""

from __future__ import annotations

from functools import lru_cache

import pytest


@pytest.fixture(scope="session", autouse=True)
def shared_networks() -> None:
    """Workers share mediapipe's networks, which keeps the memory of those that are no longer used."""
    from portrait360.photos import worker

    for name in ("Detector", "SelfieMatte"):
        setattr(worker, name, lru_cache(getattr(worker, name)))
