"""Kernels leave the number of threads alone, so that results do not depend on what ran before."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import torch
from portrait360.geometry.body import load_body
from portrait360.geometry.deformation import deformation_field
from portrait360.threads import settle_threads

settle_threads({argument})
before = torch.get_num_threads()
deformation_field(load_body(), torch.full((1, 6), 0.1))
print(before, torch.get_num_threads())
"""


@pytest.mark.parametrize(("argument", "expected"), [("", "1 1"), ("2", "2 2")])
def test_thread_count_survives_the_first_kernel(argument, expected):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "2"}
    command = [sys.executable, "-c", PROGRAM.format(argument=argument)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == expected
