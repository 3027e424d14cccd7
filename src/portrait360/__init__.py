"""Learn and draw one-quarter-headshot 3D portraits, seen from every side and re-posed at neck and head."""

__version__ = "0.1.0"
