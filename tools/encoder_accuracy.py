"""Errors of the portrait encoder against exact labels, and its predictions for photos.

portrait360 dataset synth --count 1200 --resolution 128 --seed 20003 --views 4 --out persons.zip
python -m tools.encoder_accuracy persons.zip --out encoder.json --photos a.jpg --sheet a.png
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from portrait360.data.dataset import PortraitDataset
from portrait360.data.overlay import draw_body
from portrait360.encoder.augment import PhotoBatch, PhotoRanges, photo_batch, untouched_batch
from portrait360.encoder.batches import EncoderData
from portrait360.encoder.files import load_encoder
from portrait360.encoder.network import CameraEstimate, Encoded, PortraitEncoder, resample
from portrait360.evaluation.measures import angle_between, rotation_errors
from portrait360.evaluation.metrics import retrieval_top1
from portrait360.geometry.body import load_body
from portrait360.geometry.cameras import SECTORS, yaw_sector
from portrait360.media.images import to_bytes
from portrait360.media.sheets import captioned, tiled
from portrait360.runtime.files import atomic_write, write_json
from portrait360.runtime.precision import processor_name
from portrait360.runtime.process import settle_process
from portrait360.runtime.script import run_script
from portrait360.types import InputError

PEOPLE = 200
COVERED, FREE, NOTICED = 0.15, 0.01, 0.08
"""Hidden shares of a person: large, negligible, and the estimate above which a person counts as covered."""
_OUTLINE = (235, 45, 150)
_SIDE = 256


def outline_overlap(predicted: Float[Tensor, "N 1 H W"], true: Float[Tensor, "N 1 H W"]) -> Float[Tensor, " N"]:
    """Intersection over union of two masks, cut at a half."""
    a, b = (m.flatten(1) > 0.5 for m in (predicted, true))
    return (a & b).sum(1) / (a | b).sum(1).clamp_min(1)


def sector_table(
    encoded: Encoded, camera: CameraEstimate, poses: Float[Tensor, "N 6"], masks: Float[Tensor, "N 1 R R"]
) -> dict[str, dict[str, float | int]]:
    """Per sector of yaw, and for `all`: median errors in degrees (scale in per cent, offset in per cent of the side),
    and the mean overlap of the mask."""
    # Errors of every image.
    rotations = rotation_errors(encoded.body_pose, poses).rad2deg()
    columns = {
        "yaw": angle_between(encoded.camera.yaw, camera.yaw).rad2deg(),
        "pitch": (encoded.camera.pitch - camera.pitch).abs().rad2deg(),
        "roll": (encoded.camera.roll - camera.roll).abs().rad2deg(),
        "scale": 100.0 * (encoded.camera.scale / camera.scale).log().abs(),
        "offset": 100.0 * (encoded.camera.offset - camera.offset).norm(dim=1),
        "neck": rotations[:, 0],
        "head": rotations[:, 1],
    }

    # Their medians by sector.
    overlap = outline_overlap(encoded.mask(masks.shape[-1]), masks)
    sectors = yaw_sector(camera.yaw)
    out = {}
    for name in (*SECTORS, "all"):
        rows = sectors == SECTORS.index(name) if name in SECTORS else torch.ones(len(sectors), dtype=torch.bool)
        if rows.any():
            out[name] = {"pictures": int(rows.sum())}
            out[name] |= {key: round(value[rows].median().item(), 2) for key, value in columns.items()}
            out[name]["overlap"] = round(overlap[rows].mean().item(), 4)
    return out


def retrieval(identity: Float[Tensor, "N I"], yaw: Float[Tensor, " N"], views: int, people: int = PEOPLE) -> float:
    """Share of persons found again among `people`: per person, the two images whose yaws differ the most."""
    count = min(people, len(identity) // views)
    embeddings, angles = (v[: count * views].unflatten(0, (count, views)) for v in (identity, yaw))
    grid = torch.broadcast_tensors(angles[:, :, None], angles[:, None, :])
    best = angle_between(grid[0].flatten(), grid[1].flatten()).reshape(count, -1).argmax(1)
    first, second = best // views, best % views
    rows = torch.arange(count)
    return retrieval_top1(embeddings[rows, first].numpy(), embeddings[rows, second].numpy())


def measure_encoder(data: Path, encoder_file: Path | None = None) -> dict[str, Any]:
    """Accuracy on images as datasets have them (`plain`; encoded together with their mirror images, as `evaluate` does:
    `both_ways`) and changed to look like photos (`photo_like`).

    Raises:
        DatasetError: the dataset has no exact labels or one image of each person.
    """
    # Network and data, as they are and like photos.
    encoder, info = load_encoder(encoder_file)
    content = EncoderData.load(data, encoder.config.resolution)
    meta = PortraitDataset(data).meta
    plain, photos = _plain(content), _photo_like(content)
    result: dict[str, Any] = {
        "about": {"machine": processor_name(), "data": data.name, "seed": meta.get("seed"),
                  "pictures": len(content.images), "people": min(PEOPLE, len(content.images) // content.views),
                  "encoder": info["sha256"], "trained": info["about"]}
    }  # fmt: skip

    # Errors of every way to encode.
    ways = {"plain": encoder.encode, "both_ways": encoder.encode_both_ways, "photo_like": encoder.encode}
    for name, encode in ways.items():
        images, masks, camera = photos if name == "photo_like" else plain
        encoded = encode(images)
        result[name] = {
            "sectors": sector_table(encoded, camera, content.body_poses, masks),
            "retrieval": retrieval(encoded.identity, camera.yaw, content.views),
        }
    if encoder.config.sees_covers:
        result["covers"] = cover_table(*_covered(encoder, content))
    return result


def cover_table(encoded: Float[Tensor, " N"], hidden: Float[Tensor, " N"]) -> dict[str, float | int]:
    """Errors of the predicted shares of persons that objects hide: of those with over COVERED hidden, and of those with
    less than FREE, the per cent that are taken for covered, by an estimate of over NOTICED."""
    covered, free = hidden > COVERED, hidden < FREE
    return {
        "covered": int(covered.sum()),
        "noticed": round(100.0 * (encoded[covered] > NOTICED).float().mean().item(), 1),
        "free": int(free.sum()),
        "false_alarms": round(100.0 * (encoded[free] > NOTICED).float().mean().item(), 1),
        "error": round(100.0 * (encoded - hidden).abs().mean().item(), 1),
    }


def _covered(encoder: PortraitEncoder, content: EncoderData) -> tuple[Tensor, Tensor]:
    """Predicted and true hidden shares of images half of which have objects in front."""
    parts = _photos(content, 1, PhotoRanges(thing=0.5))
    encoded = encoder.encode(torch.cat([part.image for part in parts])).covered
    assert encoded is not None
    return encoded, torch.cat([part.covered for part in parts])


def _plain(content: EncoderData) -> tuple[Tensor, Tensor, CameraEstimate]:
    batch = untouched_batch(content.images, content.masks, content.cameras)
    return batch.image, batch.mask, batch.camera


def _photo_like(content: EncoderData) -> tuple[Tensor, Tensor, CameraEstimate]:
    parts = _photos(content, 0, PhotoRanges())
    cameras = [part.camera for part in parts]
    joined = [torch.cat([getattr(c, k) for c in cameras]) for k in ("yaw", "pitch", "roll", "scale", "offset")]
    return torch.cat([p.image for p in parts]), torch.cat([p.mask for p in parts]), CameraEstimate(*joined)


def _photos(content: EncoderData, seed: int, ranges: PhotoRanges) -> list[PhotoBatch]:
    """All images changed to look like photos, 64 at a time."""
    draws = torch.Generator().manual_seed(seed)
    parts = [slice(i, i + 64) for i in range(0, len(content.images), 64)]
    return [photo_batch(content.images[p], content.masks[p], content.cameras[p], draws, ranges) for p in parts]


# ---- photos ----


def align(
    encoder: PortraitEncoder,
    photo: Float[Tensor, "3 H W"],
    rounds: int = 1,
    start: tuple[float, float, float] | None = None,
) -> tuple[Float[Tensor, "1 3 R R"], Encoded]:
    """The datasets' crop of a photo: predict the camera, crop by it, and predict again.

    Starts with the square `start` (centre and half side in pixels), else with one around the centre of the photo's
    upper part, somewhat larger than its shorter side, as heads are larger in most portraits than in the datasets. More
    rounds only help where the encoder is sure: elsewhere errors add up. Returns the last crop and its
    encoding.
    """
    # The first crop.
    side = min(photo.shape[1:])
    x, y, half = (photo.shape[2] / 2.0, 0.45 * side, 0.63 * side) if start is None else start
    centre, roll = torch.tensor([x, y]), torch.zeros(())
    crop = _cut(photo, centre, half, roll, 2 * encoder.config.resolution)

    # Crop again by what is predicted.
    for _ in range(rounds):
        encoded = encoder.encode(crop)
        camera = encoded.camera
        # the plain crop's centre lies at the offset, its side is 1 / scale's worth smaller or larger
        c, s = roll.cos(), roll.sin()
        shift = 2.0 * half * camera.offset[0]
        centre = centre + torch.stack([c * shift[0] - s * shift[1], s * shift[0] + c * shift[1]])
        roll = roll - camera.roll[0]
        half = half * float(camera.scale[0].clamp(0.5, 2.0))
        crop = _cut(photo, centre, half, roll, 2 * encoder.config.resolution)
    return crop, encoder.encode(crop)


def _cut(photo: Tensor, centre: Tensor, half: float, roll: Tensor, side: int) -> Float[Tensor, "1 3 S S"]:
    """A square of the photo turned by `roll`; outside of the photo, its border."""
    steps = (torch.arange(side) + 0.5) / side * 2.0 - 1.0
    v, u = torch.meshgrid(steps, steps, indexing="ij")
    x = centre[0] + half * (roll.cos() * u - roll.sin() * v)
    y = centre[1] + half * (roll.sin() * u + roll.cos() * v)
    size = torch.tensor([photo.shape[2], photo.shape[1]])
    grid = torch.stack([x, y], dim=-1) / size * 2.0 - 1.0
    shrink = max(1, round(2.0 * half / side))  # first averaged down, so that nothing is skipped
    source = F.avg_pool2d(photo[None], shrink, ceil_mode=True) if shrink > 1 else photo[None]
    return F.grid_sample(source, grid[None], padding_mode="border", align_corners=False)


def read_photo(path: Path) -> Float[Tensor, "3 H W"]:
    """A photo, upright, in [-1, 1].

    Raises:
        InputError: not an image.
    """
    try:
        with Image.open(path, formats=("JPEG", "PNG", "WEBP")) as image:
            pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{path} is not a readable image ({error}).", "Give JPEG, PNG or WebP.") from error
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1.0


def photo_sheet(encoder: PortraitEncoder, photos: Sequence[Path]) -> tuple[Image.Image, list[dict[str, Any]]]:
    """Photos with the predicted body outlined, and the predicted mask; and the predictions as numbers."""
    cells, records = [], []
    for path in photos:
        # Encode the aligned photo.
        crop, encoded = align(encoder, read_photo(path))
        camera = encoded.camera
        shown = resample(crop, _SIDE)[0]
        mask = encoded.mask(_SIDE)[0]

        # Outline the body, and dim what is not the person.
        image = Image.fromarray(_bytes(shown))
        outlined = np.asarray(draw_body(image, load_body(), camera.label()[0], encoded.body_pose[0], _OUTLINE))
        dimmed = shown * mask + (1.0 - mask) * (0.25 * shown + 0.75)

        # Note the numbers, and put the three images beside each other.
        pose = encoded.body_pose[0].rad2deg().round().int().tolist()
        records.append({
            "photo": path.name,
            "yaw": round(math.degrees(camera.yaw.item()), 1),
            "pitch": round(math.degrees(camera.pitch.item()), 1),
            "roll": round(math.degrees(camera.roll.item()), 1),
            "neck": pose[:3],
            "head": pose[3:],
            "blur": round(encoded.blur.item(), 2),
        })  # fmt: skip
        text = f"yaw {records[-1]['yaw']:.0f}, pitch {records[-1]['pitch']:.0f}"
        for pixels in (_bytes(shown), outlined, _bytes(dimmed)):
            cells.append(captioned(pixels, _SIDE, text))
    return tiled(cells, 3), records


def _bytes(image: Float[Tensor, "3 H W"]) -> UInt8[np.ndarray, "H W 3"]:
    return to_bytes(image[None])[0]


def main(
    data: Annotated[Path, tyro.conf.Positional],
    out: Path,
    encoder: Path | None = None,
    photos: tuple[Path, ...] = (),
    sheet: Path | None = None,
) -> None:
    """Write errors (.json) of the portrait encoder on held-out portraits, and a sheet of its predictions for photos."""
    settle_process()
    result = measure_encoder(data, encoder)
    if photos:
        image, result["photos"] = photo_sheet(load_encoder(encoder)[0], photos)
        if sheet is not None:
            with atomic_write(sheet) as temporary:
                image.save(temporary)
    write_json(out, result)


if __name__ == "__main__":
    run_script(main)
