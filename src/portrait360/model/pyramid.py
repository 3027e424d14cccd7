"""A pyramid of tri-grids: a flat branch, and at every resolution a branch that sees all three planes (equations 15.3).

The flat branch is the usual synthesis network. Its image so far, split into planes, is added to the tri-grid of the
level below, up-sampled and refined by layers whose inputs are rolled out (`layers.roll_out`).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from portrait360.config import SynthesisConfig
from portrait360.model.folded import Precision, fold_precision, run_block
from portrait360.model.layers import LayerConfig, SynthesisBlock
from portrait360.model.synthesis import SynthesisNetwork


class PlaneAwareBlock(nn.Module):
    """From planes of one side to the tri-grid of twice that side; named after the published tensors."""

    def __init__(self, channels: int, resolution: int, config: LayerConfig) -> None:
        super().__init__()
        self.block = SynthesisBlock(channels, channels, resolution, channels, config)


class PyramidSynthesis(SynthesisNetwork):
    """Tri-grids of twice each side from `config.pyramid_from` on.

    Channels of planes are in the published order, feature slow and slice fast, as each level feeds the next.
    """

    def __init__(self, config: SynthesisConfig, w_dim: int, image_channels: int, plane_depth: int) -> None:
        super().__init__(config, w_dim, image_channels)
        self.plane_depth = plane_depth
        layers = LayerConfig(w_dim, noise=config.noise, planes=3)
        assert config.pyramid_from is not None
        self.first = self.resolutions.index(config.pyramid_from)
        for side in self.resolutions[self.first :]:
            self.add_module(f"b3d{side}", PlaneAwareBlock(image_channels // 3, 2 * side, layers))

    def levels(
        self, ws: Float[Tensor, "B L S"], noise_mode: str, *, gradients: bool = True
    ) -> tuple[Float[Tensor, "B 3 F D H W"], ...]:
        """The tri-grids of styles, from the coarsest to the finest. Arguments as in `forward`."""
        if fold_precision(ws, gradients) is None:
            return tuple(self._split(planes) for planes in self._grow(ws, noise_mode, None))

        # One sample at a time, as the folded layers want them, and in float32: errors of bf16 add up over the levels,
        # and most of the time goes into reading and writing large maps
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            samples = [
                [self._split(planes) for planes in self._grow(row, noise_mode, torch.float32)]
                for row in ws.float().split(1)
            ]
        return tuple(same[0] if len(same) == 1 else torch.cat(same) for same in zip(*samples, strict=True))

    def _grow(self, ws: Tensor, noise_mode: str, precision: Precision) -> Iterator[Float[Tensor, "B3 C H W"]]:
        """The planes of each level, those of a sample side by side."""
        previous: Tensor | None = None
        for k, image in enumerate(self.images(ws, noise_mode, precision)):
            if k < self.first:
                continue
            x = image.unflatten(1, (3, -1)).flatten(0, 1)
            if previous is not None:
                x = x + previous
            block = self.get_submodule(f"b3d{self.resolutions[k]}.block")
            assert isinstance(block, SynthesisBlock)
            styles = [ws[:, 2 * k + 1]] * 3
            _, previous = run_block(block, x, None, styles, noise_mode, precision=precision)
            assert previous is not None
            yield previous

    def _split(self, planes: Float[Tensor, "B3 C H W"]) -> Float[Tensor, "B 3 F D H W"]:
        return planes.unflatten(1, (-1, self.plane_depth)).unflatten(0, (-1, 3))
