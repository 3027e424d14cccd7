"""The pose command and its library: images of every layout in, the discriminator's predictions out."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut
from torch import nn

from portrait360.apps.pose import predict_body_pose
from portrait360.cli.main import main
from portrait360.data.dataset import PortraitDataset
from portrait360.data.writer import open_writer
from portrait360.geometry.body import BodyTemplate, load_body
from portrait360.geometry.cameras import camera_label, mirror_body_pose, mirror_camera, yaw_pitch
from portrait360.model.discriminator import Discriminator
from portrait360.model.generator import Generator
from portrait360.portrait.weights import load_weights, save_weights
from portrait360.poses.calibration import PoseCalibration
from portrait360.poses.windows import network_images
from portrait360.runtime.distributed import Ranks
from portrait360.training.data import TrainingData
from portrait360.training.passes import real_images
from portrait360.training.state import new_state
from portrait360.types import InputError
from support.presets import ALL_PRESETS
from support.shrunken import shrunken


def write_weights(path: Path, preset: str, body: BodyTemplate | None = None) -> Path:
    """Small weights of a preset whose pose head answers with some tenths of a radian."""
    model = shrunken(ALL_PRESETS[preset]).model
    with torch.random.fork_rng():
        torch.manual_seed(5)
        generator, discriminator = Generator(model, body), Discriminator(model)
        for parameter in discriminator.pose_branch.net[-1].parameters():
            nn.init.normal_(parameter, std=0.2)
    save_weights(path, model, generator, discriminator, {}, exact=True)
    return path


@pytest.fixture(scope="module", params=["cpu-64", "portrait-256", "original-512"])
def any_weights(request, tmp_path_factory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / f"{request.param}.safetensors", request.param)


@pytest.fixture(scope="module")
def own_weights(tmp_path_factory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "own.safetensors", "cpu-64")


@pytest.fixture(scope="module")
def original_weights(tmp_path_factory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "original.safetensors", "original-512")


def some_images(count: int, side: int, seed: int = 0):
    """Noise with a disc as its mask, seen from different sides."""
    rng = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 3, side, side, generator=rng) * 2 - 1
    axis = (torch.arange(side) + 0.5) / side - 0.45
    radii = 0.2 + 0.2 * torch.rand(count, 1, 1, 1, generator=rng)
    masks = (torch.hypot(axis[:, None], axis[None, :]) < radii).float()
    return images, masks, camera_label(torch.linspace(-2.5, 2.9, count), 0.1)


def run(*words: object) -> dict:
    """The records of a command that must succeed, from its file."""
    assert main(["pose", *map(str, words)]) == 0
    return json.loads(Path(words[words.index("--out") + 1]).read_text())


# ---- the library ----


def test_an_image_is_predicted_without_regard_to_the_others(any_weights):
    weights = load_weights(any_weights)
    images, masks, cameras = some_images(5, 40)
    together = predict_body_pose(weights, images, masks, cameras)
    assert together.std(dim=0).min() > 1e-4  # the images make a difference
    others = torch.randperm(5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(predict_body_pose(weights, images[others], masks[others], cameras[others]), together[others])
    alone = [predict_body_pose(weights, images[i : i + 1], masks[i : i + 1], cameras[i : i + 1]) for i in range(5)]
    assert torch.equal(torch.cat(alone), together)


def test_it_is_what_the_discriminator_says_of_one_image(any_weights):
    # The way of the original's scripts: a batch of one, in which the minibatch deviation is sqrt(1e-8).
    weights = load_weights(any_weights)
    images, masks, cameras = some_images(2, 32)
    inputs = network_images(weights.generator.config, images, masks).map(lambda t: t[1:])
    with torch.no_grad():
        _, expected = weights.discriminator(inputs, cameras[1:])
    torch.testing.assert_close(predict_body_pose(weights, images, masks, cameras)[1:], expected, rtol=0, atol=1e-6)


def test_weights_with_a_calibration_correct_what_the_discriminator_says(own_weights):
    weights = load_weights(own_weights)
    images, masks, cameras = some_images(3, 64)
    said = predict_body_pose(weights, images, masks, cameras)
    calibration = PoseCalibration((1.0,), (torch.cat([0.5 * torch.eye(6), torch.full((1, 6), 0.1)]),))
    found = predict_body_pose(dataclasses.replace(weights, calibration=calibration), images, masks, cameras)
    torch.testing.assert_close(found, 0.5 * said + 0.1)


@pytest.mark.parametrize("preset", ["cpu-64", "portrait-256"])
def test_mirroring_image_and_camera_mirrors_the_pose(preset, tmp_path):
    weights = load_weights(write_weights(tmp_path / "w.safetensors", preset))
    images, masks, cameras = some_images(6, 64)
    poses = predict_body_pose(weights, images, masks, cameras)
    seen_mirrored = predict_body_pose(weights, images.flip(3), masks.flip(3), mirror_camera(cameras))
    assert poses[:, [1, 2, 4, 5]].abs().min() > 1e-4
    torch.testing.assert_close(seen_mirrored, mirror_body_pose(poses), rtol=0, atol=1e-5)


def test_the_originals_pose_head_sees_the_camera_unmirrored(original_weights):
    # equations 8.8: left views are flipped, their cameras are not.
    weights = load_weights(original_weights)
    images, masks, cameras = some_images(6, 32)
    left = cameras[:, 3] >= 0
    assert left.any()
    images, masks, cameras = images[left], masks[left], cameras[left]
    flat_alone = []
    with torch.no_grad():
        for i in range(len(images)):
            inputs = network_images(weights.generator.config, images[i : i + 1], masks[i : i + 1])
            flat_alone.append(weights.discriminator.trunk(inputs.map(lambda t: t.flip(3))))
        expected = mirror_body_pose(weights.discriminator.pose_branch(torch.cat(flat_alone), cameras))
    torch.testing.assert_close(predict_body_pose(weights, images, masks, cameras), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("preset", ["cpu-64", "portrait-256"])
def test_images_are_prepared_as_for_training(preset, tmp_path):
    # From 64-pixel images to a 32-pixel model; training keeps bytes, so half a level lies between the two.
    from support.fake_portraits import write_fake_dataset

    path = tmp_path / "data.zip"
    write_fake_dataset(path, count=4, resolution=64)
    small = shrunken(ALL_PRESETS[preset])
    data = TrainingData(path, small.model, small.training, seed=0)
    data.sampler.mirror, data.sampler.zoom_probability = False, 0.0
    data.sampler.closest[:] = 0.0
    order, _, levels = data.sampler.take(0, 4)
    assert not levels.any()
    batch = data.batch(0, 4, Ranks(), torch.device("cpu"))
    expected = real_images(new_state(small, 0, torch.device("cpu")), batch)
    dataset = PortraitDataset(path)
    images = torch.stack([torch.from_numpy(dataset.image(i).copy()) for i in order.tolist()]).permute(0, 3, 1, 2)
    masks = torch.stack([torch.from_numpy(dataset.mask(i).copy()) for i in order.tolist()])[:, None]
    found = network_images(small.model, images.float() / 127.5 - 1.0, masks.float() / 255.0)
    assert len(found.tensors()) == len(expected.tensors())
    for ours, theirs in zip(found.tensors(), expected.tensors(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0.6 / 127.5)


def test_the_original_sees_images_as_its_scripts_give_them(original_weights):
    # equations 14.2: background kept, bilinear resizing, the mask at its own size.
    model = load_weights(original_weights).generator.config
    images, masks, _ = some_images(2, 48)
    inputs = network_images(model, images, masks)
    assert torch.equal(inputs.mask, masks)
    expected = nn.functional.interpolate(images, size=(32, 32), mode="bilinear", antialias=True)
    assert torch.equal(inputs.image, expected)
    assert inputs.raw is not None
    assert inputs.raw.shape[-1] == model.raw_resolution == 8
    torch.testing.assert_close(inputs.raw.mean(), expected.mean(), rtol=0, atol=0.01)


def test_what_lies_behind_the_mask_does_not_matter_without_a_background_network(own_weights):
    weights = load_weights(own_weights)
    images, masks, cameras = some_images(2, 32)
    changed = torch.where(masks > 0, images, -images)
    assert not torch.equal(changed, images)
    expected = predict_body_pose(weights, images, masks, cameras)
    assert torch.equal(predict_body_pose(weights, changed, masks, cameras), expected)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda i, m, c: (i[:, :1], m, c), "images must be [2, 3, 32, 32], not [2, 1, 32, 32]"),
        (lambda i, m, c: (i, m[:, :, ::2, ::2], c), "masks must be [2, 1, 32, 32]"),
        (lambda i, m, c: (i, m[:1], c), "masks must be"),
        (lambda i, m, c: (i, m, c[:, :24]), "cameras must be [2, 25], not [2, 24]"),
        (lambda i, m, c: (i * torch.inf, m, c), "images must be finite"),
        (lambda i, m, c: (i, m, c * torch.nan), "cameras must be finite"),
        (lambda i, m, c: (i.mul(127).to(torch.uint8), m, c), "images must be finite floating-point"),
        (lambda i, m, c: (i * 127.5 + 127.5, m, c), "images must lie in [-1, 1]"),
        (lambda i, m, c: (i, m * 255, c), "masks must lie in [0, 1]"),
        (lambda i, m, c: (i, m * 2 - 1, c), "masks must lie in [0, 1], but reach from -1 to 1"),
    ],
)
def test_other_shapes_and_ranges_are_refused(own_weights, change, said):
    weights = load_weights(own_weights)
    with pytest.raises(InputError) as caught:
        predict_body_pose(weights, *change(*some_images(2, 32)))
    assert said in caught.value.message
    assert caught.value.hint


# ---- the command ----


def write_image(folder: Path, name: str = "photo", side: int = 40, camera: list[float] | None = None) -> Path:
    """An image with its camera and mask beside it."""
    images, masks, cameras = some_images(1, side, seed=len(name))
    pixels = ((images[0] + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(folder / f"{name}.png")
    Image.fromarray((masks[0, 0] * 255).to(torch.uint8).numpy()).save(folder / f"{name}.mask.png")
    label = cameras[0].tolist() if camera is None else camera
    (folder / f"{name}.json").write_text(json.dumps({"camera": label}))
    return folder / f"{name}.png"


def test_a_dataset_gives_a_record_with_labels_for_each_image(tmp_path, tiny_dataset, own_weights, capsys):
    out = tmp_path / "new" / "poses.json"
    records = run(tiny_dataset, "--out", out, "--weights", own_weights)
    data, exact = PortraitDataset(tiny_dataset), PortraitDataset(tiny_dataset, labels="exact")
    assert list(records) == [f"{tiny_dataset}/{data.name(i)}" for i in range(6)]
    weights = load_weights(own_weights)
    for i, record in enumerate(records.values()):
        assert list(record) == [
            "camera", "yaw_degrees", "pitch_degrees", "body_pose", "neck_degrees", "head_degrees", "labels",
        ]  # fmt: skip
        assert record["camera"] == data.cameras[i].tolist()
        yaw, pitch = (angle.rad2deg().item() for angle in yaw_pitch(data.cameras[i : i + 1]))
        assert [record["yaw_degrees"], record["pitch_degrees"]] == pytest.approx([yaw, pitch], abs=1e-3)
        image = torch.from_numpy(data.image(i).copy()).permute(2, 0, 1)[None] / 127.5 - 1.0
        mask = torch.from_numpy(data.mask(i).copy())[None, None] / 255.0
        pose = predict_body_pose(weights, image, mask, data.cameras[i : i + 1])[0]
        assert record["body_pose"] == pytest.approx(pose.tolist(), abs=1e-6)
        assert record["neck_degrees"] + record["head_degrees"] == pytest.approx(pose.rad2deg().tolist(), abs=1e-3)
        assert record["labels"]["coarse"]["body_pose"] == data.body_poses[i].tolist()
        assert record["labels"]["exact"]["body_pose"] == exact.body_poses[i].tolist()
    output = capsys.readouterr().out
    assert "mean angle to the exact labels: neck " in output
    assert output.splitlines()[-1].startswith(
        f"{out}  6 poses, and poses.overlay.png, the bodies over the images; next: "
    )


def test_errors_are_angles_of_rotations(tmp_path, own_weights, capsys):
    # From a label at rest, the angle is the length of the predicted axis-angle.
    path = tmp_path / "data.zip"
    images, masks, cameras = some_images(3, 32)
    with open_writer(path, resolution=32, meta={"generator": "test", "label_kind": "exact"}) as writer:
        for image, mask, camera in zip(images, masks, cameras, strict=True):
            pixels = ((image + 1) * 127.5).to(torch.uint8).permute(1, 2, 0).numpy()
            writer.add(pixels, (mask[0] * 255).to(torch.uint8).numpy(), camera.numpy(), np.zeros(6, np.float32))
    records = run(path, "--out", tmp_path / "poses.json", "--weights", own_weights)
    errors = []
    for record in records.values():
        lengths = np.linalg.norm(np.reshape(record["body_pose"], (2, 3)), axis=1)
        label = record["labels"]["exact"]
        errors.append([label["neck_error_degrees"], label["head_error_degrees"]])
        assert errors[-1] == pytest.approx(np.rad2deg(lengths), abs=1e-3)
        assert min(errors[-1]) > 0.1
    neck, head = np.mean(errors, axis=0)
    assert f"mean angle to the exact labels: neck {neck:.1f}°, head {head:.1f}°" in capsys.readouterr().out


def test_an_image_beside_its_camera_and_mask(tmp_path, any_weights):
    path = write_image(tmp_path)
    records = run(path, "--out", tmp_path / "poses.json", "--weights", any_weights)
    image = torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1)[None] / 127.5 - 1.0
    mask = torch.from_numpy(np.asarray(Image.open(tmp_path / "photo.mask.png")).copy())[None, None] / 255.0
    camera = torch.tensor([json.loads((tmp_path / "photo.json").read_text())["camera"]])
    expected = predict_body_pose(load_weights(any_weights), image, mask, camera)[0]
    assert records[str(path)]["body_pose"] == pytest.approx(expected.tolist(), abs=1e-6)
    assert "labels" not in records[str(path)]


def test_the_alpha_channel_is_a_mask(tmp_path, own_weights):
    path = write_image(tmp_path)
    expected = run(path, "--out", tmp_path / "poses.json", "--weights", own_weights)
    photo, mask = Image.open(path), tmp_path / "photo.mask.png"
    photo.putalpha(Image.open(mask))
    photo.save(path)
    mask.unlink()
    assert run(path, "--out", tmp_path / "poses.json", "--weights", own_weights) == expected


def write_original_layout(folder: Path) -> list[Path]:
    """Test data of the original with three images."""
    for name in ("aligned_images", "mask"):
        (folder / name).mkdir(parents=True)
    results = {}
    for name in ("a", "bb", "ccc"):
        path = write_image(folder, name)
        camera = json.loads((folder / f"{name}.json").read_text())["camera"]
        results[f"{name}.png"] = {"camera_pose": [camera[4 * i : 4 * i + 4] for i in range(4)], "bbox": [1, 2, 3, 4]}
        path.rename(folder / "aligned_images" / path.name)
        (folder / f"{name}.mask.png").rename(folder / "mask" / path.name)
        (folder / f"{name}.json").unlink()
    (folder / "result.json").write_text(json.dumps(results))
    return [folder / "aligned_images" / name for name in results]


def test_the_originals_test_data(tmp_path, original_weights):
    (tmp_path / "beside").mkdir()
    expected = [
        run(write_image(tmp_path / "beside", n), "--out", tmp_path / "p.json", "--weights", original_weights)
        for n in ("a", "bb", "ccc")
    ]
    paths = write_original_layout(tmp_path / "test_data")
    options = ["--out", tmp_path / "poses.json", "--weights", original_weights]
    whole = run(tmp_path / "test_data", *options)
    assert list(whole) == [str(path) for path in paths]
    assert list(whole.values()) == [record for one in expected for record in one.values()]
    assert run(tmp_path / "test_data" / "aligned_images", *options) == whole
    assert run(*paths[1:], *options) == {str(path): whole[str(path)] for path in paths[1:]}
    with zipfile.ZipFile(tmp_path / "test_data.zip", "w") as archive:
        for path in (tmp_path / "test_data").rglob("*.*"):
            archive.write(path, path.relative_to(tmp_path / "test_data"))
    assert list(run(tmp_path / "test_data.zip", *options).values()) == list(whole.values())


def test_one_image_of_a_folder_dataset(tmp_path, tiny_dataset, own_weights, monkeypatch):
    with zipfile.ZipFile(tiny_dataset) as archive:
        archive.extractall(tmp_path / "data")
    options = ["--out", tmp_path / "poses.json", "--weights", own_weights]
    whole = run(tmp_path / "data", *options)
    assert len(whole) == 6
    name, record = list(whole.items())[3]
    assert run(name, *options) == {name: record}
    monkeypatch.chdir(Path(name).parent)
    assert run(Path(name).name, *options) == {Path(name).name: record}


def test_a_folder_of_images_and_each_image_once(tmp_path, own_weights):
    paths = [write_image(tmp_path, name) for name in ("b", "aa")]
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("mine")
    options = ["--out", tmp_path / "out" / "poses.json", "--weights", own_weights]
    assert list(run(tmp_path, *options)) == sorted(map(str, paths))
    assert list(run(paths[0], tmp_path, paths[0], *options)) == [str(paths[0]), str(paths[1])]


def test_without_out_the_json_is_printed_and_the_table_apart(tmp_path, own_weights, capsys):
    path = write_image(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert main(["pose", str(path), "--weights", str(own_weights)]) == 0
    output = capsys.readouterr()
    record = json.loads(output.out)[str(path)]
    line = next(line for line in output.err.splitlines() if line.startswith(str(path)))
    degrees = [record["yaw_degrees"], record["pitch_degrees"], *record["neck_degrees"], *record["head_degrees"]]
    assert line.removeprefix(str(path)).split() == [f"{value:.1f}" for value in degrees]
    assert sorted(tmp_path.iterdir()) == before


def test_long_tables_and_sheets_are_cut(tmp_path, own_weights, capsys, monkeypatch):
    from portrait360.apps import pose_report

    monkeypatch.setattr(pose_report, "MOST_ROWS", 2)
    monkeypatch.setattr(pose_report, "MOST_DRAWN", 2)
    paths = [write_image(tmp_path, "x" * n) for n in (1, 2, 3)]
    out = tmp_path / "poses.json"
    assert len(run(*paths, "--out", out, "--weights", own_weights)) == 3
    lines = capsys.readouterr().out.splitlines()
    assert [any(line.startswith(f"{path} ") for line in lines) for path in paths] == [True, True, False]
    assert "... and 1 more" in lines
    assert "poses.overlay.png shows 2 of 3." in lines
    with Image.open(tmp_path / "poses.overlay.png") as sheet:
        assert sheet.width == 2 * 384


def test_the_overlay_shows_prediction_and_label(tmp_path, tiny_dataset, own_weights):
    run(tiny_dataset, "--out", tmp_path / "poses.json", "--weights", own_weights)
    with Image.open(tmp_path / "poses.overlay.png") as sheet:
        assert sheet.size == (4 * 384, 2 * (384 + 48))
        pixels = np.asarray(sheet).astype(int)
    for colour in ((235, 45, 150), (40, 110, 255)):
        near = np.abs(pixels - colour).max(axis=2) < 12
        for tile in range(6):
            y, x = divmod(tile, 4)
            assert near[y * 432 : y * 432 + 384, x * 384 : x * 384 + 384].sum() > 100


def test_the_overlay_shows_the_body_of_the_weights(tmp_path, own_weights):
    path = write_image(tmp_path)
    Image.new("RGB", (40, 40), (128, 128, 128)).save(path)
    packaged = load_body()
    larger = dataclasses.replace(packaged, vertices=packaged.vertices * 1.2, joints=packaged.joints * 1.2)
    other = write_weights(tmp_path / "other.safetensors", "cpu-64", larger)
    first = run(path, "--out", tmp_path / "first.json", "--weights", own_weights)
    assert run(path, "--out", tmp_path / "second.json", "--weights", other) == first
    tops = []
    for name in ("first", "second"):
        pixels = np.asarray(Image.open(tmp_path / f"{name}.overlay.png")).astype(int)
        tops.append(np.nonzero((np.abs(pixels - (235, 45, 150)).max(axis=2) < 12).any(axis=1))[0].min())
    assert tops[1] < tops[0] - 10


def test_a_photo_without_a_camera_is_fitted(tmp_path, tiny_weights, capsys):
    """Crop, camera and body pose of the person in it; two persons get two entries."""
    photo = astronaut()
    Image.fromarray(photo).save(tmp_path / "one.jpg")
    out = tmp_path / "poses.json"
    assert main(["pose", str(tmp_path / "one.jpg"), "--weights", str(tiny_weights), "--out", str(out)]) == 0
    (record,) = json.loads(out.read_text()).values()
    assert abs(record["yaw_degrees"]) < 30
    assert 200 < record["crop"]["side"] < 480
    assert abs(record["crop"]["centre"][0] - 225) < 40
    assert 0 < record["fit_error"] < 0.02
    assert 0.5 < record["confidence"] <= 1
    assert len(record["body_pose"]) == 6
    with Image.open(tmp_path / "poses.overlay.png") as sheet:
        assert sheet.width > 300
    capsys.readouterr()
    pair = np.concatenate([photo, photo], axis=1)
    Image.fromarray(pair).save(tmp_path / "two.jpg")
    assert main(["pose", str(tmp_path / "two.jpg"), "--weights", str(tiny_weights)]) == 0
    names = list(json.loads(capsys.readouterr().out))
    assert [name.rsplit("#")[-1] for name in names] == ["1", "2"]
