"""Where networks run."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from portrait360.types import InputError


def constant(values: tuple[Any, ...], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A small tensor of these numbers on the device of `like` (and of its type), made once and not to be changed.

    Making one anew would wait for all that a GPU still has to do.
    """
    return _constant(values, like.device, dtype or like.dtype)


@lru_cache(maxsize=512)
def _constant(values: tuple[Any, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(values, device=device, dtype=dtype)


def choose_device(name: str) -> torch.device:
    """The device of a name: cpu, cuda, cuda:1, or auto for the GPU if there is one.

    Raises:
        InputError: no such device, or none that this machine has.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"{name!r} is not a device.", "Use cpu, cuda or cuda:0.") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"networks do not run on {name!r} here.", "Use cpu, cuda or cuda:0.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("this machine has no usable CUDA GPU.", "Try `device=cpu`.")
    return device
