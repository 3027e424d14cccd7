"""Labels that do not belong to their images are found with masks and the packaged encoder."""

from __future__ import annotations

import dataclasses
import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from portrait360.data.conventions import check_conventions
from portrait360.data.dataset import PortraitDataset
from portrait360.data.layout import encode_labels
from portrait360.data.shards import PortraitShards, write_shards
from portrait360.encoder import label_check
from portrait360.encoder.label_check import (
    FEWEST,
    LabelCheck,
    LabelSample,
    check_labels,
    dataset_sample,
    shard_sample,
    warn_about_labels,
)
from portrait360.geometry.cameras import camera_label, mirror_body_pose, mirror_camera, yaw_pitch

PEOPLE = Path(__file__).parents[1] / "support" / "people.zip"


@pytest.fixture(scope="module")
def right() -> LabelSample:
    """24 synthetic people from all sides."""
    return dataset_sample(PortraitDataset(PEOPLE), 96)


def turned(sample: LabelSample, degrees: float) -> LabelSample:
    yaw, pitch = yaw_pitch(sample.cameras)
    return dataclasses.replace(sample, cameras=camera_label(yaw + math.radians(degrees), pitch))


def mirrored(sample: LabelSample, rows: slice = slice(None)) -> LabelSample:
    """The images of some rows mirrored, with labels as they were."""
    images, masks = sample.images.copy(), sample.masks.copy()
    images[rows], masks[rows] = images[rows][:, :, ::-1], masks[rows][:, :, ::-1]
    return dataclasses.replace(sample, images=images, masks=masks)


def found(sample: LabelSample) -> LabelCheck:
    """The check of labels that their numbers do not give away."""
    labels = torch.cat([sample.cameras, sample.body_poses], dim=1).numpy()
    check_conventions(Path("d.zip"), labels, [""] * len(labels), 256)
    return check_labels(sample)


def test_right_labels_give_numbers_and_no_warning(right):
    check = found(right)
    assert check.warnings == ()
    assert check.images == 24
    assert check.bodies_met == 1.0
    assert check.body_overlap > 0.75
    assert check.yaw_agrees == 1.0
    assert check.yaw_difference_degrees < 4.0
    assert check.mirrored == 0.0
    assert check.as_json()["warnings"] == []


def test_images_and_labels_that_are_mirrored_together_are_right(right):
    both = dataclasses.replace(
        mirrored(right), cameras=mirror_camera(right.cameras), body_poses=mirror_body_pose(right.body_poses)
    )
    assert found(both).warnings == ()


def test_mirrored_images_with_labels_as_they_were(right):
    check = found(mirrored(right))
    (warning,) = check.warnings
    assert "the images are mirrored but their labels are not" in warning
    assert check.mirrored == 1.0
    assert check.yaw_agrees < 0.3


@pytest.mark.parametrize("step", [2, 3])
def test_some_mirrored_images(right, step):
    check = found(mirrored(right, slice(0, None, step)))
    (warning,) = check.warnings
    assert check.mirrored == pytest.approx(1 / step, abs=0.1)
    assert f"about {check.mirrored:.0%} of the images are mirrored but their labels are not" in warning


@pytest.mark.parametrize(
    ("degrees", "words"),
    [(180.0, "front and back are exchanged"), (90.0, "turned by 90 degrees"), (270.0, "turned by 90 degrees")],
)
def test_turned_worlds(right, degrees, words):
    warnings = found(turned(right, degrees)).warnings
    assert words in warnings[0]


def test_labels_of_other_images(right):
    other = dataclasses.replace(right, cameras=right.cameras.roll(5, 0), body_poses=right.body_poses.roll(5, 0))
    assert any("likely those of other images" in warning for warning in found(other).warnings)


def test_another_scale_and_origin(right):
    """As EG3D and PanoHead have them: the encoder still agrees, the body does not meet the mask."""
    wide, moved = right.cameras.clone(), right.cameras.clone()
    wide[:, [16, 20]] = 4.2647
    moved[:, 7] += 0.06
    for cameras in (wide, moved):
        check = found(dataclasses.replace(right, cameras=cameras))
        (warning,) = check.warnings
        assert "EG3D" in warning
        assert check.bodies_met < 0.5
        assert check.yaw_agrees == 1.0


def test_without_masks_the_encoder_alone_checks(right):
    assert check_labels(dataclasses.replace(right, masks=None)).bodies_met is None
    images = right.images[:, :, ::-1].copy()
    (warning,) = check_labels(dataclasses.replace(right, masks=None, images=images)).warnings
    assert "mirrored" in warning


def first(sample: LabelSample, rows: int) -> LabelSample:
    return LabelSample(sample.images[:rows], sample.masks[:rows], sample.cameras[:rows], sample.body_poses[:rows])


def test_a_handful_of_images_is_enough(right, monkeypatch):
    monkeypatch.setattr(label_check, "FEWEST", FEWEST)
    few = first(right, 6)
    assert check_labels(few).warnings == ()
    assert "mirrored but their labels are not" in check_labels(mirrored(few)).warnings[0]
    assert check_labels(mirrored(first(right, FEWEST - 1))).warnings == ()


def test_a_single_mistake_of_the_encoder_is_no_mirrored_image(right, monkeypatch):
    monkeypatch.setattr(label_check, "FEWEST", FEWEST)
    few = first(right, 6)
    sideways = int(torch.nonzero(yaw_pitch(few.cameras)[0].sin().abs() > 0.5)[0])
    check = check_labels(mirrored(few, slice(sideways, sideways + 1)))
    assert check.mirrored > 0.15
    assert check.warnings == ()


@pytest.fixture
def mirrored_labels(tmp_path) -> Path:
    """A dataset whose labels are mirrored, its images not."""
    data = PortraitDataset(PEOPLE)
    poses = mirror_body_pose(data.body_poses)
    labels = torch.cat([mirror_camera(data.cameras), poses], dim=1).numpy()
    path = tmp_path / "mirrored.zip"
    with zipfile.ZipFile(PEOPLE) as source, zipfile.ZipFile(path, "w") as archive:
        for name in source.namelist():
            content = encode_labels(map(data.name, range(len(data))), labels) if name == "dataset.json" else None
            archive.writestr(name, source.read(name) if content is None else content)
    return path


def test_training_is_warned_of_zips_and_of_shards(mirrored_labels, tmp_path, capsys):
    warn_about_labels(PEOPLE)
    assert capsys.readouterr().err == ""
    write_shards(mirrored_labels, tmp_path / "shards", progress=False)
    for path in (mirrored_labels, tmp_path / "shards"):
        warn_about_labels(path)
        error = capsys.readouterr().err
        assert error.startswith(f"warning: labels of {path}: the images are mirrored")
        assert error.count("\n") == 1


def test_shards_are_sampled_like_the_dataset(tmp_path):
    write_shards(PEOPLE, tmp_path / "shards", per_shard=12, progress=False)
    sample = shard_sample(PortraitShards(tmp_path / "shards"), 7)
    data = PortraitDataset(PEOPLE)
    for row, camera in enumerate(sample.cameras):
        (index,) = np.flatnonzero((data.cameras == camera).all(1).numpy())
        (same,) = dataset_sample_rows(data, [int(index)])
        assert np.abs(sample.images[row].astype(int) - same.astype(int)).max() <= 1
        assert torch.equal(sample.body_poses[row], data.body_poses[index])


def dataset_sample_rows(data: PortraitDataset, rows: list[int]) -> np.ndarray:
    return dataset_sample(data, len(data)).images[rows]
