"""`portrait360 evaluate` as a whole, with small networks."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from portrait360.cli.main import main
from portrait360.evaluation.evaluate import evaluate
from portrait360.evaluation.geometry import NOTHING, against_bodies, geometry_measures
from portrait360.evaluation.measures import MEASURES
from portrait360.evaluation.plan import Plan
from portrait360.evaluation.samples import RealImages
from portrait360.geometry.cameras import SECTORS
from portrait360.types import DatasetError, InputError
from support.fake_portraits import write_fake_dataset

PLAN = Plan(images=20, pairs=3, meshes=1, faces=8)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> Path:
    """A cache of its own, in which no synthetic parts are installed."""
    monkeypatch.setenv("PORTRAIT360_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "held.zip"
    write_fake_dataset(path, count=44, resolution=128, coarse=True)
    return path


def measured(data, out, tiny_weights, tiny_encoder, **options):
    return evaluate(
        data, out, weights=tiny_weights, encoder=tiny_encoder, plan=PLAN, device="cpu", progress=False, **options
    )


def test_everything_is_measured(data, tmp_path, tiny_weights, tiny_encoder, own_cache, capsys):
    out = tmp_path / "m.json"
    result = measured(data, out, tiny_weights, tiny_encoder)
    assert json.loads(out.read_text()) == result
    found = result["measures"]
    absent = {name for name in MEASURES if name not in found}
    # no Inception, images too small for faces; an untrained model may have no head to measure
    faces = {name for name, about in MEASURES.items() if about.group == "faces"}
    assert faces <= absent
    assert {name for name in absent - faces if "inception" not in name} <= {"back_of_head", "head_depth", "head_width",
                                                                             "floating_matter"}  # fmt: skip
    assert "256 pixels" in result["missing"]["faces"]
    assert list(found) == [name for name in MEASURES if name in found]
    for name, record in found.items():
        assert math.isfinite(record["value"]), name
        assert record["spread"] >= 0
    assert found["frechet"]["floor"] == found["frechet_random"]["floor"]
    assert found["coarse_neck_error_real"]["floor"] is None
    assert found["identity_similarity"]["floor"] is None
    assert set(result["sectors"]) == set(SECTORS)
    assert "consistency floor" in result["missing"]
    assert result["about"]["pictures"] == 20
    with Image.open(out.with_suffix(".png")) as sheet:
        assert sheet.width > 1000
    text = capsys.readouterr().out
    for name in found:
        assert MEASURES[name].title in text
    assert list((own_cache / "evaluation").iterdir())


@pytest.mark.slow
def test_the_cache_changes_nothing(data, tmp_path, tiny_weights, tiny_encoder, own_cache, monkeypatch):
    first = measured(data, tmp_path / "a.json", tiny_weights, tiny_encoder)
    (cached,) = (own_cache / "evaluation").iterdir()
    cached_encodings = []
    predict = RealImages.predict
    monkeypatch.setattr(
        RealImages,
        "predict",
        lambda self, rows, predictors, advance, known=None: (
            cached_encodings.append(known) or predict(self, rows, predictors, advance, known)
        ),
    )
    second = measured(data, tmp_path / "b.json", tiny_weights, tiny_encoder)
    assert second["measures"] == first["measures"]
    assert cached_encodings[0] is not None
    cached.write_bytes(b"broken")
    third = measured(data, tmp_path / "c.json", tiny_weights, tiny_encoder)
    assert third["measures"] == first["measures"]
    assert cached_encodings[1] is None
    assert cached.stat().st_size > 1000


@pytest.mark.slow
def test_other_data_are_not_taken_from_the_cache(data, tmp_path, tiny_weights, tiny_encoder, own_cache):
    measured(data, tmp_path / "a.json", tiny_weights, tiny_encoder)
    other = tmp_path / "other.zip"
    write_fake_dataset(other, count=45, resolution=64, coarse=True)
    measured(other, tmp_path / "b.json", tiny_weights, tiny_encoder)
    assert len(list((own_cache / "evaluation").iterdir())) == 2


def test_labels_without_exact_poses(tmp_path, tiny_weights, tiny_encoder):
    path = tmp_path / "d.zip"
    write_fake_dataset(tmp_path / "exact.zip", count=44, resolution=32)
    with zipfile.ZipFile(tmp_path / "exact.zip") as exact, zipfile.ZipFile(path, "w") as estimated:
        for name in exact.namelist():
            content = exact.read(name)
            estimated.writestr(name, content.replace(b'"exact"', b'"estimated"') if name == "meta.json" else content)
    result = measured(path, tmp_path / "m.json", tiny_weights, tiny_encoder)
    assert "d_neck_error_real" not in result["measures"]
    assert "d_neck_error" in result["measures"]
    assert "frechet_head" not in result["measures"]
    assert {"frechet_head", "frechet_face"} <= set(result["missing"])


def test_a_model_without_matter_has_no_head():
    values, bodies = geometry_measures(against_bodies([NOTHING]))
    assert values == {"whole_meshes": 0.0}
    assert set(bodies) == {"back_of_head", "head_depth", "head_width"}


@pytest.mark.parametrize(("count", "resolution", "message"), [(10, 64, "at least 40"), (44, 16, "makes 32")])
def test_unfit_data_are_refused(tmp_path, tiny_weights, tiny_encoder, count, resolution, message):
    path = tmp_path / "d.zip"
    write_fake_dataset(path, count=count, resolution=resolution)
    with pytest.raises(DatasetError, match=message):
        measured(path, tmp_path / "m.json", tiny_weights, tiny_encoder)
    assert not (tmp_path / "m.json").exists()


def test_the_output_is_a_json_file(data, tmp_path, tiny_weights, tiny_encoder):
    with pytest.raises(InputError, match="json"):
        measured(data, tmp_path / "m.txt", tiny_weights, tiny_encoder)
    (tmp_path / "m.png").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        measured(data, tmp_path / "m.json", tiny_weights, tiny_encoder)


def test_a_place_that_cannot_be_written_is_found_before_the_work(tmp_path, tiny_weights, tiny_encoder):
    """Before even the data are looked for."""
    with pytest.raises(InputError, match="no file at /proc/m.json"):
        measured(tmp_path / "missing.zip", Path("/proc/m.json"), tiny_weights, tiny_encoder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--data nothing.zip --out m.json", "no dataset"),
        ("--data {data} --out m.json --weights nothing.safetensors", "no weights file"),
        ("--data {data} --out m.json --encoder nothing.safetensors", "no weights file"),
        ("--data {data} --out m.json --inception nothing.pth", "nothing.pth"),
        ("--data {data} --out m.json --device meta", "'meta'"),
        ("--data {data} --out m.yaml", ".json"),
    ],
)
def test_bad_input_gets_a_sentence(data, tmp_path, tiny_encoder, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    encoder = [] if "--encoder" in arguments else ["--encoder", str(tiny_encoder)]
    assert main(["evaluate", *arguments.format(data=data).split(), *encoder]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert "hint: " in error
    assert not list(tmp_path.glob("m.*"))


def test_a_missing_flag_is_named(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "--data", "nothing.zip"])
    assert stop.value.code == 2
    assert "--out" in capsys.readouterr().err
