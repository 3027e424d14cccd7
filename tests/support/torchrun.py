"""Run a script in two processes that torchrun starts; it can import what is in tests/."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def torchrun(tmp_path: Path, code: str, *arguments: object, restarts: int = 0) -> None:
    script = tmp_path / "script.py"
    script.write_text(code)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--max-restarts",
        str(restarts),
        "--standalone",
        str(script),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    result = subprocess.run(
        [*command, *map(str, arguments)], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
