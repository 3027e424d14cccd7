"""Folders and files as people have them, and some that mean harm."""

from __future__ import annotations

import base64
import io
import os
import shutil
import struct
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import tifffile
from PIL import Image, ImageCms, ImageFilter

from portrait360.photos.folder import find_photos
from portrait360.photos.reading import read_photo
from portrait360.photos.records import PhotoError
from portrait360.types import InputError

pytestmark = pytest.mark.filterwarnings("ignore:::PIL")  # Pillow warns of what it finds in odd files


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """Colours of all kinds; 96 high, 120 wide."""
    return np.ascontiguousarray(skimage.data.astronaut()[40:136, 160:280])


def grey3(pixels: np.ndarray) -> np.ndarray:
    return np.repeat(pixels[..., 1:2], 3, axis=2)


def close(path: Path, expected: np.ndarray, tolerance: float = 0.0) -> None:
    """The image read is the expected one, but for so many levels on average."""
    found = read_photo(path)
    assert found.dtype == np.uint8
    assert found.shape == expected.shape
    assert np.abs(found.astype(float) - expected).mean() <= tolerance


def refused(path: Path, reason: str, sentence: str = "") -> None:
    with pytest.raises(PhotoError) as caught:
        read_photo(path)
    assert caught.value.reason == reason
    assert sentence in str(caught.value)
    assert str(caught.value).endswith(".")


def png(width: int, height: int, bits: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG made by hand: `colour` 0 grey, 2 RGB, 4 grey and alpha, 6 RGBA."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + body


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def deep_png(pixels: np.ndarray, colour: int) -> bytes:
    """An image of 16 bits per channel."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return png(width, height, 16, colour, rows)


# ---- formats ----

FORMATS = {
    "jpg": ({"quality": 95}, 3.0), "png": ({}, 0.0), "bmp": ({}, 0.0), "ppm": ({}, 0.0), "tif": ({}, 0.0),
    "webp": ({"lossless": True}, 0.0), "gif": ({}, 6.0), "jp2": ({}, 0.5), "qoi": ({}, 0.0),
}  # fmt: skip


@pytest.mark.parametrize("extension", FORMATS)
def test_formats_whatever_their_names_say(tmp_path, pixels, extension):
    options, tolerance = FORMATS[extension]
    path = tmp_path / f"a.{extension}"
    Image.fromarray(pixels).save(path, **options)
    close(path, pixels, tolerance)
    for name in ("a", "a.txt", "a.jpeg", "a.heic", "a.tiff", "a.eps"):
        close(path.rename(tmp_path / name), pixels, tolerance)
        path = tmp_path / name


@pytest.mark.parametrize("extension", FORMATS)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
def test_files_that_are_cut_off_are_refused(tmp_path, pixels, extension, share):
    path = tmp_path / f"a.{extension}"
    Image.fromarray(pixels).save(path, **FORMATS[extension][0])
    data = path.read_bytes()
    path.write_bytes(data[: max(20, int(share * len(data)))])
    refused(path, "unreadable")


def test_a_jpeg_that_ends_in_zeros_is_refused(tmp_path, pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    data = buffer.getvalue()
    (tmp_path / "a.jpg").write_bytes(data[: len(data) // 2] + bytes(len(data)))
    refused(tmp_path / "a.jpg", "unreadable")


def test_cmyk(tmp_path, pixels):
    Image.fromarray(pixels).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    close(tmp_path / "a.jpg", pixels, 3.0)


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P", "PA", "LAB", "YCbCr", "RGBX"])
def test_other_colours(tmp_path, pixels, mode):
    """Whatever the way to store colours, the image is about what it was."""
    image = Image.fromarray(pixels)
    first = {"LA": image.convert("L"), "1": image.convert("L"), "P": image.quantize(64), "PA": image.quantize(64)}
    stored = first.get(mode, image).convert(mode)
    path = tmp_path / ("a.png" if mode in ("L", "LA", "1", "P") else "a.tif")
    try:
        stored.save(path)
    except OSError:
        pytest.skip(f"Pillow writes no {mode}")
    grey = np.repeat(np.asarray(image.convert("L"))[..., None], 3, axis=2)
    found = read_photo(path).astype(float)
    expected = grey if mode in ("L", "LA", "1") else pixels
    assert found.shape == expected.shape
    if mode == "1":
        assert found.mean() == pytest.approx(expected.mean(), abs=6.0)
    else:
        assert np.abs(found - expected).mean() < 8.0


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bits_of_png_are_scaled(tmp_path, pixels, channels):
    deep = pixels.astype(np.uint16) * 257
    colours = deep if channels >= 3 else deep[..., 1:2]
    if channels in (2, 4):
        colours = np.dstack([colours, np.full(pixels.shape[:2], 65535, np.uint16)])
    (tmp_path / "a.png").write_bytes(deep_png(colours, {1: 0, 2: 4, 3: 2, 4: 6}[channels]))
    close(tmp_path / "a.png", pixels if channels >= 3 else grey3(pixels), 0.1)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("grey", [True, False])
def test_16_bits_of_tiff_are_scaled(tmp_path, pixels, order, grey):
    deep = pixels.astype(np.uint16) * 257
    kind = "minisblack" if grey else "rgb"
    tifffile.imwrite(tmp_path / "a.tif", deep[..., 1] if grey else deep, photometric=kind, byteorder=order)
    close(tmp_path / "a.tif", grey3(pixels) if grey else pixels, 0.1)


def test_kinds_of_tiff(tmp_path, pixels):
    path, grey = tmp_path / "a.tif", pixels[..., 1]
    tifffile.imwrite(path, (grey / 255).astype(np.float32), photometric="minisblack")
    close(path, grey3(pixels), 0.1)
    tifffile.imwrite(path, grey.astype(np.float32), photometric="minisblack")
    close(path, grey3(pixels), 0.1)
    tifffile.imwrite(path, np.where(grey > 250, np.nan, grey / 255).astype(np.float32), photometric="minisblack")
    assert read_photo(path).shape == pixels.shape
    tifffile.imwrite(path, 255 - grey, photometric="miniswhite")
    close(path, grey3(pixels))
    tifffile.imwrite(path, 65535 - grey.astype(np.uint16) * 257, photometric="miniswhite")
    close(path, grey3(pixels), 0.1)
    tifffile.imwrite(path, pixels.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    close(path, pixels)
    deep = (pixels.astype(np.uint16) * 257).transpose(2, 0, 1)
    tifffile.imwrite(path, deep, photometric="rgb", planarconfig="separate")
    refused(path, "unreadable", "16-bit")  # Pillow would show noise


def test_what_is_transparent_lies_over_white(tmp_path, pixels):
    alpha = np.zeros(pixels.shape[:2], np.uint8)
    alpha[:, 40:80], alpha[:, 80:] = 128, 255
    Image.fromarray(np.dstack([pixels, alpha])).save(tmp_path / "a.png")
    share = alpha[..., None] / 255
    close(tmp_path / "a.png", pixels * share + 255 * (1 - share), 0.6)
    Image.fromarray(np.dstack([pixels, alpha])).save(tmp_path / "a.webp", lossless=True, exact=True)
    close(tmp_path / "a.webp", pixels * share + 255 * (1 - share), 0.6)
    image = Image.fromarray(pixels).quantize(16)
    image.save(tmp_path / "p.png", transparency=int(np.asarray(image)[0, 0]))
    assert (read_photo(tmp_path / "p.png")[0, 0] == 255).all()
    image.save(tmp_path / "p.png", transparency=bytes(range(0, 160, 10)))
    assert read_photo(tmp_path / "p.png").shape == pixels.shape


def test_shrinking_does_not_mix_in_the_colour_of_what_is_transparent(tmp_path):
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[::2] = (255, 255, 255, 255)  # the rest: transparent black
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert (read_photo(tmp_path / "a.png", max_side=16) == 255).all()


@pytest.mark.parametrize("extension", ["gif", "webp", "png", "tif"])
def test_of_animated_files_the_first_image(tmp_path, pixels, extension):
    first, others = Image.fromarray(pixels), [Image.new("RGB", (120, 96), c) for c in ("red", "green")]
    options: dict[str, Any] = {"lossless": True} if extension == "webp" else {}
    first.save(tmp_path / f"a.{extension}", save_all=True, append_images=others, **options)
    close(tmp_path / f"a.{extension}", pixels, 6.0 if extension == "gif" else 0.0)


@pytest.mark.parametrize("extension", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_stand_upright(tmp_path, orientation, extension):
    """EXIF 2.3, table of Orientation: where the first row and the first column of the stored image are."""
    upright = np.kron(np.array([[10, 60, 110], [160, 210, 250]], np.uint8), np.ones((16, 16), np.uint8))
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: upright.T[::-1],
        7: upright.T[::-1, ::-1],
        8: upright.T[:, ::-1],
    }[orientation]  # 6: row 0 is the right side, column 0 the top
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{extension}"
    options: dict[str, Any] = {"lossless": True} if extension == "webp" else {}
    image = Image.fromarray(np.repeat(np.ascontiguousarray(stored)[..., None], 3, axis=2))
    image.save(path, exif=exif, **options)
    close(path, np.repeat(upright[..., None], 3, axis=2), 1.0)
    half = read_photo(path, max_side=24)
    assert half.shape == (16, 24, 3)
    np.testing.assert_allclose(half[4::8, 4::8, 0], upright[8::16, 8::16], atol=3)


@pytest.mark.parametrize("value", [0, 9, 77])
def test_orientations_that_do_not_exist(tmp_path, pixels, value):
    exif = Image.Exif()
    exif[0x0112] = value
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    close(tmp_path / "a.png", pixels)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(range(40)))
    close(tmp_path / "a.jpg", pixels, 5.0)


def test_colour_profiles_are_converted(tmp_path, pixels):
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ"))
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.png", icc_profile=swapped_profile())
    close(tmp_path / "a.png", pixels[..., ::-1], 1.5)
    for useless in (b"nonsense", b"", lab.tobytes(), swapped_profile()[:200]):
        image.save(tmp_path / "b.png", icc_profile=useless)
        close(tmp_path / "b.png", pixels)
    image.convert("L").save(tmp_path / "c.png", icc_profile=swapped_profile())  # of another number of channels
    assert read_photo(tmp_path / "c.png").shape == pixels.shape


def swapped_profile() -> bytes:
    """sRGB with the primaries of red and blue exchanged, and another name."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    data = bytearray(
        bytes(data).replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be")).replace(b"sRGB", b"swap")
    )
    entries = {
        bytes(data[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(struct.unpack_from(">I", data, 128)[0])
    }
    red, blue = entries[b"rXYZ"], entries[b"bXYZ"]
    data[red + 4 : red + 12], data[blue + 4 : blue + 12] = data[blue + 4 : blue + 12], data[red + 4 : red + 12]
    return bytes(data)


HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAXxtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAA"
    "ACJpbG9jAAAAAERAAAEAAQAAAAABoAABAAAAAAAAAJwAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRt"
    "AAAAAAABAAAA/GlwcnAAAADcaXBjbwAAAHVodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMA"
    "AAMAHroCQGEAAQApQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbqrprm4CGgwIAAAAyAAAADAIRiAAEABkQBwXPBiQAAABNjb2xybmNs"
    "eAABAA0ABoAAAAAUaXNwZQAAAAAAAABAAAAAQAAAAChjbGFwAAAAEAAAAAEAAAAMAAAAAf///9AAAAAC////zAAAAAIAAAAQcGl4"
    "aQAAAAADCAgIAAAAGGlwbWEAAAAAAAAAAQABBYECAwWEAAAApG1kYXQAAACYKAGvBjIayJ+AXUOIm97///46PsvYRhLV15FpfYzP"
    "/9zllP4msgkOxdr95/CWV9xJvmpagwn0n+xouDUj9uk9uIpb4yUUwdsjZGfCILmF5IKuBF/TWEQgImjxu4c7vhLHUWMpLirRFPvr"
    "XYOTmxEd9f4Jo2M0oI7cqNM6I6vzevcCBM3CFiIZwdAJ5qC7NSCSWwmlYcOmz3A="
)
"""16x12 pixels, red on the left and blue on the right, written by pillow_heif (the extra's pi_heif only reads)."""


def test_heic(tmp_path):
    (tmp_path / "a.heic").write_bytes(HEIC)
    expected = np.full((12, 16, 3), (200, 40, 40), np.uint8)
    expected[:, 8:] = (30, 60, 200)
    close(tmp_path / "a.heic", expected, 12.0)
    (tmp_path / "a.heic").write_bytes(HEIC[: len(HEIC) // 2])
    refused(tmp_path / "a.heic", "unreadable")


def test_heic_without_its_plugin_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    (tmp_path / "a.jpg").write_bytes(struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic" + bytes(100))
    refused(tmp_path / "a.jpg", "unreadable", "install portrait360[photos]")


# ---- sizes ----


@pytest.mark.parametrize("extension", ["jpg", "png", "tif"])
@pytest.mark.parametrize("size", [(60_000, 100), (100, 60_000)])
def test_a_very_long_image_is_read_reduced(tmp_path, pixels, size, extension):
    path = tmp_path / f"a.{extension}"
    Image.new("RGB", size, (200, 100, 50)).save(path)
    begin = time.process_time()
    found = read_photo(path)
    assert time.process_time() - begin < 3.0
    assert sorted(found.shape[:2]) == [7, 4096]
    assert (found.shape[1] > found.shape[0]) == (size[0] > size[1])
    np.testing.assert_allclose(found.reshape(-1, 3).mean(axis=0), (200, 100, 50), atol=2)


@pytest.mark.parametrize("max_side", [119, 100, 60, 50, 31, 8, 1])
@pytest.mark.parametrize("extension", ["jpg", "png"])
def test_large_images_are_averaged(tmp_path, pixels, max_side, extension):
    """And nothing is moved by it, whatever remains of the last block."""
    path = tmp_path / f"a.{extension}"
    image = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(6))
    image.save(path, **FORMATS[extension][0])
    found = read_photo(path, max_side)
    size = (max_side, max(1, round(max_side * 0.8)))
    expected = np.asarray(image.resize(size, Image.Resampling.LANCZOS), float)
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 4.0


def test_films_after_an_image_do_not_matter(tmp_path, pixels):
    path = tmp_path / "a.jpg"
    Image.fromarray(pixels).save(path, quality=95)
    path.write_bytes(path.read_bytes() + b"\xff\xda" * 500)
    close(path, pixels, 3.0)


def test_images_that_are_too_large_are_not_decoded(tmp_path, monkeypatch):
    begin = time.process_time()
    (tmp_path / "a.png").write_bytes(png(60_000, 60_000, 8, 2, bytes(1000)))
    refused(tmp_path / "a.png", "too large", "60000×60000 pixels, 3600 megapixels")
    (tmp_path / "b.png").write_bytes(png(200_000, 10, 8, 0, bytes(200_001 * 10)))
    refused(tmp_path / "b.png", "too large", "the longest side may have 100,000")
    screen = b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0)
    (tmp_path / "c.gif").write_bytes(screen + b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02L\x01\0;")
    refused(tmp_path / "c.gif", "too large")
    for number, size in enumerate(((40_000, 40_000), (2**31 - 1, 2**31 - 1))):
        tags = [(256, 4, size[0]), (257, 4, size[1]), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1),
                (278, 4, size[1]), (279, 4, 100)]  # fmt: skip
        entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
        data = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4)
        (tmp_path / f"{number}.tif").write_bytes(data)
        refused(tmp_path / f"{number}.tif", "too large")
    assert time.process_time() - begin < 3.0


def test_tricks_are_refused_quickly(tmp_path, pixels):
    begin = time.process_time()
    bomb = zlib.compress(bytes(200_000_000), 9)
    text = chunk(b"zTXt", b"Comment\0\0" + bomb)
    (tmp_path / "a.png").write_bytes(png(4, 4, 8, 0, bytes(20), extra=text))
    refused(tmp_path / "a.png", "unreadable")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    scan = data.rindex(b"\xff\xda")
    (tmp_path / "b.jpg").write_bytes(data[:scan] + data[scan:-2] * 300 + data[-2:])
    refused(tmp_path / "b.jpg", "unreadable", "scans")
    small = io.BytesIO()
    frames = [Image.new("L", (8, 8), n % 256) for n in range(2000)]
    frames[0].save(small, "GIF", save_all=True, append_images=frames[1:])
    (tmp_path / "c.gif").write_bytes(small.getvalue())
    assert (read_photo(tmp_path / "c.gif") == 0).all()
    loop = io.BytesIO()
    Image.fromarray(pixels).save(loop, "TIFF")
    data = bytearray(loop.getvalue())
    first = struct.unpack_from("<I", data, 4)[0]
    struct.pack_into("<I", data, first + 2 + 12 * struct.unpack_from("<H", data, first)[0], first)
    (tmp_path / "d.tif").write_bytes(data)
    close(tmp_path / "d.tif", pixels)
    assert time.process_time() - begin < 5.0


def test_damage_anywhere_is_an_error_and_never_a_crash(tmp_path, pixels):
    random = np.random.default_rng(0)
    for extension in FORMATS:
        path = tmp_path / f"a.{extension}"
        Image.fromarray(pixels[:24, :24]).save(path, **FORMATS[extension][0])
        data = path.read_bytes()
        for _ in range(15):
            broken = bytearray(data)
            for place in random.integers(0, min(len(data), 400), 3):
                broken[place] = random.integers(256)
            path.write_bytes(broken)
            reason = ""
            try:
                read_photo(path)
            except PhotoError as error:
                reason = error.reason
            assert reason in ("", "unreadable", "not an image", "too large")


# ---- what is no image ----


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "empty"),
        (b"x", "no image"),
        (b"Dear diary,\nP6 is not an image\n" * 9, "no image"),
        (b"P6 and P5 are formats\n", "no image"),
        (b"BM is a company that", "no image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n", "no image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no image"),
        (b"%PDF-1.7\n", "no image"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + bytes(99), "video"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0qt  " + bytes(99), "video"),
        (b"\x1aE\xdf\xa3" + bytes(99), "video"),
        (b"RIFF\0\0\0\0AVI LIST" + bytes(99), "video"),
        (b"RIFF\0\0\0\0WAVEfmt " + bytes(99), "no image"),
        (bytes(5000), "no image"),
        (b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x02ls\x85R.", "no image"),
        (b"PK\x03\x04" + bytes(99), "no image"),
    ],
)
def test_what_is_no_image(tmp_path, content, sentence):
    (tmp_path / "a.jpg").write_bytes(content)
    refused(tmp_path / "a.jpg", "not an image", sentence)


@pytest.mark.parametrize(
    "head", [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\0\0\0\0WEBP", b"II*\0", b"qoif"]
)
def test_a_head_alone_is_broken(tmp_path, head):
    for rest in (b"", bytes(50)):
        (tmp_path / "a").write_bytes(head + rest)
        refused(tmp_path / "a", "unreadable")


def test_formats_that_are_not_read(tmp_path):
    (tmp_path / "a.jxl").write_bytes(b"\xff\x0a" + bytes(50))
    refused(tmp_path / "a.jxl", "unreadable", "JPEG XL images cannot be read here")


def test_files_that_cannot_be_opened(tmp_path, monkeypatch):
    refused(tmp_path / "gone.jpg", "unreadable", "could not be opened: No such file")
    refused(tmp_path, "unreadable", "folder")
    (tmp_path / "loop").symlink_to("loop")
    refused(tmp_path / "loop", "unreadable", "could not be opened")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "not an image", "no ordinary file")
    (tmp_path / "a.jpg").write_bytes(b"x")

    def forbidden(path: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", forbidden)
    refused(tmp_path / "a.jpg", "unreadable", "could not be opened: Permission denied")


def test_pillows_settings_stay(tmp_path, pixels):
    limit = Image.MAX_IMAGE_PIXELS
    Image.fromarray(pixels).save(tmp_path / "a.png")
    close(tmp_path / "a.png", pixels)
    refused(tmp_path / "none", "unreadable")
    assert limit == Image.MAX_IMAGE_PIXELS


# ---- folders ----


def names(folder: Path) -> list[str]:
    return [photo.name for photo in find_photos(folder)]


def touch(folder: Path, *files: str) -> None:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(file)


def test_every_file_is_listed_once_by_name(tmp_path):
    touch(tmp_path, "b.jpg", "a/z.jpg", "a.jpg", "a/b/c.txt", "ä ö.png", "c/d", "a b.jpg", "x.jpg/y.jpg")
    found = find_photos(tmp_path)
    assert [photo.name for photo in found] == sorted(
        ["b.jpg", "a/z.jpg", "a.jpg", "a/b/c.txt", "ä ö.png", "c/d", "a b.jpg", "x.jpg/y.jpg"]
    )
    for photo in found:
        assert photo.path.read_text() == photo.name


def test_hidden_files_and_junk_are_left_out(tmp_path):
    touch(tmp_path, "a.jpg", ".DS_Store", "._a.jpg", "Thumbs.db", "THUMBS.DB", "b/desktop.ini", ".git/c.jpg")
    touch(tmp_path, "__MACOSX/a.jpg", "b/@eaDir/d.jpg", "b/e.jpg")
    assert names(tmp_path) == ["a.jpg", "b/e.jpg"]
    shutil.move(tmp_path / "b", tmp_path / ".hidden")
    assert names(tmp_path / ".hidden") == ["e.jpg"]


def test_links_are_followed_but_never_round(tmp_path):
    top = tmp_path / "top"
    touch(tmp_path, "top/m/a.jpg", "top/m/n/b.jpg", "elsewhere/c.jpg", "elsewhere/deep/d.jpg")
    (top / "m/n/up").symlink_to(top, target_is_directory=True)
    (top / "m/here").symlink_to(".", target_is_directory=True)
    (top / "out").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere/back").symlink_to(top / "m", target_is_directory=True)
    (top / "one").symlink_to("two")
    (top / "two").symlink_to("one")
    (top / "lost.jpg").symlink_to("nowhere.jpg")
    assert names(top) == ["lost.jpg", "m/a.jpg", "m/n/b.jpg", "one", "out/c.jpg", "out/deep/d.jpg", "two"]
    for photo in find_photos(top):
        if photo.name in ("lost.jpg", "one", "two"):
            refused(photo.path, "unreadable")


def test_what_has_several_names_is_listed_under_the_first(tmp_path):
    touch(tmp_path, "m.jpg", "f/g.jpg")
    (tmp_path / "a.jpg").symlink_to("m.jpg")
    (tmp_path / "z.jpg").symlink_to("m.jpg")
    os.link(tmp_path / "m.jpg", tmp_path / "n.jpg")
    (tmp_path / "e").symlink_to("f", target_is_directory=True)
    (tmp_path / "h.jpg").symlink_to("f/g.jpg")
    assert names(tmp_path) == ["a.jpg", "e/g.jpg"]


def test_folders_that_cannot_be_opened_are_listed(tmp_path, monkeypatch):
    touch(tmp_path, "a.jpg", "shut/b.jpg", "z.jpg")
    scandir = os.scandir

    def guarded(path):
        if Path(path).name == "shut":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    assert names(tmp_path) == ["a.jpg", "shut", "z.jpg"]
    refused(tmp_path / "shut", "unreadable", "folder that could not be opened")
    with pytest.raises(InputError, match="no permission") as caught:
        find_photos(tmp_path / "shut")
    assert caught.value.hint


def test_names_that_are_no_text_can_be_written(tmp_path):
    if os.name != "posix":
        pytest.skip("names are text here")
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xff.jpg")).write_text("x")
    except OSError:
        pytest.skip("names must be text on this file system")
    (photo,) = find_photos(tmp_path)
    assert photo.name.encode() == b"a\\xff.jpg"
    assert photo.path.read_text() == "x"


@pytest.mark.parametrize("what", ["missing", "file", "empty", "junk"])
def test_folders_without_photos(tmp_path, what):
    touch(tmp_path, "file", "junk/.DS_Store")
    (tmp_path / "empty/within").mkdir(parents=True)
    sentence = {"missing": "there is no folder at", "file": "is not a folder"}.get(what, "holds no files")
    with pytest.raises(InputError, match=sentence) as caught:
        find_photos(tmp_path / what)
    assert caught.value.hint
