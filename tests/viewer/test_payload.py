"""What a page knows of a portrait renders like the portrait: the payload, decoded by its readable twin."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch

from portrait360.config import PRESETS, WarpConfig
from portrait360.geometry import weights as weight_volumes
from portrait360.geometry.cameras import camera_label
from portrait360.geometry.deformation import deformation_field
from portrait360.geometry.weights import WeightVolume
from portrait360.model.generator import Generator
from portrait360.portrait.model import PortraitModel
from portrait360.portrait.scene import SceneRenderer
from portrait360.types import InputError
from portrait360.viewer.blobs import read_array
from portrait360.viewer.payload import (
    PagePortrait,
    check_can_show,
    model_payload,
    portrait_payload,
    read_scene,
)
from portrait360.viewer.photos import MOST_PHOTOS, appearance_payload, read_appearance
from support.photographed import photographed
from support.presets import TINY

POSES = torch.tensor([[0.0] * 6, [0.2, -0.3, 0.1, -0.1, 0.5, 0.2], [0.4, 0.0, 0.0, 0.0, -0.6, 0.0]])


def through_a_page(renderer: SceneRenderer, generator: Generator) -> SceneRenderer:
    """The renderer with the scene that a page of it would show."""
    shown = PagePortrait("someone", renderer.scene, renderer.cells, (), {})
    model, portrait = (
        json.loads(json.dumps(part)) for part in (model_payload(generator), portrait_payload(shown, generator))
    )
    scene, occupied = read_scene(model, portrait, renderer.scene)
    return dataclasses.replace(renderer, scene=scene, occupied=occupied)


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Decibels between images in [-1, 1]."""
    return -10.0 * math.log10(float((0.5 * (a.clamp(-1, 1) - b.clamp(-1, 1))).square().mean()))


def test_the_payload_of_the_packaged_model_renders_like_its_portrait():
    model = PortraitModel.from_pretrained()
    renderer = SceneRenderer.from_seed(model.generator, 3)
    twin = through_a_page(renderer, model.generator)
    cameras = camera_label(torch.tensor([0.0, -0.6, 2.5]), torch.tensor([0.0, 0.2, -0.1]))
    assert torch.equal(twin.occupied, renderer.occupied)
    for camera, pose in zip(cameras, POSES, strict=True):
        images = [one.render(camera[None], pose[None], 128).image for one in (renderer, twin)]
        assert psnr(*images) >= 45.0


def test_a_person_s_shape_arrives():
    base = PRESETS["cpu-64"].model
    warp = WarpConfig(shape=(6, 6, 6), field_shape=(9, 9, 9))
    torch.manual_seed(0)
    generator = Generator(dataclasses.replace(base, warp=warp)).eval().requires_grad_(False)
    torch.nn.init.normal_(generator.warp.weight)
    renderer = SceneRenderer.from_seed(generator, 1)
    twin = through_a_page(renderer, generator)
    assert renderer.scene.warp.abs().max() > 1e-3
    assert torch.allclose(twin.scene.warp, renderer.scene.warp, rtol=1e-3, atol=1e-6)
    assert model_payload(generator)["body"]["fieldShape"] == [9, 9, 9]


def test_a_body_in_8_bits_deforms_like_the_body(monkeypatch):
    generator = Generator(PRESETS["cpu-64"].model)
    payload = model_payload(generator)["body"]
    values = torch.from_numpy(read_array(payload["weights"]).astype("float32") / 255.0)
    coarse = dataclasses.replace(generator.body)
    volume = WeightVolume(values, tuple(payload["volumeLow"]), payload["spacing"])
    monkeypatch.setitem(weight_volumes._volumes, coarse, volume)
    exact, rounded = (deformation_field(body, POSES) for body in (generator.body, coarse))
    error = torch.linalg.vector_norm(exact - rounded, dim=-1)
    assert error.mean() < 2e-4  # world units; a pixel of 512 is 8e-4
    assert (rounded[exact == 0] == 0).all()  # what rests still rests


@pytest.mark.parametrize("name", ["original-512", "portrait-256"])
def test_models_with_networks_behind_the_volume_are_refused(name):
    with pytest.raises(InputError, match=f"cannot render {name}"):
        check_can_show(PRESETS[name].model)


def test_own_presets_without_such_networks_can_be_shown():
    for name in ("cpu-64", "portrait-128", "portrait-identity"):
        check_can_show(PRESETS[name].model)
    with pytest.raises(InputError):
        check_can_show(TINY.model)


def test_what_photos_add_arrives():
    person = photographed(PortraitModel.from_pretrained())
    payload = json.loads(json.dumps(appearance_payload(person.renderer.appearance)))
    twin = dataclasses.replace(person.renderer, appearance=read_appearance(payload))
    plain = dataclasses.replace(person.renderer, appearance=None)
    for yaw, pose in ((0.0, POSES[0]), (0.9, POSES[1]), (3.0, POSES[0])):
        images = [r.render(camera_label(yaw), pose[None], 128).image for r in (person.renderer, twin, plain)]
        assert psnr(images[0], images[1]) >= 45.0
        assert psnr(images[0], images[2]) < 36.0
    assert appearance_payload(None) is None
    assert len(payload["image"]) < 350_000


def test_a_page_takes_the_first_photos():
    appearance = photographed(PortraitModel.from_pretrained()).renderer.appearance
    many = dataclasses.replace(appearance, residuals=appearance.residuals * 3)
    assert len(appearance_payload(many)["cameras"]) == MOST_PHOTOS
    assert appearance_payload(dataclasses.replace(appearance, tint=None))["tint"] is None
