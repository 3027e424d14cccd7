"""Change one person into another, step by step, by interpolating their styles w (interpolation.png)."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image

import portrait360 as p3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/06_interpolate"))
    parser.add_argument("--seeds", type=int, nargs=2, default=(3, 4))
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--size", type=int, default=128)
    options = parser.parse_args()

    model = p3.PortraitModel.from_pretrained()
    first, second = (model.sample(seed).w for seed in options.seeds)
    sheet = Image.new("RGB", (options.steps * options.size, 2 * options.size))
    for step in range(options.steps):
        person = model.synthesize(torch.lerp(first, second, step / (options.steps - 1)))
        for row, yaw in enumerate((0, 60)):
            sheet.paste(person.render(yaw=yaw, size=options.size), (step * options.size, row * options.size))

    options.out.mkdir(parents=True, exist_ok=True)
    sheet.save(options.out / "interpolation.png")
    print(f"{options.steps} people on {options.out / 'interpolation.png'}")


if __name__ == "__main__":
    main()
