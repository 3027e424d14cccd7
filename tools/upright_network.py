"""The network that tells which way up a photo is, trained on synthetic portraits.

python -m tools.upright_network train.zip --out src/portrait360/assets/upright.safetensors
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from jaxtyping import Float, Int
from torch import Tensor

from portrait360.data.dataset import PortraitDataset
from portrait360.photos.upright import SIDE, TURNS, UprightNetwork, save_upright
from portrait360.runtime.process import settle_process
from portrait360.runtime.progress import show_progress
from portrait360.runtime.script import run_script

_KEPT = 128
"""Side at which portraits are kept in memory."""
_BATCH = 64
_RATE = 2e-3
_HELD_OUT = 0.1


def crops(
    images: Float[Tensor, "N 4 K K"], rows: Int[Tensor, " B"], turns: Int[Tensor, " B"], draws: torch.Generator
) -> Float[Tensor, "B 3 S S"]:
    """Crops as detectors may cut them, turned by quarters clockwise, in other colours.

    Many of them stand before another one in any turn, or before a plain colour: a floor must not tell what is below.

    Args:
        images: colours in [-1, 1], and opacity of the person.
        rows, turns: which ones, and how they lie.
        draws: all random numbers.
    """
    count = len(rows)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=draws)

    # Where
    angle = uniform(-0.3, 0.3) - turns * (math.pi / 2.0)
    size, mirror = uniform(0.5, 1.3), torch.where(uniform(0.0, 1.0) < 0.5, -1.0, 1.0)
    cos, sin = angle.cos() * size, angle.sin() * size
    shift = uniform(-0.2, 0.2, 2)
    affine = torch.stack(
        [torch.stack([cos * mirror, -sin * mirror, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1
    )
    grid = F.affine_grid(affine, [count, 3, SIDE, SIDE], align_corners=False)
    shown, mask = F.grid_sample(images[rows], grid, padding_mode="reflection", align_corners=False).split((3, 1), dim=1)
    others = F.interpolate(images[torch.randint(len(images), (count,), generator=draws), :3], size=(SIDE, SIDE))
    lying = torch.stack(
        [
            other.rot90(int(k), (1, 2))
            for other, k in zip(others, torch.randint(4, (count,), generator=draws), strict=True)
        ]
    )
    plain = uniform(-0.8, 0.8, 3, 1, 1).expand_as(lying)
    lying = torch.where(uniform(0.0, 1.0, 1, 1, 1) < 0.4, plain, lying)
    changed = (uniform(0.0, 1.0, 1, 1, 1) < 0.6).float()
    found = shown * (1.0 - changed) + changed * (shown * mask + lying * (1.0 - mask))

    # Colours
    grey = found.mean(dim=1, keepdim=True).expand_as(found)
    found = torch.where(uniform(0.0, 1.0, 1, 1, 1) < 0.25, grey, found)
    found = torch.where(uniform(0.0, 1.0, 1, 1, 1) < 0.25, found.flip(1), found)
    found = found * uniform(0.6, 1.3, 3, 1, 1) + uniform(-0.25, 0.25, 3, 1, 1)
    found = found + uniform(0.0, 0.08, 1, 1, 1) * torch.randn(found.shape, generator=draws)
    return found.clamp(-1.0, 1.0)


def accuracy(network: UprightNetwork, images: Tensor, draws: torch.Generator) -> float:
    """Share of right answers on all images in all turns."""
    right = total = 0
    with torch.no_grad():
        for rows in torch.arange(len(images)).split(_BATCH):
            for turn in range(len(TURNS)):
                turns = torch.full((len(rows),), turn)
                right += int((network(crops(images, rows, turns, draws)).argmax(dim=1) == turns).sum())
                total += len(rows)
    return right / total


def main(data: tyro.conf.Positional[Path], out: Path, steps: int = 4000, seed: int = 0) -> None:
    """Write the network.

    Args:
        data: synthetic portraits with backgrounds, of 128 pixels or more.
        out: the .safetensors file.
        steps: of training.
        seed: of its random numbers.
    """
    # Portraits, some of them held out
    settle_process()
    pixels, masks = PortraitDataset(data).load_arrays(_KEPT)
    images = torch.cat([pixels.float() / 127.5 - 1.0, masks.float() / 255.0], dim=1)
    held = round(_HELD_OUT * len(images))
    draws = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    network = UprightNetwork()
    optimizer = torch.optim.AdamW(network.parameters(), lr=_RATE, weight_decay=0.02)

    # Training
    with show_progress("training", steps, "steps") as bar:
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = _RATE * 0.5 * (1.0 + math.cos(math.pi * step / steps))
            rows = held + torch.randint(len(images) - held, (_BATCH,), generator=draws)
            turns = torch.randint(len(TURNS), (_BATCH,), generator=draws)
            loss = F.cross_entropy(network(crops(images, rows, turns, draws)), turns)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            bar.advance(1)
    save_upright(out, network)
    print(f"{out}  right for {accuracy(network, images[:held], draws):.4f} of {held} held-out people")


if __name__ == "__main__":
    run_script(main)
