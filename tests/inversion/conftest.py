"""Fixtures of the tests of inversion."""

from __future__ import annotations

import pytest
import torch

from portrait360.config import PRESETS
from portrait360.encoder.files import load_encoder
from portrait360.inversion.invert import Networks
from portrait360.model.discriminator import Discriminator
from portrait360.model.generator import Generator
from support.shrunken import shrunken


@pytest.fixture(scope="package")
def networks(tiny_encoder) -> Networks:
    """A small untrained model with all that the packaged one has, and a small encoder."""
    model = shrunken(PRESETS["portrait-identity"]).model
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator, discriminator = Generator(model), Discriminator(model)
        with torch.no_grad():
            for parameter in generator.warp.parameters():
                parameter.normal_(0.0, 0.1)
            generator.backbone.mapping.styles.normal_()
    small = Networks.of(generator, discriminator, None)
    encoder = load_encoder(tiny_encoder)[0].eval().requires_grad_(False)
    return Networks(small.generator, small.discriminator, encoder, None)


@pytest.fixture(scope="package")
def style(networks) -> torch.Tensor:
    """The style of a person to be found."""
    draws = torch.Generator().manual_seed(3)
    return networks.generator.map(torch.randn(1, 16, generator=draws), torch.zeros(1, 25)).detach()
