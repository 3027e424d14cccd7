"""The networks agree with numbers that the published code computed, and the comparison sees it when they do not.

`golden_a_part.npz` holds a part of a small golden file: without the weights of the discriminator's pose branch, whose
stored poses stand in; `golden_*_a.npz` are whole, at the released sizes, pose branch included.
"""

from __future__ import annotations

import io
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from portrait360.model.generator import Generator
from portrait360.model.rendering import Rendered
from portrait360.runtime.memory import keep_freed_memory
from portrait360.types import InputError
from support.presets import TINY_ORIGINAL
from tools import stages
from tools.comparison import LOGIT, PLAIN, Comparison, Slack, Tolerance, rows_table, stages_table
from tools.family_stages import compare_full_size_relative
from tools.golden import Golden, full_size_networks, named_tensor, parse_part, read_golden
from tools.parity import compare, main
from tools.stages import compare_full_size

FOLDER = Path(__file__).parent / "golden"
PART = FOLDER / "golden_a_part.npz"
STAGES_OF_PART = {
    "left or right view", "pose branch of G", "mapping", "tri-grid", "background", "decoder: densities",
    "decoder: features", "sampling distances", "marcher: coarse weights", "importance samples of golden weights",
    "importance samples in a render", "marcher: features", "marcher: depth", "marcher: opacity", "composited features",
    "background image", "raw image", "raw image, overwritten (7.5)", "image", "mask", "depth",
    "background of another style", "deformation: faces that take part", "deformation: nearest triangle",
    "deformation: golden triangles", "deformed render: importance samples", "deformed render: features",
    "deformed render: depth", "deformed render: mask", "deformed render: raw image", "D: features", "D: logits",
    "R1 penalties", "R1 gradient at the image", "D: loss", "D on generated images", "G: loss",
    "G: norms of gradients", "G: no gradient",
}  # fmt: skip
# predicted by the branch that is left out
POSES = {"out/D_single0/pose_from_mirrored_input", "out/D_single1/pose_from_mirrored_input"}


@pytest.fixture(scope="module", autouse=True)
def _fast_memory():
    keep_freed_memory()


@pytest.mark.slow
def test_every_stage_of_the_small_file_agrees():
    result = compare(PART)
    assert {row.stage for row in result.rows} == STAGES_OF_PART
    assert set(result.not_compared) == POSES
    assert len([name for name in read_golden(PART).names() if name.startswith("out/")]) == 73
    wrong = [row for row in result.rows if not row.ok]
    assert not wrong, rows_table(wrong)


def without(path: Path, prefix: str) -> Golden:
    """A file's arrays but for some outputs, to spare time."""
    with np.load(path) as file:
        return Golden(path, {name: file[name] for name in file.files if not name.startswith(prefix)})


@pytest.mark.slow
def test_released_sizes_agree():
    """Both sizes share all weights up to super-resolution: one tri-grid serves for both."""
    scene = None
    for resolution, left_out, side in ((512, "out/nrr128/", 64), (256, "out/nrr64/", 128)):
        file = without(FOLDER / f"golden_{resolution}_a.npz", left_out)
        comparison = Comparison(file)
        with torch.enable_grad():
            scene = compare_full_size(comparison, full_size_networks(file, "a"), scene)
        arrays = {row.array for row in comparison.rows}
        at = f"nrr{side}/"
        images = {at + name for name in ("image", "image_centre32", "raw_before_sr", "depth", "mask")}
        assert arrays == images | {"G_pose", "ws", "planes", "D_is_left", "D_logits", "D_pose"}
        assert file.unused() == []
        wrong = [row for row in comparison.rows if not row.ok]
        assert not wrong, rows_table(wrong)


STAGES_OF_RELATIVES = {
    "mapping", "tri-grid", "background", "lookup", "decoder: densities", "decoder: features", "sampling distances",
    "marcher: coarse weights", "importance samples of golden weights", "importance samples in a render",
    "marcher: features", "composited features", "raw image", "raw image, overwritten (7.5)", "mask", "depth",
    "module forward",
}  # fmt: skip
OWN_STAGES = {
    "panohead": {
        "camera translation", "labels", "tri-grid of distinct rows", "background of distinct rows",
        "lookup with one slice", "marcher", "rays", "background of another style", "rays that begin nearer",
    },
    "pyramid": {
        "pose branch of G", "roll-out", "flat images of distinct rows", "tri-grids of distinct rows",
        "background image", "rays in chunks",
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("family", OWN_STAGES)
def test_every_stage_of_the_relatives_agrees(family):
    """Without super-resolution, whose weights are left out of these files: it is the original's."""
    result = compare(FOLDER / f"{family}_small_part.npz")
    assert {row.stage for row in result.rows} == STAGES_OF_RELATIVES | OWN_STAGES[family]
    assert result.not_compared == []
    wrong = [row for row in result.rows if not row.ok]
    assert not wrong, rows_table(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("family", OWN_STAGES)
def test_released_sizes_of_the_relatives_agree(family):
    file = without(FOLDER / f"{family}_512_a.npz", "out/nrr128/")
    comparison = Comparison(file)
    compare_full_size_relative(comparison, full_size_networks(file, "a"))
    assert file.unused() == []
    assert {"image", "tri-grid", "raw image", "background"} <= {row.stage for row in comparison.rows}
    wrong = [row for row in comparison.rows if not row.ok]
    assert not wrong, rows_table(wrong)


# ---- the comparison itself ----


def golden(**arrays: np.ndarray) -> Golden:
    return Golden(Path("made.npz"), {f"out/{name}": array for name, array in arrays.items()})


def test_a_row_says_how_far_and_where_it_is_right():
    comparison = Comparison(golden(a=np.zeros((2, 3), np.float32)))
    value = torch.zeros(2, 3)
    value[0, 1] = 3e-6
    comparison.check("first", "a", value, PLAIN)
    comparison.check("second", "a", value, LOGIT)
    comparison.check("third", "a", value, Tolerance(1e-5, mean=1e-7))
    comparison.check("shape", "a", torch.zeros(3, 2), PLAIN)
    comparison.check("nan", "a", value * torch.nan, PLAIN)
    comparison.check("absent", "b", value, PLAIN)
    assert [(row.stage, row.ok) for row in comparison.rows] == [
        ("first", True), ("second", False), ("third", False), ("shape", False), ("nan", False),
    ]  # fmt: skip
    assert comparison.rows[0].max_error == pytest.approx(3e-6)
    assert comparison.rows[0].mean_error == pytest.approx(5e-7)
    assert "**3.0e-06**" in stages_table(comparison.rows)
    assert "too far" in rows_table(comparison.rows)


def test_slack_excuses_only_the_values_it_names():
    allowed = torch.tensor([[torch.inf], [0.0]])
    for hit, ok in ((0, True), (1, False)):
        comparison = Comparison(golden(a=np.zeros((2, 3), np.float32)))
        value = torch.zeros(2, 3)
        value[hit, 2] = 1.0
        comparison.check("stage", "a", value, PLAIN, slack=Slack(allowed, "because"))
        (row,) = comparison.rows
        assert row.ok == ok
        assert row.max_error == 1.0
        assert row.note == "1 of 6 values are farther away: because"
        assert ("- made.npz, `a`: 1.0e+00; 1 of 6" in stages_table([row])) == ok


def test_depth_slack_is_one_step_of_an_alpha():
    """A ray of opacity A whose alpha moves by 6e-8 at the far end moves its mean distance by 6e-8 / A of the length."""
    model = Generator(TINY_ORIGINAL.model)
    opacity = torch.tensor([[[1e-6], [0.0], [1.0]]])
    slack = stages.depth_slack(model, Rendered(opacity, opacity, opacity), torch.zeros(1, 3, 1))
    torch.testing.assert_close(slack[0, :, 0], torch.tensor([2.0**-24 / 1e-6 * 1.05, 0.0, 2.0**-24 * 1.05]))


def test_stored_parts_apply_to_the_last_axes():
    assert parse_part("") == ()
    assert parse_part("::4,1::2") == (slice(None, None, 4), slice(1, None, 2))
    whole = torch.arange(2 * 8 * 8, dtype=torch.float32).reshape(2, 1, 8, 8)
    made = Golden(Path("made.npz"), {"out/x[1::4,::2]": whole[:, :, 1::4, ::2].numpy()})
    comparison = Comparison(made)
    comparison.check("stage", "x", whole, PLAIN)
    comparison.check("implied", "x", whole.repeat_interleave(2, dim=2), PLAIN, part=parse_part("::2,:"))
    assert [row.ok for row in comparison.rows] == [True, True]
    assert comparison.rows[0].max_error == 0.0
    assert made.unused() == []
    leading = Golden(Path("made.npz"), {"out/x[:, :, 1::4]": whole[:, :, 1::4].numpy()})
    comparison = Comparison(leading)
    comparison.check("stage", "x", whole, PLAIN)
    assert [row.ok for row in comparison.rows] == [True]


@pytest.mark.parametrize(
    ("name", "scale", "shift"),
    [
        ("G/backbone.synthesis.b8.conv0.weight", 1, 0),
        ("G/backbone.synthesis.b8.conv0.noise_strength", 0.1, 0),
        ("G/backbone.synthesis.b8.conv0.affine.bias", 0.1, 1),
        ("G/backbone.mapping.w_avg", 0.3, 0),
        ("G/backbone.mapping.fc0.weight", 100, 0),
        ("G/t_mapping.fc0.weight", 1, 0),
        ("G/t_mapping.fc1.weight", 0.03, 0),
        ("G/t_mapping.w_avg", 0.009, 0),
        ("G/backbone.synthesis.b3d8.block.torgb.weight", 0.4, 0),
        ("D/mapping.fc3.weight", 100, 0),
        ("D/mapping.fc3.bias", 10, 0),
        ("D/mapping.embed.bias", 0.1, 0),
        ("D/b4.out.bias", 0.1, 0),
    ],
)
def test_weights_made_from_names(name, scale, shift):
    shape = () if name.endswith("strength") else (3, 2)
    for salt in ("a", "other"):
        drawn = np.random.RandomState(zlib.crc32((salt + name).encode())).standard_normal(shape)
        expected = torch.as_tensor(drawn * scale + shift, dtype=torch.float32)
        torch.testing.assert_close(named_tensor(name, shape, salt), expected)
    assert not torch.equal(named_tensor(name, shape, "a"), named_tensor(name, shape, "b"))


def test_the_density_row_is_scaled():
    rows = named_tensor("G/decoder.net.2.weight", (3, 4), "a")
    drawn = np.random.RandomState(zlib.crc32(b"aG/decoder.net.2.weight")).standard_normal((3, 4))
    torch.testing.assert_close(rows, torch.as_tensor(drawn * [[16], [1], [1]], dtype=torch.float32))


# ---- the command, and files that are none ----


def write(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **{name.replace("__", "/"): array for name, array in arrays.items()})
    return path


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda p: None, "there is no file at"),
        (lambda p: p.write_bytes(b""), "is not a readable .npz file"),
        (lambda p: p.write_bytes(b"PK\x03\x04 and no more"), "is not a readable .npz file"),
        (lambda p: p.write_bytes(npy(np.zeros(3))), "is not a readable .npz file"),
        (lambda p: np.savez(p, a=np.zeros(3)), "holds no golden numbers"),
        (lambda p: np.savez(p, **{"out/a": np.array([{}], dtype=object)}), "is not a readable .npz file"),
        (lambda p: write(p, out__z=np.zeros(3)), "lacks the array meta_json"),
        (lambda p: write(p, out__z=np.zeros(3), meta_json=np.zeros(3, np.uint8)), "is not JSON"),
        (lambda p: write(p, out__z=np.zeros(3), meta_json=np.frombuffer(b"{}", np.uint8)), "of another kind"),
        (lambda p: write(p, in__z=np.zeros(3), out__ws=np.zeros(3)), "has no images"),
        (lambda p: write(p, in__z=np.zeros(3), out__nrr64__image=np.zeros((1, 3, 8, 8))), "of side 8"),
        (lambda p: np.savez(p, **{"out/a[x:2]": np.zeros(3)}), "cannot be read"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_compared(make, sentence, tmp_path, capsys):
    path = tmp_path / "golden.npz"
    make(path)
    assert main([str(path), "--out", str(tmp_path / "table.json")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[1].startswith("error: ")
    assert sentence in lines[1]
    assert lines[2].startswith("hint: ")
    assert not (tmp_path / "table.json").exists()


def test_tensors_of_other_networks_are_named(tmp_path):
    with np.load(PART) as file:
        arrays = {name: file[name] for name in file.files}
    del arrays["G/torgb.bias"]
    np.savez(tmp_path / "g.npz", **arrays)
    with pytest.raises(InputError, match=r"tensor G/torgb.bias is missing"):
        compare(tmp_path / "g.npz")


def test_the_command_reports_what_differs(tmp_path, capsys, monkeypatch):
    """A wrong output, and one that nobody compares, give exit status 1; every row is in the JSON file."""

    def few(comparison, networks):
        comparison.check("first", "a", torch.ones(2), PLAIN)

    monkeypatch.setattr("tools.parity.compare_small", few)
    monkeypatch.setattr("tools.parity.small_networks", lambda golden: None)
    good, bad = tmp_path / "good.npz", tmp_path / "bad.npz"
    write(good, out__a=np.ones(2))
    write(bad, out__a=np.ones(2) * 1.5, out__b=np.ones(1))
    assert main([str(good)]) == 0
    assert main([str(good), str(bad), "--all", "--out", str(tmp_path / "table.json")]) == 1
    printed = capsys.readouterr().out
    assert "bad.npz: not compared: out/b" in printed
    assert "| bad.npz | first | `a` | 2 | 5.0e-01 |" in printed
    content = json.loads((tmp_path / "table.json").read_text())
    assert [(row["file"], row["ok"]) for row in content["rows"]] == [("good.npz", True), ("bad.npz", False)]
    assert content["not_compared"] == ["out/b"]
