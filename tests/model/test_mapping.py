"""The mapping network of camera translations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from portrait360.geometry.cameras import camera_label
from portrait360.model.generator import Generator
from portrait360.model.mapping import CameraTranslation, MappingNetwork, inversion_latent
from support.presets import TINY_HEAD, TINY_ORIGINAL


def literal(network: CameraTranslation, z: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Equations 15.2 for one latent and one camera."""
    state = {k: v.double().numpy() for k, v in network.state_dict().items()}

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return state[f"{name}.weight"] @ x / np.sqrt(len(x)) + state[f"{name}.bias"]

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean() + 1e-8)

    h = linear("fc0", np.concatenate([unit(z), unit(linear("embed", c))]))
    return linear("fc1", np.sqrt(2.0) * np.where(h > 0, h, 0.2 * h))


def test_translations_in_the_words_of_the_equations():
    torch.manual_seed(0)
    network = CameraTranslation(16, 2).requires_grad_(False)
    for parameter in network.parameters():
        parameter.normal_()
    z, camera = torch.randn(4, 16), camera_label(torch.tensor([0.0, 1.0, 2.0, -3.0]))
    found = network(z, camera)
    expected = [literal(network, a, b) for a, b in zip(z.double().numpy(), camera.double().numpy(), strict=True)]
    assert np.abs(found.numpy() - np.stack(expected)).max() < 1e-5
    assert (found < 0).any()  # the last layer is linear


def test_truncation_and_cameras_of_translations():
    torch.manual_seed(0)
    generator = Generator(TINY_HEAD.model).eval().requires_grad_(False)
    generator.t_mapping.w_avg.normal_()
    z, camera = torch.randn(2, generator.config.z_dim), camera_label(torch.tensor([0.2, 2.0]))
    none, half, whole = (generator.translation(z, camera, psi) for psi in (0.0, 0.5, 1.0))
    torch.testing.assert_close(none, generator.t_mapping.w_avg.expand(2, 3))
    torch.testing.assert_close(half, (none + whole) / 2)
    assert not torch.equal(generator.translation(z, camera.flip(0)), whole)


def test_inversions_use_one_latent_for_all():
    generator = Generator(TINY_HEAD.model).eval().requires_grad_(False)
    width = generator.config.z_dim
    drawn = np.random.RandomState(123).randn(10_000, width).mean(axis=0)
    torch.testing.assert_close(inversion_latent(width)[0].double(), torch.from_numpy(drawn), atol=1e-9, rtol=1e-6)
    camera = camera_label(torch.tensor([0.2, 2.0]))
    latents = inversion_latent(width).expand(2, -1)
    torch.testing.assert_close(generator.inversion_translation(camera), generator.translation(latents, camera))
    other = Generator(TINY_ORIGINAL.model)
    assert other.inversion_translation(camera).tolist() == [[0.0] * 3] * 2


def test_heads_are_mapped_without_a_body_pose():
    torch.manual_seed(0)
    network = MappingNetwork(16, 32, 2, posed=False)
    assert network.embed.weight.shape == (32, 25)
    z, camera = torch.randn(1, 16), camera_label(0.3)
    assert torch.equal(network(z, camera, torch.ones(1, 6)), network(z, camera))


def test_heads_refuse_a_body_pose():
    generator = Generator(TINY_HEAD.model).eval()
    scene = generator.scene(torch.randn(1, generator.config.w_dim))
    with pytest.raises(ValueError, match="knows no body pose"):
        generator.render(scene, camera_label(0.0), torch.zeros(1, 6))
