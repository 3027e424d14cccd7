"""Files of golden numbers: inputs and outputs of the published code, stage by stage, as arrays in a `.npz`.

Files of 3DPortraitGAN and of its relatives (equations 15). Two layouts. A *small* file brings a network's own tensors
(`G/<name>`, `D/<name>`), inputs and outputs (`out/<name>`) and `meta_json`: constructor arguments and norms of
gradients; files of the relatives have inputs under `in/`. A *full-size* file brings inputs (`in/<name>`) and outputs of
the released configurations; its weights are made from their names (`named_tensor`). The name of an output may end in
the part of it that is stored: `out/image[::8,2::8]`, applied to the last axes, or, if it begins with a bare colon, to
the first ones: `out/depths[:, ::4]`.
"""

from __future__ import annotations

import dataclasses
import json
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from portrait360.config import PRESETS, ModelConfig
from portrait360.model.discriminator import Discriminator
from portrait360.model.generator import Generator
from portrait360.official.family import Family, family_of, model_config, without_leading_axis
from portrait360.official.pickle_data import Name, Thing
from portrait360.types import InputError

Part = tuple[slice, ...]
_HINT = "docs/lab/2026-11-26-parity.md names the files of golden numbers."
_LEFT_OUT = ("renderer.", "dataset_label_std")
_POSE_BRANCH, _SUPERRESOLUTION = "pose_branch.", "superresolution."
_KEY = re.compile(r"([^\[\]]+)(?:\[([^\[\]]*)\])?")


class Golden:
    """The arrays of one file. `used` collects the names that were asked for."""

    def __init__(self, path: Path, arrays: dict[str, np.ndarray]) -> None:
        self.path = path
        self.used: set[str] = set()
        self._arrays: dict[str, np.ndarray] = {}
        self._parts: dict[str, Part] = {}
        for key, array in arrays.items():
            match = _KEY.fullmatch(key)
            if match is None:
                raise InputError(f"{path} has an array with the odd name {key!r}.", _HINT)
            self._arrays[match[1]] = array
            self._parts[match[1]] = parse_part(match[2] or "")

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def names(self) -> list[str]:
        """Names of all arrays, without the parts that are stored."""
        return list(self._arrays)

    def tensor(self, name: str) -> Tensor:
        """An array as it is stored: float32, int64 or bool.

        Raises:
            InputError: the file lacks it.
        """
        if name not in self._arrays:
            raise InputError(f"{self.path} lacks the array {name}.", _HINT)
        self.used.add(name)
        array = self._arrays[name]
        kind = {"b": np.bool_, "i": np.int64, "u": np.int64, "f": np.float32}.get(array.dtype.kind)
        if kind is None:
            raise InputError(f"the array {name} in {self.path} is not made of numbers.", _HINT)
        return torch.from_numpy(array.astype(kind))

    def part(self, name: str) -> Part:
        """Which part of the last axes is stored."""
        return self._parts[name]

    def unused(self) -> list[str]:
        """Outputs that nobody asked for."""
        return sorted(name for name in self._arrays if name.startswith("out/") and name not in self.used)

    def state(self, prefix: str) -> dict[str, Tensor]:
        """Tensors of the network `prefix` (`G/` or `D/`), without the body model's."""
        names = (n for n in self._arrays if n.startswith(prefix) and not n.startswith(_LEFT_OUT, len(prefix)))
        return without_leading_axis({n[len(prefix) :]: self.tensor(n) for n in names})

    def meta(self) -> dict[str, Any]:
        """Constructor arguments and norms of a small file."""
        if "meta_json" not in self._arrays:
            raise InputError(f"{self.path} lacks the array meta_json.", _HINT)
        try:
            return json.loads(bytes(self._arrays["meta_json"]).decode())
        except ValueError as error:
            raise InputError(f"the entry meta_json of {self.path} is not JSON.", "Copy the file again.") from error

    @property
    def is_full_size(self) -> bool:
        """Whether weights are to be made from names."""
        return "in/z" in self._arrays and not any(name.startswith("G/") for name in self._arrays)

    @property
    def family(self) -> Family:
        """Which model computed the outputs: they tell."""
        if "out/delta_psi1" in self:
            return "panohead"
        return "pyramid" if any("trigrid" in name for name in self._arrays) else "original"

    @property
    def ray_sides(self) -> list[int]:
        """Sides of the rays that a full-size file has images of."""
        return sorted({int(m[1]) for n in self._arrays if (m := re.match(r"out/nrr(\d+)/", n))})

    def full_resolution(self) -> int:
        """Side of the images of a full-size file, from the part of them that is stored."""
        for side in self.ray_sides:
            name = f"out/nrr{side}/image"
            if name in self._arrays:
                step = self.part(name)[-1].step if self.part(name) else 1
                return self._arrays[name].shape[-1] * (step or 1)
        raise InputError(f"{self.path} has no images to compare.", _HINT)


def parse_part(text: str) -> Part:
    """`::4,2::8` as slices."""
    if not text:
        return ()
    entries = (entry.split(":") for entry in text.split(","))
    return tuple(slice(*(int(n) if n.strip() else None for n in entry)) for entry in entries)


def read_golden(path: Path) -> Golden:
    """The arrays of a file; nothing in it is run.

    Raises:
        InputError: missing, damaged, or a file of something else.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no file at {path}.", "Check the path.")
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} is not a readable .npz file ({error}).", "Copy the file again.") from error
    if not any(name.startswith("out/") for name in arrays):
        raise InputError(f"{path} holds no golden numbers.", _HINT)
    try:
        return Golden(path, arrays)
    except ValueError as error:
        raise InputError(f"{path} names a part of an array that cannot be read ({error}).", _HINT) from error


_DENSITY_GAIN: dict[Family, int] = {"original": 16, "panohead": 8, "pyramid": 32}
"""Factor on the density row of a decoder."""


def named_tensor(name: str, shape: tuple[int, ...], salt: str, family: Family = "original") -> Tensor:
    """The weight that a full-size golden network has under `name` (`G/...` or `D/...`), float32."""
    seed = zlib.crc32((salt + name).encode())
    values = np.random.RandomState(seed).standard_normal(shape).astype(np.float32)
    own = name.split("/", 1)[1]
    if own.endswith("noise_strength"):
        values = values * np.float32(0.1)
    elif own.endswith("w_avg"):
        values = values * np.float32(0.3)
    elif own.endswith("bias"):
        values = values * np.float32(0.1) + np.float32(own.endswith("affine.bias"))
    if own.startswith(("mapping.fc", "backbone.mapping.fc")):
        values = values * np.float32(100)
    if own in ("t_mapping.fc1.weight", "t_mapping.w_avg"):
        values = values * np.float32(0.03)
    if ".b3d" in own and own.endswith("block.torgb.weight"):
        values = values * np.float32(0.4)
    if name == "G/decoder.net.2.weight":
        values[0] *= np.float32(_DENSITY_GAIN[family])
    return torch.from_numpy(np.asarray(values))


@dataclasses.dataclass(frozen=True)
class Networks:
    """Both networks in eval mode. `has_pose_head`: whether the discriminator's pose branch came with the file. Files of
    the relatives hold nothing of a discriminator, and this one is random."""

    generator: Generator
    discriminator: Discriminator
    has_pose_head: bool


def full_size_networks(golden: Golden, salt: str) -> Networks:
    """The released configuration of a full-size file with weights made from their names.

    Raises:
        InputError: images of a size that was never released.
    """
    resolution, family = golden.full_resolution(), golden.family
    name = f"{family}-{resolution}"
    if name not in PRESETS:
        raise InputError(f"{golden.path} has images of side {resolution}; no released network makes them.", _HINT)
    networks = _networks(PRESETS[name].model)
    filled: list[tuple[nn.Module, str]] = [(networks.generator, "G/")]
    if family == "original":
        filled.append((networks.discriminator, "D/"))
    for module, prefix in filled:
        for own, value in module.state_dict().items():
            if not own.endswith("resample_filter"):
                value.copy_(named_tensor(prefix + own, tuple(value.shape), salt, family))
    if "in/density_bias" in golden:
        networks.generator.decoder.get_parameter("net.2.bias")[0] = golden.tensor("in/density_bias")
    return networks


def small_networks(golden: Golden) -> Networks:
    """The networks whose tensors a small file brings.

    It may lack large parts, then random here: the discriminator's pose branch, and super-resolution but for the two
    biases that tell its widths.

    Raises:
        InputError: tensors are missing, or belong to other networks.
    """
    meta, g, d = golden.meta(), golden.state("G/"), golden.state("D/")
    origin = Thing(Name("persistent", "TriPlaneGenerator"))
    has_pose_head = any(name.startswith(_POSE_BRANCH) for name in d)
    try:
        family = family_of(g)
        origin.state = {"_init_kwargs": meta["G_kwargs"]}
        model = model_config(origin, g, d or None, family)
        networks = dataclasses.replace(_networks(model), has_pose_head=has_pose_head)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{golden.path} holds networks of another kind ({type(error).__name__}: {error}).", _HINT
        ) from error
    whole = _SUPERRESOLUTION + "block0.conv0.weight" in g
    _load(networks.generator, g, golden.path, "G/", () if whole else (_SUPERRESOLUTION,))
    if family == "original":
        absent = () if has_pose_head else (_POSE_BRANCH,)
        _load(networks.discriminator, d, golden.path, "D/", absent)
    return networks


def _networks(model: ModelConfig) -> Networks:
    generator, discriminator = Generator(model), Discriminator(model)
    for module in (generator, discriminator):
        module.eval().requires_grad_(False)
    return Networks(generator, discriminator, True)


def _load(module: nn.Module, tensors: dict[str, Tensor], path: Path, prefix: str, absent: tuple[str, ...] = ()) -> None:
    fixed = ".resample_filter"  # the same in every network, and not in every file
    state = {name: value for name, value in module.state_dict().items() if not name.startswith(absent or "\0")}
    wanted = {name: value.shape for name, value in state.items()}
    given = {name: value.shape for name, value in tensors.items() if not name.startswith(absent or "\0")}
    given |= {n: shape for n, shape in wanted.items() if n.endswith(fixed) or n == fixed[1:]}
    for name in sorted(wanted.keys() | given.keys()):
        if wanted.get(name) != given.get(name):
            raise InputError(f"{path}: tensor {prefix}{name} is missing, unknown or of another shape.", _HINT)
    module.load_state_dict(tensors, strict=False)
