"""The Inception-v3 network behind the published Fréchet and kernel Inception distances, for users who have its weights.

Szegedy et al. 2016 (Rethinking the Inception Architecture), as exported on 2015-12-05 and used by Heusel et al. 2017:
average pools leave out the padding, the last block pools by the maximum, and there are 1008 classes. The weights are
not part of this package and are never fetched; `load_inception` reads the user's copy of them as `.safetensors`, under
the tensor names of `pt_inception-2015-12-05-6726825d.pth`. Nothing in a file is executed.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load as read_safetensors
from torch import Tensor, nn

from portrait360.runtime.files import explain_os_error
from portrait360.types import CheckpointError

SIDE = 299
"""Side of the images that the network reads, pixels."""
WIDTH = 2048
"""Numbers of a feature vector."""
MOST_BYTES = 2**28
"""Largest file that is read; the published weights have 96 MB."""
_HINT = (
    "Give the tensors of pt_inception-2015-12-05-6726825d.pth (the FID network of pytorch-fid and torch-fidelity) as "
    ".safetensors. To convert them: safetensors.torch.save_file(torch.load(PTH, weights_only=True), SAFETENSORS)."
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
    """Features of images, under the tensor names of the published file."""

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
        """Features of images in [-1, 1] of any size: means over the last 8 x 8 map.

        Images of another size are brought to 299 x 299 bilinearly with pixel centres at (i + 0.5) / side and without
        smoothing (torch's `interpolate`, align_corners=False, antialias=False), as pytorch-fid does; the program of
        2015 put pixel i at i / side. Published numbers are of images rounded to bytes: round before.
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
    """The network with the weights of a `.safetensors` file, ready for use.

    Args:
        path: the user's file; its tensors have the names of the published ones.

    Raises:
        CheckpointError: missing, damaged, of another format, or of another network; says which.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no file of Inception weights at {path}.", "Check the path.")
    tensors = _read_tensors(path)
    network = Inception()
    _fill(network, tensors, path)
    return network.eval().requires_grad_(False)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name, from a file in the format of safetensors and in no other."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise CheckpointError(
                f"{path} is no file of Inception weights: it is larger than {MOST_BYTES >> 20} MiB.", _HINT
            )
        return read_safetensors(path.read_bytes())
    except OSError as error:
        raise explain_os_error(error) or CheckpointError(f"{path} cannot be read ({error}).", _HINT) from error
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} is no file of Inception weights: it is not a readable .safetensors file ({error}).", _HINT
        ) from error


def _fill(network: Inception, tensors: dict[str, Tensor], path: Path) -> None:
    """Load every tensor of the network, and nothing else; counts of batches are optional and have no effect."""
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
