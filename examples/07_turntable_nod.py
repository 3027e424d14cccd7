"""Animate a person: the camera goes around while the head nods and turns, as a GIF for a web page (nod.gif)."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import portrait360 as p3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/07_turntable_nod"))
    parser.add_argument("--seed", type=int, default=22)
    parser.add_argument("--frames", type=int, default=36)
    parser.add_argument("--size", type=int, default=192)
    options = parser.parse_args()

    person = p3.PortraitModel.from_pretrained().sample(options.seed)
    frames = []
    for number in range(options.frames):
        phase = 2 * math.pi * number / options.frames
        head = (15 * math.sin(2 * phase), 20 * math.sin(phase), 0)
        frames.append(person.render(yaw=60 * math.sin(phase), head=head, size=options.size))

    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "nod.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=60, loop=0)
    print(f"{options.frames} frames in {path}")


if __name__ == "__main__":
    main()
