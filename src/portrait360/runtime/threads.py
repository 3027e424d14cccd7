"""How this process computes: one number of threads for torch and the compiled kernels, and no denormal numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numba
import numpy as np
import torch
from numba.core import config


def settle_threads(count: int | None = None) -> None:
    """Let torch, its libraries and numba's kernels use `count` threads (default: as many as torch has now).

    Numba starts its OpenMP pool at its first parallel kernel and sets the process's thread count to its own. With
    OMP_NUM_THREADS=1, say, sums of matrix products would then be split differently from that moment on and end in
    other last bits: a resumed run would not repeat an unbroken one. So the pool is started here and the count put back.
    """
    threads = torch.get_num_threads() if count is None else count
    numba.set_num_threads(min(threads, int(vars(config)["NUMBA_NUM_THREADS"])))
    torch.set_num_threads(threads)


@contextlib.contextmanager
def denormals_flushed() -> Iterator[None]:
    """Take numbers too small for their type as zero in this thread (x86 and ARM), also as a decorator.

    Behind dense matter, gradients of colours shrink with every sample until they are denormal, and an x86 core takes a
    hundred cycles for an operation on one: the convolutions that get them are up to five times slower.
    """
    for kind in ("float32", "float64"):
        np.finfo(kind)  # numpy finds its limits at the first look, and would warn about flushed ones
    before = torch.tensor(1e-39).mul(1.0).item() == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
