"""Matting and quality networks of the user's."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from portrait360.encoder.files import load_encoder
from portrait360.photos.matte import MattingModel
from portrait360.photos.networks import QualityModel, UserMatting, UserQuality, load_quality_model, save_quality_model
from portrait360.photos.user_files import open_user_file
from portrait360.types import CheckpointError, InputError
from support import onnx_files as onnx

SIDE = 12
IMAGE = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def file(folder: Path, content: bytes, name: str = "net.onnx"):
    return open_user_file(onnx.write(folder / name, content), "network")


def test_the_opacity_is_the_network_s(tmp_path):
    matting = UserMatting(file(tmp_path, onnx.channel_network([0.0, 1.0, 0.0])), SIDE)
    assert isinstance(matting, MattingModel)
    matting.check()
    found = matting(IMAGE)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, IMAGE[..., 1] / 255.0, atol=1e-6)


@pytest.mark.parametrize("axes", [[0], [0, 1]])
def test_leading_ones_may_be_missing(tmp_path, axes):
    nodes = [onnx.node("ReduceMean", ["image"], ["m"], onnx.attribute("axes", [1]))]
    nodes.append(onnx.node("Squeeze", ["m", "axes"], ["out"]))
    ends = [onnx.value("image", [1, 3, "s", "s"])], [onnx.value("out", ["a", "b", "c"][len(axes) - 1 :])]
    content = onnx.model(onnx.graph(nodes, *ends, [onnx.tensor("axes", np.array(axes, np.int64))]))
    matting = UserMatting(file(tmp_path, content), SIDE)
    matting.check()
    np.testing.assert_allclose(matting(IMAGE), IMAGE.mean(axis=2) / 255.0, atol=1e-6)


def test_an_opacity_of_another_side_is_resized(tmp_path):
    """A network that takes 32 pixels gets an image of 12 as 32, and its answer comes back as 12."""
    image = np.zeros((12, 12, 3), np.uint8)
    image[:, 6:] = 255
    found = UserMatting(file(tmp_path, onnx.channel_network(side=32)), SIDE)(image)
    assert found.shape == (12, 12)
    assert found[:, :4].max() < 0.05
    assert found[:, 8:].min() > 0.95


def test_a_network_with_a_free_side_sees_only_the_side_it_was_tried_with(tmp_path):
    """Networks that shrink images by halves fail for odd sides; crops with more around them have any."""
    pooled = onnx.model(
        onnx.graph(
            [
                onnx.node("SpaceToDepth", ["image"], ["small"], onnx.attribute("blocksize", 4)),
                onnx.node("ReduceMean", ["small"], ["out"], onnx.attribute("axes", [1])),
            ],
            [onnx.value("image", [1, 3, "s", "s"])],
            [onnx.value("out", [1, 1, "t", "t"])],
        )
    )
    matting = UserMatting(file(tmp_path, pooled), SIDE)
    matting.check()
    np.testing.assert_allclose(matting(np.full((17, 17, 3), 51, np.uint8)), np.full((17, 17), 0.2), atol=1e-6)
    with pytest.raises(InputError, match="fails for an image of 17 pixels"):
        UserMatting(file(tmp_path, pooled), 17).check()


def test_what_is_no_number_is_nobody_and_the_rest_is_from_0_to_1(tmp_path):
    root = onnx.model(
        onnx.graph(
            [onnx.node("Conv", ["image", "w", "b"], ["c"]), onnx.node("Sqrt", ["c"], ["out"])],
            [onnx.value("image", [1, 3, "s", "s"])],
            [onnx.value("out", [1, 1, "s", "s"])],
            [
                onnx.tensor("w", np.array([8.0, 0.0, 0.0], np.float32)[None, :, None, None]),
                onnx.tensor("b", np.array([-1.0], np.float32)),
            ],
        )
    )
    found = UserMatting(file(tmp_path, root), SIDE)(IMAGE)
    expected = np.clip(np.sqrt(np.clip(IMAGE[..., 0] / 255.0 * 8.0 - 1.0, 0.0, None)), 0.0, 1.0)
    assert (expected == 0.0).any()
    assert (expected == 1.0).any()
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (onnx.channel_network([30.0, 0.0, 0.0], bias=-12.0), "numbers from -12 to 18; expected opacities"),
        (onnx.channel_network([0.5, 0.0, 0.0], bias=-0.2), "numbers from -0.2 to 0.3"),
        (onnx.mean_network(), r"gives \[1, 1, 1, 1\]; expected the opacity"),
        (onnx.image_network("Identity"), r"gives \[1, 3, 12, 12\]; expected the opacity"),
        (onnx.image_network("Flatten", rank=2), r"gives \[1, 432\]; expected the opacity"),
        (onnx.identity_with([onnx.node("Leak", ["image"], ["x"], domain="evil")]), "not ONNX's own"),
    ],
)
def test_networks_that_give_no_opacity(tmp_path, content, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        UserMatting(file(tmp_path, content), SIDE).check()
    assert caught.value.hint


def test_a_matting_network_is_onnx(tmp_path):
    with pytest.raises(InputError, match="must be an ONNX file"):
        UserMatting(file(tmp_path, onnx.channel_network(), "net.pth"), SIDE).check()


def test_the_mark_is_the_network_s(tmp_path):
    quality = UserQuality(file(tmp_path, onnx.mean_network()), SIDE)
    assert isinstance(quality, QualityModel)
    quality.check()
    assert quality(IMAGE) == pytest.approx(IMAGE.mean() / 255.0, abs=1e-5)


def test_layers_on_the_encoder_s_features_give_marks_too(tmp_path):
    sizes = load_encoder()[0].config.features, 4, 1
    weights = [torch.randn(o, i, generator=torch.Generator().manual_seed(i)) for i, o in itertools.pairwise(sizes)]
    path = tmp_path / "quality.safetensors"
    save_quality_model(path, weights, [torch.zeros(o) for o in sizes[1:]])
    quality = UserQuality(open_user_file(path, "network"), SIDE)
    quality.check()
    assert quality(IMAGE) == load_quality_model(path)(IMAGE)


def test_networks_that_give_no_mark(tmp_path):
    with pytest.raises(InputError, match=r"gives \[1, 1, 12, 12\]; expected one number"):
        UserQuality(file(tmp_path, onnx.channel_network()), SIDE).check()
    with pytest.raises(CheckpointError, match="not a readable safetensors"):
        UserQuality(file(tmp_path, b"hello", "net.safetensors"), SIDE).check()
    with pytest.raises(InputError, match="not an ONNX network"):
        UserQuality(file(tmp_path, b"hello", "NET.ONNX"), SIDE).check()


@pytest.mark.parametrize("kind", [UserMatting, UserQuality])
def test_networks_travel_between_processes_and_stay_the_same(tmp_path, kind):
    content = onnx.channel_network() if kind is UserMatting else onnx.mean_network()
    network = kind(file(tmp_path, content), 12)
    before = network(IMAGE)
    again = pickle.loads(pickle.dumps(network))
    assert len(pickle.dumps(network)) < 1000  # a path, not the network
    assert (again(IMAGE) == before).all() if kind is UserMatting else again(IMAGE) == before
    (tmp_path / "net.onnx").write_bytes(content + onnx.field(2, "someone else"))
    late = pickle.loads(pickle.dumps(network))
    with pytest.raises(InputError, match="has changed since the work began"):
        late(IMAGE)
