"""Which of float32 and bf16 convolutions to train with on this machine.

Processors differ: with bf16 matrix units (Intel AMX, AMD Zen 4) bf16 convolutions take half the time of float32 ones,
on others with bf16 instructions they take twice as long. So it is measured, once per run and machine.
"""

from __future__ import annotations

import platform
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from portrait360.config import ModelConfig

MIN_GAIN = 1.2
"""bf16 is chosen when it is at least so many times faster; between equals the exact one wins."""


def processor_name() -> str:
    """Name of this machine's processor, and which of its bf16 instructions may be used: virtual machines differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name, flags = (
            next(line.split(":", 1)[1].strip() for line in lines if line.startswith(key))
            for key in ("model name", "flags")
        )
        units = sorted(set(flags.split()) & {"amx_bf16", "avx512_bf16"})
        return f"{name} ({', '.join(units)})" if units else name
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@torch.no_grad()
def convolution_seconds(dtype: torch.dtype, repeats: int = 6) -> float:
    """Shortest wall time of a typical 3x3 convolution on the CPU."""
    x = torch.zeros(8, 64, 32, 32, dtype=dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.zeros(64, 64, 3, 3, dtype=dtype).contiguous(memory_format=torch.channels_last)
    shortest = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        F.conv2d(x, weight, padding=1)
        shortest = min(shortest, time.perf_counter() - start)
    return shortest


def worth_bf16(model: ModelConfig) -> bool:
    """Whether images of `model` should be made with bf16 convolutions on this CPU, as measured: large networks only.

    The original's networks are; at 0.3 per cent per convolution their images stay above 40 dB.
    """
    return model.synthesis.resample == "fir" and choose_bf16(True, torch.device("cpu"), {})


def choose_bf16(allowed: bool, device: torch.device, saved: dict[str, Any]) -> bool:
    """Whether to train in bf16: as the checkpoint's `saved` notes say on the same processor, else as measured.

    On a GPU, bf16 is used wherever the recipe allows it.
    """
    if not allowed or device.type != "cpu":
        return allowed
    if saved.get("processor") == processor_name():
        return bool(saved.get("bf16"))
    return convolution_seconds(torch.float32) > MIN_GAIN * convolution_seconds(torch.bfloat16)
