"""What the project files promise."""

from __future__ import annotations

import ast
import itertools
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import portrait360

ROOT = Path(__file__).parents[1]


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [Requirement(line) for line in lines if line and not line.startswith("#")]
    here = [one for one in pinned if one.marker is None or one.marker.evaluate()]
    return {str(canonicalize_name(one.name)): next(iter(one.specifier)).version for one in here}


def test_every_dependency_is_pinned_to_a_version_in_its_range():
    pinned = pins()
    extras = project()["project"]["optional-dependencies"]
    assert set(extras) == {"train", "photos", "faces", "ray", "onnx", "viewer", "all", "docs", "dev"}
    for text in [*project()["project"]["dependencies"], *itertools.chain(*extras.values())]:
        requirement = Requirement(text)
        if requirement.name == "portrait360":  # an extra of extras
            assert requirement.extras <= set(extras)
            continue
        if requirement.name == "triton":  # each GPU build of torch asks for a version of its own
            assert "triton" not in pinned
            continue
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), text
    assert pinned["numpy"].startswith("1." if sys.version_info < (3, 13) else "2.")  # mediapipe 0.10.21 asks for 1


def test_the_version_is_in_one_place():
    assert project()["project"]["dynamic"] == ["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", portrait360.__version__)


def test_licence_and_notice_are_there():
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in licence
    assert "END OF TERMS AND CONDITIONS" in licence
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    for word in ("Anny", "MakeHuman", "CC0"):
        assert word in notice


def test_nothing_loads_files_that_could_execute_code():
    modules = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml"}
    calls = {"eval", "exec", "torch.load"}  # np.load refuses pickles by default
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "tools").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not modules & {name.name.split(".")[0] for name in node.names}, path
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in modules, path
            elif isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name not in calls, f"{path}: {ast.unparse(node)}"
                assert "allow_pickle=True" not in ast.unparse(node), path


def test_make_finds_a_python_and_fails_clearly_without_one(tmp_path):
    environment = {**os.environ, "PATH": f"{tmp_path}:/usr/bin:/bin"}
    for name in ("python3", "python3.11", "python3.12", "python3.13"):
        fake = tmp_path / name
        fake.write_text("#!/bin/sh\nexit 1\n")
        fake.chmod(0o755)
    command = ["make", "--no-print-directory", "demo", f"VENV={tmp_path / 'venv'}"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "Python 3.11, 3.12 or 3.13 is needed" in result.stderr
    assert not (tmp_path / "venv").exists()
    (tmp_path / "python3.12").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    result = subprocess.run(
        [*command, "--dry-run"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert "python3.12 -m venv" in result.stdout
    assert "portrait360 generate --seeds 0-3 --out out/demo" in result.stdout
