"""What reconstructions start from: poses, whitened styles, and a first guess of each image's style."""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Float, Int
from torch import Tensor

from portrait360.config import ReconstructionConfig, TrainingConfig
from portrait360.geometry.cameras import camera_label, yaw_pitch, zoom_camera
from portrait360.model.discriminator import Discriminator, DiscriminatorInput
from portrait360.model.generator import RenderDraws
from portrait360.portrait.weights import Weights
from portrait360.poses.alignment import CanonicalTilt
from portrait360.poses.calibration import calibrated
from portrait360.poses.windows import network_images, window_poses
from portrait360.runtime.progress import show_progress
from portrait360.training.data import TrainingData
from portrait360.training.passes import TrainingState, autocast, render_occupancy
from portrait360.training.people import People, people_rows
from portrait360.training.styles import StyleTable, keep_styles
from portrait360.training.whitening import Whitening, fit_whitening, whiten

EXAMPLES = 1200
"""Generated portraits that the first guess of styles is fitted to."""
WINDOW = 0.6
"""The centre crop that it is made from: the head with its hair."""
WHITENED = 8192
"""Latents whose styles are whitened."""
RIDGES = (3e-4, 3e-3, 3e-2, 0.3)
"""Ridges of the regression, in units of the features' mean variance; the best on a fifth of the examples is taken."""
_AT_ONCE = 32


@torch.no_grad()
def first_people(state: TrainingState, first: Weights, images: TrainingData, config: ReconstructionConfig) -> People:
    """Poses of all images and a style for each that shows a face, by the networks that the run starts from.

    Whitens the generator's styles, and measures the tilt of its canonical heads. Draws nothing from torch's random
    state.

    Args:
        state: of a run that begins.
        first: the weights that it begins with.
        images: the dataset.
        config: how many people, and from where they are seen.
    """
    device = next(state.generator.parameters()).device
    first = dataclasses.replace(
        first, generator=first.generator.to(device), discriminator=first.discriminator.to(device)
    )

    # Poses as the first discriminator predicts them; they are rendered with canonical heads that lean
    state.memory.tilt = CanonicalTilt(first.generator.body).measure(first.generator)
    poses = _predicted_poses(first, images, state.config) - state.memory.tilt

    # Styles of unit variance
    random = torch.Generator().manual_seed(1)
    z = torch.randn(WHITENED, state.model.z_dim, generator=random).to(device)
    whitening = fit_whitening(first.generator.map(z, camera_label(torch.zeros(len(z))).to(device)))
    for network in (state.generator, state.average):
        whiten(network, whitening)

    # A regression of styles on features, from generated portraits to real ones
    rows = people_rows(images.cameras, config)
    table = StyleTable(_guessed_styles(state, first, whitening, images, poses, rows))
    for network in (state.generator, state.average):
        keep_styles(network, table)
    return People(table, rows, poses)


def _predicted_poses(first: Weights, images: TrainingData, training: TrainingConfig) -> Float[Tensor, "M 6"]:
    """Calibrated predictions for all images, on the CPU."""
    model, calibration = first.generator.config, first.calibration
    windows = (1.0,) if calibration is None else calibration.windows
    device, found = next(first.discriminator.parameters()).device, []
    with show_progress("predicting body poses", len(images), "images") as bar:
        for rows in torch.arange(len(images)).split(_AT_ONCE):
            image, mask, camera = images.kept(rows, device)
            on_grey = model.background is None
            with autocast(training, device):
                poses = window_poses(first.discriminator, model, image, mask, camera, windows, on_grey=on_grey)
            found.append(calibrated(poses, calibration).cpu())
            bar.advance(len(rows))
    return torch.cat(found)


def _guessed_styles(
    state: TrainingState,
    first: Weights,
    whitening: Whitening,
    images: TrainingData,
    poses: Float[Tensor, "M 6"],
    rows: Int[Tensor, " N"],
) -> Float[Tensor, "N S"]:
    """Styles of images by kernel ridge regression on the first discriminator's features, on the CPU."""
    generator, model = state.average, first.generator.config
    device = next(generator.parameters()).device
    random, found = torch.Generator().manual_seed(2), []
    z = torch.randn(EXAMPLES, model.z_dim, generator=random).to(device)
    like = rows[torch.randint(len(rows), (EXAMPLES,), generator=random)]
    styles = whitening.whitened(first.generator.map(z, camera_label(torch.zeros(EXAMPLES)).to(device)))
    with show_progress("guessing styles", EXAMPLES + len(rows), "images") as bar:
        # Generated portraits under some images' cameras and poses, the crop alone
        for some in torch.arange(EXAMPLES).split(4):
            camera, pose = images.cameras[like[some]].to(device), poses[like[some]].to(device)
            camera, middle = zoom_camera(camera, 1.0 / WINDOW), torch.full((len(some), model.resolution**2), 0.5)
            with autocast(state.config, device):
                scene = generator.scene(styles[some], gradients=False)
                occupancy = render_occupancy(state, scene, torch.zeros((), dtype=torch.int32, device=device))
                draws = RenderDraws(middle.to(device), 0.0, occupancy, gradients=False)
                out = generator.render(scene, camera, pose, resolution=model.resolution, draws=draws)
                found.append(_features(first.discriminator, DiscriminatorInput(out.image, None, out.mask), camera))
            bar.advance(len(some))

        # The same crop of the images themselves
        for some in rows.split(_AT_ONCE):
            image, mask, camera = images.kept(some, device)
            shown = network_images(model, image, mask, WINDOW, on_grey=model.background is None)
            with autocast(state.config, device):
                found.append(_features(first.discriminator, shown, zoom_camera(camera, 1.0 / WINDOW)))
            bar.advance(len(some))
    features = torch.cat(found)
    return ridge_regression(features[:EXAMPLES], styles.cpu(), features[EXAMPLES:])


def _features(
    discriminator: Discriminator, shown: DiscriminatorInput, camera: Float[Tensor, "B 25"]
) -> Float[Tensor, "B F"]:
    """The last features of the discriminator and the direction of the camera, on the CPU."""
    last, yaw = discriminator.maps(shown, camera)[-1], yaw_pitch(camera)[0]
    return torch.cat([last.float().flatten(1), yaw.sin()[:, None], yaw.cos()[:, None]], dim=1).cpu()


def ridge_regression(
    known: Float[Tensor, "E F"], values: Float[Tensor, "E S"], asked: Float[Tensor, "N F"]
) -> Float[Tensor, "N S"]:
    """Values at other features by kernel ridge regression.

    The ridge is the one of `RIDGES` that predicts a fifth of what is known best from the rest.
    """
    mean, deviation = known.mean(dim=0), known.std(dim=0) + 1e-6
    x, y = ((v - mean) / deviation for v in (known, asked))
    centre = values.mean(dim=0)
    split = len(x) * 4 // 5

    def predict(x: Tensor, values: Tensor, y: Tensor, ridge: float) -> Tensor:
        kernel = (x @ x.T / x.shape[1]).double() + ridge * torch.eye(len(x), dtype=torch.float64)
        weights = torch.linalg.solve(kernel, (values - centre).double())
        return centre + (y @ x.T / x.shape[1]) @ weights.float()

    tried = [predict(x[:split], values[:split], x[split:], ridge) for ridge in RIDGES]
    errors = torch.stack([(found - values[split:]).square().mean() for found in tried])
    return predict(x, values, y, RIDGES[int(errors.argmin())])
