"""Read any file as an upright sRGB picture of bounded size, or say why not.

What a file is called says nothing: its first bytes decide. Formats that Pillow reads by starting other programs
(EPS), or that have no signature, are not read.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image, ImageCms, ImageOps

from portrait360.photos.records import PhotoError

MAX_PIXELS = 250_000_000
MAX_LENGTH = 100_000
"""Pictures with more pixels, or a longer side, are refused before they are decoded."""
_MAX_SCANS = 200
"""Progressive JPEG has a dozen; thousands are a way to make a small file take hours."""
_BAND_PIXELS = 1 << 24
"""Colours are converted so many pixels at a time."""


# ---- one photo ----


def read_photo(path: Path, max_side: int = 4096) -> UInt8[ndarray, "H W 3"]:
    """The first picture of a file: upright, sRGB, transparent parts over white, at most `max_side` pixels long.

    Larger pictures are averaged down while they are decoded where the format allows it (JPEG), else right afterwards.
    16 bits are scaled to 8, colour profiles are converted to sRGB, EXIF orientation is applied. Meant for one thread at
    a time: Python's warning filters and Pillow's size limit, both global, are set meanwhile.

    Raises:
        PhotoError: "not a picture"; "unreadable" (no permission, broken, cut off, a format that is not supported);
            "too large" (more than MAX_PIXELS pixels or MAX_LENGTH pixels long).
    """
    path = Path(path)
    try:
        with _quiet(), _opened(path) as file:
            kind = _kind(file)
            file.seek(0)
            return _read(file, kind, max_side)
    except PhotoError:
        raise
    except MemoryError as error:
        raise PhotoError("too large", "there is not enough memory to read it.") from error
    except Image.DecompressionBombError as error:
        raise PhotoError("too large", f"it is larger than {MAX_PIXELS / 1e6:.0f} megapixels.") from error
    except Exception as error:  # decoders raise whatever a broken file makes them stumble over
        raise PhotoError("unreadable", f"the file is broken or cut off ({_brief(error)}).") from error


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 120 else text[:117] + "..."


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No warnings, and Pillow's own limit of pixels out of the way (`_check_size` is stricter than none)."""
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Image.MAX_IMAGE_PIXELS = MAX_PIXELS
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise PhotoError("unreadable", "it is a folder that could not be opened.")
        if not stat.S_ISREG(mode):  # a pipe would wait for ever
            raise PhotoError("not a picture", "it is no ordinary file.")
        file = path.open("rb")
    except OSError as error:
        raise PhotoError("unreadable", f"it could not be opened: {error.strerror or error}.") from error
    with file:
        yield file


# ---- what kind of file ----

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


def _kind(file: BinaryIO) -> str:
    """Pillow's name of the format. Raises PhotoError: "not a picture"."""
    head = file.read(64)
    if not head:
        raise PhotoError("not a picture", "the file is empty.")
    for signature, kind in _SIGNATURES:
        if head.startswith(signature):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    if head[:2] in (b"P5", b"P6") and head[2:3].isspace():
        return "PPM"
    if head[4:8] == b"ftyp":
        length = min(max(int.from_bytes(head[:4], "big"), 12), len(head))
        brands = {head[8:12]} | {head[i : i + 4] for i in range(16, length - 3, 4)}
        if head[8:12] in _AVIF_BRANDS or (head[8:12] in _HEIF_BRANDS and brands & _AVIF_BRANDS):
            return "AVIF"
        if head[8:12] in _HEIF_BRANDS:
            return "HEIF"
        raise PhotoError("not a picture", "the file is a video.")
    if head[:4] == b"\x1aE\xdf\xa3" or (head[:4] == b"RIFF" and head[8:12] == b"AVI "):
        raise PhotoError("not a picture", "the file is a video.")
    raise PhotoError("not a picture", "its content is no picture in a format that can be read.")


@functools.cache
def _heif_registered() -> bool:
    """Whether Pillow can read HEIF: a plugin for it is installed."""
    for name in ("pi_heif", "pillow_heif"):
        try:
            importlib.import_module(name).register_heif_opener()
        except ImportError:
            continue
        return True
    return False


def _factory(kind: str):
    """Pillow's reader of a format, as `Image.open` would choose it. Raises PhotoError when there is none."""
    if kind == "HEIF" and not _heif_registered():
        raise PhotoError("unreadable", "HEIC pictures need a plugin: install portrait360[photos].")
    Image.preinit()
    if kind not in Image.OPEN:
        Image.init()
    factory, accepts = Image.OPEN.get(kind, (None, None))
    if factory is None:
        raise PhotoError("unreadable", f"{kind} pictures cannot be read here; save it as JPEG or PNG.")
    return factory, accepts


# ---- decoding ----


def _read(file: BinaryIO, kind: str, max_side: int) -> UInt8[ndarray, "H W 3"]:
    factory, accepts = _factory(kind)
    if kind == "JPEG":
        _check_jpeg(file)
        file.seek(0)
    if accepts is not None and isinstance(accepts(file.read(16)), str):  # the sentence that the format is not built in
        raise PhotoError("unreadable", f"{kind} pictures cannot be read here; save it as JPEG or PNG.")
    file.seek(0)
    try:
        image = factory(file, "")
    except Exception:
        if kind == "PPM":  # two letters make a text look like it
            raise PhotoError("not a picture", "its content is no picture in a format that can be read.") from None
        raise
    with image:
        _check_size(*image.size)
        inverted = _check_tiff(image) if kind == "TIFF" else False
        size = image.size
        drafted = image.draft(None, _fitting(size, max_side)) if kind == "JPEG" else None
        image.load()
        size = size if kind == "JPEG" else image.size  # a TIFF turns itself
        target = _fitting(size, max_side)
        profile, orientation = image.info.get("icc_profile"), _orientation(image)
        block = max(1, max(image.size) // max_side)
        plain = _reduced(image, _white(image, kind), block)
    if inverted:
        plain = ImageOps.invert(plain)
    width, height = drafted[1][2:] if drafted else size  # not whole: the last pixels may cover less
    box = (0, 0, width / block, height / block)
    if plain.size != target or box[2:] != target:
        plain = plain.resize(target, Image.Resampling.LANCZOS, box=box)
    pixels = np.asarray(_srgb(plain, profile))
    pixels = pixels.transpose(1, 0, 2) if orientation >= 5 else pixels
    return np.ascontiguousarray(pixels[_FLIPS[orientation]])


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise PhotoError(
            "too large",
            f"it has {width}×{height} pixels, {width * height / 1e6:.0f} megapixels; the most is"
            f" {MAX_PIXELS / 1e6:.0f} megapixels.",
        )
    if max(width, height) > MAX_LENGTH:
        raise PhotoError("too large", f"it has {width}×{height} pixels; the longest side may have {MAX_LENGTH:,}.")


def _check_tiff(image: Image.Image) -> bool:
    """Whether the values must be inverted. Pillow shows 16-bit planes as noise, and forgets that 0 may be white."""
    tags = image.tag_v2  # pyright: ignore[reportAttributeAccessIssue] - of TIFF images
    bits, planar, photometric = tags.get(258, (1,)), tags.get(284, 1), tags.get(262)
    if planar == 2 and max(bits) > 8:
        raise PhotoError("unreadable", "it is a TIFF of 16-bit colour planes; save it interleaved, or as PNG.")
    return photometric == 0 and image.mode.startswith("I;16")


def _check_jpeg(file: BinaryIO) -> None:
    """Refuse a JPEG without an end, which would be filled with grey, and one that takes very long.

    Only the picture itself counts: thumbnails lie before its first scan, appended films after its end.
    """
    place = 2
    while True:
        file.seek(place)
        head = file.read(4)
        if len(head) < 4 or head[0] != 0xFF:
            return  # Pillow says what is wrong
        if head[1] == 0xDA:
            break
        place += 1 if head[1] == 0xFF else 2 + int.from_bytes(head[2:], "big")
    file.seek(place)
    count, last = 0, b""
    while block := file.read(1 << 20):
        block = last + block
        end = block.find(b"\xff\xd9")
        count += block.count(b"\xff\xda", 0, end if end >= 0 else len(block))
        if count > _MAX_SCANS:
            raise PhotoError("unreadable", f"it is a JPEG of more than {_MAX_SCANS} scans, made to take very long.")
        if end >= 0:
            return
        last = block[-1:]
    raise PhotoError("unreadable", "it is cut off: the end of the JPEG is missing.")


def _fitting(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    """The size of the same shape whose longer side is at most `max_side`."""
    scale = min(1.0, max_side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


_FLIPS = {
    1: np.s_[:, :],
    2: np.s_[:, ::-1],
    3: np.s_[::-1, ::-1],
    4: np.s_[::-1, :],
    5: np.s_[:, :],
    6: np.s_[:, ::-1],
    7: np.s_[::-1, ::-1],
    8: np.s_[::-1, :],
}
"""How to flip the stored picture (from 5 on: the transposed one) for each EXIF orientation."""


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 when nothing readable says otherwise."""
    try:
        value = image.getexif().get(0x0112, 1)
        return int(value) if int(value) in _FLIPS else 1
    except Exception:  # broken EXIF does not make the picture unreadable
        return 1


# ---- colours ----


def _white(image: Image.Image, kind: str) -> float:
    """The value of white in pictures of more than 8 bits per channel."""
    if image.mode.startswith("I;16") or kind in ("PNG", "PPM"):
        return 65535.0
    if image.mode not in ("I", "F"):
        return 255.0
    most = max(float(np.nan_to_num(band, posinf=0.0).max()) for band in map(np.asarray, _bands(image, 1)))
    return next((white for white in (1.0, 255.0, 65535.0) if most <= white and (white > 1 or image.mode == "F")), most)


def _bands(image: Image.Image, factor: int) -> Iterator[Image.Image]:
    """The picture from top to bottom, some rows (a multiple of `factor`) at a time."""
    width, height = image.size
    rows = max(1, _BAND_PIXELS // width // factor) * factor
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        yield image if bottom - top == height else image.crop((0, top, width, bottom))


def _reduced(image: Image.Image, white: float, factor: int) -> Image.Image:
    """The picture in 8 bits without transparency (L, RGB, CMYK or LAB), averaged over `factor`² pixels."""
    whole: Image.Image | None = None
    top = 0
    for band in _bands(image, factor):
        plain = _plain(band, white, factor)
        if band is image:
            return plain
        if whole is None:
            whole = Image.new(plain.mode, (plain.width, -(-image.height // factor)))
        whole.paste(plain, (0, top))
        top += plain.height
    assert whole is not None
    return whole


def _plain(image: Image.Image, white: float, factor: int) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.nan_to_num(np.asarray(image, np.float32), posinf=white, neginf=0.0)
        image = Image.fromarray(np.clip(values * (255.0 / white) + 0.5, 0, 255).astype(np.uint8))
    clear = image.has_transparency_data
    if clear:
        grey = image.mode in ("1", "L", "LA", "La")
        image = image.convert("RGBA")
        if factor > 1:
            image = image.reduce(factor)
        over = Image.new("RGBA", image.size, (255, 255, 255, 255))
        over.alpha_composite(image)
        return over.convert("L" if grey else "RGB")
    if image.mode == "1":
        image = image.convert("L")
    elif image.mode not in ("L", "RGB", "CMYK", "LAB"):
        image = image.convert("RGB")
    return image.reduce(factor) if factor > 1 else image


def _srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """The picture in sRGB by its colour profile; without one, or with one that does not fit, by Pillow's rules."""
    transform = None
    if profile or image.mode == "LAB":
        transform = _transform(profile or b"", image.mode)
    if transform is not None:
        with contextlib.suppress(ImageCms.PyCMSError, ValueError, OSError):
            converted = ImageCms.applyTransform(image, transform)
            if converted is not None:
                return converted
    return image if image.mode == "RGB" else image.convert("RGB")


_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK", "LAB": "Lab"}


@functools.lru_cache(maxsize=8)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From the colours of an ICC profile to sRGB; None when nothing is to do or the profile is of no use."""
    try:
        srgb = ImageCms.createProfile("sRGB")
        if mode == "LAB":
            source = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        else:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if "srgb" in ImageCms.getProfileDescription(source).lower():
                return None
        space = source.profile.xcolor_space  # pyright: ignore[reportAttributeAccessIssue] - its type is confused
        if space.strip() != _SPACES[mode]:
            return None
        intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
        return ImageCms.buildTransform(
            source, ImageCms.ImageCmsProfile(srgb), mode, "RGB", intent, ImageCms.Flags.BLACKPOINTCOMPENSATION
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, AttributeError):
        return None
