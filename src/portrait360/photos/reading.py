"""Read any file as an upright sRGB image of bounded size, or say why not.

What a file is called says nothing: its first bytes decide (`formats`). Formats that Pillow reads by starting other
programs (EPS), or that have no signature, are not read.
"""

from __future__ import annotations

import contextlib
import io
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from PIL import ExifTags, Image, ImageCms, ImageOps

from portrait360.photos.formats import check_jpeg, format_of, open_image
from portrait360.photos.records import PhotoError

MAX_PIXELS = 250_000_000
MAX_LENGTH = 100_000
"""Images with more pixels, or a longer side, are refused before they are decoded."""
BAND_PIXELS = 1 << 24
"""Colours are converted so many pixels at a time."""


def read_photo(path: Path, max_side: int = 4096) -> UInt8[ndarray, "H W 3"]:
    """The first image of a file: upright, sRGB, transparent parts over white, at most `max_side` pixels long.

    Larger images are averaged down while they are decoded where the format allows it (JPEG), else right afterwards.
    16 bits are scaled to 8, colour profiles are converted to sRGB, EXIF orientation is applied.

    Raises:
        PhotoError: "not an image"; "unreadable" (no permission, broken, cut off, a format that is not supported);
            "too large" (more than MAX_PIXELS pixels or MAX_LENGTH pixels long).
    """
    try:
        with _opened(Path(path)) as file:
            kind = format_of(file)
            file.seek(0)
            return _decoded(file, kind, max_side)
    except PhotoError:
        raise
    except MemoryError as error:
        raise PhotoError("too large", "there is not enough memory to read it.") from error
    except Exception as error:  # decoders raise whatever a broken file makes them stumble over
        text = " ".join(str(error).split()) or type(error).__name__
        text = text if len(text) <= 120 else text[:117] + "..."
        raise PhotoError("unreadable", f"the file is broken or cut off ({text}).") from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise PhotoError("unreadable", "it is a folder that could not be opened.")
        if not stat.S_ISREG(mode):  # a pipe would wait for ever
            raise PhotoError("not an image", "it is no ordinary file.")
        file = path.open("rb")
    except OSError as error:
        raise PhotoError("unreadable", f"it could not be opened: {error.strerror or error}.") from error
    with file:
        yield file


def _decoded(file: BinaryIO, kind: str, max_side: int) -> UInt8[ndarray, "H W 3"]:
    # Refuse what is too large, or would be read wrongly, before decoding.
    if kind == "JPEG":
        check_jpeg(file)
        file.seek(0)
    with open_image(file, kind) as image:
        _check_size(*image.size)
        inverted = kind == "TIFF" and _is_inverted(image)

        # Decode; JPEG by the largest power of two that leaves enough pixels.
        size = image.size
        drafted = image.draft(None, _fitting(size, max_side)) if kind == "JPEG" else None
        image.load()
        size = size if kind == "JPEG" else image.size  # a TIFF turns itself
        profile, orientation = image.info.get("icc_profile"), _orientation(image)

        # Average whole blocks of pixels in plain 8-bit colours.
        block = max(1, max(image.size) // max_side)
        plain = _reduced(image, _white(image, kind), block)

    # Resample the rest of the way, then colours and orientation.
    plain = ImageOps.invert(plain) if inverted else plain
    width, height = drafted[1][2:] if drafted else size  # not whole: the last pixels may cover less
    target, box = _fitting(size, max_side), (0, 0, width / block, height / block)
    if plain.size != target or box[2:] != target:
        plain = plain.resize(target, Image.Resampling.LANCZOS, box=box)
    upright = _srgb(plain, profile)
    upright.getexif()[ExifTags.Base.Orientation] = orientation
    return np.ascontiguousarray(ImageOps.exif_transpose(upright))


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise PhotoError(
            "too large",
            f"it has {width}×{height} pixels, {width * height / 1e6:.0f} megapixels; the most is"
            f" {MAX_PIXELS / 1e6:.0f} megapixels.",
        )
    if max(width, height) > MAX_LENGTH:
        raise PhotoError("too large", f"it has {width}×{height} pixels; the longest side may have {MAX_LENGTH:,}.")


def _is_inverted(image: Image.Image) -> bool:
    """Whether a TIFF's values must be inverted: Pillow forgets that 0 may be white, and garbles 16-bit planes."""
    tags = image.tag_v2  # pyright: ignore[reportAttributeAccessIssue] - of TIFF images
    bits, planar, photometric = tags.get(258, (1,)), tags.get(284, 1), tags.get(262)
    if planar == 2 and max(bits) > 8:
        raise PhotoError("unreadable", "it is a TIFF of 16-bit colour planes; save it interleaved, or as PNG.")
    return photometric == 0 and image.mode.startswith("I;16")


def _fitting(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    """The size of the same shape whose longer side is at most `max_side`."""
    scale = min(1.0, max_side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 when nothing readable says otherwise."""
    try:
        value = int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken EXIF does not make the image unreadable
        return 1
    return value if 1 <= value <= 8 else 1


# ---- colours ----


def _white(image: Image.Image, kind: str) -> float:
    """The value of white in images of more than 8 bits per channel."""
    if image.mode.startswith("I;16") or kind in ("PNG", "PPM"):
        return 65535.0
    if image.mode not in ("I", "F"):
        return 255.0
    most = max(float(np.nan_to_num(band, posinf=0.0).max()) for band in map(np.asarray, _bands(image, 1)))
    return next((white for white in (1.0, 255.0, 65535.0) if most <= white and (white > 1 or image.mode == "F")), most)


def _bands(image: Image.Image, factor: int) -> Iterator[Image.Image]:
    """The image from top to bottom, some rows (a multiple of `factor`) at a time."""
    width, height = image.size
    rows = max(1, BAND_PIXELS // width // factor) * factor
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        yield image if bottom - top == height else image.crop((0, top, width, bottom))


def _reduced(image: Image.Image, white: float, factor: int) -> Image.Image:
    """The image in 8 bits without transparency (L, RGB, CMYK or LAB), averaged over `factor`² pixels."""
    plains = (_plain(band, white, factor) for band in _bands(image, factor))
    first = next(plains)
    whole = Image.new(first.mode, (first.width, -(-image.height // factor)))
    whole.paste(first)
    top = first.height
    for plain in plains:
        whole.paste(plain, (0, top))
        top += plain.height
    return whole


def _plain(image: Image.Image, white: float, factor: int) -> Image.Image:
    # More than 8 bits.
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.nan_to_num(np.asarray(image, np.float32), posinf=white, neginf=0.0)
        image = Image.fromarray(np.clip(values * (255.0 / white) + 0.5, 0, 255).astype(np.uint8))

    # Transparency: averaged with its colours (`reduce` weighs them by it), then laid over white.
    if image.has_transparency_data:
        grey = image.mode in ("1", "L", "LA", "La")
        clear = image.convert("RGBA").reduce(factor)
        over = Image.new("RGBA", clear.size, (255, 255, 255, 255))
        over.alpha_composite(clear)
        return over.convert("L" if grey else "RGB")

    # Palettes and other ways to store colours.
    if image.mode == "1":
        image = image.convert("L")
    elif image.mode not in ("L", "RGB", "CMYK", "LAB"):
        image = image.convert("RGB")
    return image.reduce(factor)


def _srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """The image in sRGB by its colour profile; without one, or with one that does not fit, by Pillow's rules."""
    if profile or image.mode == "LAB":
        intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
        with contextlib.suppress(ImageCms.PyCMSError, OSError, ValueError, TypeError):
            kind = ImageCms.createProfile("LAB") if image.mode == "LAB" else io.BytesIO(profile or b"")
            source, target = ImageCms.ImageCmsProfile(kind), ImageCms.createProfile("sRGB")
            if "srgb" not in ImageCms.getProfileDescription(source).lower():
                converted = ImageCms.profileToProfile(image, source, target, intent, "RGB", flags=flags)
                if converted is not None:
                    return converted
    return image.convert("RGB")
