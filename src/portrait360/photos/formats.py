"""What kind of image a file holds, by its first bytes, and Pillow's reader for it.

Readers are called directly: `Image.open` has a limit of pixels that is the whole process's, below that of `reading`.
"""

from __future__ import annotations

from typing import BinaryIO

from PIL import Image, JpegImagePlugin

from portrait360.photos.records import PhotoError

_FORMATS = ("JPEG", "PNG", "GIF", "TIFF", "JPEG2000", "QOI", "WEBP", "BMP", "PPM", "AVIF")
_FAINT = ("BMP", "PPM")
"""Formats with signatures of two letters, which texts may have too."""
_JPEG_XL = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1", b"mif2"}
_AVIF_BRANDS = {b"avif", b"avis"}
_NO_IMAGE = "its content is no image in a format that can be read."
_MOST_JPEG_BYTES = 1 << 30
_MOST_SCANS = 200
"""Progressive JPEG has a dozen; thousands are a way to make a small file take hours."""


def open_image(file: BinaryIO) -> Image.Image:
    """The image of a file, not decoded yet.

    Raises:
        PhotoError: "not an image", or "unreadable" where this Pillow cannot read the format.
        Exception: whatever readers raise for a broken file.
    """
    kind = _format_of(file.read(64))
    file.seek(0)

    # Readers with ways of their own: HEIF comes from a plugin, and Pillow's way to JPEG also looks for further images.
    if kind == "HEIF":
        try:
            from pi_heif import HeifImageFile
        except ImportError:
            raise PhotoError("unreadable", "HEIC images need a plugin: install portrait360[photos].") from None
        return HeifImageFile(file)
    if kind == "JPEG":
        _check_jpeg(file)
        file.seek(0)
        return JpegImagePlugin.JpegImageFile(file)

    # Pillow's own.
    try:
        return Image.OPEN[kind][0](file, "")
    except Exception:
        if kind in _FAINT:
            raise PhotoError("not an image", _NO_IMAGE) from None
        raise


def _format_of(head: bytes) -> str:
    """The name of the format of a file that begins so: "HEIF", or one of Pillow's."""
    if not head:
        raise PhotoError("not an image", "the file is empty.")
    if head.startswith(b"\x1aE\xdf\xa3") or (head[:4] == b"RIFF" and head[8:12] == b"AVI "):
        raise PhotoError("not an image", "the file is a video.")
    if head.startswith(_JPEG_XL):
        raise PhotoError("unreadable", "JPEG XL images cannot be read here; save it as JPEG or PNG.")

    # Containers, whose brands tell images from videos.
    kind = None
    if head[4:8] == b"ftyp":
        length = min(max(int.from_bytes(head[:4], "big"), 12), len(head))
        brands = {head[8:12]} | {head[i : i + 4] for i in range(16, length - 3, 4)}
        if head[8:12] in _HEIF_BRANDS and not brands & _AVIF_BRANDS:
            return "HEIF"
        if not brands & _AVIF_BRANDS:
            raise PhotoError("not an image", "the file is a video.")
        kind = "AVIF"
    elif head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        kind = "WEBP"

    # Pillow's readers know the rest; a sentence from one means that it was built without that format.
    Image.init()
    for name in _FORMATS if kind is None else (kind,):
        accept = Image.OPEN[name][1]
        answer = accept is not None and accept(head)
        if isinstance(answer, str):
            raise PhotoError("unreadable", f"{name} images cannot be read here; save it as JPEG or PNG.")
        if answer:
            return name
    if kind is not None:
        return kind  # its reader explains what is broken
    raise PhotoError("not an image", _NO_IMAGE)


def _check_jpeg(file: BinaryIO) -> None:
    """Refuse a JPEG without an end, which would be filled with grey, and one that takes very long.

    Only the image itself counts: thumbnails lie before its first scan, appended films after its end.
    """
    data = file.read(_MOST_JPEG_BYTES)
    start = 2
    while data[start : start + 1] == b"\xff" and data[start + 1 : start + 2] != b"\xda":
        start += 1 if data[start + 1 : start + 2] == b"\xff" else 2 + int.from_bytes(data[start + 2 : start + 4], "big")
    if data[start : start + 1] != b"\xff":
        return  # Pillow's error explains it
    end = data.find(b"\xff\xd9", start)
    if data.count(b"\xff\xda", start, end if end >= 0 else len(data)) > _MOST_SCANS:
        raise PhotoError("unreadable", f"it is a JPEG of more than {_MOST_SCANS} scans, made to take very long.")
    if end < 0:
        raise PhotoError("unreadable", "it is cut off: the end of the JPEG is missing.")
