"""Ways to damage a good file: each writes `bad`, made of `good`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch


def cut(good: Path, bad: Path) -> None:
    bad.write_bytes(good.read_bytes()[:-1000])


def head_only(good: Path, bad: Path) -> None:
    bad.write_bytes(good.read_bytes()[:20])


def nothing(good: Path, bad: Path) -> None:
    bad.write_bytes(b"")


def noise(good: Path, bad: Path) -> None:
    bad.write_bytes(np.random.default_rng(0).bytes(5000))


def folder(good: Path, bad: Path) -> None:
    bad.mkdir()


def pickled(good: Path, bad: Path) -> None:
    torch.save({"G_ema": torch.zeros(3)}, bad)
