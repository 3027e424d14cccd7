"""Counts and times in words, for messages."""

from __future__ import annotations


def counted(count: int, thing: str) -> str:
    """A count with its noun: "1 image", "3 images"."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def rough_time(seconds: float) -> str:
    """A time as people say it: "half a minute", "25 minutes", "3 hours", "2 days"."""
    if seconds < 45:
        return "half a minute" if seconds > 15 else "some seconds"
    for unit, length, most in (("minute", 60.0, 90.0), ("hour", 3600.0, 36.0), ("day", 86400.0, float("inf"))):
        if seconds < most * length:
            return counted(max(1, round(seconds / length)), unit)
    raise ValueError(f"{seconds} is no time.")
