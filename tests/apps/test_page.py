"""Pages of portraits, seeds and the model, and what is refused."""

from __future__ import annotations

import json
import re

import pytest

from portrait360.apps.page import MOST_PORTRAITS, model_page, portrait_page, seeds_page
from portrait360.cli.main import main
from portrait360.portrait.model import PortraitModel
from portrait360.types import CheckpointError, InputError


def payload_of(path) -> dict:
    text = path.read_text(encoding="utf-8")
    return json.loads(re.findall(r'id="payload">(.*?)</script>', text, re.DOTALL)[0])


def test_a_page_of_a_portrait_file(shown_weights, tmp_path):
    person = PortraitModel.from_pretrained(shown_weights).sample(5)
    person.save(tmp_path, video=False, mesh=False, size=64)
    out = tmp_path / "page.html"
    assert (
        main(["page", str(tmp_path / "portrait.safetensors"), "--out", str(out), "--weights", str(shown_weights)]) == 0
    )
    (portrait,) = payload_of(out)["portraits"]
    assert portrait["name"] == "Seed 5"


def test_a_page_of_several_seeds(shown_weights, tmp_path, capsys):
    out = tmp_path / "page.html"
    assert main(["page", "--seeds", "2,4", "--out", str(out), "--weights", str(shown_weights)]) == 0
    assert [portrait["name"] for portrait in payload_of(out)["portraits"]] == ["Seed 2", "Seed 4"]
    assert re.search(r"page\.html {2}\d\.\d MB: open it in a browser", capsys.readouterr().out)


def test_a_page_of_the_model(tmp_path):
    out = model_page(tmp_path / "model.html")
    payload = payload_of(out)
    assert out.stat().st_size <= 6_000_000
    assert payload["generator"]["mapping"]["zDim"] > 0
    assert payload["portraits"] == []


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("", "give one of them"),
        ("--seeds 0 --model", "give one of them"),
        ("p.safetensors --seeds 0", "give one of them"),
        ("--model --with-mesh", "has no mesh"),
        ("--seeds 3-1", "runs backwards"),
        ("--seeds 0 --truncation-psi 2", "--truncation-psi"),
        (f"--seeds 0-{MOST_PORTRAITS}", f"at most {MOST_PORTRAITS} portraits"),
        ("nothing.safetensors", "no portrait file"),
    ],
)
def test_what_is_refused(flags, expected, tmp_path, capsys):
    out = tmp_path / "page.html"
    assert main(["page", *flags.split(), "--out", str(out)]) == 2
    assert expected in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_models_that_a_page_cannot_render_are_refused(tiny_weights, tmp_path):
    out = tmp_path / "page.html"
    with pytest.raises(InputError, match="cannot render tiny"):
        seeds_page([0], out, weights=tiny_weights)
    with pytest.raises(InputError, match="cannot render tiny"):
        model_page(out, weights=tiny_weights)
    assert not out.exists()


def test_a_portrait_of_other_weights_is_refused(shown_weights, tiny_weights, tmp_path):
    PortraitModel.from_pretrained(shown_weights).sample(0).save(tmp_path, video=False, mesh=False, size=64)
    with pytest.raises(CheckpointError, match="other weights"):
        portrait_page(tmp_path / "portrait.safetensors", tmp_path / "page.html", weights=tiny_weights)
