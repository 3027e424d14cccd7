"""Models: loaded from a file or a folder, saved without a loss, and sampled."""

from __future__ import annotations

import pytest
import torch

import portrait360 as p3
from portrait360.portrait.weights import load_weights
from portrait360.runtime.tensors import read_tensors, write_tensors


def test_a_saved_model_is_the_same_file(tiny_weights, tmp_path):
    model = p3.PortraitModel.from_pretrained(tiny_weights)
    path = model.save_pretrained(tmp_path / "my-model")
    assert path == tmp_path / "my-model" / "weights.safetensors"
    assert path.read_bytes() == tiny_weights.read_bytes()
    again = p3.PortraitModel.from_pretrained(tmp_path / "my-model")
    assert again.info.sha256 == model.info.sha256
    assert again.info.model == "tiny"


def test_a_changed_generator_is_saved_with_the_other_networks(tiny_weights, tmp_path):
    model = p3.PortraitModel.from_pretrained(tiny_weights)
    with torch.no_grad():
        model.generator.decoder.net[0].bias.add_(1.0)
    model.save_pretrained(tmp_path)
    before, after = load_weights(tiny_weights), load_weights(tmp_path)
    difference = after.generator.decoder.net[0].bias - before.generator.decoder.net[0].bias
    torch.testing.assert_close(difference, torch.ones_like(difference))
    for name, tensor in before.discriminator.state_dict().items():
        assert torch.equal(after.discriminator.state_dict()[name], tensor)


def test_a_file_that_changed_since_is_not_mixed_with(tiny_weights, tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(tiny_weights.read_bytes())
    model = p3.PortraitModel.from_pretrained(tmp_path)
    tensors, metadata = read_tensors(path)
    write_tensors(path, tensors, metadata | {"about": '{"images": 9}'})
    with pytest.raises(p3.CheckpointError, match="has changed since"):
        model.save_pretrained(tmp_path / "copy")


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(p3.CheckpointError, match="no weights file in the folder") as caught:
        p3.PortraitModel.from_pretrained(tmp_path)
    assert "weights.safetensors" in caught.value.hint


def test_a_portrait_is_no_model(tiny_weights, tmp_path):
    model = p3.PortraitModel.from_pretrained(tiny_weights)
    folder = model.sample(0).save(tmp_path, video=False, mesh=False)
    with pytest.raises(p3.CheckpointError, match="is a portrait, not weights"):
        p3.PortraitModel.from_pretrained(folder / "portrait.safetensors")


def test_a_style_makes_the_same_person_as_its_seed(tiny_weights):
    model = p3.PortraitModel.from_pretrained(tiny_weights)
    person = model.sample(3, truncation=0.5)
    assert model.synthesize(person.w).render().tobytes() == person.render().tobytes()
    average = model.sample(3, truncation=0.0)
    torch.testing.assert_close(average.w, model.average_w)
    half = model.synthesize(torch.lerp(model.average_w, person.w, 0.5))
    assert half.record.seed is None
    assert half.render().tobytes() != person.render().tobytes()


@pytest.mark.parametrize(
    ("action", "said"),
    [
        (lambda m: m.sample(-1), "`seed` must lie between 0 and 4294967295"),
        (lambda m: m.sample(2**32), "`seed` must lie between 0"),
        (lambda m: m.sample(0, truncation=1.1), "`truncation` must lie between 0 and 1, not be 1.1"),
        (lambda m: m.synthesize(torch.zeros(5)), r"`w` must be \[1, 32\], not \[5\]"),
    ],
)
def test_errors_name_parameters(tiny_weights, action, said):
    with pytest.raises(p3.InputError, match=said):
        action(p3.PortraitModel.from_pretrained(tiny_weights))
