"""From targets to a portrait, and the portrait's file."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from portrait360.encoder.files import load_encoder
from portrait360.geometry.cameras import camera_label
from portrait360.inversion.invert import invert_targets, residual_side, step_count
from portrait360.inversion.optimise import Recipe, Watch, photos_of
from portrait360.inversion.regressor import StartRegressor, load_start, save_start, start_features
from portrait360.model.appearance import Appearance
from portrait360.portrait.portrait import Portrait
from portrait360.portrait.record import PhotoRecord, PortraitRecord, PortraitTensors, write_portrait_file
from portrait360.portrait.scene import SceneRenderer
from portrait360.portrait.weights import load_weights, save_weights
from portrait360.types import CheckpointError
from support.blots import blot

RECIPE = Recipe(steps=12, tuning_steps=4, side=32, kept_views=3, align_at=(0.5,))


@pytest.fixture(scope="module")
def result(networks):
    return invert_targets(networks, [blot(camera_label(0.0))], RECIPE)


def test_the_same_photo_gives_the_same_portrait(networks, result):
    again = invert_targets(networks, [blot(camera_label(0.0))], RECIPE)
    assert torch.equal(again.ws, result.ws)
    assert torch.equal(again.appearance.residuals[0].colour, result.appearance.residuals[0].colour)
    for name, value in result.tuned.items():
        assert torch.equal(again.tuned[name], value)
    assert (
        result.losses["photo"] < invert_targets(networks, [blot(camera_label(0.0))], RECIPE, fast=True).losses["photo"]
    )


def test_fast_changes_no_weights(networks):
    quick = invert_targets(networks, [blot(camera_label(0.0))], RECIPE, fast=True)
    assert quick.tuned == {}
    assert quick.generator is networks.generator
    assert len(quick.appearance.residuals) == 1
    assert "tuning" not in quick.seconds


def test_an_interruption_skips_the_rest(networks):
    def advance() -> None:
        raise KeyboardInterrupt

    stopped = invert_targets(networks, [blot(camera_label(0.0))], RECIPE, watch=Watch(advance))
    assert stopped.interrupted
    assert stopped.tuned == {}
    assert stopped.as_json()["interrupted"]


def test_several_photos_share_a_person_and_have_cameras_of_their_own(networks):
    targets = [blot(camera_label(0.0)), blot(camera_label(0.7))]
    both = invert_targets(networks, targets, RECIPE)
    assert len(both.appearance.residuals) == len(both.photos) == 2
    assert both.ws.shape[0] == 1
    assert not torch.equal(both.photos[0].target.camera, both.photos[1].target.camera)
    assert step_count(3, RECIPE) == 2 * step_count(1, RECIPE)


def test_residuals_of_several_photos_share_the_room():
    photo = photos_of([blot(camera_label(0.0))])[0]
    large = photos_of([dataclasses.replace(photo.target, image=torch.zeros(1, 3, 1024, 1024))])[0]
    assert [residual_side(large, count) for count in (1, 2, 3, 4, 8)] == [1024, 512, 512, 512, 256]
    assert residual_side(photo, 1) == 64


# ---- the start ----


def test_the_regressor_starts_nearer_to_its_people(networks, style, tmp_path, tiny_encoder):
    encoder = load_encoder(tiny_encoder)[0].eval()
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    features = start_features(encoder, images)
    size, width = features.shape[1], networks.generator.config.w_dim
    zeros = {"hidden": torch.zeros(4, size), "hidden_bias": torch.zeros(4), "output": torch.zeros(width, 4)}
    always = StartRegressor(
        "abc", torch.zeros(size), torch.ones(size), torch.zeros(width, size), bias=torch.ones(width), **zeros
    )
    torch.testing.assert_close(always(features), torch.ones(2, width))

    # Through a file, for the same weights only
    path = tmp_path / "start.safetensors"
    save_start(path, always)
    again = load_start("abc", path)
    assert again is not None
    torch.testing.assert_close(again(features), always(features))
    assert load_start("other", path) is None
    write_portrait_file(tmp_path / "portrait.safetensors", PortraitTensors(torch.zeros(1, 4)), PortraitRecord("a", "b"))
    with pytest.raises(CheckpointError, match="no regressor of styles"):
        load_start("abc", tmp_path / "portrait.safetensors")


# ---- the file ----


@pytest.fixture(scope="module")
def weights(networks, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    assert networks.discriminator is not None
    save_weights(path, networks.generator.config, networks.generator, networks.discriminator, {}, exact=True)
    return path


@pytest.fixture(scope="module")
def portrait(networks, weights, result) -> Portrait:
    sha256 = load_weights(weights).info.sha256
    photo = PhotoRecord("ada.jpg", tuple(camera_label(0.0)[0].tolist()), (0.0,) * 6, (1.0, 2.0, 3.0))
    record = PortraitRecord(sha256, networks.generator.config.name, photos=(photo,))
    renderer = SceneRenderer.from_layers(result.generator, result.ws, result.appearance)
    return Portrait(renderer, record, PortraitTensors(None, result.ws, result.tuned, result.appearance))


def test_a_loaded_portrait_renders_the_same_bytes(portrait, weights, tmp_path):
    path = portrait.save(tmp_path, size=64, video=False, mesh=False) / "portrait.safetensors"
    again = Portrait.load(path, weights=weights)
    assert again.record == portrait.record
    for pose in ({}, {"head": (0.0, 20.0, 0.0)}):
        first, second = (p.render(yaw=20.0, size=64, **pose).tobytes() for p in (portrait, again))
        assert first == second
    again.save(tmp_path / "again", size=64, video=False, mesh=False)
    assert (tmp_path / "again" / "portrait.safetensors").read_bytes() == path.read_bytes()


def test_the_residual_shows_in_images_and_queries(portrait):
    plain = dataclasses.replace(portrait.renderer, appearance=None)
    camera = camera_label(0.0)
    with_photo, without = (renderer.render(camera, None, 64).image for renderer in (portrait.renderer, plain))
    assert float((with_photo - without).abs().max()) > 0.02
    points = torch.rand(200, 3, generator=torch.Generator().manual_seed(0)) * 0.2 - 0.1
    assert torch.equal(portrait.renderer.query(points)[0], plain.query(points)[0])


@pytest.mark.parametrize("change", ["nothing", "both", "unknown", "tuned", "residual", "tint", "infinite"])
def test_damaged_files_are_refused(portrait, weights, tmp_path, change):
    tensors, path = portrait.tensors, tmp_path / "portrait.safetensors"
    if change == "nothing":
        tensors = PortraitTensors()
    elif change == "both":
        tensors = dataclasses.replace(tensors, w=torch.zeros(1, 16))
    elif change == "unknown":
        tensors = dataclasses.replace(tensors, tuned={"backbone.other": torch.zeros(2)})
    elif change == "tuned":
        tensors = dataclasses.replace(tensors, tuned={name: value[:1] for name, value in tensors.tuned.items()})
    elif change == "residual":
        first = tensors.appearance.residuals[0]
        cut = dataclasses.replace(first, colour=first.colour[:, :2])
        tensors = dataclasses.replace(tensors, appearance=Appearance((cut,), tensors.appearance.tint))
    elif change == "tint":
        tint = tensors.appearance.tint[..., 1:]
        tensors = dataclasses.replace(tensors, appearance=dataclasses.replace(tensors.appearance, tint=tint))
    else:
        tensors = dataclasses.replace(tensors, ws=tensors.ws * float("inf"))
    write_portrait_file(path, tensors, portrait.record)
    with pytest.raises(CheckpointError):
        Portrait.load(path, weights=weights)
