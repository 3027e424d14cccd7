"""The page's JavaScript passes eslint's recommended rules, and only names what browsers have."""

from __future__ import annotations

import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

import pytest

GLOBALS = """
AbortController atob Blob clearTimeout console createImageBitmap crypto DecompressionStream devicePixelRatio document
Event fetch Image ImageData Option performance requestAnimationFrame ResizeObserver Response setTimeout URL
URLSearchParams
""".split()
CONFIG = """
import js from "@eslint/js";
export default [
  js.configs.recommended,
  {
    languageOptions: { globals: Object.fromEntries(NAMES.map((name) => [name, "readonly"])) },
    rules: { eqeqeq: "error", "no-var": "error", "prefer-const": ["error", { destructuring: "all" }] },
  },
];
"""


@pytest.mark.slow
def test_eslint_finds_nothing(tmp_path):
    npm = shutil.which("npm")
    assert npm, "this test needs npm: apt-get install npm"
    shutil.copytree(Path(str(files("portrait360.viewer"))) / "web", tmp_path / "web")
    (tmp_path / "eslint.config.mjs").write_text(CONFIG.replace("NAMES", str(GLOBALS)))
    packages = ["eslint@9", "@eslint/js@9"]
    for command in (
        [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", *packages],
        [str(tmp_path / "node_modules" / ".bin" / "eslint"), "--max-warnings", "0", "web"],
    ):
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
