"""Real and generated images with what the networks predict for them."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from portrait360.config import PRESETS
from portrait360.data.dataset import PortraitDataset
from portrait360.encoder.files import load_encoder
from portrait360.evaluation import samples as module
from portrait360.evaluation.sampler import PortraitSampler, generate_samples, zoomed_camera
from portrait360.evaluation.samples import WINDOWS, Predictors, RealImages, measured_model, windows_of
from portrait360.geometry.cameras import camera_label, project
from portrait360.model.discriminator import Discriminator
from portrait360.model.generator import Generator
from portrait360.portrait.weights import load_weights
from portrait360.poses.calibration import PoseCalibration
from portrait360.poses.windows import window_poses
from support.fake_portraits import write_fake_dataset
from support.presets import ALL_PRESETS
from support.shrunken import shrunken


@pytest.fixture(scope="module")
def weights(tiny_weights):
    return load_weights(tiny_weights)


@pytest.fixture(scope="module")
def predictors(weights, tiny_encoder) -> Predictors:
    return Predictors(load_encoder(tiny_encoder)[0], weights.discriminator)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "d.zip"
    write_fake_dataset(path, count=40, resolution=64, coarse=True)
    return path


def nothing(_: int) -> None:
    pass


def test_real_images_are_brought_to_the_model(data, weights, predictors):
    dataset = PortraitDataset(data)
    model = dataclasses.replace(weights.generator.config, background=None, plain_background=0.0)
    exact = PortraitDataset(data, labels="exact")
    real = RealImages(dataset, exact, model)
    rows = torch.tensor([3, 0, 35])
    seen = real.predict(rows, predictors, nothing)
    for place, row in enumerate(rows.tolist()):
        image = torch.from_numpy(dataset.image(row).copy()).permute(2, 0, 1).float()
        mask = torch.from_numpy(dataset.mask(row).copy()).float() / 255.0
        whole = image * mask + 127.5 * (1.0 - mask)
        expected = F.interpolate(whole[None], size=(32, 32), mode="area")[0]
        assert (seen.pixels[place].float() - expected).abs().max() <= 1.0
    assert torch.equal(seen.camera, dataset.cameras[rows])
    assert torch.equal(seen.body_pose, exact.body_poses[rows])
    assert torch.equal(seen.coarse_pose, dataset.body_poses[rows])
    middle = as_images(dataset, rows)[:, :, 16:48, 16:48]
    expected = predictors.encoder.encode((middle * 127.5 + 127.5).round() / 127.5 - 1.0).features
    assert torch.allclose(seen.head_features, expected, atol=0.05)
    assert seen.face_features is None


def as_images(dataset: PortraitDataset, rows: torch.Tensor) -> torch.Tensor:
    """Images on a grey background, [-1, 1]."""
    out = []
    for row in rows.tolist():
        image = torch.from_numpy(dataset.image(row).copy()).permute(2, 0, 1).float() / 127.5 - 1.0
        out.append(image * (torch.from_numpy(dataset.mask(row).copy()).float() / 255.0))
    return torch.stack(out)


def test_images_are_predicted_one_by_one(data, weights, predictors):
    real = RealImages(PortraitDataset(data), None, weights.generator.config)
    whole, one = (
        real.predict(torch.arange(35), predictors, nothing),
        real.predict(torch.tensor([34]), predictors, nothing),
    )
    for name in ("features", "identity", "encoder_yaw", "discriminator_pose"):
        assert torch.allclose(getattr(whole, name)[34], getattr(one, name)[0], atol=1e-5), name


def test_poses_of_real_images_alone_are_calibrated(data, weights, predictors):
    real = RealImages(PortraitDataset(data), None, weights.generator.config)
    always = PoseCalibration((1.0,), (torch.cat([torch.zeros(6, 6), torch.full((1, 6), 0.2)]),))
    constant = dataclasses.replace(predictors, calibration=always)
    assert (real.predict(torch.arange(2), predictors, nothing).discriminator_pose != 0.2).all()
    assert (real.predict(torch.arange(2), constant, nothing).discriminator_pose == 0.2).all()
    drawn = generate_samples(
        PortraitSampler(weights.generator, real.data.cameras), constant, 2, 0, nothing, windows=real.windows
    )
    assert (drawn.same.discriminator_pose != 0.2).all()


def test_centre_crops_of_real_images_are_used_where_they_have_the_pixels(data, weights, predictors):
    real = RealImages(PortraitDataset(data), None, weights.generator.config)
    rows = torch.arange(3)
    whole = real.predict(rows, predictors, nothing).discriminator_pose
    ones = torch.eye(6)
    first, second = torch.cat([ones, torch.zeros(1, 6)]), torch.cat([torch.zeros(6, 6), ones, torch.zeros(1, 6)])
    for window in (0.6, 0.2):
        windowed = dataclasses.replace(predictors, calibration=PoseCalibration((1.0, window), (first, second)))
        seen = real.predict(rows, windowed, nothing).discriminator_pose
        enough = real.data.resolution * window >= 0.8 * weights.generator.config.resolution
        assert torch.allclose(seen, whole, atol=1e-6) != enough
        if enough:
            image, mask = real.load(rows)
            expected = window_poses(
                predictors.discriminator, weights.generator.config, image, mask, real.data.cameras[rows], (window,)
            )
            torch.testing.assert_close(seen, expected[:, 0], atol=1e-6, rtol=0)


def test_known_encodings_are_taken(data, weights, predictors):
    real = RealImages(PortraitDataset(data), None, weights.generator.config)
    rows = torch.arange(5)
    seen = real.predict(rows, predictors, nothing)
    names = ("features", "identity", "encoder_yaw", "encoder_pitch", "encoder_pose", "head_features")
    assert seen.head_features is not None
    known = {name: getattr(seen, name) + 1.0 for name in names}
    again = real.predict(rows, predictors, nothing, known)
    assert torch.equal(again.features, seen.features + 1.0)
    assert torch.equal(again.discriminator_pose, seen.discriminator_pose)


@pytest.mark.parametrize(
    ("pixels", "preset", "expected"),
    [
        (256, "cpu-64", {"head": 64, "face": 64}),
        (128, "cpu-64", {"head": 64}),
        (127, "cpu-64", {}),
        (512, "portrait-128", {"head": 128, "face": 128}),
        (256, "portrait-128", {"head": 128, "face": 64}),
        (236, "portrait-128", {"head": 64}),  # a face would have 63 pixels
        (512, "portrait-256", {"head": 256}),  # super-resolution has one side only
        (64, "tiny", {"head": 32}),
    ],
)
def test_zoomed_crops_need_enough_pixels(pixels, preset, expected):
    assert windows_of(pixels, ALL_PRESETS[preset].model) == expected


def test_real_and_generated_images_have_zoomed_crops_of_the_same_sides(monkeypatch, tmp_path, tiny_encoder):
    model = shrunken(PRESETS["cpu-64"]).model
    monkeypatch.setattr(module, "LEAST_SIDE", 8)
    write_fake_dataset(tmp_path / "d.zip", count=4, resolution=40)
    real = RealImages(PortraitDataset(tmp_path / "d.zip"), None, model)
    assert real.windows == {"head": 16, "face": 8}
    shown = real.zoomed(*real.load(torch.arange(2)))
    assert {name: images.shape[-1] for name, images in shown.items()} == real.windows
    seen: list[dict[str, int]] = []
    predict = Predictors.predict

    def watching(predictors, images, camera, zoomed, **known):
        seen.append({name: shown.shape[-1] for name, shown in zoomed.items()})
        return predict(predictors, images, camera, zoomed, **known)

    monkeypatch.setattr(Predictors, "predict", watching)
    torch.manual_seed(0)
    predictors = Predictors(load_encoder(tiny_encoder)[0], Discriminator(model).eval())
    generate_samples(
        PortraitSampler(Generator(model), real.data.cameras), predictors, 2, 0, nothing, windows=real.windows
    )
    assert seen == [real.windows] * 2


@pytest.mark.parametrize("window", WINDOWS)
def test_a_zoomed_camera_sees_the_middle(window):
    label = camera_label(torch.tensor([0.4]), 0.1)
    points = torch.randn(1, 20, 3, generator=torch.Generator().manual_seed(0)) * 0.03
    whole, _ = project(label, points)
    zoomed, _ = project(zoomed_camera(label, window), points)
    assert torch.allclose(zoomed - 0.5, (whole - 0.5) / WINDOWS[window], atol=1e-5)


def test_generated_images_come_from_the_seed(weights, predictors):
    cameras = camera_label(torch.linspace(-3, 3, 12), 0.1)
    sampler = PortraitSampler(weights.generator, cameras)
    first, again, other = (
        generate_samples(sampler, predictors, 5, seed, nothing, windows={}, batch=3) for seed in (0, 0, 1)
    )
    assert torch.equal(first.random.pixels, again.random.pixels)
    assert not torch.equal(first.random.pixels, other.random.pixels)
    assert first.same.pixels.shape == (5, 3, 32, 32)
    for samples in (first.same, first.random):
        for camera in samples.camera:
            assert (cameras == camera).all(1).any()
        assert samples.body_pose.shape == (5, 6)
    assert not torch.equal(first.same.camera, first.random.camera)
    assert not torch.equal(first.same.body_pose, first.random.body_pose)
    head = generate_samples(
        PortraitSampler(weights.generator, cameras), predictors, 2, 0, nothing, windows={"head": 32}
    ).same
    assert head.face_features is None
    both = generate_samples(
        PortraitSampler(weights.generator, cameras), predictors, 2, 0, nothing, windows={"head": 32, "face": 32}
    ).same
    assert torch.equal(both.head_features, head.head_features)
    assert not torch.allclose(both.face_features, both.head_features)


def test_portraits_are_rendered_for_the_camera_that_conditioned_them(weights, predictors):
    """The tiny preset conditions its mapping: the same latent under another camera is another portrait."""
    camera = camera_label(0.3)
    portraits = PortraitSampler(weights.generator, camera).portraits(2, torch.Generator().manual_seed(3))
    turned = PortraitSampler(weights.generator, camera_label(2.0)).portraits(2, torch.Generator().manual_seed(3))
    assert torch.equal(portraits.camera, camera.expand(2, -1))
    assert not torch.allclose(portraits.scene.w, turned.scene.w)
    state = torch.get_rng_state()
    PortraitSampler(weights.generator, camera).portraits(2, torch.Generator().manual_seed(3))
    assert torch.equal(torch.get_rng_state(), state)


def test_models_are_measured_at_128_pixels_and_predicted_at_their_own(data, predictors):
    """Where the data have them, and the model renders any side."""
    cpu = PRESETS["cpu-64"].model
    assert (measured_model(cpu, 256).resolution, measured_model(cpu, 256).raw_resolution) == (128, 128)
    assert measured_model(cpu, 100).resolution == 100
    assert measured_model(PRESETS["portrait-256"].model, 256) == PRESETS["portrait-256"].model

    # The same predictions, whatever the side at which images are shown
    model = shrunken(PRESETS["cpu-64"]).model
    torch.manual_seed(0)
    own = dataclasses.replace(predictors, discriminator=Discriminator(model).eval())
    rows, real = torch.arange(3), RealImages(PortraitDataset(data), None, model)
    larger = RealImages(real.data, None, measured_model(model, real.data.resolution))
    assert larger.model.resolution == 2 * model.resolution
    known = {"features": torch.zeros(3, 2), "identity": torch.zeros(3, 2), "encoder_pose": torch.zeros(3, 6)}
    known |= {"encoder_yaw": torch.zeros(3), "encoder_pitch": torch.zeros(3)}
    poses = [one.predict(rows, own, nothing, known).discriminator_pose for one in (real, larger)]
    assert torch.allclose(*poses, atol=1e-3)
