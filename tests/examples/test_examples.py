"""Every example runs and writes what its docstring says."""

from __future__ import annotations

import ast
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = {
    "01_seed_to_glb.py": ("--size 64", {"views.png", "person.glb"}),
    "03_train_tiny.py": ("--people 2 --kimg 0.008", {"data", "run", "views.png"}),
    "04_estimate_pose.py": ("", {"person.png", "person.json", "person.mask.png", "pose.json", "compare.png"}),
    "05_contact_sheet.py": ("--seeds 3 --columns 2 --size 64", {"sheet.png"}),
    "06_interpolate.py": ("--steps 2 --size 64", {"interpolation.png"}),
    "07_turntable_nod.py": ("--frames 3 --size 64", {"nod.gif"}),
}
NOTEBOOKS = {"02_repose.ipynb": {"poses.png"}}


def run_example(monkeypatch, name: str, options: str, out: Path) -> None:
    monkeypatch.setattr(sys, "argv", [name, *options.split(), "--out", str(out)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_every_example_is_run():
    found = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}
    assert found == {*SCRIPTS, *NOTEBOOKS}
    assert [int(name[:2]) for name in sorted(found)] == list(range(1, len(found) + 1))


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts(monkeypatch, tmp_path, name):
    options, files = SCRIPTS[name]
    assert ast.get_docstring(ast.parse((EXAMPLES / name).read_text()))
    run_example(monkeypatch, name, options, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == files
    for path in (tmp_path / "out").glob("*.png"):
        if "mask" not in path.name and "03" not in name:  # a few steps make grey images
            assert np.asarray(Image.open(path)).std() > 10


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks(monkeypatch, tmp_path, name):
    """Their code cells in order, without Jupyter; they are kept without outputs."""
    monkeypatch.chdir(tmp_path)
    content = json.loads((EXAMPLES / name).read_text())
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    names: dict[str, object] = {}
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            code = "".join(cell["source"]).replace("SIZE = 192", "SIZE = 64")
            exec(compile(code, f"{name}:{cell['id']}", "exec"), names)
    assert {path.name for path in (tmp_path / "out" / name.removesuffix(".ipynb")).iterdir()} == NOTEBOOKS[name]


@pytest.mark.slow
def test_the_estimated_pose_is_near_the_true_one(monkeypatch, tmp_path):
    run_example(monkeypatch, "04_estimate_pose.py", "", tmp_path)
    pose = json.loads((tmp_path / "pose.json").read_text())
    assert pose["yaw_degrees"] == pytest.approx(20, abs=0.1)
    turned = pose["neck_degrees"][1] + pose["head_degrees"][1]
    assert turned == pytest.approx(25, abs=12)
