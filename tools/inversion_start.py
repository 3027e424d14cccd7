"""Train the regressor that begins an inversion (`portrait360.inversion.regressor`) on generated portraits.

python -m tools.inversion_start bank/ --people 20000 --out src/portrait360/assets/inversion_start.safetensors

The folder gets a file for each thousand people, and a run that was stopped goes on from there. A person is seen once,
from any side, with the portrait encoder's augmentations towards photos, in front of grey.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import tyro
from jaxtyping import Float
from torch import Tensor

from portrait360.encoder.augment import PhotoRanges, photo_batch
from portrait360.encoder.files import load_encoder
from portrait360.encoder.network import PortraitEncoder
from portrait360.geometry.cameras import camera_label
from portrait360.inversion.regressor import StartRegressor, save_start, start_features
from portrait360.inversion.rendering import occupancy_of, render_view
from portrait360.inversion.style import style_space
from portrait360.media.images import as_bytes
from portrait360.portrait.weights import load_weights
from portrait360.runtime.progress import show_progress
from portrait360.runtime.script import run_script
from portrait360.runtime.tensors import FORMAT, read_tensors, write_tensors
from portrait360.training.whitening import Whitening
from portrait360.types import InputError

AUGMENTED = PhotoRanges(
    plain_crop=0.3,
    roll_degrees=5.0,
    smallest_scale=0.92,
    largest_scale=1.08,
    offset=0.02,
    plain_background=1.0,
    other_background=0.0,
    cover=0.0,
)
"""Photos that were fitted are upright and cropped to a few per cent."""
_PART = 1000
_BATCH = 8
_POSE = (7.0, 9.0, 5.5, 7.0, 11.0, 5.5)
"""Standard deviations of neck and head, degrees."""
_PITCH = 11.5
_MOST_PITCH = 28.0
_HELD = 0.05
"""Share of the people that errors are measured on."""


# ---- generated people ----


@dataclass(frozen=True)
class Drawn:
    """Generated people and what the encoder's maps hold of their images."""

    styles: Float[Tensor, "N S"]
    """Whitened."""
    features: Float[Tensor, "N F"]
    yaw: Float[Tensor, " N"]


@torch.no_grad()
def draw_part(generator, space: Whitening, encoder: PortraitEncoder, seed: int, count: int) -> Drawn:
    """`count` people of a seed."""
    draws, parts = torch.Generator().manual_seed(seed), []
    side = encoder.config.resolution
    for start in range(0, count, _BATCH):
        size = min(_BATCH, count - start)

        # People, cameras and poses
        z = torch.randn(size, generator.config.z_dim, generator=draws)
        w = generator.map(z, camera_label(0.0).expand(size, -1))
        yaw = (torch.rand(size, generator=draws) * 2.0 - 1.0) * math.pi
        pitch = torch.randn(size, generator=draws) * math.radians(_PITCH)
        camera = camera_label(yaw, pitch.clamp(-math.radians(_MOST_PITCH), math.radians(_MOST_PITCH)))
        pose = torch.randn(size, 6, generator=draws) * torch.tensor(_POSE).deg2rad()

        # Their images, changed towards photos
        scene = generator.scene(w, gradients=False)
        view = render_view(generator, scene, camera, pose, side, occupancy=occupancy_of(generator, scene))
        masks = (view.mask * 255.0).round().byte()
        changed = photo_batch(as_bytes(view.image), masks, camera, draws, AUGMENTED)
        features = start_features(encoder, changed.image * changed.mask)
        parts.append(Drawn(space.whitened(w), features, yaw))
    return Drawn(*(torch.cat([getattr(part, name) for part in parts]) for name in ("styles", "features", "yaw")))


def draw_bank(folder: Path, people: int, weights: Path | None, seed: int) -> None:
    """Write the people that a folder lacks."""
    loaded = load_weights(weights)
    generator, encoder = loaded.generator, load_encoder()[0].eval().requires_grad_(False)
    space = style_space(generator)
    folder.mkdir(parents=True, exist_ok=True)
    parts = [(number, min(_PART, people - number * _PART)) for number in range(-(-people // _PART))]
    with show_progress("drawing", len(parts), "thousands") as bar:
        for number, count in parts:
            path = folder / f"{number:04d}.safetensors"
            if not path.exists():
                drawn = draw_part(generator, space, encoder, seed * 100_000 + number, count)
                tensors = {"styles": drawn.styles, "features": drawn.features.half(), "yaw": drawn.yaw}
                write_tensors(path, tensors, {"format": FORMAT, "weights_sha256": loaded.info.sha256})
            bar.advance(1)


# ---- the regressor ----


def read_bank(folder: Path) -> tuple[Drawn, str]:
    """The people of a folder, and the hash of their weights.

    Raises:
        InputError: there are none, or they are of several weights.
    """
    files = [read_tensors(path) for path in sorted(folder.glob("*.safetensors"))]
    hashes = {metadata.get("weights_sha256", "") for _, metadata in files}
    if len(hashes) != 1:
        raise InputError(f"{folder} holds people of {len(hashes)} weights, not of one.", "Draw into an empty folder.")
    parts = {name: torch.cat([tensors[name].float() for tensors, _ in files]) for name in ("styles", "features", "yaw")}
    return Drawn(**parts), hashes.pop()


def train_regressor(
    bank: Drawn, weights_sha256: str, *, epochs: int = 30, hidden: int = 384, seed: int = 0
) -> tuple[StartRegressor, dict[str, float]]:
    """Fit the regressor by AdamW.

    Returns:
        The regressor, and the share of the styles' variance that is left, for held-out people by sector of yaw.
    """
    # People to learn from, standardised
    torch.manual_seed(seed)
    count, width = len(bank.styles), bank.styles.shape[1]
    held = max(1, round(_HELD * count))
    inputs, wanted = bank.features[held:], bank.styles[held:]
    mean, scale = inputs.mean(dim=0), inputs.std(dim=0).clamp_min(1e-3)
    size = inputs.shape[1]
    zeros = {"linear": (width, size), "output": (width, hidden), "bias": (width,), "hidden_bias": (hidden,)}
    parameters = {name: torch.zeros(shape, requires_grad=True) for name, shape in zeros.items()}
    parameters["hidden"] = (torch.randn(hidden, size) / math.sqrt(size)).requires_grad_()
    regressor = StartRegressor(weights_sha256, mean, scale, **parameters)

    # Epochs under a half cosine
    matrices = [parameters[name] for name in ("linear", "hidden", "output")]
    biases = [parameters[name] for name in ("bias", "hidden_bias")]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": biases, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    batch = 256
    steps, step = epochs * max(1, len(inputs) // batch), 0
    while step < steps:
        for rows in torch.randperm(len(inputs)).split(batch):
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * (0.5 + 0.5 * math.cos(math.pi * step / steps))
            # noise on the inputs, in standard deviations, keeps it from fitting accidents
            noisy = inputs[rows] + 0.3 * scale * torch.randn(len(rows), size)
            loss = (regressor(noisy) - wanted[rows]).square().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1

    # Errors on held-out people
    fixed = replace(regressor, **{name: value.detach() for name, value in parameters.items()})
    left = {}
    sectors = {"front": (0.0, 45.0), "side": (45.0, 135.0), "back": (135.0, 180.0), "all": (0.0, 180.0)}
    errors = (fixed(bank.features[:held]) - bank.styles[:held]).square().mean(dim=1)
    angle = bank.yaw[:held].rad2deg().abs()
    for name, (low, high) in sectors.items():
        rows = (angle >= low) & (angle <= high)
        left[name] = float(errors[rows].mean() / bank.styles[:held].square().mean())
    return fixed, left


def main(
    bank: Annotated[Path, tyro.conf.Positional],
    *,
    out: Path,
    people: int = 20_000,
    weights: Path | None = None,
    seed: int = 0,
    epochs: int = 30,
) -> None:
    """Write a regressor (.safetensors) that is trained on generated people, and print what it leaves unexplained.

    Args:
        bank: folder for the people; those that it holds are not drawn again.
        out: the regressor.
        people: how many.
        weights: of the generator; the packaged ones when None.
        seed: which people.
        epochs: passes over the people.
    """
    draw_bank(bank, people, weights, seed)
    drawn, sha256 = read_bank(bank)
    regressor, left = train_regressor(drawn, sha256, epochs=epochs)
    save_start(out, regressor)
    print(f"{len(drawn.styles)} people; variance left: " + ", ".join(f"{k} {v:.2f}" for k, v in left.items()))


if __name__ == "__main__":
    run_script(main)
