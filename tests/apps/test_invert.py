"""`portrait360 invert`: from a photo to the files of a portrait."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut

import portrait360 as p3
from portrait360.apps.invert import invert
from portrait360.cli.main import main
from portrait360.inversion.portrait import COMPARISON
from portrait360.model.generator import Generator
from portrait360.portrait.portrait import Portrait
from portrait360.portrait.weights import save_weights
from portrait360.types import InputError
from support.presets import TINY_HEAD


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos") / "eileen.png"
    Image.fromarray(astronaut()).save(path)
    return path


@pytest.fixture(scope="module")
def written(photo, tiny_weights, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "eileen"
    portrait = invert([photo], out, weights=tiny_weights, steps=4, video=False, mesh=False, progress=False)
    return portrait, out


def test_a_photo_gives_the_files_of_a_portrait(written):
    portrait, out = written
    assert sorted(path.name for path in out.iterdir()) == [
        COMPARISON,
        "portrait.json",
        "portrait.safetensors",
        "views.png",
    ]
    content = json.loads((out / "portrait.json").read_text())
    assert content["photos"][0]["name"] == "eileen.png"
    assert len(content["photos"][0]["camera"]) == 25
    assert {"styles", "photo"} <= set(content["inversion"]["losses"])
    assert {"start", "styles", "tuning", "reprojection"} <= set(content["inversion"]["seconds"])
    assert content["inversion"]["warnings"] == portrait.report["warnings"]
    assert COMPARISON in content["files"]
    assert (out / "portrait.safetensors").stat().st_size < 12e6


def test_the_comparison_shows_the_photo_and_the_portrait_from_its_camera(written):
    sheet = np.asarray(Image.open(written[1] / COMPARISON)).astype(int)
    label = sheet.shape[0] - 256
    photo, same = (sheet[label:, start : start + 256] for start in (0, 256))
    assert sheet.shape[1] == 10 * 256
    assert photo.std() > 30
    # untrained weights show next to nothing, so what is like the photo are its own pixels
    assert np.corrcoef(photo.ravel(), same.ravel())[0, 1] > 0.2


def test_the_file_makes_the_portrait_again(written, tiny_weights):
    portrait, out = written
    again = Portrait.load(out / "portrait.safetensors", weights=tiny_weights)
    assert again.render(yaw=30.0).tobytes() == portrait.render(yaw=30.0).tobytes()


def test_generate_takes_the_file(written, tiny_weights, tmp_path):
    out = written[1]
    words = ["--portrait", str(out / "portrait.safetensors"), "--weights", str(tiny_weights), "--out", str(tmp_path)]
    assert main(["generate", *words, "--no-video", "--no-mesh"]) == 0
    for name in ("views.png", "portrait.safetensors"):
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes()


def test_a_failing_inversion_leaves_no_folder(tiny_weights, tmp_path):
    with pytest.raises(InputError, match="no photo at"):
        invert([tmp_path / "none.jpg"], tmp_path / "a" / "b", weights=tiny_weights)
    assert list(tmp_path.iterdir()) == []


def test_the_model_inverts_without_progress(photo, tiny_weights, capsys):
    person = p3.PortraitModel.from_pretrained(tiny_weights).invert(photo, fast=True, progress=False)
    assert person.report["losses"].keys() == {"photo"}
    assert capsys.readouterr() == ("", "")


def test_heads_without_shoulders_and_discriminator_take_photos_too(photo, tmp_path):
    """As PanoHead's converted weights are; the mesh of untrained ones would be empty."""
    torch.manual_seed(0)
    weights = tmp_path / "head.safetensors"
    save_weights(weights, TINY_HEAD.model, Generator(TINY_HEAD.model), None, {})
    portrait = invert([photo], tmp_path / "out", weights=weights, steps=3, video=False, mesh=False, progress=False)
    again = Portrait.load(tmp_path / "out" / "portrait.safetensors", weights=weights)
    assert again.record.photos == portrait.record.photos
    np.testing.assert_array_equal(np.asarray(again.render(yaw=20)), np.asarray(portrait.render(yaw=20)))
    assert np.asarray(Image.open(tmp_path / "out" / COMPARISON)).shape[1] == 10 * 256
