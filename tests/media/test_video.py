from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest

from portrait360.media.video import write_video
from portrait360.types import InputError


def ramp(count: int, height: int, width: int) -> list[np.ndarray]:
    """Smooth images that differ from frame to frame."""
    y, x = np.mgrid[0:height, 0:width]
    return [
        np.stack([np.full_like(x, 40 + 8 * i), 255 * x // width, 255 * y // height], axis=-1).astype(np.uint8)
        for i in range(count)
    ]


def decode(path) -> tuple[list[np.ndarray], av.VideoStream]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24", src_colorspace="ITU709") for frame in container.decode(stream)]
        return frames, stream


def test_decodes_to_the_same_frames(tmp_path):
    frames = ramp(10, 64, 80)
    assert write_video(tmp_path / "turn.mp4", frames, frames_per_second=24) == 10
    decoded, stream = decode(tmp_path / "turn.mp4")
    assert len(decoded) == 10
    assert stream.codec_context.name == "h264"
    assert stream.codec_context.pix_fmt == "yuv420p"
    assert stream.average_rate == 24
    assert stream.duration * stream.time_base == Fraction(10, 24)
    for original, frame in zip(frames, decoded, strict=True):
        assert np.abs(original.astype(int) - frame).mean() < 3
        assert np.abs(original.astype(int).mean((0, 1)) - frame.mean((0, 1))).max() < 2.5  # colours do not shift
    assert [path.name for path in tmp_path.iterdir()] == ["turn.mp4"]


def test_odd_sides_grow_by_one(tmp_path):
    write_video(tmp_path / "odd.mp4", ramp(3, 65, 99))
    decoded, _ = decode(tmp_path / "odd.mp4")
    assert decoded[0].shape == (66, 100, 3)


def test_same_frames_same_bytes(tmp_path):
    # Tiny frames are the hard ones: there, x264's macroblock tree depends on what lies in memory.
    first = tmp_path / "first.mp4"
    write_video(first, iter(ramp(12, 32, 32)))
    for attempt in range(20):
        np.full(1000 + 997 * attempt, attempt / 7)  # other rubbish in memory
        write_video(tmp_path / "again.mp4", iter(ramp(12, 32, 32)))
        assert (tmp_path / "again.mp4").read_bytes() == first.read_bytes()


def test_no_frames_leave_no_file(tmp_path):
    with pytest.raises(ValueError, match="at least one frame"):
        write_video(tmp_path / "none.mp4", [])
    assert list(tmp_path.iterdir()) == []


def test_a_missing_encoder_is_explained(tmp_path, monkeypatch):
    def missing(name, mode):
        raise av.codec.codec.UnknownCodecError(name)

    monkeypatch.setattr(av, "Codec", missing)
    with pytest.raises(InputError, match=r"no H\.264 encoder") as caught:
        write_video(tmp_path / "a.mp4", ramp(1, 8, 8))
    assert "`video=False`" in caught.value.hint
