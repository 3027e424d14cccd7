"""Make a small dataset of plain files, train on it for a few steps, and render from what was trained.

The images are rendered from the packaged model, with the camera, body pose and mask that training needs. A few steps
teach nothing to speak of: the example shows the files and the calls. `--kimg 200` (hours) gives heads.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import portrait360 as p3


def write_dataset(folder: Path, people: int, views: int, side: int) -> None:
    """Images, masks and labels in the layout of EG3D: [name, 25 camera numbers and 6 of the body pose]."""
    model = p3.PortraitModel.from_pretrained()
    random = np.random.default_rng(0)
    labels = []
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for seed in range(people):
        person = model.sample(seed)
        for view in range(views):
            # A camera all around, and a small turn of neck and head (radians)
            camera = p3.Camera(yaw=random.uniform(-180, 180), pitch=random.uniform(-15, 15)).label
            pose = torch.from_numpy(random.normal(0, 0.1, 6)).float()
            out = person.render_tensors(camera, pose, resolution=side)

            # Bytes: images come in [-1, 1], masks in [0, 1]
            image = ((out.image[0].permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).byte().numpy()
            mask = (out.mask[0, 0] * 255).round().clamp(0, 255).byte().numpy()
            file = f"{seed:04d}_{view}.png"
            Image.fromarray(image).save(folder / "images" / file)
            Image.fromarray(mask).save(folder / "masks" / file)
            labels.append([f"images/{file}", [*camera.tolist(), *pose.tolist()]])
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/03_train_tiny"))
    parser.add_argument("--people", type=int, default=16)
    parser.add_argument("--kimg", type=float, default=0.064)
    options = parser.parse_args()

    write_dataset(options.out / "data", options.people, views=4, side=64)
    p3.train(
        options.out / "data",
        preset="cpu-64",
        out=options.out / "run",
        kimg=options.kimg,
        batch=8,
        zoom_probability=0.0,  # centre crops want images larger than the model's
        device="cpu",
        progress=False,
    )
    person = p3.PortraitModel.from_pretrained(options.out / "run").sample(seed=0)
    person.views(4, size=64).save(options.out / "views.png")
    print(f"data, run and views.png in {options.out}")


if __name__ == "__main__":
    main()
