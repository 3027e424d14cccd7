"""Kernels leave the number of threads alone, so that results do not depend on what ran before."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from portrait360.runtime.threads import denormals_flushed

PROGRAM = """
import torch
from portrait360.geometry.body import load_body
from portrait360.geometry.deformation import deformation_field
from portrait360.runtime.threads import settle_threads

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


def test_denormal_numbers_are_zero_inside_and_numbers_outside():
    tiny = torch.full((4,), 1e-39)

    @denormals_flushed()
    def halved() -> torch.Tensor:
        return tiny * 0.5

    assert (halved() == 0).all()
    assert (tiny * 0.5 > 0).all()
    with denormals_flushed():
        with denormals_flushed():
            pass
        assert (tiny * 0.5 == 0).all()
    assert (tiny * 0.5 > 0).all()
