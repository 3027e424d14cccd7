"""From latents to styles and to camera translations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from portrait360.geometry.cameras import camera_label
from portrait360.model.generator import Generator
from portrait360.model.mapping import CameraTranslation, MappingNetwork, StyleMixture, inversion_latent
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


# ---- mixtures of styles ----


def front(z: torch.Tensor) -> torch.Tensor:
    return camera_label(0.0).expand(len(z), -1)


def mixture(count: int = 40, width: int = 8) -> StyleMixture:
    torch.manual_seed(0)
    mapping = StyleMixture(16, width, count)
    mapping.keep(torch.randn(count, width))
    return mapping


def test_latents_choose_every_style_equally_often():
    mapping = mixture()
    z = torch.randn(40_000, 16)
    found = mapping(z, front(z))
    # the nearest style is most often the one with the larger share
    counts = torch.cdist(found, mapping.styles).argmin(dim=1).bincount(minlength=40)
    assert counts.min() > 300


def test_mixtures_in_plain_words():
    mapping = mixture()
    z = torch.randn(5, 16)
    found = mapping.truncated(z, front(z), psi=0.7)
    average = mapping.styles.mean(dim=0)
    for row, latent in zip(found, z.tolist(), strict=True):
        turns = [np.arctan2(latent[i + 1], latent[i]) / (2 * np.pi) + 0.5 for i in (0, 2)]
        first, second = (mapping.styles[int(turn * 40)] - average for turn in turns)
        share = 0.5 * 0.7**2
        expected = average + (1 - 0.3**2) * np.sqrt(1 - share**2) * first + share * second
        torch.testing.assert_close(row, expected, atol=1e-5, rtol=1e-4)


def test_truncation_of_mixtures_ends_at_the_average_person():
    mapping = mixture()
    z = torch.randn(200, 16)
    spread = [mapping.truncated(z, front(z), psi=psi).std(dim=0).mean() for psi in (0.0, 0.5, 0.7, 1.0)]
    assert spread[0] < 1e-6
    assert spread[1] < spread[2]
    # most of the variety is there at 0.7 already
    assert spread[2] > 0.85 * spread[3]


def test_mixtures_ignore_camera_and_pose():
    mapping = mixture()
    z = torch.randn(3, 16)
    assert torch.equal(mapping(z, front(z)), mapping(z, camera_label(torch.ones(len(z))), torch.ones(3, 6)))
    assert not mapping.styles.requires_grad
