"""What kind of image a file holds, by its first bytes, and Pillow's reader for it."""

from __future__ import annotations

import contextlib
import importlib
from typing import BinaryIO

from PIL import Image, features

from portrait360.photos.records import PhotoError

_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
    (b"qoif", "QOI"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
)
_BMP_HEADERS = {12, 40, 52, 56, 64, 108, 124}
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1", b"mif2"}
_AVIF_BRANDS = {b"avif", b"avis"}
_NO_IMAGE = "its content is no image in a format that can be read."

_READERS: dict[str, tuple[str, str, str]] = {
    "JPEG": ("PIL.JpegImagePlugin", "JpegImageFile", "jpg"),
    "PNG": ("PIL.PngImagePlugin", "PngImageFile", "zlib"),
    "GIF": ("PIL.GifImagePlugin", "GifImageFile", "pil"),
    "TIFF": ("PIL.TiffImagePlugin", "TiffImageFile", "libtiff"),
    "JPEG2000": ("PIL.Jpeg2KImagePlugin", "Jpeg2KImageFile", "jpg_2000"),
    "QOI": ("PIL.QoiImagePlugin", "QoiImageFile", "pil"),
    "WEBP": ("PIL.WebPImagePlugin", "WebPImageFile", "webp"),
    "BMP": ("PIL.BmpImagePlugin", "BmpImageFile", "pil"),
    "PPM": ("PIL.PpmImagePlugin", "PpmImageFile", "pil"),
    "AVIF": ("PIL.AvifImagePlugin", "AvifImageFile", "avif"),
    "HEIF": ("pi_heif", "HeifImageFile", "pil"),
}
"""Module and class of the reader of each format, and the part of Pillow that it needs (`PIL.features`)."""


def format_of(file: BinaryIO) -> str:
    """The name of the format, as in `_READERS`. Raises PhotoError: "not an image"."""
    head = file.read(64)
    if not head:
        raise PhotoError("not an image", "the file is empty.")

    # Formats that begin alike whatever follows.
    for signature, kind in _SIGNATURES:
        if head.startswith(signature):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    if head[:2] in (b"P5", b"P6") and head[2:3].isspace():
        return "PPM"

    # Containers, whose brands tell images from videos.
    if head[4:8] == b"ftyp":
        length = min(max(int.from_bytes(head[:4], "big"), 12), len(head))
        brands = {head[8:12]} | {head[i : i + 4] for i in range(16, length - 3, 4)}
        if head[8:12] in _AVIF_BRANDS or (head[8:12] in _HEIF_BRANDS and brands & _AVIF_BRANDS):
            return "AVIF"
        if head[8:12] in _HEIF_BRANDS:
            return "HEIF"
        raise PhotoError("not an image", "the file is a video.")
    if head[:4] == b"\x1aE\xdf\xa3" or (head[:4] == b"RIFF" and head[8:12] == b"AVI "):
        raise PhotoError("not an image", "the file is a video.")
    raise PhotoError("not an image", _NO_IMAGE)


def open_image(file: BinaryIO, kind: str) -> Image.Image:
    """The image of a file of this format, not decoded yet. Raises PhotoError where this Pillow cannot read it."""
    reader = None
    if kind in _READERS:
        module, name, part = _READERS[kind]
        with contextlib.suppress(ImportError, AttributeError):
            reader = getattr(importlib.import_module(module), name) if features.check(part) else None
    if reader is None and kind == "HEIF":
        raise PhotoError("unreadable", "HEIC images need a plugin: install portrait360[photos].")
    if reader is None:
        raise PhotoError("unreadable", f"{kind} images cannot be read here; save it as JPEG or PNG.")
    try:
        return reader(file)
    except Exception:
        if kind == "PPM":  # two letters make a text look like it
            raise PhotoError("not an image", _NO_IMAGE) from None
        raise


# ---- JPEG ----

_MOST_SCANS = 200
"""Progressive JPEG has a dozen; thousands are a way to make a small file take hours."""


def check_jpeg(file: BinaryIO) -> None:
    """Refuse a JPEG without an end, which would be filled with grey, and one that takes very long.

    Only the image itself counts: thumbnails lie before its first scan, appended films after its end.
    """
    # Skip the segments before the first scan.
    place = 2
    while True:
        file.seek(place)
        head = file.read(4)
        if len(head) < 4 or head[0] != 0xFF:
            return  # Pillow's error explains it
        if head[1] == 0xDA:
            break
        place += 1 if head[1] == 0xFF else 2 + int.from_bytes(head[2:], "big")

    # Count scans up to the end.
    file.seek(place)
    count, last = 0, b""
    while block := file.read(1 << 20):
        block = last + block
        end = block.find(b"\xff\xd9")
        count += block.count(b"\xff\xda", 0, end if end >= 0 else len(block))
        if count > _MOST_SCANS:
            raise PhotoError("unreadable", f"it is a JPEG of more than {_MOST_SCANS} scans, made to take very long.")
        if end >= 0:
            return
        last = block[-1:]
    raise PhotoError("unreadable", "it is cut off: the end of the JPEG is missing.")
