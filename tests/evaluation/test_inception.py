"""The Inception network of FID: its shape, its pools, and files of weights that are read without running anything."""

from __future__ import annotations

import os
import struct
import sys
import zipfile

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from portrait360.evaluation.inception import MOST_BYTES, Inception, load_inception
from portrait360.types import CheckpointError
from support.hostile import CANARY, HARM, Reduce, dumps, files

HOSTILE = files()


@pytest.fixture(scope="module")
def network() -> Inception:
    """Random weights and random averages, so that no two tensors could change places unseen."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Inception().eval().requires_grad_(False)
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight)
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return network


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def features(network, images) -> torch.Tensor:
    return network(images)


def tiny_state() -> dict[str, torch.Tensor]:
    """Tensors of the right names, all of one number: small, and wrong in shape only."""
    with torch.device("meta"):
        names = Inception().state_dict()
    return {name: torch.zeros(1) for name in names}


# ---- the network ----


def test_parameters_and_tensors_are_those_of_the_published_network():
    """94 convolutions of 5 tensors (6 with the counts of batches) and the classifier.

    Keras' InceptionV3, whose normalisation has no scale, states 21,802,784 numbers without the classifier.
    """
    with torch.device("meta"):
        network = Inception()
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert len(shapes) == 94 * 6 + 2
    assert sum(not name.endswith("num_batches_tracked") for name in shapes) == 94 * 5 + 2
    parameters = sum(p.numel() for p in network.parameters())
    assert parameters == 23_850_960
    scales = sum(p.numel() for name, p in network.named_parameters() if name.endswith("bn.weight"))
    averages = sum(b.numel() for name, b in network.named_buffers() if "running" in name)
    assert parameters - 1008 * 2049 - scales + averages == 21_802_784
    for name, shape in {
        "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
        "Conv2d_4a_3x3.bn.running_var": (192,),
        "Mixed_5b.branch5x5_2.conv.weight": (64, 48, 5, 5),
        "Mixed_5d.branch_pool.conv.weight": (64, 288, 1, 1),
        "Mixed_6a.branch3x3dbl_3.conv.weight": (96, 96, 3, 3),
        "Mixed_6c.branch7x7dbl_2.conv.weight": (160, 160, 7, 1),
        "Mixed_6e.branch7x7_2.conv.weight": (192, 192, 1, 7),
        "Mixed_7a.branch7x7x3_4.bn.bias": (192,),
        "Mixed_7b.branch1x1.conv.weight": (320, 1280, 1, 1),
        "Mixed_7c.branch3x3dbl_3b.conv.weight": (384, 384, 3, 1),
        "fc.weight": (1008, 2048),
        "fc.bias": (1008,),
    }.items():
        assert shapes[name] == shape, name


def test_features_are_2048_finite_numbers_of_each_image_alone(network, images, features):
    assert features.shape == (2, 2048)
    assert torch.isfinite(features).all()
    assert (features[0] - features[1]).abs().max() > 1e-3
    torch.testing.assert_close(network(images[1:]), features[1:], rtol=1e-4, atol=1e-4)


def test_images_are_enlarged_bilinearly_from_pixel_centres(network, images, features):
    """Pixel i of 299 reads (i + 0.5) / 299 * 40 - 0.5, between the two nearest pixels, not beyond the border."""
    place = ((torch.arange(299) + 0.5) / 299 * 40 - 0.5).clamp(0, 39)
    low = place.floor().long().clamp(max=38)
    share = place - low
    rows = images[:, :, low] * (1 - share)[:, None] + images[:, :, low + 1] * share[:, None]
    enlarged = rows[..., low] * (1 - share) + rows[..., low + 1] * share
    torch.testing.assert_close(network(enlarged), features, rtol=1e-3, atol=1e-3)


def pooled_input(block: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What the convolution behind a block's pool gets."""
    seen = []
    handle = block.branch_pool.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    block(x)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize(
    ("name", "width", "side"), [("Mixed_5b", 192, 9), ("Mixed_5d", 288, 9), ("Mixed_6c", 768, 9), ("Mixed_7b", 1280, 8)]
)
def test_mean_pools_leave_the_padding_out(network, name, width, side):
    x = torch.rand(1, width, side, side)
    pooled = pooled_input(getattr(network, name), x)
    assert pooled[0, :, 0, 0] == pytest.approx(x[0, :, :2, :2].mean(dim=(1, 2)))
    assert pooled[0, :, 3, side - 1] == pytest.approx(x[0, :, 2:5, -2:].mean(dim=(1, 2)))
    assert pooled[0, :, 4, 4] == pytest.approx(x[0, :, 3:6, 3:6].mean(dim=(1, 2)))


def test_the_last_block_pools_by_the_maximum(network):
    x = -0.1 - torch.rand(1, 2048, 8, 8)
    assert torch.equal(pooled_input(network.Mixed_7c, x), F.max_pool2d(x, 3, stride=1, padding=1))
    assert pooled_input(network.Mixed_7c, x).max() < 0  # the padding is not a 0


def test_normalisation_has_the_epsilon_of_the_published_network(network):
    assert {m.eps for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {0.001}


# ---- files ----


@pytest.mark.parametrize("form", ["whole", "without counts", "half"])
def test_a_file_gives_the_same_features(form, network, images, features, tmp_path):
    path = tmp_path / "weights.safetensors"
    state = network.state_dict()
    if form == "without counts":
        state = {k: v for k, v in state.items() if "num_batches" not in k}
    elif form == "half":
        state = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    save_file(state, path)
    loaded = load_inception(path)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    if form == "half":
        torch.testing.assert_close(loaded.fc.weight, network.fc.weight, rtol=1e-3, atol=1e-4)
        return
    for name, value in loaded.state_dict().items():
        if "num_batches" not in name:
            assert torch.equal(value, state[name]), name
    assert torch.equal(loaded(images), features)


def refused(path, *words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_inception(path)
    assert str(path) in caught.value.message
    assert caught.value.hint
    for word in words:
        assert word in caught.value.message


@pytest.mark.parametrize("container", ["plain", "zip"])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_and_never_run(name, container, tmp_path, monkeypatch):
    def forbidden(*arguments, **_):
        raise AssertionError(f"the file ran something: {arguments}")

    path = tmp_path / "weights.safetensors"
    if container == "plain":
        path.write_bytes(HOSTILE[name]())
    else:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("archive/data.pkl", HOSTILE[name]())
            file.writestr("archive/byteorder", "little")
            file.writestr("archive/data/0", b"\0" * 16)
    monkeypatch.delenv(CANARY, raising=False)
    for function in ("system", "popen"):
        monkeypatch.setattr(os, function, forbidden)
    before = set(sys.modules)
    refused(path, "not a readable .safetensors file")
    assert CANARY not in os.environ
    assert set(sys.modules) - before == set()
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("new", [True, False])
def test_files_of_torch_save_are_refused_with_how_to_convert_them(new, tmp_path, monkeypatch):
    monkeypatch.delenv(CANARY, raising=False)
    path = tmp_path / "weights.pth"
    for content in (tiny_state(), {**tiny_state(), "extra": Reduce(exec, HARM)}, torch.nn.Linear(2, 2), torch.zeros(3)):
        torch.save(content, path, _use_new_zipfile_serialization=new)
        refused(path, "not a readable .safetensors file")
        assert CANARY not in os.environ
    with pytest.raises(CheckpointError) as caught:
        load_inception(path)
    assert "weights_only=True" in caught.value.hint


def test_programs_are_refused(tmp_path):
    path = tmp_path / "weights.pt"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("net/data.pkl", dumps({}))
        file.writestr("net/constants.pkl", dumps(()))
        file.writestr("net/code/__torch__.py", "class Net: ...")
    refused(path, "not a readable .safetensors file")


def test_wrong_tensors_are_named(tmp_path):
    path = tmp_path / "weights.safetensors"
    state = tiny_state()
    save_file(state, path)
    refused(path, "is [1], expected [")
    del state["Mixed_6c.branch7x7_2.bn.running_mean"]
    save_file(state, path)
    refused(path, "lacks", "Mixed_6c.branch7x7_2.bn.running_mean", "1 in all")
    save_file({"AuxLogits.fc.weight": torch.zeros(1), **tiny_state()}, path)
    refused(path, "unknown", "AuxLogits.fc.weight")


def test_the_classifier_of_another_inception_is_refused(network, tmp_path):
    """ImageNet's Inception in other libraries has the same names, with 1000 classes."""
    path = tmp_path / "weights.safetensors"
    save_file({**network.state_dict(), "fc.weight": torch.zeros(1000, 2048)}, path)
    refused(path, "fc.weight", "[1000, 2048]", "[1008, 2048]")
    save_file({**network.state_dict(), "fc.bias": torch.full((1008,), float("nan"))}, path)
    refused(path, "fc.bias", "not finite")


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(tiny_state(), path)
    whole = path.read_bytes()
    refused(path, "is [1], expected [")  # read as far as the shapes
    for part in (0.02, 0.3, 0.6, 0.999):
        path.write_bytes(whole[: int(len(whole) * part)])
        refused(path, "no file of Inception weights")
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes(255 - b for b in whole[middle : middle + 64]) + whole[middle + 64 :])
    refused(path)


def test_missing_empty_and_oversized_files_are_refused(tmp_path):
    refused(tmp_path / "nothing.safetensors", "there is no file")
    path = tmp_path / "weights.safetensors"
    for content in (b"", b"\x80", b"PK\x03\x04", struct.pack("<Q", 2**60) + b"{}"):
        path.write_bytes(content)
        refused(path)
    with path.open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    refused(path, "larger than 256 MiB")
