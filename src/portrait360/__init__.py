"""Learn 3D one-quarter-headshot portraits and render them from every side, re-posed at neck and head.

The names of `__all__` are the public API (docs/api.md); each is imported when it is first used.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "AssetError": "errors",
    "Camera": "portrait.camera",
    "CheckpointError": "errors",
    "DatasetError": "errors",
    "DivergenceError": "errors",
    "InputError": "errors",
    "Portrait": "portrait.portrait",
    "Portrait360Error": "errors",
    "PortraitMesh": "portrait.solid",
    "PortraitModel": "portrait.model",
    "PoseEstimate": "apps.pose_estimate",
    "RenderOutput": "types",
    "estimate_pose": "apps.pose",
    "evaluate": "apps.evaluate",
    "make_dataset": "apps.dataset",
    "train": "apps.train",
}
"""Module of each public name."""

__all__ = [*_HOMES, "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
