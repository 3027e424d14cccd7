"""Super-resolution: two modulated blocks on rendered features (equations 7)."""

from __future__ import annotations

from functools import partial

from jaxtyping import Float
from torch import Tensor, nn

from portrait360.config import SuperResolutionConfig
from portrait360.model.folded import Precision, fold_precision, one_by_one, run_block
from portrait360.model.layers import LayerConfig, SynthesisBlock, fir_kernel, resize


class SuperResolution(nn.Module):
    """Raw image and features at ray resolution to the final image; one style row for all layers."""

    def __init__(self, config: SuperResolutionConfig, features: int, w_dim: int) -> None:
        super().__init__()
        self.config = config
        if config.filter_buffer:
            self.register_buffer("resample_filter", fir_kernel())
        first = config.input_resolution * (2 if config.up_first else 1)
        c0, c1 = config.channels
        layers = LayerConfig(w_dim, config.clamp, config.resample)
        self.block0 = SynthesisBlock(features, c0, first, 3, layers, up=config.up_first)
        self.block1 = SynthesisBlock(c0, c1, first * 2, 3, layers)

    @property
    def resolution(self) -> int:
        return self.config.input_resolution * (4 if self.config.up_first else 2)

    def forward(
        self,
        raw: Float[Tensor, "B 3 R R"],
        features: Float[Tensor, "B F R R"],
        w: Float[Tensor, "B S"],
        noise_mode: str = "none",
        *,
        gradients: bool = True,
    ) -> Float[Tensor, "B 3 H H"]:
        """The final image. `raw` is never changed, unlike the original at equal resolutions (equations 7.5).

        `gradients` False permits the folded layers of inference, which have none.
        """
        if self._resizes(features):
            wanted = self.config.input_resolution
            raw, features = resize(raw, wanted), resize(features, wanted)
        precision = fold_precision(features, gradients) if self.config.resample == "fir" else None
        if precision is None:
            return self._blocks(raw, features, w, noise_mode, None)
        return one_by_one(partial(self._blocks, noise_mode=noise_mode, precision=precision), raw, features, w)

    def _resizes(self, features: Tensor) -> bool:
        side, wanted = features.shape[-1], self.config.input_resolution
        return side < wanted if self.config.resize == "smaller" else side != wanted

    def overwritten_raw(
        self,
        raw: Float[Tensor, "B 3 R R"],
        features: Float[Tensor, "B F R R"],
        w: Float[Tensor, "B S"],
        noise_mode: str = "none",
    ) -> Float[Tensor, "B 3 R R"]:
        """The original's raw image: with the first block's colours added, if the sides are equal (equations 7.5)."""
        if self.config.up_first or self._resizes(features):
            return raw
        _, image = self.block0(features, raw, [w, w, w], noise_mode)
        return image

    def _blocks(self, raw: Tensor, features: Tensor, w: Tensor, noise_mode: str, precision: Precision) -> Tensor:
        x, image = run_block(self.block0, features, raw, [w, w, w], noise_mode, precision=precision)
        _, image = run_block(self.block1, x, image, [w, w, w], noise_mode, precision=precision, last=True)
        assert image is not None
        return image
