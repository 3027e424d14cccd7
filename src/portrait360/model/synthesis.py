"""Skip-architecture StyleGAN2 synthesis, used for the tri-grid and for the background (equations 3, 4)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from jaxtyping import Float
from torch import Tensor, nn

from portrait360.config import SynthesisConfig
from portrait360.model.folded import Precision, fold_precision, one_by_one, run_block
from portrait360.model.layers import LayerConfig, SynthesisBlock


class SynthesisNetwork(nn.Module):
    """From a learned 4x4 constant up; the image is the sum of all up-sampled toRGB outputs.

    `plane_depth`: see `ToRGB`; above 1 the image is a tri-grid.
    """

    def __init__(self, config: SynthesisConfig, w_dim: int, image_channels: int, plane_depth: int = 1) -> None:
        super().__init__()
        self.resolutions = [4 * 2**i for i in range(len(config.channels))]
        self.num_ws = 2 * len(self.resolutions)
        self.resample = config.resample
        layers = LayerConfig(w_dim, resample=config.resample, noise=config.noise)
        previous: int | None = None
        for side, channels in zip(self.resolutions, config.channels, strict=True):
            image = image_channels if side >= config.first_output else None
            block = SynthesisBlock(previous, channels, side, image, layers, plane_depth=plane_depth)
            self.add_module(f"b{side}", block)
            previous = channels

    def forward(
        self, ws: Float[Tensor, "B L S"], noise_mode: str, *, gradients: bool = True
    ) -> Float[Tensor, "B C R R"]:
        """The image of styles.

        Args:
            ws: at least `num_ws` rows. A block's toRGB shares its row with the next block's first layer.
            noise_mode: random, const or none (equations 3.1).
            gradients: False permits the folded layers of inference, which have none.
        """
        precision = fold_precision(ws, gradients) if self.resample == "fir" else None
        if precision is None:
            return self._run(ws, noise_mode, None)
        return one_by_one(partial(self._run, noise_mode=noise_mode, precision=precision), ws)

    def _run(self, ws: Tensor, noise_mode: str, precision: Precision) -> Tensor:
        *_, image = self.images(ws, noise_mode, precision)
        return image

    def images(self, ws: Tensor, noise_mode: str, precision: Precision) -> Iterator[Tensor]:
        """The image so far, resolution by resolution from the first one that adds to it."""
        x: Tensor | None = None
        image: Tensor | None = None
        for k, side in enumerate(self.resolutions):
            rows = (0, 1) if k == 0 else (2 * k - 1, 2 * k, 2 * k + 1)
            block, styles = self.get_submodule(f"b{side}"), [ws[:, r] for r in rows]
            assert isinstance(block, SynthesisBlock)
            x, image = run_block(block, x, image, styles, noise_mode, precision=precision)
            if image is not None:
                yield image
