"""Whether kernels for GPUs may be used: each is compared with its readable twin on a GPU before its first use there."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

LARGEST_DISAGREEMENT = 1e-2
"""Relative; kernels that are right stay far below it, also with TF32 products in their twin."""


def compare(device: torch.device | str, disagreement: Callable[[torch.device | str], float]) -> float:
    """Result of `disagreement` with gradients, in float32 and with random state restored, whatever modes are on
    around the call."""
    place = torch.device(device)
    own = [place] if place.type == "cuda" else []
    with (
        torch.random.fork_rng(own),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(place.type, enabled=False),
    ):
        return disagreement(device)


def agrees(what: str, device: torch.device | str, disagreement: Callable[[torch.device | str], float]) -> bool:
    """Whether a kernel runs on a GPU and its `disagreement` with its twin there is small; a warning says why not.

    Without Triton, none does, silently.
    """
    try:
        error = compare(device, disagreement)
    except ImportError:
        return False
    except Exception as failure:  # whatever a compiler or driver may raise: the readable twin does the same
        warnings.warn(f"no fused {what} on {device}: {type(failure).__name__}: {failure}"[:300], stacklevel=2)
        return False
    if not error < LARGEST_DISAGREEMENT:
        warnings.warn(f"no fused {what} on {device}: it differs from the plain one by {error:.1e}", stacklevel=2)
        return False
    return True
