"""Look for a person that you like: a contact sheet of many seeds, each with its number (sheet.png)."""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageDraw

import portrait360 as p3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/05_contact_sheet"))
    parser.add_argument("--seeds", type=int, default=24)
    parser.add_argument("--columns", type=int, default=6)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--yaws", type=float, nargs="+", default=[20.0], help="views of each person, degrees")
    options = parser.parse_args()

    model = p3.PortraitModel.from_pretrained()
    views, size = len(options.yaws), options.size
    rows = -(-options.seeds // options.columns)
    sheet = Image.new("RGB", (options.columns * views * size, rows * size), "white")
    draw = ImageDraw.Draw(sheet)
    for seed in range(options.seeds):
        row, column = divmod(seed, options.columns)
        person = model.sample(seed)
        for view, yaw in enumerate(options.yaws):
            sheet.paste(person.render(yaw=yaw, size=size), ((column * views + view) * size, row * size))
        draw.text((column * views * size + 4, row * size + 4), str(seed), fill="white")

    options.out.mkdir(parents=True, exist_ok=True)
    sheet.save(options.out / "sheet.png")
    print(f"{options.seeds} people on {options.out / 'sheet.png'}")


if __name__ == "__main__":
    main()
