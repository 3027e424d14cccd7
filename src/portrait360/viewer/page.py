"""The page: one HTML file with everything in it, which the browser forbids to ask the network for anything."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

import portrait360
from portrait360.model.generator import Generator
from portrait360.runtime.files import atomic_write
from portrait360.types import InputError
from portrait360.viewer.modules import joined_modules
from portrait360.viewer.payload import FORMAT, VERSION, PagePortrait, model_payload, portrait_payload

FALLBACK_SIDE = 256
"""Side of the images for browsers that cannot render, pixels."""
_FALLBACK_QUALITY = 75
_SIDES = ("front", "front left", "left", "back left", "back", "back right", "right", "front right")
_MOST_DEGREES = 40


def page_path(path: str | Path) -> Path:
    """`path`, if a page can be written there.

    Raises:
        InputError: it does not end in .html.
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"a page must be an .html file, not {path}.", f"Try {path.with_suffix('.html')}.")
    return path


def write_page(
    path: Path,
    generator: Generator,
    portraits: Sequence[PagePortrait],
    *,
    title: str,
    maker: dict[str, Any] | None = None,
) -> None:
    """Write a page that shows portraits of one generator.

    Args:
        path: the .html file.
        generator: what made them.
        portraits: the people, at least one.
        title: of the page.
        maker: the generator itself as data (`viewer.maker`), for pages that make people; None leaves it out.

    Raises:
        InputError: a page cannot render the generator's portraits, or the file cannot be written.
    """
    payload = {
        "format": FORMAT,
        "version": VERSION,
        "model": model_payload(generator),
        # a page that makes people makes the first one too
        "portraits": [portrait_payload(portrait, generator) for portrait in portraits] if maker is None else [],
        "generator": maker,
    }
    html = page_html(payload, portraits, title=title)
    with atomic_write(path) as temporary:
        temporary.write_text(html, encoding="utf-8", newline="\n")


def page_html(payload: dict[str, Any], portraits: Sequence[PagePortrait], *, title: str) -> str:
    """The page of a payload; `portraits` give the images for browsers that cannot render."""
    return _html(
        payload,
        title,
        generator_controls=payload["generator"] is not None,
        invented=all("seed" in portrait.record for portrait in portraits),
        people=[{"name": portrait.name, "views": _views(portrait)} for portrait in portraits],
    )


def served_page(model: dict[str, Any] | None, *, title: str, folder: str) -> str:
    """The page of a server (`portrait360 view`), which it asks for people and, where it cannot render, for images.

    Args:
        model: `model_payload`; None for models that the browser does not render.
        title: of the page.
        folder: where the server saves portraits, in words.
    """
    payload = {"format": FORMAT, "version": VERSION, "model": model, "portraits": [], "generator": None}
    return _html(
        payload | {"server": {"folder": folder}}, title, generator_controls=True, invented=False, people=[], served=True
    )


def _html(payload: dict[str, Any], title: str, *, served: bool = False, **values: Any) -> str:
    script, style = joined_modules("online.js" if served else "offline.js", _read), _read("page.css")
    return (
        _environment()
        .get_template("page.html")
        .render(
            title=title,
            generator=f"portrait360 {portrait360.__version__}",
            policy=_policy(script, style, "'self'" if served else None),
            style=Markup(style),
            script=Markup(script),
            payload=Markup(json.dumps(payload, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")),
            groups=_slider_groups(),
            served=served,
            **values,
        )
    )


def _read(name: str) -> str:
    return (files("portrait360.viewer") / "web" / name).read_text(encoding="utf-8")


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("portrait360.viewer", "web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _policy(script: str, style: str, asks: str | None) -> str:
    """A Content-Security-Policy under which the page runs its own script and asks `asks` alone; None: nobody."""
    script_hash, style_hash = (
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (script, style)
    )
    connect = "" if asks is None else f" connect-src {asks};"
    return (
        f"default-src 'none'; script-src 'sha256-{script_hash}'; style-src 'sha256-{style_hash}';"
        f"{connect} img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _slider_groups() -> list[tuple[str, list[dict[str, Any]]]]:
    view = [
        {"name": "yaw", "label": "Turn", "low": -180, "high": 180, "start": 0},
        {"name": "pitch", "label": "Height", "low": -60, "high": 60, "start": 0},
        {"name": "zoom", "label": "Zoom", "low": 60, "high": 500, "start": 100},
    ]
    joints = [
        (joint, [_joint_slider(joint, axis, label) for axis, label in zip("XYZ", ("Nod", "Turn", "Tilt"), strict=True)])
        for joint in ("Neck", "Head")
    ]
    return [("View", view), *joints]


def _joint_slider(joint: str, axis: str, label: str) -> dict[str, Any]:
    limits = {"low": -_MOST_DEGREES, "high": _MOST_DEGREES, "start": 0}
    return {"name": f"{joint.lower()}{axis}", "label": label, **limits}


def _views(portrait: PagePortrait) -> list[dict[str, Any]]:
    names = [_SIDES[round(index * len(_SIDES) / len(portrait.views))] for index in range(len(portrait.views))]
    return [
        {"data": image_url(view), "side": view.shape[0], "alt": f"{portrait.name} from the {name}"}
        for view, name in zip(portrait.views, names, strict=True)
    ]


def image_url(image: UInt8[np.ndarray, "H W 3"]) -> str:
    """An image as a data URL."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "WEBP", quality=_FALLBACK_QUALITY, method=6)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
