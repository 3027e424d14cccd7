"""Videos that every player opens: H.264, 4:2:0, in MP4."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import av
import numpy as np
from av.codec.codec import UnknownCodecError
from av.video.reformatter import Colorspace
from jaxtyping import UInt8
from numpy import ndarray

from portrait360.runtime.files import atomic_write
from portrait360.types import InputError

_BT709 = 1


def write_video(
    path: Path, frames: Iterable[UInt8[ndarray, "H W 3"]], *, frames_per_second: int = 24, quality: int = 16
) -> int:
    """Encode sRGB frames, all of one size, as they come; return their number.

    Args:
        path: the .mp4 file, written atomically.
        frames: at least one. An odd side grows by one repeated row or column, as 4:2:0 asks.
        frames_per_second: frame rate.
        quality: x264's constant rate factor: 0 is lossless, about 16 looks lossless, 51 is worst.

    Raises:
        InputError: this PyAV has no H.264 encoder, or the file cannot be written.
        ValueError: there are no frames.
    """
    # Find the encoder.
    try:
        av.Codec("libx264", "w")
    except UnknownCodecError as error:
        raise InputError(
            "this build of PyAV has no H.264 encoder (libx264).",
            "Reinstall it with `pip install --force-reinstall av`, or leave the video out (`video=False`).",
        ) from error

    # Open the file.
    count = 0
    with (
        atomic_write(path) as temporary,
        av.open(str(temporary), "w", options={"movflags": "+faststart"}) as container,
    ):
        stream = container.add_stream("libx264", rate=frames_per_second)
        stream.pix_fmt = "yuv420p"
        # The same bytes every time need a fixed number of threads and no macroblock tree: with it, frames
        # below 128 pixels came out differently in up to half of the runs.
        stream.options = {"crf": str(quality), "threads": "2", "x264-params": "mbtree=0"}
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT709

        # Encode the frames as they come.
        for image in frames:
            rows, columns = (side % 2 for side in image.shape[:2])
            even = np.pad(image, ((0, rows), (0, columns), (0, 0)), mode="edge")
            if count == 0:
                stream.height, stream.width = even.shape[:2]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
            container.mux(stream.encode(frame))
            count += 1
        if count == 0:
            raise ValueError("a video needs at least one frame")
        container.mux(stream.encode(None))
    return count
