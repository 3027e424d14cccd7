"""Filling Anny's cache: whole or not at all, and again when it is broken."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from anny.paths import get_anny_cache_path, set_anny_cache_path
from safetensors.numpy import load_file, save_file

from portrait360.synthetic.body import load_cached
from portrait360.types import AssetError


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    usual = get_anny_cache_path()
    set_anny_cache_path(tmp_path / "anny")
    yield tmp_path / "anny"
    set_anny_cache_path(usual)


class Builder:
    """Reads or writes a file in the current cache folder, in place, as Anny does."""

    def __init__(self) -> None:
        self.built = 0

    def __call__(self) -> float:
        path = Path(get_anny_cache_path()) / "v1" / "model.safetensors"
        if not path.exists():
            self.built += 1
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({"x": np.full(3, 7.0)}, path)
        return float(load_file(path)["x"][0])


def files(cache: Path) -> list[str]:
    return sorted(p.relative_to(cache).as_posix() for p in cache.rglob("*.safetensors"))


def test_an_empty_cache_is_filled_once(cache: Path) -> None:
    builder = Builder()
    assert load_cached(builder) == load_cached(builder) == 7
    assert builder.built == 1
    assert files(cache) == ["v1/model.safetensors"]
    assert not list(cache.glob(".building*"))
    assert get_anny_cache_path() == cache


def test_a_build_that_dies_leaves_nothing(cache: Path) -> None:
    def dying() -> None:
        path = Path(get_anny_cache_path()) / "v1" / "model.safetensors"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(AssetError, match="No space left") as caught:
        load_cached(dying)
    assert "ANNY_CACHE_DIR" in caught.value.hint
    assert files(cache) == []
    assert get_anny_cache_path() == cache
    assert load_cached(Builder()) == 7


def test_a_broken_cache_is_built_again(cache: Path) -> None:
    (cache / "v1").mkdir(parents=True)
    (cache / "v1" / "model.safetensors").write_bytes(b"half")
    builder = Builder()
    assert load_cached(builder) == 7
    assert builder.built == 1
