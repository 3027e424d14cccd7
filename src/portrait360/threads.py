"""One number of threads for torch and the compiled kernels, from the first operation on."""

from __future__ import annotations

import numba
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
