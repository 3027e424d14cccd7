"""Session fixtures of the synthetic portraits: Anny loads once (a minute on a fresh machine)."""

from __future__ import annotations

from pathlib import Path

import pytest

from portrait360.data.anny_body import AnnyBody
from portrait360.data.synthetic import PortraitSource
from tiny_parts import write_tiny_parts


@pytest.fixture(scope="session")
def body() -> AnnyBody:
    return AnnyBody()


@pytest.fixture(scope="session")
def tiny_parts(body: AnnyBody, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_parts(tmp_path_factory.mktemp("parts"), body)


@pytest.fixture(scope="session")
def source(tiny_parts: Path) -> PortraitSource:
    return PortraitSource(tiny_parts)
