"""Gates for images of persons."""

from __future__ import annotations

import dataclasses
import io
import itertools
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image, ImageDraw, ImageFilter
from safetensors.torch import save_file

from portrait360.encoder.files import load_encoder
from portrait360.photos.dedup import find_duplicates, perceptual_hash
from portrait360.photos.gates import REASONS, PhotoLimits, rejection
from portrait360.photos.measures import measure_image
from portrait360.photos.networks import load_quality_model, save_quality_model
from portrait360.types import CheckpointError

PEOPLE = Path(__file__).parents[1] / "support" / "people.zip"
LIMITS = PhotoLimits()


@pytest.fixture(scope="module")
def people() -> list[tuple[np.ndarray, np.ndarray]]:
    """Images and masks of synthetic persons, from four sides each."""
    with zipfile.ZipFile(PEOPLE) as archive:
        names = sorted(name for name in archive.namelist() if name.startswith("images/"))
        masks = [name.replace("images/", "masks/").replace(".webp", ".png") for name in names]

        def read(name: str, mode: str) -> np.ndarray:
            return np.asarray(Image.open(io.BytesIO(archive.read(name))).convert(mode))

        return [(read(name, "RGB"), read(mask, "L")) for name, mask in zip(names, masks, strict=True)]


@pytest.fixture(scope="module")
def photo() -> tuple[np.ndarray, np.ndarray]:
    """A photo of a person, and a rough mask."""
    pixels = skimage.data.astronaut()[:420, 15:435]
    mask = Image.new("L", (420, 420))
    ImageDraw.Draw(mask).ellipse((120, 20, 300, 280), fill=255)
    ImageDraw.Draw(mask).rectangle((60, 260, 360, 420), fill=255)
    return np.ascontiguousarray(pixels), np.asarray(mask)


def measured(image: np.ndarray, mask: np.ndarray, side: float | None = None) -> dict[str, float]:
    return measure_image(image, mask, np.ones(mask.shape, np.float32), float(side or len(image)))


def changed(image: np.ndarray, change) -> np.ndarray:
    return np.asarray(change(Image.fromarray(image)))


def blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    return changed(image, lambda pixels: pixels.filter(ImageFilter.GaussianBlur(sigma)))


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))


def drawing() -> np.ndarray:
    image = Image.new("RGB", (420, 420), (180, 220, 250))
    pen = ImageDraw.Draw(image)
    pen.ellipse((100, 60, 320, 300), fill=(250, 220, 190), outline=(20, 20, 20), width=4)
    pen.pieslice((95, 40, 325, 250), 180, 360, fill=(90, 50, 20))
    pen.rectangle((70, 310, 350, 420), fill=(200, 40, 40), outline=(20, 20, 20), width=4)
    for x in (160, 240):
        pen.ellipse((x, 160, x + 30, 190), fill=(40, 60, 120))
    pen.arc((160, 190, 260, 270), 20, 160, fill=(150, 20, 20), width=4)
    return np.asarray(image)


# ---- measures ----


def test_good_images_pass(people, photo):
    for image, mask in [*people, photo]:
        assert rejection(measured(image, mask), LIMITS) is None


def test_sharpness_falls_with_blur_until_the_gate_shuts(people, photo):
    for image, mask in [*people, photo]:
        pixel = len(image) / min(len(image), 256)
        values = [measured(blurred(image, sigma * pixel), mask) for sigma in (0.0, 1.0, 2.5)]
        sharpness = [value["sharpness"] for value in values]
        assert sharpness[0] > sharpness[1] > sharpness[2]
        failed = rejection(values[2], LIMITS)
        assert failed is not None
        assert failed[0] == "blurred"


def test_enlarging_does_not_sharpen(photo):
    image, mask = photo
    small = changed(image, lambda p: p.resize((140, 140), Image.Resampling.LANCZOS))
    large = changed(small, lambda p: p.resize((512, 512), Image.Resampling.BICUBIC))
    small_mask = changed(mask, lambda p: p.resize((140, 140)))
    large_mask = changed(mask, lambda p: p.resize((512, 512)))
    before = measured(small, small_mask)["sharpness"]
    assert 0.5 * before < measured(large, large_mask, side=140)["sharpness"] <= 1.05 * before
    assert measured(large, large_mask, side=512)["sharpness"] < 0.5 * before  # a photo that someone enlarged


def test_a_sharp_background_does_not_make_the_person_sharp(photo):
    image, mask = photo
    soft = blurred(image, 5.0)
    noise = np.random.default_rng(0).integers(0, 256, image.shape, np.uint8)
    wide = changed(mask, lambda p: p.filter(ImageFilter.MaxFilter(21)))
    image = np.where(wide[..., None] > 0, soft, noise)
    assert measured(image, mask)["sharpness"] < LIMITS.smallest_sharpness
    assert measured(image, np.full_like(mask, 255))["sharpness"] > 10 * LIMITS.smallest_sharpness


def test_shares_are_counted():
    image = np.full((64, 64, 3), 128, np.uint8)
    mask = np.zeros((64, 64), np.uint8)
    mask[:, :32] = 255
    image[:16, :32] = 3
    image[16:24, :32] = 252
    image[:, 32:] = 255  # not of the person
    inside = np.ones((64, 64), np.float32)
    inside[:, 48:] = 0.0
    found = measure_image(image, mask, inside, 64.0)
    assert found["dark"] == pytest.approx(0.25)
    assert found["bright"] == pytest.approx(0.125)
    assert found["person"] == pytest.approx(0.5)
    assert found["outside"] == pytest.approx(0.25)
    assert found["side"] == 64.0
    assert found["colours"] == 3.0


def test_nothing_at_all_can_be_measured():
    empty = measured(np.zeros((40, 40, 3), np.uint8), np.zeros((40, 40), np.uint8))
    assert all(np.isfinite(value) for value in empty.values())
    assert rejection(empty, dataclasses.replace(LIMITS, smallest_side=1.0))[0] == "occluded"  # pyright: ignore


def test_drawings_are_no_persons(photo):
    mask = photo[1]
    for image in (drawing(), jpeg(drawing(), 75)):
        failed = rejection(measured(image, mask), LIMITS)
        assert failed is not None
        assert failed[0] == "not a person"


def test_no_photo_is_taken_for_a_drawing(photo):
    image, mask = photo
    grey = changed(image, lambda p: p.convert("L").convert("RGB"))
    soft = blurred(image, 4.0)
    bleak = np.clip(image.astype(int) * 3 - 300, 0, 255).astype(np.uint8)
    others = [np.ascontiguousarray(getattr(skimage.data, n)()[:300, :300, :3]) for n in ("chelsea", "coffee", "rocket")]
    everywhere = np.full((300, 300), 255, np.uint8)
    cases = [(one, mask) for one in (grey, soft, bleak, jpeg(image, 5), jpeg(grey, 5))]
    for one, where in cases + [(other, everywhere) for other in others]:
        found = measured(one, where)
        assert rejection({key: found[key] for key in ("flat", "colours")}, LIMITS) is None, found


# ---- gates ----

BAD = {
    "side": (100.0, "too small", "100", "128"),
    "confidence": (0.3, "low confidence", "0.30", "0.50"),
    "fit_error": (0.051, "bad fit", "5.1%", "4.0%"),
    "turn": (75.0, "bad fit", "75", "60"),
    "head_outside": (0.2, "truncated", "20.0%", "10.0%"),
    "shoulders_outside": (2.0, "truncated", "2 of the shoulders", "at most 0"),
    "outside": (0.5, "little margin", "50.0%", "40.0%"),
    "upright": (0.1, "not upright", "0.10", "0.20"),
    "overlap": (0.06, "several heads", "6.0%", "5.0%"),
    "beyond": (0.2, "several people", "20.0%", "3.0%"),
    "person": (0.02, "occluded", "2.0%", "8.0%"),
    "uncovered": (0.3, "occluded", "30.0%", "10.0%"),
    "covered": (0.25, "occluded", "25.0%", "8.0%"),
    "dark": (0.7, "exposure", "70.0%", "60.0%"),
    "bright": (0.4, "exposure", "40.0%", "35.0%"),
    "sharpness": (3.0, "blurred", "3.0", "20.0"),
    "flat": (0.9, "not a person", "90.0%", "50.0%"),
    "quality": (0.1, "low quality", "0.1", "0.4"),
}
GOOD = {
    "upright": 0.99, "side": 300.0, "confidence": 0.9, "fit_error": 0.01, "turn": 20.0, "head_outside": 0.0,
    "outside": 0.1, "shoulders_outside": 0.0, "overlap": 0.0, "beyond": 0.0, "person": 0.5, "uncovered": 0.02,
    "covered": 0.01, "dark": 0.1, "bright": 0.0, "sharpness": 200.0, "flat": 0.1, "colours": 9.0, "quality": 0.9,
}  # fmt: skip
STRICT = PhotoLimits(least_quality=0.4, most_covered=0.08)


@pytest.mark.parametrize("key", BAD)
def test_each_gate_says_number_and_limit(key):
    value, reason, number, limit = BAD[key]
    assert rejection(GOOD, STRICT) is None
    failed = rejection(GOOD | {key: value}, STRICT)
    assert failed is not None
    assert failed[0] == reason
    assert number in failed[1]
    assert limit in failed[1]
    assert failed[1].endswith(".")
    assert rejection({k: v for k, v in GOOD.items() if k != key}, STRICT) is None
    assert rejection(GOOD | {key: float("nan")}, STRICT) is not None


def test_the_first_failed_gate_is_named():
    for first, second in itertools.pairwise(BAD):
        failed = rejection(GOOD | {key: BAD[key][0] for key in (first, second)}, STRICT)
        assert failed is not None
        assert BAD[first][2] in failed[1]


def test_every_reason_has_a_sentence():
    assert {reason for _, reason, _, _ in BAD.values()} < set(REASONS)
    for sentence in REASONS.values():
        assert re.fullmatch(r"[A-Z][^.]*\.", sentence)


def test_a_quality_network_and_things_in_front_count_only_with_a_limit():
    assert rejection({"quality": -100.0}, LIMITS) is None
    assert rejection({"covered": 0.9}, LIMITS) is None


# ---- duplicates ----


def copies(image: np.ndarray) -> list[np.ndarray]:
    side = len(image)
    return [
        jpeg(image, 60),
        changed(image, lambda p: p.resize((side * 6 // 10,) * 2, Image.Resampling.LANCZOS)),
        changed(image, lambda p: p.resize((side * 17 // 10,) * 2, Image.Resampling.BICUBIC)),
        np.clip(image.astype(int) + 10, 0, 255).astype(np.uint8),
        np.clip(image * 1.06, 0, 255).astype(np.uint8),
    ]


def test_a_hash_knows_copies_and_tells_persons_apart(people, photo):
    images = [image for image, _ in people] + [photo[0]]
    images += [np.ascontiguousarray(getattr(skimage.data, n)()[:300, :300, :3]) for n in ("chelsea", "coffee")]
    hashes = [perceptual_hash(pixels) for pixels in images]
    for pixels, value in zip(images, hashes, strict=True):
        assert 0 <= value < 2**64
        assert max((perceptual_hash(copy) ^ value).bit_count() for copy in copies(pixels)) <= LIMITS.duplicate_bits
    assert min((a ^ b).bit_count() for a, b in itertools.combinations(hashes, 2)) >= 3 * LIMITS.duplicate_bits


def brute_force(hashes: list[int], bits: int) -> list[int | None]:
    repeats: list[int | None] = []
    for index, value in enumerate(hashes):
        near = (i for i in range(index) if repeats[i] is None and (hashes[i] ^ value).bit_count() <= bits)
        repeats.append(next(near, None))
    return repeats


@pytest.mark.parametrize("bits", [0, 1, 2, 3, 7, 20, 64])
def test_duplicates_are_those_of_brute_force(bits):
    random = np.random.default_rng(bits)
    hashes: list[int] = [int(value) for value in random.integers(0, 2**64, 20, np.uint64)]
    for _ in range(230):
        value = hashes[int(random.integers(len(hashes)))]
        for bit in random.integers(0, 64, int(random.integers(0, bits // 2 + 3))):
            value ^= 1 << int(bit)
        hashes.append(value)
    found = find_duplicates(hashes, bits)
    assert found == brute_force(hashes, bits)
    assert any(i is not None for i in found)


def test_duplicates_of_nothing_and_of_nonsense():
    assert find_duplicates([], 3) == []
    with pytest.raises(ValueError, match="at least 0"):
        find_duplicates([1], -1)


def test_comparisons_grow_as_the_count():
    class Counted(int):
        compared = 0

        def __int__(self):
            Counted.compared += 1
            return int.__int__(self)

    values = [Counted(value) for value in np.random.default_rng(0).integers(0, 2**64, 20_000, np.uint64)]
    assert find_duplicates(values, 3) == [None] * len(values)
    assert Counted.compared < 5 * len(values)  # of 200 million pairs


# ---- the user's network ----


def layers(*sizes: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    pairs = list(itertools.pairwise(sizes))
    weights = [torch.randn(o, i, generator=generator) for i, o in pairs]
    return weights, [torch.randn(o, generator=generator) for _, o in pairs]


@pytest.mark.parametrize("sizes", [(24, 1), (24, 5, 1), (24, 6, 4, 1)])
def test_a_quality_network_is_layers_on_features(tmp_path, tiny_encoder, people, sizes):
    weights, biases = layers(*sizes)
    save_quality_model(tmp_path / "quality.safetensors", weights, biases)
    model = load_quality_model(tmp_path / "quality.safetensors", tiny_encoder)
    image = people[0][0]
    encoder, _ = load_encoder(tiny_encoder)
    x = encoder.encode(torch.from_numpy(image.copy()).permute(2, 0, 1)[None] / 127.5 - 1.0).features[0]
    for index, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        x = weight @ (x if index == 0 else x.clamp(min=0.0)) + bias
    assert model(image) == pytest.approx(float(x), rel=1e-4, abs=1e-4)


def test_the_packaged_encoder_is_the_default(tmp_path, people):
    weights, biases = layers(load_encoder()[0].config.features, 1)
    save_quality_model(tmp_path / "quality.safetensors", weights, biases)
    model = load_quality_model(tmp_path / "quality.safetensors")
    marks = [model(image) for image, _ in people[:3]]
    assert len(set(marks)) == 3


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.clear(), "must hold weight0, bias0"),
        (lambda t: t.pop("bias1"), "must hold weight0, bias0"),
        (lambda t: t.update(more=torch.zeros(1)), "must hold weight0, bias0"),
        (lambda t: t.update(weight2=torch.zeros(1, 1), bias3=torch.zeros(1)), "must hold weight0, bias0"),
        (lambda t: t.update(weight0=torch.zeros(5, 23)), r"weight0 is \[5, 23\]"),
        (lambda t: t.update(weight0=torch.zeros(5)), r"weight0 is \[5\]"),
        (lambda t: t.update(bias0=torch.zeros(())), r"bias0 \[\]"),
        (lambda t: t.update(bias0=torch.zeros(0), weight0=torch.zeros(0, 24)), r"bias0 \[0\]"),
        (lambda t: t.update(weight1=torch.zeros(1, 4)), r"weight1 is \[1, 4\]"),
        (lambda t: t.update(weight1=torch.zeros(2, 5), bias1=torch.zeros(2)), r"weight1 is \[2, 5\]"),
        (lambda t: t.update(weight0=torch.zeros(5, 24, dtype=torch.int64)), "weight0 is not of finite"),
        (lambda t: t["bias0"].fill_(float("nan")), "bias0 is not of finite"),
    ],
)
def test_wrong_quality_networks(tmp_path, tiny_encoder, change, sentence):
    weights, biases = layers(24, 5, 1)
    tensors = {"weight0": weights[0], "weight1": weights[1], "bias0": biases[0], "bias1": biases[1]}
    change(tensors)
    path = tmp_path / "quality.safetensors"
    save_file(tensors, path, {"format": "portrait360", "kind": "quality"})
    with pytest.raises(CheckpointError, match=sentence) as caught:
        load_quality_model(path, tiny_encoder)
    assert caught.value.hint


def test_files_that_are_no_quality_network(tmp_path, tiny_encoder):
    for path, sentence in ((tmp_path / "none", "no weights file"), (tiny_encoder, "not a quality network")):
        with pytest.raises(CheckpointError, match=sentence):
            load_quality_model(path, tiny_encoder)
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_quality_model(tmp_path / "text.safetensors", tiny_encoder)
