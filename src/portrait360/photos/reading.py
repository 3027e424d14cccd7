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
from jaxtyping import Float, UInt8
from numpy import ndarray
from PIL import ExifTags, Image, ImageCms, ImageOps

from portrait360.photos.formats import open_image
from portrait360.photos.records import PhotoError

MAX_PIXELS = 250_000_000
MAX_LENGTH = 100_000
"""Images with more pixels, or a longer side, are refused before they are decoded."""
_PLAIN = {"1": "L", "L": "L", "CMYK": "CMYK", "LAB": "LAB"}
"""Colours that stay, or become others than RGB, until they are averaged down."""


def read_photo(path: Path, max_side: int = 4096) -> UInt8[ndarray, "H W 3"]:
    """The first image of a file: upright, sRGB, transparent parts over white, at most `max_side` pixels long.

    Larger images are averaged down while they are decoded where the format allows it (JPEG), else right afterwards.
    16 bits are scaled to 8, colour profiles are converted to sRGB, EXIF orientation is applied.

    Raises:
        PhotoError: "not an image"; "unreadable" (no permission, broken, cut off, a format that is not supported);
            "too large" (more than MAX_PIXELS pixels or MAX_LENGTH pixels long).
    """
    try:
        with _opened(Path(path)) as file, open_image(file) as image:
            return _decoded(image, max_side)
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


def _decoded(image: Image.Image, max_side: int) -> UInt8[ndarray, "H W 3"]:
    """The pixels of an image that was opened."""
    # Refuse what is too large, or would be read wrongly, before decoding.
    _check_size(*image.size)
    inverted = image.format == "TIFF" and _is_inverted(image)

    # Decode; JPEG by the largest power of two that leaves enough pixels.
    target = _fitting(image.size, max_side)
    drafted = image.draft(None, target) if image.format == "JPEG" else None
    image.load()
    if drafted is None:
        target = _fitting(image.size, max_side)  # a TIFF turns itself
    box = None if drafted is None else drafted[1]  # fractions: the last pixels may cover less
    profile, orientation = image.info.get("icc_profile"), _orientation(image)

    # Average down, colours weighed by their opacity, and lay what is transparent over white.
    grey = image.mode in ("1", "L", "LA", "La")
    small = _averageable(image)
    if small.size != target:
        small = small.resize(target, Image.Resampling.LANCZOS, box=box, reducing_gap=1.0)
    if small.mode == "RGBA":
        white = Image.new("RGBA", small.size, "white")
        small = Image.alpha_composite(white, small).convert("L" if grey else "RGB")

    # Colours and orientation.
    small = ImageOps.invert(small) if inverted else small
    upright = _srgb(small, profile)
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


def _averageable(image: Image.Image) -> Image.Image:
    """The image in 8 bits and in colours that can be averaged: RGBA where parts are transparent, else L, RGB, CMYK or
    LAB."""
    # More than 8 bits.
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.array(image, np.float32)
        white = _white(image, values)
        np.nan_to_num(values, copy=False, posinf=white, neginf=0.0)
        values *= np.float32(255.0 / white)
        values += np.float32(0.5)
        return Image.fromarray(np.clip(values, 0, 255, out=values).astype(np.uint8))

    # Transparency, palettes and other ways to store colours.
    mode = "RGBA" if image.has_transparency_data else _PLAIN.get(image.mode, "RGB")
    return image if image.mode == mode else image.convert(mode)


def _white(image: Image.Image, values: Float[ndarray, "H W"]) -> float:
    """The value of white in an image of more than 8 bits: that of its type, or the least usual one that holds it."""
    if image.mode.startswith("I;16") or image.format in ("PNG", "PPM"):
        return 65535.0
    most = float(values.max(where=np.isfinite(values), initial=0.0))
    usual = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
    return next((white for white in usual if most <= white), most)


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
