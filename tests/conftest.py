"""Fixtures of many tests. They import the package inside, after the type checks are set up."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory) -> Path:
    """A weights file of the preset `tiny`, untrained."""
    import torch

    from portrait360.checkpoint import save_weights
    from portrait360.config import PRESETS
    from portrait360.model.discriminator import Discriminator
    from portrait360.model.generator import Generator

    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    model = PRESETS["tiny"].model
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator, discriminator = Generator(model), Discriminator(model)
    save_weights(path, model, generator, discriminator, {"trained": "not at all"})
    return path


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory) -> Path:
    """A zip of six 32-pixel pictures with masks, exact and coarse labels."""
    from fake_portraits import write_fake_dataset

    path = tmp_path_factory.mktemp("data") / "tiny.zip"
    write_fake_dataset(path, coarse=True)
    return path
