"""Training with reconstructions: whole runs, whitening, crops, and what weights such runs can start from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import softplus

from portrait360.config import PRESETS, Preset
from portrait360.geometry.body import load_body
from portrait360.geometry.cameras import camera_label, rays, yaw_pitch
from portrait360.model.discriminator import DiscriminatorInput, concatenate
from portrait360.model.generator import Generator, RenderDraws, Scene
from portrait360.portrait.weights import load_generator, load_weights, save_weights
from portrait360.poses.alignment import CanonicalTilt
from portrait360.runtime.distributed import Ranks
from portrait360.training import first_people, loop
from portrait360.training.adapt import can_start_from, read_weights, start_from, widened, with_pose_path_of
from portrait360.training.checkpoints import checkpoints, load_checkpoint
from portrait360.training.first_people import ridge_regression
from portrait360.training.losses import feature_distance, pose_loss
from portrait360.training.passes import Batch, TrainingState, render_occupancy
from portrait360.training.people import crops, face_centres, order
from portrait360.training.reconstruction import Rendering, reconstruct, reconstruction_losses
from portrait360.training.state import new_state
from portrait360.training.styles import KEPT
from portrait360.training.whitening import fit_whitening, whiten
from portrait360.types import InputError
from support.fake_portraits import write_fake_dataset
from support.random_batches import random_batch, with_random_people
from support.shrunken import shrunken


def small(name: str) -> Preset:
    """A preset in small, with its own warp and blocks enough to differ from `cpu-64`'s."""
    preset = shrunken(PRESETS[name])
    channels = (8, 8, 16) if name == "portrait-identity" else (8, 8, 8)
    model = dataclasses.replace(
        preset.model, synthesis=dataclasses.replace(preset.model.synthesis, channels=channels), symmetric_features=4
    )
    training = dataclasses.replace(preset.training, sheet_kimg=1000.0, checkpoint_kimg=0.008, lr_decay_kimg=0.0)
    if training.reconstruction is not None:
        recipe = dataclasses.replace(training.reconstruction, images=2, yaw=180.0)
        training = dataclasses.replace(training, reconstruction=recipe, keep_checkpoints=100, total_kimg=0.04)
    return Preset(model, training)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "d.zip"
    write_fake_dataset(path, coarse=True)
    return path


@pytest.fixture(scope="module")
def first(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that others start from."""
    out = tmp_path_factory.mktemp("runs") / "first"
    loop.train(data, small("cpu-64"), out, kimg=0.008, quiet=True)
    return out


@pytest.fixture
def few_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quick start; the tilt of canonical heads is measured in tests/poses."""
    monkeypatch.setattr(first_people, "EXAMPLES", 10)
    monkeypatch.setattr(first_people, "WHITENED", 256)
    monkeypatch.setattr(CanonicalTilt, "measure", lambda *_: torch.zeros(6))


def tensors(run: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(checkpoints(run)[-1]).tensors


@pytest.mark.usefixtures("few_examples")
def test_a_run_resumes_exactly_and_its_styles_move(data: Path, first: Path, tmp_path: Path) -> None:
    preset, options = small("portrait-identity"), {"init": first, "quiet": True}
    loop.train(data, preset, tmp_path / "whole", kimg=0.024, **options)
    loop.train(data, preset, tmp_path / "parts", kimg=0.016, **options)
    early = tensors(tmp_path / "parts")
    loop.train(data, preset, tmp_path / "parts", kimg=0.024, resume=True, quiet=True)

    whole, parts = tensors(tmp_path / "whole"), tensors(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    moved = (whole["styles/values"] != early["styles/values"]).any(dim=1)
    assert 0 < moved.sum() <= 4  # two steps of two images
    assert whole["G/warp.weight"].abs().max() > 0
    assert whole["styles/visits"].sum() == 8

    # The weights make portraits
    generator, _ = load_generator(tmp_path / "whole")
    assert generator.config == preset.model
    # ... of the table's best people
    kept = load_weights(tmp_path / "whole").generator.backbone.mapping.styles
    count = len(whole["styles/values"])
    torch.testing.assert_close(whole["G/backbone.mapping.styles"][:count], whole["styles/values"])
    assert (whole["styles/losses"] > 0).sum() == (whole["styles/visits"] > 0).sum()
    nearest = torch.cdist(kept.double(), whole["styles/values"].double()).min(dim=1)
    assert nearest.values.max() < 0.05  # float16 of a step moved by the average
    assert len(set(nearest.indices.tolist())) == round(KEPT * count)


@pytest.mark.slow
@pytest.mark.usefixtures("few_examples")
def test_reconstructions_approach_their_images(data: Path, first: Path, tmp_path: Path) -> None:
    """The pixel loss of the same few people falls when styles and generator are fitted to them."""
    preset = small("portrait-identity")
    recipe = dataclasses.replace(preset.training.reconstruction, people=2)
    loop.REPORT_STEPS, before = 10, loop.REPORT_STEPS
    try:
        training = dataclasses.replace(preset.training, reconstruction=recipe, checkpoint_kimg=1.0)
        loop.train(data, Preset(preset.model, training), tmp_path / "run", kimg=0.328, init=first, quiet=True)
    finally:
        loop.REPORT_STEPS = before
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["pixel_loss"] < 0.75 * lines[0]["pixel_loss"]


def test_it_wants_weights_to_start_from(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="weights of a first training"):
        loop.train(data, small("portrait-identity"), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_it_refuses_models_that_it_cannot_train(data: Path, first: Path, tmp_path: Path) -> None:
    preset = small("portrait-identity")
    plain = Preset(dataclasses.replace(preset.model, mapping_styles=0), preset.training)
    with pytest.raises(InputError, match="cannot learn by reconstruction"):
        loop.train(data, plain, tmp_path / "run", init=first, quiet=True)


def test_whitened_generators_make_the_same_portraits() -> None:
    torch.manual_seed(3)
    model = small("portrait-identity").model
    generator = Generator(model).eval()
    torch.nn.init.normal_(generator.warp.weight)
    before = torch.randn(64, model.w_dim) @ torch.randn(model.w_dim, model.w_dim) + 3.0
    scene = generator.scene(before[:2])

    whitening = fit_whitening(before)
    whiten(generator, whitening)
    after = whitening.whitened(before)
    assert not torch.allclose(before, after, atol=0.1)
    again = generator.scene(after[:2])
    assert scene.warp is not None
    assert again.warp is not None
    torch.testing.assert_close(again.tri_grid, scene.tri_grid, atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(again.warp, scene.warp, atol=1e-6, rtol=1e-3)


def test_rows_come_all_before_one_comes_again_and_positions_name_them() -> None:
    together = order(7, 1, 0, 21)
    assert all(sorted(together[i : i + 7].tolist()) == list(range(7)) for i in (0, 7, 14))
    assert torch.equal(order(7, 1, 5, 6), together[5:11])
    assert not torch.equal(order(7, 2, 0, 21), together)


@pytest.mark.parametrize("centred", [True, False])
def test_crops_show_what_their_cameras_see(centred: bool) -> None:
    """An image whose colour is the direction of its pixels' rays, cropped, is that of the crop's camera."""
    camera = torch.cat([camera_label(torch.tensor([0.3])), camera_label(torch.tensor([-1.0]))])
    directions = rays(camera, 128)[1].transpose(1, 2).reshape(2, 3, 128, 128)
    centres = None if centred else torch.tensor([[0.4, 0.3], [0.95, 0.5]])  # the second one has to be moved inwards
    found = crops(directions, torch.ones(2, 1, 128, 128), camera, torch.tensor([0.35, 0.8]), 32, centres)
    expected = rays(found.camera, 32)[1].transpose(1, 2).reshape(2, 3, 32, 32)
    torch.testing.assert_close(found.images.image, expected, atol=2e-3, rtol=0)
    assert torch.allclose(yaw_pitch(found.camera)[0], yaw_pitch(camera)[0])


def test_faces_are_where_the_posed_body_has_them() -> None:
    body = load_body()
    cameras, poses = camera_label(torch.tensor([0.0, 0.0, 0.8])), torch.zeros(3, 6)
    poses[1, 4] = 0.6  # the head turns to its left, which is right in the image
    front, turned, side = face_centres(body, cameras, poses)
    assert float(front[0]) == pytest.approx(0.5, abs=1e-3)
    assert 0.45 < float(front[1]) < 0.5
    assert float(turned[0]) > 0.55
    assert float(side[0]) < 0.45


def test_ridge_regression_finds_a_linear_map() -> None:
    torch.manual_seed(0)
    matrix, known, asked = torch.randn(40, 5), torch.randn(200, 40), torch.randn(30, 40)
    found = ridge_regression(known, known @ matrix + 3.0, asked)
    assert (found - asked @ matrix - 3.0).abs().mean() < 0.02 * (asked @ matrix).abs().mean()


def test_portrait_identity_starts_from_cpu_64_and_portrait_128() -> None:
    model = PRESETS["portrait-identity"].model
    assert can_start_from(PRESETS["cpu-64"].model, model)
    assert can_start_from(PRESETS["portrait-128"].model, model)
    assert not can_start_from(PRESETS["portrait-256"].model, model)
    assert not can_start_from(model, PRESETS["cpu-64"].model)


def test_known_channels_do_not_see_new_ones() -> None:
    fresh, known = torch.randn(6, 8, 3, 3), torch.randn(4, 2, 3, 3)
    wide = widened(fresh, known)
    assert torch.equal(wide[:4, :2], known * 2.0)  # equalised: 1 / sqrt(8) instead of 1 / sqrt(2)
    assert wide[:4, 2:].abs().max() == 0
    assert torch.equal(wide[4:], fresh[4:])


def test_wider_generators_start_as_the_narrow_ones(first: Path) -> None:
    preset = small("portrait-identity")
    state = new_state(preset, 5, torch.device("cpu"))
    start_from(state, read_weights(first / "weights.safetensors", preset.model))
    narrow, _ = load_generator(first)
    z, camera = torch.randn(3, 16), camera_label(torch.zeros(3))
    w = narrow.map(z, camera)
    torch.testing.assert_close(state.generator.scene(w).tri_grid, narrow.scene(w).tri_grid, atol=1e-4, rtol=1e-3)


def test_a_discriminator_for_smaller_images_keeps_the_blocks_that_it_has(tmp_path: Path) -> None:
    """The first layer is new; a pose path, which wants more blocks, is left out."""
    large, model = small("cpu-64"), small("portrait-identity").model
    state = new_state(Preset(large.model.with_pose_blocks(2), large.training), 5, torch.device("cpu"))
    path = tmp_path / "w.safetensors"
    save_weights(path, state.model, state.average, state.discriminator, {}, exact=True)
    cut = dataclasses.replace(model.discriminator, channels=model.discriminator.channels[1:])
    cut = dataclasses.replace(model, resolution=16, raw_resolution=16, discriminator=cut)
    weights = read_weights(path, cut)
    preset = with_pose_path_of(weights.model, Preset(cut))
    assert preset.model.discriminator.pose_blocks == 0

    after = new_state(preset, 6, torch.device("cpu"))
    start_from(after, weights)
    x = torch.randn(2, 8, 8, 8)
    old, new = (network.get_submodule("b8") for network in (state.discriminator, after.discriminator))
    torch.testing.assert_close(new(x), old(x))
    assert not hasattr(after.discriminator.get_submodule("b8"), "fromrgb")
    assert hasattr(after.discriminator.get_submodule("b16"), "fromrgb")


def test_shared_pass_equals_separate_passes() -> None:
    """Gradients of both networks and of the styles against losses that are written out and differentiated plainly."""
    preset = small("portrait-identity")
    preset = Preset(preset.model, dataclasses.replace(preset.training, r1_interval=100))
    recipe = preset.training.reconstruction
    assert recipe is not None
    found = []
    for separate in (False, True):
        state = new_state(preset, 3, torch.device("cpu"))
        state.step = 1
        torch.nn.init.normal_(state.generator.warp.weight)
        batch = with_random_people(state, random_batch(preset.model, 4))
        assert state.people is not None
        assert batch.targets is not None
        before = state.people.table.values.clone()
        torch.manual_seed(5)
        if separate:
            gradients = separate_reconstruction(state, batch)
            state.people.table.step(batch.targets.rows, gradients, recipe.style_lr)
        else:
            reconstruct(state, batch, Ranks())
        modules = (state.generator, state.discriminator)
        moved = state.people.table.values - before
        found.append([*(p.grad for m in modules for p in m.parameters()), moved, state.people.table.first])
    for fast, plain in zip(*found, strict=True):
        assert (fast is None) == (plain is None)
        if fast is not None:
            torch.testing.assert_close(fast, plain, atol=2e-5, rtol=2e-3)


def separate_reconstruction(state: TrainingState, batch: Batch) -> torch.Tensor:
    """`reconstruct` in plain words: the generator's losses, then the discriminator's; the gradients of styles."""
    targets, recipe, people = batch.targets, state.config.reconstruction, state.people
    assert targets is not None
    assert recipe is not None
    assert people is not None
    generator, discriminator, count = state.generator, state.discriminator, recipe.images

    # Portraits, with random numbers in the step's order
    styles = people.table.take(targets.rows)
    new = generator.scene(people.table.sample(1), noise_mode="random")
    own = generator.scene(styles, noise_mode="random")

    def show(scene: Scene, camera: torch.Tensor, pose: torch.Tensor, side: int) -> DiscriminatorInput:
        jitter = torch.rand(len(camera), side * side)
        occupancy = render_occupancy(state, scene, torch.ones((), dtype=torch.int32))
        out = generator.render(scene, camera, pose, resolution=side, draws=RenderDraws(jitter, 0.0, occupancy))
        return DiscriminatorInput(out.image, None, out.mask)

    side = state.model.resolution
    face = show(own, targets.face.camera, targets.body_pose, side)
    wide = show(own, targets.wide.camera, targets.body_pose, side // 2)
    random = show(new, batch.camera, batch.coarse_pose, side)

    # The generator's losses
    fake = concatenate(face, random)
    real = concatenate(targets.face.images, DiscriminatorInput(batch.image, None, batch.mask))
    camera = torch.cat([targets.face.camera, batch.camera])
    real_maps, fake_maps = discriminator.maps(real, camera), discriminator.maps(fake, camera)
    margins = discriminator(real, camera)[0].detach() - discriminator(fake, camera)[0]
    losses = reconstruction_losses(Rendering(face, wide, random), targets)
    loss = (
        softplus(margins[count:]).mean()
        + recipe.adversarial_weight * softplus(margins[:count]).mean()
        + recipe.feature_weight * feature_distance([m[:count] for m in fake_maps], [m[:count] for m in real_maps])
        + recipe.pixel_weight * losses["pixel_loss"]
        + recipe.mask_weight * losses["mask_loss"]
        + recipe.wide_weight * losses["wide_loss"]
    )
    trained = [p for name, p in generator.named_parameters() if p.requires_grad and not name.startswith("pose_branch.")]
    loss.backward(inputs=[styles, *trained])

    # The discriminator's losses
    shown = fake.map(lambda t: t.detach())
    fake_logits, poses = discriminator(shown, camera)
    wanted = torch.cat([targets.body_pose, batch.coarse_pose]) + state.memory.tilt
    d_loss = softplus(fake_logits - discriminator(real, camera)[0]).mean() + state.config.pose_loss_weight * pose_loss(
        poses, wanted
    )
    d_loss.backward()
    assert styles.grad is not None
    return styles.grad
