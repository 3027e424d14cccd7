"""The portrait encoder's network: crops, cameras, and images one by one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from scipy.ndimage import map_coordinates

from portrait360.encoder import network as encoder_module
from portrait360.encoder.files import load_encoder, row_bytes, save_encoder
from portrait360.encoder.network import (
    AROUND,
    AROUND_STEP,
    HEAD,
    LANDMARKS,
    NECK,
    CameraEstimate,
    EncoderConfig,
    PortraitEncoder,
    crop_grid,
    landmark_places,
    mean_encoded,
    read_around,
    resample,
    soft_places,
    to_body,
    to_view,
)
from portrait360.geometry.body import load_body
from portrait360.geometry.cameras import camera_label, project
from portrait360.runtime.tensors import read_tensors, write_tensors
from portrait360.types import CheckpointError, InputError

SMALL = EncoderConfig(resolution=64, stem=8, channels=(8, 8, 12, 16), blocks=1, mask_channels=8, hidden=16, identity=8)


def some_cameras(count: int = 5) -> CameraEstimate:
    g = torch.Generator().manual_seed(0)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=g)

    return CameraEstimate(
        uniform(-3, 3), uniform(-0.4, 0.4), uniform(-0.5, 0.5), uniform(0.7, 2.0), uniform(-0.1, 0.1, 2)
    )


def small_encoder() -> PortraitEncoder:
    torch.manual_seed(0)
    return PortraitEncoder(SMALL).eval()


def test_crops_show_what_their_camera_label_sees():
    camera, side = some_cameras(), 16
    points = torch.randn(5, 40, 3, generator=torch.Generator().manual_seed(1)) * 0.1
    plain, _ = project(camera_label(camera.yaw, camera.pitch), points)
    cropped, _ = project(camera.label(), points)
    grid = crop_grid(camera, side).permute(0, 3, 1, 2)
    # where the crop shows a point, the grid must lead back to it in the plain crop
    found = F.grid_sample(
        grid, cropped[:, :, None] * 2 - 1, mode="bilinear", padding_mode="border", align_corners=False
    )
    half = 0.5 / side
    inside = ((cropped > half) & (cropped < 1 - half)).all(-1)
    assert inside.sum() > 50
    assert torch.allclose(found[..., 0].transpose(1, 2)[inside], (plain * 2 - 1)[inside], atol=1e-4)


def test_a_plain_crop_leaves_images_alone():
    zero = torch.zeros(1)
    camera = CameraEstimate(zero, zero, zero, torch.ones(1), torch.zeros(1, 2))
    image = torch.randn(1, 3, 16, 16)
    assert torch.allclose(F.grid_sample(image, crop_grid(camera, 16), align_corners=False), image, atol=1e-5)
    assert torch.allclose(camera.label(), camera_label(0.0))


def test_what_comes_out():
    seen = small_encoder()(torch.randn(3, 3, 64, 64))
    assert seen.camera.label().shape == (3, 25)
    assert seen.body_pose.shape == (3, 6)
    assert seen.landmarks.shape == (3, len(LANDMARKS), 2)
    assert 0 <= seen.landmarks.min() <= seen.landmarks.max() <= 1
    assert seen.mask_logits.shape == (3, 1, 32, 32)
    assert seen.mask(128).shape == (3, 1, 128, 128)
    assert torch.allclose(seen.identity.norm(dim=1), torch.ones(3))
    assert seen.features.shape == (3, SMALL.features) == (3, 8 + 12 + 16)
    assert (seen.blur > 0).all()
    assert (seen.camera.scale > 0).all()


def test_images_do_not_depend_on_their_neighbours():
    encoder, images = small_encoder(), torch.randn(5, 3, 64, 64).clamp(-1, 1)
    whole = encoder.encode(images, batch=2)
    for i in range(5):
        one = encoder.encode(images[i : i + 1])
        for a, b in ((whole.features, one.features), (whole.identity, one.identity), (whole.body_pose, one.body_pose)):
            assert torch.allclose(a[i], b[0], atol=1e-5)
        assert torch.allclose(whole.camera.label()[i], one.camera.label()[0], atol=1e-5)


def test_sizes_are_averaged_down_and_enlarged():
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert torch.equal(resample(image, 4), image)
    assert resample(image, 2).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert resample(image, 8).shape == (1, 1, 8, 8)
    assert small_encoder().encode(torch.zeros(1, 3, 200, 200)).features.shape == (1, 36)


def test_files_keep_the_network(tmp_path):
    encoder = small_encoder()
    encoder.feature_mean.fill_(0.25)
    save_encoder(tmp_path / "e.safetensors", encoder, {"steps": 3})
    again, info = load_encoder(tmp_path / "e.safetensors")
    assert again.config == SMALL
    assert info["about"] == {"steps": 3}
    assert not again.training
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        a, b = encoder(images), again(images)
    assert torch.allclose(a.features, b.features, atol=2e-2)
    assert torch.allclose(a.identity, b.identity, atol=2e-2)


def test_other_files_are_refused(tmp_path, tiny_weights):
    with pytest.raises(CheckpointError, match="not a portrait encoder"):
        load_encoder(tiny_weights)
    with pytest.raises(CheckpointError, match="no weights file"):
        load_encoder(tmp_path / "none.safetensors")
    save_file({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="not written by portrait360"):
        load_encoder(tmp_path / "a.safetensors")


def test_poses_in_camera_coordinates():
    camera, pose = some_cameras(), torch.randn(5, 6) * 0.3
    assert torch.allclose(to_body(to_view(pose, camera), camera), pose, atol=1e-5)
    # a nod (about X, the subject's left) seen from the left is a turn about the viewing direction, from the front not
    zero = torch.zeros(2)
    two = CameraEstimate(torch.tensor([torch.pi / 2, 0.0]), zero, zero, zero + 1, torch.zeros(2, 2))
    nod = torch.tensor([[0.3, 0.0, 0.0, 0.0, 0.0, 0.0]]).expand(2, -1)
    seen = to_view(nod, two)
    assert seen[0, 2].abs() == pytest.approx(0.3, abs=1e-2)
    assert seen[1, 2].abs() < 0.01
    output = small_encoder()(torch.randn(2, 3, 64, 64))
    assert torch.allclose(to_view(output.body_pose, output.camera), output.view_pose, atol=1e-5)


def test_landmarks_move_with_their_bones():
    body, camera = load_body(), camera_label(0.6, 0.1)
    rest = landmark_places(body, camera, torch.zeros(1, 6))
    points = torch.tensor([place for _, place in LANDMARKS])
    assert torch.allclose(rest, project(camera, points[None])[0], atol=1e-6)
    head = landmark_places(body, camera, torch.tensor([[0.0, 0.0, 0.0, 0.2, 0.3, 0.1]]))
    neck = landmark_places(body, camera, torch.tensor([[0.2, 0.3, 0.1, 0.0, 0.0, 0.0]]))
    for index, (bone, _) in enumerate(LANDMARKS):
        moved = [(places - rest)[0, index].norm() > 1e-4 for places in (head, neck)]
        assert moved == [bone == HEAD, bone in (HEAD, NECK)], index
    mirrored = [LANDMARKS.index((b, (-x, y, z))) for b, (x, y, z) in LANDMARKS]
    assert sorted(mirrored) == list(range(len(LANDMARKS)))


def test_soft_places_are_means():
    logits = torch.full((1, 2, 8, 8), -50.0)
    logits[0, 0, 1, 6] = 50.0  # row 1, column 6
    logits[0, 1, 4, 2] = logits[0, 1, 4, 4] = 50.0
    places = soft_places(logits)
    assert torch.allclose(places[0], torch.tensor([[6.5 / 8, 1.5 / 8], [3.5 / 8, 4.5 / 8]]), atol=1e-5)


def test_further_blocks_change_nothing_at_first_and_then_do():
    config = dataclasses.replace(SMALL, further_blocks=(1, 0, 2, 1))
    torch.manual_seed(1)
    deeper, plain = PortraitEncoder(config).eval(), small_encoder()
    assert config.depths == (2, 1, 3, 2)
    assert [len(stage) for stage in deeper.stages] == [2, 1, 3, 2]
    deeper.load_state_dict(deeper.state_dict() | plain.state_dict())
    images = torch.rand(3, 3, 64, 64) * 2 - 1
    assert torch.equal(deeper(images).body_pose, plain(images).body_pose)
    deeper.stages[2][2].norm2.weight.data.fill_(1.0)
    assert not torch.equal(deeper(images).body_pose, plain(images).body_pose)


@pytest.mark.parametrize("further", [(1,), (1, 0, 2, -1), (0, 0, 0, 0, 1)])
def test_further_blocks_are_one_number_a_stage(further):
    with pytest.raises(InputError, match="4 stages"):
        dataclasses.replace(SMALL, further_blocks=further)


def test_what_is_around_a_place_is_read_like_scipy_does():
    maps = torch.randn(2, 3, 10, 10, generator=torch.Generator().manual_seed(0))
    places = torch.tensor([[[0.5, 0.5], [0.31, 0.72]], [[0.02, 0.4], [1.3, 0.5]]])
    read = read_around(maps, places).reshape(2, 3, 2, AROUND, AROUND)
    steps = (np.arange(AROUND) - 1) * AROUND_STEP
    for image in range(2):
        for channel in range(3):
            for k, (x, y) in enumerate(places[image].tolist()):
                rows, columns = np.meshgrid((y + steps) * 10 - 0.5, (x + steps) * 10 - 0.5, indexing="ij")
                expected = map_coordinates(maps[image, channel].numpy(), [rows, columns], order=1, mode="grid-constant")
                np.testing.assert_allclose(read[image, channel, k], expected, atol=1e-5)
    assert read[1, :, 1].abs().max() == 0


def test_an_encoder_that_reads_around_landmarks_uses_what_it_reads():
    torch.manual_seed(0)
    encoder = PortraitEncoder(dataclasses.replace(SMALL, around=2)).eval()
    images = torch.rand(3, 3, 64, 64) * 2 - 1
    before = encoder(images)
    encoder.around.weight.data.mul_(-1.0)
    after = encoder(images)
    assert torch.equal(before.landmarks, after.landmarks)
    assert not torch.allclose(before.body_pose, after.body_pose)


def test_looking_both_ways_says_of_mirror_images_what_is_true_of_them():
    torch.manual_seed(0)
    encoder = PortraitEncoder(dataclasses.replace(SMALL, sees_covers=True)).eval()
    images = torch.rand(5, 3, 64, 64) * 2 - 1
    seen, mirror, plain = (
        encoder.encode_both_ways(images),
        encoder.encode_both_ways(images.flip(3)),
        encoder.encode(images),
    )
    assert torch.equal(seen.features, plain.features)
    for name, sign in (("yaw", -1), ("pitch", 1), ("roll", -1), ("scale", 1)):
        torch.testing.assert_close(
            getattr(seen.camera, name), sign * getattr(mirror.camera, name), atol=1e-6, rtol=1e-5
        )
    torch.testing.assert_close(seen.camera.offset, mirror.camera.offset * torch.tensor([-1, 1]), atol=1e-6, rtol=1e-5)
    signs = torch.tensor([1, -1, -1, 1, -1, -1])
    torch.testing.assert_close(seen.body_pose, mirror.body_pose * signs, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(seen.view_pose, mirror.view_pose * signs, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(seen.mask(32), mirror.mask(32).flip(3))
    torch.testing.assert_close(seen.identity.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(seen.covered, mirror.covered)
    assert not torch.allclose(seen.body_pose, plain.body_pose)
    # a mirrored person's left eye is where the right one was
    camera, pose, body = some_cameras(), torch.randn(5, 6) * 0.2, load_body()
    places = landmark_places(body, camera.label(), pose)
    flipped = CameraEstimate(
        -camera.yaw, camera.pitch, -camera.roll, camera.scale, camera.offset * torch.tensor([-1, 1])
    )
    other = landmark_places(body, flipped.label(), pose * signs)
    guess = dataclasses.replace(plain, landmarks=places)
    torch.testing.assert_close(encoder_module.mirror_encoded(guess).landmarks, other, atol=1e-5, rtol=0)


def test_yaws_about_straight_behind_meet_there():
    near = [small_encoder().encode(torch.zeros(2, 3, 64, 64)) for _ in range(2)]
    for seen, yaw in zip(near, (3.1, -3.0), strict=True):
        seen.camera.yaw.fill_(yaw)
    mean = mean_encoded(*near).camera.yaw
    torch.testing.assert_close(mean.abs(), torch.full((2,), 3.0916), atol=1e-3, rtol=0)


def test_convolutions_in_bf16_say_nearly_the_same_in_float32():
    encoder = small_encoder()
    images = torch.rand(3, 3, 64, 64) * 2 - 1
    exact = encoder(images)
    encoder.bf16 = True
    rough = encoder(images)
    assert {v.dtype for v in vars(rough).values() if isinstance(v, torch.Tensor)} == {torch.float32}
    assert not torch.equal(exact.landmarks, rough.landmarks)
    for name in ("landmarks", "mask_logits", "view_pose", "features"):
        a, b = getattr(exact, name), getattr(rough, name)
        assert (a - b).abs().max() < 0.03 * (1 + a.abs().max()), name


def test_eight_bits_per_weight_are_off_by_no_more_than_half_a_step(tmp_path):
    encoder = small_encoder()
    save_encoder(tmp_path / "e.safetensors", encoder, {})
    back = load_encoder(tmp_path / "e.safetensors")[0].state_dict()
    rows = 0
    for name, value in encoder.state_dict().items():
        if value.dim() < 2:
            assert torch.equal(back[name], value), name
            continue
        step = value.flatten(1).abs().amax(1) / 127
        assert ((back[name] - value).flatten(1).abs().amax(1) <= 0.501 * step).all(), name
        rows += len(value)
    assert rows > 300
    again = row_bytes(back)
    assert all(
        torch.equal(again[name].float(), value.float())
        for name, value in row_bytes(encoder.state_dict()).items()
        if value.dtype == torch.int8
    )
    # a row of nothing stays so
    assert not row_bytes({"w": torch.zeros(2, 3)})["w"].any()


def test_files_of_half_precision_are_read_and_damaged_factors_refused(tmp_path):
    encoder = small_encoder()
    path = tmp_path / "e.safetensors"
    save_encoder(path, encoder, {})
    tensors, metadata = read_tensors(path)
    halves = {
        f"encoder/{name}": value.half() if value.dim() >= 2 else value for name, value in encoder.state_dict().items()
    }
    write_tensors(path, halves, metadata)
    torch.testing.assert_close(load_encoder(path)[0].hidden.weight, encoder.hidden.weight, atol=1e-3, rtol=1e-3)
    name = "encoder/hidden.weight:scale"
    for damaged in (tensors | {name: tensors[name][1:]}, tensors | {"encoder/other:scale": tensors[name].clone()}):
        write_tensors(path, damaged, metadata)
        with pytest.raises(CheckpointError, match="unknown tensor|lacks tensor"):
            load_encoder(path)
    write_tensors(path, tensors | {name: tensors[name] * float("nan")}, metadata)
    with pytest.raises(CheckpointError, match="not finite"):
        load_encoder(path)
    write_tensors(path, {k: v for k, v in tensors.items() if k != name}, metadata)
    with pytest.raises(CheckpointError, match="lacks"):
        load_encoder(path)
