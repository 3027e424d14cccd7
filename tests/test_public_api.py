"""The names that users import: complete, typed, documented, and quick to import."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import portrait360

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "numba", "numpy", "scipy", "PIL", "av", "rich", "tyro", "skimage")


def test_importing_loads_nothing_heavy_and_takes_no_time():
    code = f"""
import sys, time
start = time.perf_counter()
import portrait360
print(time.perf_counter() - start)
print([name for name in {HEAVY} if name in sys.modules])
"""
    results = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in "123"]
    times, loaded = zip(*(result.stdout.splitlines() for result in results), strict=True)
    assert min(map(float, times)) < 0.1
    assert set(loaded) == {"[]"}


def test_stub_and_module_have_the_same_names():
    tree = ast.parse(Path(portrait360.__file__).with_suffix(".pyi").read_text())
    stub = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            stub |= {alias.asname: node.module for alias in node.names}
    assert {*stub, "__version__"} == set(portrait360.__all__)
    for name, module in stub.items():
        assert getattr(portrait360, name).__module__ == module


@pytest.mark.parametrize("name", portrait360.__all__)
def test_every_name_is_documented(name):
    if name != "__version__":
        assert inspect.getdoc(getattr(portrait360, name))


def test_other_names_are_refused():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = portrait360.nothing
    assert "Portrait" in dir(portrait360)


@pytest.mark.slow
def test_the_python_of_the_page_runs(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "api.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/api.md", "exec"), {})
    assert {path.name for path in tmp_path.iterdir()} >= {"ada.png", "ada.glb", "ada"}
