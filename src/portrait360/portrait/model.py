"""A generator of portraits, ready to use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from portrait360.model.generator import Generator
from portrait360.portrait.arguments import check_seed, check_truncation
from portrait360.portrait.portrait import Portrait
from portrait360.portrait.record import PortraitRecord
from portrait360.portrait.scene import SceneRenderer
from portrait360.portrait.weights import WEIGHTS_NAME, WeightsInfo, copy_weights, load_generator
from portrait360.runtime.device import choose_device
from portrait360.runtime.precision import worth_bf16
from portrait360.types import InputError


class PortraitModel:
    """A trained model that makes portraits.

    Attributes:
        generator: the network, in eval mode.
        info: what the weights file says of itself.
        bf16: whether convolutions run in bf16, which depends on the processor.
    """

    def __init__(self, generator: Generator, info: WeightsInfo) -> None:
        self.generator = generator
        self.info = info
        self.bf16 = self.device.type == "cpu" and worth_bf16(generator.config)

    @classmethod
    def from_pretrained(cls, source: str | Path | None = None, *, device: str = "auto") -> PortraitModel:
        """Load a model.

        Args:
            source: a weights file, a run folder, or a folder that `save_pretrained` wrote; the weights that come with
                the package when None.
            device: where the networks run: cpu, cuda, cuda:1, or auto for the GPU if there is one.

        Raises:
            CheckpointError: the weights are missing, broken or of another model.
            InputError: no such device.
        """
        place = choose_device(device)
        generator, info = load_generator(source)
        return cls(generator.to(place), info)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the model into a folder, for `from_pretrained`.

        Returns:
            The weights file, which also holds the discriminator.

        Raises:
            CheckpointError: the file that this model was loaded from has gone or changed.
            InputError: the folder cannot be written.
        """
        path = Path(folder) / WEIGHTS_NAME
        copy_weights(self.info, self.generator, path)
        return path

    def sample(self, seed: int, *, truncation: float = 0.7) -> Portrait:
        """Make the person of a seed: the same weights and seed always give the same person.

        Args:
            seed: 0 to 2**32 - 1.
            truncation: 0 (the average person) to 1 (the full variety, with more failures).

        Raises:
            InputError: an argument is out of range.
        """
        check_seed(seed)
        check_truncation(truncation)
        renderer = SceneRenderer.from_seed(self.generator, seed, truncation, bf16=self.bf16)
        return Portrait(renderer, self._record(seed, truncation))

    def invert(
        self,
        photos: str | Path | Sequence[str | Path],
        *,
        steps: int | None = None,
        fast: bool = False,
        force: bool = False,
        progress: bool = True,
    ) -> Portrait:
        """Make the portrait of a person in photos, with the photos' own pixels where they show it.

        Ctrl-C ends the search and keeps the best so far. The same photos always give the same portrait.

        Args:
            photos: one photo from any side, or several of the same person.
            steps: of the search for the style; more take longer and come closer.
            fast: leave the search out, a tenth of the time.
            force: go on with photos that are refused (blurred, cut off, several people ...) if a person is found.
            progress: show progress on standard error.

        Returns:
            The portrait; its `report` holds losses, times and warnings.

        Raises:
            InputError: an argument is out of range, or no photo can be used.
            CheckpointError: the weights file that this model was loaded from has gone or changed.
        """
        from portrait360.inversion.portrait import portrait_from_photos

        paths = [photos] if isinstance(photos, (str, Path)) else list(photos)
        return portrait_from_photos(self, paths, steps=steps, fast=fast, force=force, progress=progress)

    def synthesize(self, w: Float[Tensor, "1 S"]) -> Portrait:
        """Make the person of a style, for instance one between two `Portrait.w`.

        Args:
            w: a style; `average_w` is that of the average person.

        Raises:
            InputError: the style has another shape.
        """
        width = self.generator.config.w_dim
        if tuple(w.shape) != (1, width):
            raise InputError(f"`w` must be [1, {width}], not {list(w.shape)}.", "Take it from `Portrait.w`.")
        return Portrait(SceneRenderer.from_w(self.generator, w, bf16=self.bf16), self._record(None, None))

    @property
    def device(self) -> torch.device:
        """Where the networks run."""
        return next(self.generator.parameters()).device

    @property
    def average_w(self) -> Float[Tensor, "1 S"]:
        """The style of the average person, which truncation draws towards."""
        return self.generator.backbone.mapping.w_avg[None].cpu()

    def _record(self, seed: int | None, truncation: float | None) -> PortraitRecord:
        convolutions = "bf16" if self.bf16 else "float32"
        return PortraitRecord(
            self.info.sha256, self.info.model, convolutions, seed, truncation, licence=self.info.licence
        )

    def __repr__(self) -> str:
        return f"PortraitModel({self.info.model!r}, {str(self.info.path)!r})"
