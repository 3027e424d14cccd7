"""The Inception-v3 network behind the published Fréchet and kernel Inception distances, for users who have its weights.

Szegedy et al. 2016 (Rethinking the Inception Architecture), as exported on 2015-12-05 and used by Heusel et al. 2017:
average pools leave out the padding, the last block pools by the maximum, and there are 1008 classes. The weights are
not part of this package and are never fetched; `load_inception` reads the user's copy of the file
`pt_inception-2015-12-05-6726825d.pth`, whose tensor names the modules here carry. Nothing in a file is executed.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load as read_safetensors
from torch import Tensor, nn

from portrait360.official.pickle_arrays import ordered
from portrait360.official.pickle_data import REFUSED, Name, Rules, read_pickle, refuse
from portrait360.runtime.files import explain_os_error
from portrait360.types import CheckpointError

SIDE = 299
"""Side of the pictures that the network sees."""
WIDTH = 2048
"""Numbers of a feature vector."""
MOST_BYTES = 2**28
"""Largest file that is read, and most bytes of tensors in one; the published file has 96 MB."""
_HINT = (
    "Give pt_inception-2015-12-05-6726825d.pth, the weights of the FID network that pytorch-fid and torch-fidelity "
    "publish, or the same tensors as .safetensors."
)


# ---- the network ----


class Convolution(nn.Module):
    """Convolution, batch normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int = 1, same: bool = True):
        """`same` pads so that stride 1 keeps the size."""
        super().__init__()
        kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (kernel[0] // 2, kernel[1] // 2) if same else (0, 0)
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def _mean_pool(x: Tensor) -> Tensor:
    """Mean of 3 x 3 neighbours, at the borders of those that there are."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class BlockA(nn.Module):
    """35 x 35: 1x1, 5x5, two 3x3, pool."""

    def __init__(self, inputs: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = Convolution(inputs, 64, 1)
        self.branch5x5_1 = Convolution(inputs, 48, 1)
        self.branch5x5_2 = Convolution(48, 64, 5)
        self.branch3x3dbl_1 = Convolution(inputs, 64, 1)
        self.branch3x3dbl_2 = Convolution(64, 96, 3)
        self.branch3x3dbl_3 = Convolution(96, 96, 3)
        self.branch_pool = Convolution(inputs, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), wide, double, self.branch_pool(_mean_pool(x))], dim=1)


class BlockB(nn.Module):
    """35 x 35 to 17 x 17: 3x3, two 3x3, pool."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3 = Convolution(inputs, 384, 3, stride=2, same=False)
        self.branch3x3dbl_1 = Convolution(inputs, 64, 1)
        self.branch3x3dbl_2 = Convolution(64, 96, 3)
        self.branch3x3dbl_3 = Convolution(96, 96, 3, stride=2, same=False)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], dim=1)


class BlockC(nn.Module):
    """17 x 17: 1x1, 7x7 as 1x7 and 7x1, the same twice, pool."""

    def __init__(self, inputs: int, inner: int) -> None:
        super().__init__()
        self.branch1x1 = Convolution(inputs, 192, 1)
        self.branch7x7_1 = Convolution(inputs, inner, 1)
        self.branch7x7_2 = Convolution(inner, inner, (1, 7))
        self.branch7x7_3 = Convolution(inner, 192, (7, 1))
        self.branch7x7dbl_1 = Convolution(inputs, inner, 1)
        self.branch7x7dbl_2 = Convolution(inner, inner, (7, 1))
        self.branch7x7dbl_3 = Convolution(inner, inner, (1, 7))
        self.branch7x7dbl_4 = Convolution(inner, inner, (7, 1))
        self.branch7x7dbl_5 = Convolution(inner, 192, (1, 7))
        self.branch_pool = Convolution(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), wide, double, self.branch_pool(_mean_pool(x))], dim=1)


class BlockD(nn.Module):
    """17 x 17 to 8 x 8: 3x3, 7x7 and 3x3, pool."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3_1 = Convolution(inputs, 192, 1)
        self.branch3x3_2 = Convolution(192, 320, 3, stride=2, same=False)
        self.branch7x7x3_1 = Convolution(inputs, 192, 1)
        self.branch7x7x3_2 = Convolution(192, 192, (1, 7))
        self.branch7x7x3_3 = Convolution(192, 192, (7, 1))
        self.branch7x7x3_4 = Convolution(192, 192, 3, stride=2, same=False)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        parts = [self.branch3x3_2(self.branch3x3_1(x)), self.branch7x7x3_4(wide), F.max_pool2d(x, 3, stride=2)]
        return torch.cat(parts, dim=1)


class BlockE(nn.Module):
    """8 x 8: 1x1, 3x3 as 1x3 beside 3x1, 3x3 and the same, pool: of means, or in the last block of maxima."""

    def __init__(self, inputs: int, last: bool) -> None:
        super().__init__()
        self.last = last
        self.branch1x1 = Convolution(inputs, 320, 1)
        self.branch3x3_1 = Convolution(inputs, 384, 1)
        self.branch3x3_2a = Convolution(384, 384, (1, 3))
        self.branch3x3_2b = Convolution(384, 384, (3, 1))
        self.branch3x3dbl_1 = Convolution(inputs, 448, 1)
        self.branch3x3dbl_2 = Convolution(448, 384, 3)
        self.branch3x3dbl_3a = Convolution(384, 384, (1, 3))
        self.branch3x3dbl_3b = Convolution(384, 384, (3, 1))
        self.branch_pool = Convolution(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self.last else _mean_pool(x)
        parts = [self.branch1x1(x), self.branch3x3_2a(single), self.branch3x3_2b(single)]
        parts += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double), self.branch_pool(pooled)]
        return torch.cat(parts, dim=1)


class Inception(nn.Module):
    """Features of pictures, under the tensor names of the published file."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, stride=2, same=False)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3, same=False)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3, same=False)
        self.Mixed_5b = BlockA(192, 32)
        self.Mixed_5c = BlockA(256, 64)
        self.Mixed_5d = BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b = BlockC(768, 128)
        self.Mixed_6c = BlockC(768, 160)
        self.Mixed_6d = BlockC(768, 160)
        self.Mixed_6e = BlockC(768, 192)
        self.Mixed_7a = BlockD(768)
        self.Mixed_7b = BlockE(1280, last=False)
        self.Mixed_7c = BlockE(2048, last=True)
        # features stop before it; its 1008 classes tell the file from other Inceptions with the same names
        self.fc = nn.Linear(WIDTH, 1008)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 2048"]:
        """Features of pictures in [-1, 1] of any size: means over the last 8 x 8 map.

        Pictures of another size are brought to 299 x 299 bilinearly with pixel centres at (i + 0.5) / side and without
        smoothing (torch's `interpolate`, align_corners=False, antialias=False), as pytorch-fid does; the program of
        2015 put pixel i at i / side. Published numbers are of pictures rounded to bytes: round before.
        """
        x = images
        if x.shape[2:] != (SIDE, SIDE):
            x = F.interpolate(x, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, stride=2)
        x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, stride=2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean(dim=(2, 3))


# ---- its file ----


def load_inception(path: Path) -> Inception:
    """The network with the weights of a file (.pth of either format of torch.save, or .safetensors), ready for use.

    Raises:
        CheckpointError: missing, damaged, a program (TorchScript or a pickle that calls functions), or of another
            network; says what is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no file of Inception weights at {path}.", "Check the path.")
    try:
        if path.stat().st_size > MOST_BYTES:
            raise refuse(f"it is larger than {MOST_BYTES >> 20} MiB")
        tensors = _read_tensors(path.read_bytes())
    except OSError as error:
        raise explain_os_error(error) or CheckpointError(f"{path} cannot be read ({error}).", _HINT) from error
    except CheckpointError as error:
        reason = error.message.removeprefix(REFUSED).removesuffix(".")
        raise CheckpointError(
            f"{path} is not a file of Inception weights that can be read: {reason}.", _HINT
        ) from error
    network = Inception()
    _fill(network, tensors, path)
    return network.eval().requires_grad_(False)


def _fill(network: Inception, tensors: dict[str, Tensor], path: Path) -> None:
    """Every tensor of the network, and nothing else. Counts of batches mean nothing here, and old files have none."""
    wanted = {k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    given = {k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")}
    for what, names in (("lacks", wanted.keys() - given.keys()), ("has unknown", given.keys() - wanted.keys())):
        if names:
            first = ", ".join(sorted(names)[:3])
            raise CheckpointError(
                f"{path} {what} tensors of the Inception of FID, {len(names)} in all: {first}.", _HINT
            )
    for name, value in given.items():
        if value.shape != wanted[name].shape:
            expected = list(wanted[name].shape)
            raise CheckpointError(f"{path}: tensor {name} is {list(value.shape)}, expected {expected}.", _HINT)
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{path}: tensor {name} is not finite.", _HINT)
    network.load_state_dict(given, strict=False)


def _read_tensors(data: bytes) -> dict[str, Tensor]:
    """Tensors by name, from whichever of the three formats the first bytes tell."""
    is_safetensors = data[8:9] == b"{"  # behind the length of its header, which may look like the others
    if data[:4] == b"PK\x03\x04" and not is_safetensors:
        return _read_zip(data)
    if data[:1] == b"\x80" and not is_safetensors:
        return _read_legacy(data)
    try:
        return read_safetensors(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise refuse(f"it is neither a file of torch.save nor of safetensors ({error})") from error


@dataclass(frozen=True)
class _Storage:
    """Numbers that tensors are views of: the name of their bytes, their type, their count."""

    key: str
    dtype: np.dtype
    count: int


@dataclass(frozen=True)
class _View:
    """A tensor before its bytes are known."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def tensor(self, storages: dict[str, bytes]) -> Tensor:
        data = storages.get(self.storage.key, b"")
        if len(data) != self.storage.count * self.storage.dtype.itemsize:
            raise refuse("a tensor's length does not match its bytes")
        count, last = (
            math.prod(self.size),
            self.offset + sum((n - 1) * s for n, s in zip(self.size, self.stride, strict=True)),
        )
        if not 0 < count <= self.storage.count or last >= self.storage.count:
            raise refuse("a tensor is empty or larger than its bytes")
        values = torch.from_numpy(np.frombuffer(data, self.storage.dtype).copy())
        return values.as_strided(self.size, self.stride, self.offset).contiguous()


_DTYPES = {"FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "LongStorage": "<i8"}
_CALLS = {("collections", "OrderedDict"), ("torch._utils", "_rebuild_tensor_v2")}


class _StateRules(Rules):
    """A dictionary of tensors; every other name is refused."""

    def check(self, name: Name) -> None:
        if (name.module, name.name) not in _CALLS and not (name.module == "torch" and name.name in _DTYPES):
            super().check(name)

    def call(self, name: Name, arguments: tuple[Any, ...]) -> Any:
        if name.name == "OrderedDict":
            return ordered(*arguments)
        if name.name != "_rebuild_tensor_v2" or len(arguments) < 4:
            raise refuse(f"it calls {name}")
        storage, offset, size, stride = arguments[:4]
        numbers = (offset, *size, *stride)
        if not isinstance(storage, _Storage) or len(size) != len(stride) or len(size) > 4:
            raise refuse("a tensor has an unknown form")
        if any(type(n) is not int or not 0 <= n <= MOST_BYTES for n in numbers):
            raise refuse("a tensor has an impossible shape")
        return _View(storage, offset, tuple(size), tuple(stride))

    def persistent(self, identity: Any) -> _Storage:
        # the sixth, in the older format: which part of another storage this one is
        if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[5:] not in ((), (None,)):
            raise refuse("a tensor's bytes have an unknown form")
        kind, dtype, key, _, count = identity[:5]
        if kind != "storage" or not isinstance(dtype, Name) or dtype.name not in _DTYPES:
            raise refuse("a tensor's bytes have an unknown form")
        if not isinstance(key, str) or type(count) is not int or count < 0:
            raise refuse("a tensor's bytes have an unknown form")
        return _Storage(key, np.dtype(_DTYPES[dtype.name]), count)


def _tensors(content: Any, storages: dict[str, bytes]) -> dict[str, Tensor]:
    if not isinstance(content, dict) or not all(isinstance(v, _View) for v in content.values()):
        raise refuse("it holds something else than tensors by name")
    return {str(name): view.tensor(storages) for name, view in content.items()}


def _read_zip(data: bytes) -> dict[str, Tensor]:
    """The format of torch.save since 1.6."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            entries = {entry.filename.partition("/")[2]: entry for entry in file.infolist()}
            if "constants.pkl" in entries or any(name.startswith("code/") for name in entries):
                raise refuse("it is a TorchScript program, and programs are not run")
            if sum(entry.file_size for entry in entries.values()) > MOST_BYTES:
                raise refuse(f"it unpacks to more than {MOST_BYTES >> 20} MiB")
            if "data.pkl" not in entries:
                raise refuse("it is a zip without tensors of torch.save")
            if "byteorder" in entries and file.read(entries["byteorder"]) != b"little":
                raise refuse("its numbers are big-endian")
            content = read_pickle(io.BytesIO(file.read(entries["data.pkl"])), _StateRules())
            names = [name for name in entries if name.startswith("data/")]
            storages = {name.removeprefix("data/"): file.read(entries[name]) for name in names}
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError) as error:
        raise refuse(f"it is a damaged zip ({error})") from error
    return _tensors(content, storages)


def _read_legacy(data: bytes) -> dict[str, Tensor]:
    """The format of torch.save before: five pickles, then each storage with its count in front."""
    stream, rules = io.BytesIO(data), _StateRules()
    if read_pickle(stream, rules) != 0x1950A86A20F9469CFC6C or read_pickle(stream, rules) != 1001:
        raise refuse("it is a pickle, but not one of torch.save")
    system, content, keys = (read_pickle(stream, rules) for _ in range(3))
    if not isinstance(system, dict) or not system.get("little_endian") or not isinstance(keys, list):
        raise refuse("its numbers are big-endian")
    views = content.values() if isinstance(content, dict) else []
    sizes = {v.storage.key: v.storage.count * v.storage.dtype.itemsize for v in views if isinstance(v, _View)}
    storages = {}
    for key in keys:
        stream.seek(8, io.SEEK_CUR)  # the count, which the pickle gives as well
        storages[str(key)] = stream.read(sizes.get(str(key), 0))
    return _tensors(content, storages)
