"""How well photos are inverted: synthetic people against their true views.

python -m tools.inversion_accuracy --cases 64 --out inversion.json [--exact] [--all-views]

Each case is a held-out person seen from one of eight yaws; camera and body pose are estimated from the image as from a
photo, or given with `--exact`. The portrait is rendered from the true cameras of all eight yaws and compared with the
true images. `--all-views` optimises on all eight at once: what is left is the generator's share of the error.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from portrait360.encoder.files import load_encoder
from portrait360.encoder.network import PortraitEncoder
from portrait360.geometry.cameras import camera_label
from portrait360.inversion.invert import Networks, invert_targets
from portrait360.inversion.losses import Critics
from portrait360.inversion.optimise import Recipe
from portrait360.inversion.photos import read_photos
from portrait360.inversion.regressor import load_start
from portrait360.inversion.target import Target, resized
from portrait360.media.images import to_bytes
from portrait360.media.sheets import grid
from portrait360.portrait.model import PortraitModel
from portrait360.portrait.scene import SceneRenderer
from portrait360.portrait.weights import load_weights
from portrait360.runtime.files import write_json
from portrait360.runtime.process import settle_process
from portrait360.runtime.progress import show_progress
from portrait360.runtime.script import run_script
from portrait360.synthetic.source import PortraitSource
from portrait360.training.losses import feature_distance
from portrait360.types import InputError

YAWS = 8
SIDE, PHOTO_SIDE = 128, 512
SEED = 881188
"""Of the people: no training data has it."""
NEAREST = 500
_TURNS = (0, 15, 30, 45, 60, 75)
"""Degrees to either side of the face's direction."""
_FACE_SIDE = 512


# ---- synthetic people ----


@dataclasses.dataclass(frozen=True)
class Person:
    """A held-out person from eight yaws under one light, and the body pose."""

    images: Float[Tensor, "8 3 H H"]
    """On a grey background."""
    masks: Float[Tensor, "8 1 H H"]
    photo: np.ndarray
    """The image of the input's yaw with its background, bytes."""
    body_pose: Float[Tensor, "1 6"]
    yaw: int
    """Which of the yaws is the input."""

    def target(self, index: int) -> Target:
        """One of the views with its true camera."""
        one = slice(index, index + 1)
        known = torch.ones_like(self.masks[one])
        return Target(self.images[one], self.masks[one], known, around()[one], self.body_pose)


def around() -> Float[Tensor, "8 25"]:
    """Cameras at the eight yaws."""
    return camera_label(torch.arange(YAWS, dtype=torch.float32) * (2.0 * math.pi / YAWS))


def draw_person(source: PortraitSource, index: int, side: int = PHOTO_SIDE) -> Person:
    """Person `index`, whose input is at yaw `index` modulo eight."""
    scene = source.subject(SEED, index)
    drawn = [source.render(scene, camera.numpy(), side) for camera in around()]
    targets = [
        Target.from_arrays(view.image, view.mask, torch.from_numpy(view.camera), torch.from_numpy(view.body_pose))
        for view in drawn
    ]
    yaw = index % YAWS
    images, masks = (torch.cat([getattr(target, name) for target in targets]) for name in ("image", "mask"))
    return Person(images, masks, drawn[yaw].image, targets[0].body_pose, yaw)


def measures(
    image: Float[Tensor, "8 3 S S"], mask: Float[Tensor, "8 1 S S"], person: Person, critics: Critics
) -> dict[str, list[float]]:
    """Of each view: PSNR within the union of the masks, overlap of the masks, identity, feature distance."""
    encoder = critics.encoder
    assert isinstance(encoder, PortraitEncoder)
    true, true_mask = resized(person.images, SIDE), resized(person.masks, SIDE)
    union = ((mask > 0.5) | (true_mask > 0.5)).float()
    error = ((image.clamp(-1, 1) - true) / 2.0).square() * union
    mean = error.sum(dim=(1, 2, 3)) / (3.0 * union.sum(dim=(1, 2, 3)))
    both = ((mask > 0.5) & (true_mask > 0.5)).float().sum(dim=(1, 2, 3))
    identity = (encoder.encode(image).identity * encoder.encode(true).identity).sum(dim=1)
    rows = {
        "psnr": (-10.0 * mean.log10()).tolist(),
        "overlap": (both / union.sum(dim=(1, 2, 3))).tolist(),
        "identity": identity.tolist(),
    }
    if critics.discriminator is not None:
        features = []
        for k, camera in enumerate(around()):
            one = slice(k, k + 1)
            maps = [
                critics.features(*views, camera[None])
                for views in ((image[one], mask[one]), (true[one], true_mask[one]))
            ]
            features.append(float(feature_distance(*maps)))
        rows["features"] = features
    return rows


def groups(values: Sequence[float], yaw: int) -> dict[str, float]:
    """Means over the input's view, those within 45 degrees, the far ones, the opposite one, and all but the input's."""
    turned = [values[(yaw + k) % YAWS] for k in range(YAWS)]
    return {
        "input": turned[0],
        "near": (turned[1] + turned[7]) / 2.0,
        "far": (turned[2] + turned[3] + turned[5] + turned[6]) / 4.0,
        "opposite": turned[4],
        "others": sum(turned[1:]) / 7.0,
    }


def place(yaw: int) -> str:
    """front, side or back of the input's yaw."""
    return ("front", "front", "side", "back", "back", "back", "side", "front")[yaw]


@torch.no_grad()
def _views(renderer: SceneRenderer, pose: Float[Tensor, "1 6"]) -> tuple[Tensor, Tensor]:
    out = renderer.render(around(), pose.expand(YAWS, -1), SIDE)
    return resized(out.image, SIDE), resized(out.mask.clamp(0, 1), SIDE)


@torch.no_grad()
def nearest_seeds(model: PortraitModel, encoder: PortraitEncoder, count: int) -> tuple[Tensor, Tensor]:
    """Styles of seeds, and the identity of each from eight yaws [count, 8, I]."""
    styles, identities = [], []
    with show_progress("rendering seeds", count, "people") as bar:
        for seed in range(count):
            person = model.sample(seed, truncation=1.0)
            styles.append(person.w)
            image, _ = _views(person.renderer, torch.zeros(1, 6))
            identities.append(encoder.encode(image).identity)
            bar.advance(1)
    return torch.cat(styles), torch.stack(identities)


def main(
    *,
    cases: int = 64,
    out: Path,
    weights: Path | None = None,
    exact: bool = False,
    all_views: bool = False,
    seeds: int = NEAREST,
    steps: int | None = None,
    sheet: Path | None = None,
) -> None:
    """Write how near portraits of held-out synthetic people are to their true views (.json).

    Args:
        cases: people, each from the next of the eight yaws.
        out: the numbers (.json).
        weights: of the model; the packaged ones when None.
        exact: give the true cameras and body poses instead of estimating them.
        all_views: optimise on all eight true views at once.
        seeds: generated people among whom the nearest one is looked for; 0: leave it out.
        steps: of the descent.
        sheet: an image with a row of truth and a row of results for each of the first cases (.png).
    """
    settle_process()
    model = PortraitModel.from_pretrained(weights)
    loaded = load_weights(model.info.path)
    networks = Networks.of(model.generator, loaded.discriminator, load_start(model.info.sha256))
    critics = Critics(networks.discriminator, networks.encoder)
    encoder = load_encoder()[0].eval().requires_grad_(False)
    bank = nearest_seeds(model, encoder, seeds) if seeds else None
    recipe = Recipe() if steps is None else dataclasses.replace(Recipe(), steps=steps)
    if exact or all_views:
        recipe = dataclasses.replace(recipe, align_at=())

    # Case by case
    source, entries, rows = PortraitSource(), [], []
    with show_progress("inverting", cases, "people") as bar:
        for index in range(cases):
            person = draw_person(source, index)
            entry = _case(model, networks, critics, person, recipe, exact=exact, all_views=all_views, rows=rows)
            if bank is not None:
                entry |= _baselines(model, encoder, critics, person, bank)
            entries.append({"index": index, "yaw": person.yaw * 45, **entry})
            write_json(out, {"cases": entries, "summary": summary(entries)})
            bar.advance(1)
    if sheet is not None:
        Image.fromarray(grid(np.concatenate(rows[:16]), YAWS)).save(sheet)
    print(f"{out}  {len(entries)} cases")


def _case(
    model: PortraitModel,
    networks: Networks,
    critics: Critics,
    person: Person,
    recipe: Recipe,
    *,
    exact: bool,
    all_views: bool,
    rows: list[np.ndarray],
) -> dict[str, Any]:
    """One inversion and its measures; the images of truth and result go to `rows`."""
    # Targets
    start = time.monotonic()
    refused = None
    if all_views:
        targets = [person.target(k) for k in range(YAWS)]
    elif exact:
        targets = [person.target(person.yaw)]
    else:
        try:
            targets = [_estimated(person)]
        except InputError as error:
            refused, targets = error.message, [person.target(person.yaw)]

    # The portrait from the true cameras in the true pose
    result = invert_targets(networks, targets, recipe)
    renderer = SceneRenderer.from_layers(result.generator, result.ws, result.appearance, bf16=model.bf16)
    image, mask = _views(renderer, person.body_pose)
    rows += [to_bytes(resized(person.images, SIDE)), to_bytes(image)]
    seconds = time.monotonic() - start
    values = measures(image, mask, person, critics)
    return {
        "refused": refused,
        "seconds": round(seconds, 1),
        "stages": result.as_json(),
        "inverted": {name: groups(each, person.yaw) for name, each in values.items()},
    }


def _estimated(person: Person) -> Target:
    """The input's view as a photo."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "photo.png"
        Image.fromarray(person.photo).save(path)
        return read_photos([path], force=True)[0][0].target


@torch.no_grad()
def _baselines(
    model: PortraitModel, encoder: PortraitEncoder, critics: Critics, person: Person, bank: tuple[Tensor, Tensor]
) -> dict[str, Any]:
    """Measures of the average person and of the nearest seed, by identity in the input's view."""
    styles, identities = bank
    own = encoder.encode(resized(person.target(person.yaw).image, SIDE)).identity[0]
    nearest = int((identities[:, person.yaw] @ own).argmax())
    found = {}
    for name, w in (("average", model.average_w), ("nearest", styles[nearest : nearest + 1])):
        image, mask = _views(model.synthesize(w).renderer, person.body_pose)
        values = measures(image, mask, person, critics)
        found[name] = {key: groups(each, person.yaw) for key, each in values.items()}
    return found


def summary(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over the cases, for all and by the place of the input."""
    table: dict[str, Any] = {}
    for where in ("all", "front", "side", "back"):
        some = [entry for entry in entries if where == "all" or place(entry["yaw"] // 45) == where]
        if not some:
            continue
        table[where] = {
            method: {
                name: {group: round(float(np.mean([e[method][name][group] for e in some])), 3) for group in found}
                for name, found in some[0][method].items()
            }
            for method in ("average", "nearest", "inverted")
            if method in some[0]
        }
        table[where]["cases"] = len(some)
        table[where]["refused"] = sum(entry["refused"] is not None for entry in some)
    return table


if __name__ == "__main__":
    run_script(main)
