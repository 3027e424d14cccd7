"""Corrupted images and portraits, with small networks."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from portrait360.config import PRESETS
from portrait360.data.dataset import PortraitDataset
from portrait360.encoder.files import load_encoder
from portrait360.evaluation.measures import BEHIND
from portrait360.evaluation.pairs import synthetic_pairs
from portrait360.evaluation.samples import Predictors, RealImages
from portrait360.geometry.cameras import yaw_pitch
from portrait360.portrait.weights import load_weights
from portrait360.synthetic.job import render_dataset
from portrait360.types import DatasetError
from support.ball_portrait import BallPortrait
from support.fake_portraits import write_fake_dataset
from support.presets import TINY
from tools import corruptions as module
from tools.corruptions import (
    NOTHING,
    ONE_FACE,
    blurred,
    collected,
    face_scores,
    faces_behind,
    hairless,
    image_scores,
    measure_corruptions,
    mesh_scores,
    noisy,
    one_face,
    pair_scores,
)

MODEL = dataclasses.replace(PRESETS["cpu-64"].model, resolution=64, raw_resolution=64)


@pytest.fixture(scope="module")
def predictors(tiny_weights, tiny_encoder) -> Predictors:
    return Predictors(load_encoder(tiny_encoder)[0], load_weights(tiny_weights).discriminator)


@pytest.fixture(scope="module")
def drawn(source, tmp_path_factory) -> Path:
    """48 synthetic portraits from the small set of parts, drawn in this process."""
    from portrait360.data.writer import open_writer

    path = tmp_path_factory.mktemp("drawn") / "drawn.zip"
    with open_writer(path, resolution=64, meta={"label_kind": "exact", "seed": 4}) as writer:
        for index in range(48):
            sample = source.draw(4, index, 64)
            writer.add(sample.image, sample.mask, sample.camera, sample.body_pose, None)
    return path


@pytest.fixture(scope="module")
def real(drawn) -> RealImages:
    return RealImages(PortraitDataset(drawn), PortraitDataset(drawn, labels="exact"), TINY.model)


def nothing(_: int) -> None:
    pass


def test_blur_and_noise(real):
    image, mask = real.read(3)
    soft, same = blurred(real, 3, 1.0)
    assert np.array_equal(mask, same)
    inner = (slice(8, -8), slice(8, -8))
    assert (
        np.abs(np.diff(soft[inner].astype(int), axis=0)).mean()
        < 0.7 * np.abs(np.diff(image[inner].astype(int), axis=0)).mean()
    )
    rough, _ = noisy(real, 3, 12.0)
    assert 6 < (rough.astype(int) - image).std() < 13
    assert np.array_equal(rough, noisy(real, 3, 12.0)[0])


def test_hair_is_gone_and_the_person_stays(real, source):
    changed = [np.abs(hairless(source, real, row)[0].astype(int) - real.read(row)[0]).mean() for row in range(12)]
    assert max(changed) > 2.0  # hair of some
    bald = source.draw(4, 5, 64, overrides={"hair": None})
    assert np.array_equal(hairless(source, real, 5)[0], bald.image)


def test_one_face_for_all_changes_the_face_alone(real, source):
    assert np.array_equal(one_face(source, real, 3)[0], one_face(source, real, 3)[0])
    plain, alike = source.draw(4, 3, 64), one_face(source, real, 3)
    assert alike[0].shape == plain.image.shape
    assert 0.3 < np.abs(alike[0].astype(int) - plain.image).mean() < 25
    changes = [np.abs(one_face(source, real, row)[1].astype(int) - real.read(row)[1]).mean() for row in range(6)]
    assert max(changes) < 12  # outlines nearly stay


class MeanColours:
    """In place of the network: numbers that the image's colours decide; every image has a face."""

    def describe(self, image):
        return image[20:44, 20:44].reshape(-1)[:1728:13][:128].astype(float) / 255.0


def test_faces_are_scored(real, source):
    scores = face_scores(real, source, MeanColours(), 3, 0, nothing)
    assert list(scores) == [NOTHING, "blur of 2 pixels", "a tenth of the persons", ONE_FACE]
    for found in scores.values():
        assert set(found) == {"faces_found", "same_person", "face_copies", "frechet_recognition"}
        assert found["faces_found"] == 1.0


def test_faces_come_where_backs_were(real):
    rows = torch.arange(48)
    changed = faces_behind(real, rows, 0)
    yaw, _ = yaw_pitch(real.data.cameras)
    behind = yaw.abs() > BEHIND
    assert behind.any()
    assert (yaw[changed[behind]].abs() < 0.8).all()
    assert torch.equal(changed[~behind], rows[~behind])


def test_corrupted_images_are_scored(real, source, predictors):
    scores = image_scores(real, source, predictors, 20, 0, nothing)
    assert NOTHING in scores
    for name, found in scores.items():
        # few persons may leave no image from behind
        assert set(found) | {"back_faces"} == set(scores[NOTHING]) | {"back_faces"}, name
    plain = scores[NOTHING]
    assert scores["cameras shuffled"]["frechet"] == plain["frechet"]
    assert scores["poses halved"]["pose_distribution"] > plain["pose_distribution"]
    assert scores["a tenth of the persons"]["recall"] < plain["recall"]
    assert scores["blur of 2 pixels"]["sliced_wasserstein"] != plain["sliced_wasserstein"]


def test_persons_who_change_are_found(source, predictors):
    scores = pair_scores(synthetic_pairs(source, MODEL, 4, 5, nothing), predictors)
    plain = scores[NOTHING]
    assert scores["images that follow the camera"]["reprojection_colour"] > 1.3 * plain["reprojection_colour"]
    assert scores["a nearer second surface"]["reprojection_agreement"] < plain["reprojection_agreement"]
    assert scores["distances 0.005 too far"]["reprojection_depth"] == pytest.approx(0.005, rel=0.3)
    assert scores["another person from the other side"]["identity_similarity"] <= plain["identity_similarity"]


def test_meshes_that_are_wrong_are_found(monkeypatch):
    monkeypatch.setattr(module, "COARSE_STEP", 0.008)
    scores = mesh_scores([BallPortrait(neck=False)], nothing)
    assert scores["a floating ball"]["floating_matter"] > scores[NOTHING]["floating_matter"] + 0.001
    places = torch.tensor([[0.0, 0.1, 0.0], [0.06, 0.1, 0.0], [-0.06, 0.1, 0.0], [0.06, 0.0, 0.0]])
    assert module.narrow_head(places, torch.ones(4)).tolist() == [1.0, 0.0, 0.0, 1.0]
    assert scores["a flat back of the head"]["back_of_head"] < scores[NOTHING]["back_of_head"] - 0.02


def test_means_over_the_seeds():
    table = collected([{"a": {"x": 1.0}}, {"a": {"x": 3.0, "y": float("nan")}}])
    assert table == {"a": {"x": [2.0, pytest.approx(2.0**0.5)]}}


def test_other_data_are_refused(tmp_path, tiny_weights, tiny_encoder, monkeypatch):
    write_fake_dataset(tmp_path / "d.zip", count=40)
    monkeypatch.setattr(module, "load_weights", lambda: load_weights(tiny_weights))
    monkeypatch.setattr(module, "load_encoder", lambda: load_encoder(tiny_encoder))
    with pytest.raises(DatasetError, match="does not record its subjects"):
        measure_corruptions(tmp_path / "d.zip")


def test_the_seed_stands_in_the_data(tmp_path):
    from support.fake_portraits import FakeSource

    render_dataset(
        tmp_path / "d.zip", count=4, resolution=32, seed=9, workers=1, source_factory=FakeSource, progress=False
    )
    assert PortraitDataset(tmp_path / "d.zip").meta["seed"] == 9
