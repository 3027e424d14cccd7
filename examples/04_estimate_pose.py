"""Estimate camera and body pose of the person in a photo, or compare an estimate with a known pose.

With `--photo` (and `pip install ".[photos]"`), camera and body pose are fitted to the photo. Without one, the example
renders a person whose pose it knows, writes the camera and the mask beside the image, and the body pose is predicted
from these. Writes pose.json, and compare.png: the image, and a portrait of the packaged model in the estimated pose.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from PIL import Image

import portrait360 as p3

SIDE = 256
NECK, HEAD = (8.0, 0.0, 0.0), (0.0, 25.0, 0.0)


def write_known_image(person: p3.Portrait, folder: Path) -> Path:
    """An image of a person with a turned head; beside it its mask, and its camera as JSON."""
    path = folder / "person.png"
    camera = p3.Camera(yaw=20).label
    pose = torch.deg2rad(torch.tensor([*NECK, *HEAD]))
    mask = person.render_tensors(camera, pose, resolution=SIDE).mask[0, 0]
    person.render(yaw=20, neck=NECK, head=HEAD, size=SIDE).save(path)
    Image.fromarray((mask * 255).round().clamp(0, 255).byte().numpy()).save(path.with_suffix(".mask.png"))
    path.with_suffix(".json").write_text(json.dumps({"camera": camera.tolist()}))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/04_estimate_pose"))
    parser.add_argument("--photo", type=Path, default=None)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    person = p3.PortraitModel.from_pretrained().sample(seed=7)
    image = options.photo or write_known_image(person, options.out)
    pose = p3.estimate_pose(image)
    print(pose)
    if options.photo is None:
        print(f"true neck {NECK}, head {HEAD}")

    (options.out / "pose.json").write_text(json.dumps(pose.as_json(), indent=2))
    posed = person.render(yaw=pose.yaw, pitch=pose.pitch, neck=pose.neck, head=pose.head, size=SIDE)
    sheet = Image.new("RGB", (2 * SIDE, SIDE))
    with Image.open(image) as shown:
        sheet.paste(shown.convert("RGB").resize((SIDE, SIDE)), (0, 0))
    sheet.paste(posed, (SIDE, 0))
    sheet.save(options.out / "compare.png")
    print(f"pose.json and compare.png in {options.out}")


if __name__ == "__main__":
    main()
