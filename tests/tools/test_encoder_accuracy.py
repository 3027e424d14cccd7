"""Accuracy of the portrait encoder: the numbers themselves, and the crop of photos."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from PIL import Image

from portrait360.data.writer import open_writer
from portrait360.encoder.files import load_encoder, save_encoder
from portrait360.encoder.network import CameraEstimate, Encoded, PortraitEncoder, crop_grid
from portrait360.geometry.cameras import SECTORS
from portrait360.types import InputError
from support.fake_portraits import FakeSource
from tools.encoder_accuracy import (
    align,
    cover_table,
    measure_encoder,
    outline_overlap,
    photo_sheet,
    read_photo,
    retrieval,
    sector_table,
)


def seen_right(count: int = 80) -> tuple[Encoded, CameraEstimate, torch.Tensor, torch.Tensor]:
    """What an encoder that is always right says, and the truth."""
    g = torch.Generator().manual_seed(0)
    yaw = torch.linspace(-math.pi, math.pi, count + 1)[:-1]
    zero = torch.zeros(count)
    camera = CameraEstimate(yaw, zero, zero, zero + 1.0, torch.zeros(count, 2))
    pose = torch.randn(count, 6, generator=g) * 0.2
    masks = (torch.rand(count, 1, 8, 8, generator=g) > 0.5).float()
    logits = (masks * 2.0 - 1.0) * 20.0
    identity = torch.nn.functional.normalize(torch.randn(count, 4, generator=g), dim=1)
    return (
        Encoded(camera, pose, pose, torch.zeros(count, 15, 2), logits, identity, torch.zeros(count, 3), zero + 1.0),
        camera,
        pose,
        masks,
    )


def test_an_encoder_that_is_right_makes_no_errors():
    table = sector_table(*seen_right())
    assert set(table) == {*SECTORS, "all"}
    assert sum(table[name]["pictures"] for name in SECTORS) == table["all"]["pictures"] == 80
    for row in table.values():
        assert all(row[key] < 0.1 for key in ("yaw", "pitch", "roll", "scale", "offset", "neck", "head"))
        assert row["overlap"] == 1.0


def test_errors_are_medians():
    seen, camera, pose, masks = seen_right()
    off = dataclasses.replace(
        camera,
        yaw=camera.yaw + math.radians(4.0),
        scale=camera.scale * math.exp(0.1),
        offset=camera.offset + torch.tensor([0.03, 0.04]),
    )
    table = sector_table(dataclasses.replace(seen, camera=off), camera, pose, masks)
    assert table["all"]["yaw"] == pytest.approx(4.0, abs=0.02)
    assert table["back"]["scale"] == pytest.approx(10.0, abs=0.02)
    assert table["left"]["offset"] == pytest.approx(5.0, abs=0.02)


def test_overlap_by_hand():
    a = torch.tensor([[[[1.0, 1.0, 0.0, 0.0]]]])
    b = torch.tensor([[[[0.0, 1.0, 1.0, 0.0]]]])
    assert outline_overlap(a, b).item() == pytest.approx(1 / 3)
    assert outline_overlap(a, a).item() == 1.0


def test_persons_are_sought_from_the_other_side():
    """Three images of four persons; the two that differ most in yaw are distinguished by their embedding alone."""
    yaw = torch.tensor([0.0, 0.1, 3.0]).repeat(4)
    identity = torch.nn.functional.one_hot(torch.arange(4)).float().repeat_interleave(3, dim=0)
    assert retrieval(identity, yaw, 3) == 1.0
    swapped = identity.clone()
    swapped[2::3] = identity[2::3].roll(1, dims=0)
    assert retrieval(swapped, yaw, 3) == 0.0
    near = identity.clone()
    near[1::3] = near[1::3].roll(1, dims=0)  # the pair of small difference does not count
    assert retrieval(near, yaw, 3) == 1.0


def test_the_whole_report(tmp_path, tiny_encoder):
    path = tmp_path / "people.zip"
    source = FakeSource()
    with open_writer(path, resolution=32, meta={"label_kind": "exact", "views_per_subject": 2, "seed": 2}) as writer:
        for index in range(12):
            sample = source.draw(2, index, 32)
            writer.add(sample.image, sample.mask, sample.camera, sample.body_pose, None)
    result = measure_encoder(path, tiny_encoder)
    assert result["plain"] != result["both_ways"]
    for kind in ("plain", "both_ways", "photo_like"):
        assert result[kind]["sectors"]["all"]["pictures"] == 12
        assert 0.0 <= result[kind]["retrieval"] <= 1.0
    assert result["about"]["people"] == 6
    assert measure_encoder(path, tiny_encoder) == result
    assert "covers" not in result
    config = dataclasses.replace(load_encoder(tiny_encoder)[0].config, sees_covers=True)
    save_encoder(tmp_path / "seeing.safetensors", PortraitEncoder(config).eval(), {})
    covers = measure_encoder(path, tmp_path / "seeing.safetensors")["covers"]
    assert covers["covered"] + covers["free"] <= 12
    assert covers["free"] > 2
    assert 0.0 <= covers["false_alarms"] <= 100.0


class Knowing(PortraitEncoder):
    """Finds a red square of known size in the image by its pixels; a plain crop has it in the middle, 0.3 wide."""

    def __init__(self, config) -> None:
        super().__init__(config)

    def forward(self, images):
        red = (images[:, 0] > 0.5) & (images[:, 1] < -0.5)
        side = images.shape[-1]
        place = (torch.arange(side) + 0.5) / side - 0.5
        weight = red.float() / red.sum(dim=(1, 2), keepdim=True)
        x, y = (weight.sum(1) * place).sum(1), (weight.sum(2) * place).sum(1)
        scale = (red.float().mean(dim=(1, 2))).sqrt() / 0.3
        seen = super().forward(images)
        zero = torch.zeros_like(x)
        return dataclasses.replace(seen, camera=CameraEstimate(zero, zero, zero, scale, torch.stack([x, y], dim=1)))


def test_photos_are_cropped_by_what_is_seen(tiny_encoder):
    encoder = Knowing(load_encoder(tiny_encoder)[0].config).eval()
    photo = torch.full((3, 300, 200), -1.0)
    photo[0, 150:200, 60:110] = 1.0
    crop, seen = align(encoder, photo, rounds=6)
    assert seen.camera.scale.item() == pytest.approx(1.0, abs=0.06)
    assert seen.camera.offset.abs().max().item() < 0.02
    assert crop.shape[-1] == 2 * encoder.config.resolution


def test_a_rolled_photo_is_turned_upright(tiny_encoder, monkeypatch):
    """Cropping by a roll that is seen undoes the roll of the crop's grid."""
    encoder, _ = load_encoder(tiny_encoder)
    angle = torch.tensor([0.3])
    zero = torch.zeros(1)
    camera = CameraEstimate(zero, zero, angle, zero + 1.0, torch.zeros(1, 2))
    side = 64
    y, x = torch.meshgrid(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side), indexing="ij")
    upright = torch.stack([torch.exp(-((x * 6) ** 2)), torch.exp(-((y * 6) ** 2)), torch.exp(-(x**2 + y**2) * 3)])
    rolled = torch.nn.functional.grid_sample(
        upright[None], crop_grid(camera, side), padding_mode="border", align_corners=False
    )[0]
    answers = iter([camera] + [dataclasses.replace(camera, roll=zero)] * 5)
    plain = encoder.encode

    def labelled(images):
        return dataclasses.replace(plain(images), camera=next(answers))

    monkeypatch.setattr(encoder, "encode", labelled)
    crop, _ = align(encoder, rolled, rounds=2, start=(32.0, 32.0, 32.0))
    middle = slice(crop.shape[-1] // 4, -crop.shape[-1] // 4)
    expected = torch.nn.functional.interpolate(upright[None], size=crop.shape[-2:], mode="bilinear")
    assert (crop - expected)[..., middle, middle].abs().mean() < 0.05


def test_photos_become_a_sheet(tmp_path, tiny_encoder):
    encoder, _ = load_encoder(tiny_encoder)
    pixels = np.random.default_rng(0).integers(0, 256, (90, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    sheet, records = photo_sheet(encoder, [tmp_path / "a.png"] * 2)
    assert sheet.width > 700
    assert [record["photo"] for record in records] == ["a.png", "a.png"]
    assert records[0] == records[1]


def test_photos_that_are_none_are_refused(tmp_path):
    (tmp_path / "a.jpg").write_text("no photo")
    with pytest.raises(InputError, match="not a readable image"):
        read_photo(tmp_path / "a.jpg")


def test_covered_people_are_counted_by_hand():
    hidden = torch.tensor([0.0, 0.0, 0.005, 0.0, 0.05, 0.2, 0.3, 0.4])
    seen = torch.tensor([0.0, 0.1, 0.02, 0.0, 0.2, 0.2, 0.01, 0.09])
    assert cover_table(seen, hidden) == {
        "covered": 3, "noticed": 66.7, "free": 4, "false_alarms": 25.0,
        "error": round(100 * float((seen - hidden).abs().mean()), 1),
    }  # fmt: skip
