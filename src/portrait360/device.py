"""Where networks run."""

from __future__ import annotations

import torch

from portrait360.types import InputError


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
        raise InputError("this machine has no usable CUDA GPU.", "Use --device cpu.")
    return device
