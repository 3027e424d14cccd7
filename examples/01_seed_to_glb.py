"""Make a person from a seed: an image of eight views, and a mesh for Blender or a game engine (person.glb)."""

from __future__ import annotations

import argparse
from pathlib import Path

import portrait360 as p3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/01_seed_to_glb"))
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--size", type=int, default=256)
    options = parser.parse_args()

    model = p3.PortraitModel.from_pretrained()
    person = model.sample(options.seed, truncation=0.7)

    options.out.mkdir(parents=True, exist_ok=True)
    person.views(8, size=options.size).save(options.out / "views.png")
    person.mesh().save(options.out / "person.glb")
    print(f"{person}: views.png and person.glb in {options.out}")


if __name__ == "__main__":
    main()
