"""The commands: each is a frozen dataclass, its fields are the flags, `run` does the work.

Heavy imports stand inside `run`, so that `--help` is quick.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol

import tyro

from portrait360.cli.closing import close
from portrait360.cli.datasets import DatasetCommand
from portrait360.cli.datasets import DatasetConvert as DatasetConvert
from portrait360.cli.datasets import DatasetInspect as DatasetInspect
from portrait360.cli.datasets import DatasetPhotos as DatasetPhotos
from portrait360.cli.datasets import DatasetShard as DatasetShard
from portrait360.cli.datasets import DatasetSynth as DatasetSynth
from portrait360.cli.early import (
    check_dataset_place,
    check_device_name,
    check_folder_place,
    check_images_place,
    check_weights_place,
)
from portrait360.cli.page import Page
from portrait360.cli.train import Train, train_command
from portrait360.cli.view import View
from portrait360.config import PRESETS, named_preset
from portrait360.errors import InputError
from portrait360.portrait.arguments import check_size, check_truncation, check_turns, checked_texture, parse_seeds
from portrait360.runtime.files import check_json_place, check_place
from portrait360.runtime.process import settle_process
from portrait360.runtime.words import counted

_Angles = Annotated[tuple[float, float, float], tyro.conf.arg(metavar="X Y Z")]
_PLAIN = tyro.conf.arg(help_behavior_hint="")


def _check_rendering(
    neck: tuple[float, float, float],
    head: tuple[float, float, float],
    size: int | None,
    out: Path,
    weights: Path | None,
) -> None:
    """What `generate` and `invert` are asked, before anything heavy is imported."""
    check_turns(neck, head)
    check_size(size)
    check_folder_place(out)
    check_weights_place(weights)


def _page(folder: Path, weights: Path | None) -> list[str | Path]:
    """The command that shows the portrait in a folder: a page, or the viewer, which shows portraits of any weights."""
    if weights is not None:
        return ["view", folder / "portrait.safetensors", "--weights", weights]
    return [
        "page",
        folder / "portrait.safetensors",
        "--out",
        folder.with_name(f"{folder.name}.html"),
    ]


def _weights(weights: Path | None) -> list[str | Path]:
    return [] if weights is None else ["--weights", weights]


class Command(Protocol):
    """What every command of the command line has."""

    def run(self) -> None:
        """Do the work. Raises Portrait360Error for what the user can mend."""

    def resume_hint(self) -> str:
        """How to go on after Ctrl-C."""
        ...


@dataclass(frozen=True)
class Generate:
    """Make portraits in 3D from seeds: eight views, a turntable video, a mesh, and what makes each of them again.

    Writes DIR/seed0000/ with views.png (eight yaws, 45 degrees apart, from the front), turntable.mp4,
    portrait.glb, portrait.safetensors and portrait.json. The same seed always gives the same person. With --portrait,
    the same files go to DIR itself for a portrait that was saved.

    Example: portrait360 generate --seeds 0-3 --out out/demo
    """

    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder for the portraits."""
    seeds: Annotated[str | None, tyro.conf.arg(metavar="LIST", help_behavior_hint="")] = None
    """Seeds and ranges of seeds, for instance 7 or 0-3 or 0,5,7-9."""
    portrait: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """A portrait.safetensors, of a seed or from photos, in place of seeds."""
    weights: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """Weights (.safetensors), or the folder of a run. Default: those that come with the package."""
    truncation_psi: Annotated[float, tyro.conf.arg(metavar="PSI")] = 0.7
    """0 gives the average person, 1 the full variety with more failures."""
    neck: _Angles = (0.0, 0.0, 0.0)
    """Turn the neck, degrees: X nods down, Y turns to the person's left, Z tilts to their right. At most 90 in all;
    people reach about 45, and the packaged model learned up to about 25."""
    head: _Angles = (0.0, 0.0, 0.0)
    """Turn the head against the neck, in the same way and range."""
    size: Annotated[int | None, tyro.conf.arg(metavar="S", help_behavior_hint="")] = None
    """Side of each view in pixels; the video has half of it. Default: 512, or the model's own side if it has one."""
    video: Annotated[bool, _PLAIN] = True
    """Leave out turntable.mp4."""
    mesh: Annotated[bool, _PLAIN] = True
    """Leave out portrait.glb."""
    texture: Annotated[int, tyro.conf.arg(metavar="S")] = 1024
    """Side of the mesh's texture, texels: 1024 or 2048 (also 256 or 512)."""
    format: Literal["glb", "obj"] = "glb"
    """Of the mesh: glb (one file, textured and rigged), or obj for old programs (with .mtl and .png, no joints)."""
    device: Annotated[str, tyro.conf.arg(metavar="D")] = "auto"
    """cpu, cuda, cuda:1, or auto: the GPU if there is one."""

    def run(self) -> None:
        # Check what is asked for
        if (self.seeds is None) == (self.portrait is None):
            raise InputError("`generate` takes either `seeds` or `portrait`.", "Try `seeds=0-3`.")
        seeds = [] if self.seeds is None else parse_seeds(self.seeds)
        check_truncation(self.truncation_psi)
        checked_texture(self.texture)
        _check_rendering(self.neck, self.head, self.size, self.out, self.weights)
        check_device_name(self.device)
        from portrait360.apps.generate import generate, generate_again

        # A portrait that was saved
        settle_process()
        shown: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("weights", "neck", "head", "size", "video", "mesh", "texture", "format", "device")
        }
        if self.portrait is not None:
            generate_again(self.portrait, self.out, **shown)
            close(self.out, "the portrait", _page(self.out, self.weights))
            return

        # Portraits of seeds
        generate(seeds, self.out, truncation=self.truncation_psi, **shown)
        first = self.out / f"seed{seeds[0]:04d}"
        close(self.out, counted(len(seeds), "portrait"), _page(first, self.weights))

    def resume_hint(self) -> str:
        return f"finished portraits are in {self.out}"


@dataclass(frozen=True)
class Invert:
    """Make the portrait of a person in a photo, or in several photos of the same person, taken from any side.

    Writes into DIR what `generate` writes for a seed, and comparison.png: the photo, the portrait from its camera, and
    eight yaws. Photos are read, fitted and accepted as `dataset photos` does it. Ctrl-C keeps the best so far.

    Example: portrait360 invert ada.jpg --out out/ada
    """

    photos: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PHOTO ...", help_behavior_hint="")]
    """The photos."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder for the portrait."""
    weights: Annotated[Path | None, tyro.conf.arg(metavar="W", help_behavior_hint="")] = None
    """Weights (.safetensors), or the folder of a run. Default: those that come with the package."""
    fast: Annotated[bool, _PLAIN] = False
    """Leave out the search for the person's style, which takes most of the time."""
    force: Annotated[bool, _PLAIN] = False
    """Go on with photos that would be refused, if a person is found in them."""
    steps: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """Steps of the search. Default: 80."""
    neck: _Angles = (0.0, 0.0, 0.0)
    """Turn the neck in what is written, degrees: X nods down, Y turns to the person's left, Z tilts to their right. At
    most 90 in all; people reach about 45, and the packaged model learned up to about 25."""
    head: _Angles = (0.0, 0.0, 0.0)
    """Turn the head against the neck, in the same way and range."""
    size: Annotated[int | None, tyro.conf.arg(metavar="S", help_behavior_hint="")] = None
    """Side of each view in pixels; the video has half of it. Default: 512, or the model's own side if it has one."""
    video: Annotated[bool, _PLAIN] = True
    """Leave out turntable.mp4."""
    mesh: Annotated[bool, _PLAIN] = True
    """Leave out portrait.glb."""
    positional: ClassVar[dict[str, str]] = {"photos": "PHOTO"}

    def run(self) -> None:
        _check_rendering(self.neck, self.head, self.size, self.out, self.weights)
        from portrait360.apps.invert import invert

        settle_process()
        invert(
            self.photos,
            self.out,
            weights=self.weights,
            steps=self.steps,
            fast=self.fast,
            force=self.force,
            neck=self.neck,
            head=self.head,
            size=self.size,
            video=self.video,
            mesh=self.mesh,
        )
        close(self.out, "the portrait, and comparison.png to look at first", _page(self.out, self.weights))

    def resume_hint(self) -> str:
        return "nothing was written"


@dataclass(frozen=True)
class Evaluate:
    """Measure a model: fidelity, faces, cameras, body poses, consistency and geometry, beside the data's own.

    Prints a table, writes the numbers and, beside them, a sheet of images. docs/evaluation.md explains every number.
    The portrait encoder's features of the data are kept in the user's cache, so that the next time is shorter.

    Example: portrait360 evaluate --data heldout.zip --out metrics.json --quick
    """

    data: Annotated[Path, tyro.conf.arg(metavar="FILE.zip")]
    """Images that training has not seen, with masks; exact body poses if they are to be measured."""
    out: Annotated[Path, tyro.conf.arg(metavar="metrics.json")]
    """The numbers; the sheet goes to metrics.png."""
    weights: Annotated[Path | None, tyro.conf.arg(metavar="W", help_behavior_hint="")] = None
    """Weights (.safetensors), or the folder of a run. Default: those that come with the package."""
    quick: Annotated[bool, _PLAIN] = False
    """Some minutes instead of the better part of an hour, with 750 generated persons instead of 10,500."""
    inception: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """Your file of the Inception network (the tensors of pt_inception-2015-12-05 as .safetensors), for FID and KID as
    papers have them."""
    encoder: Annotated[Path | None, tyro.conf.arg(metavar="W", help_behavior_hint="")] = None
    """Another portrait encoder than the one that comes with the package."""
    device: Annotated[str, tyro.conf.arg(metavar="D")] = "auto"
    """cpu, cuda, cuda:1, or auto: the GPU if there is one."""

    def run(self) -> None:
        check_dataset_place(self.data)
        check_weights_place(self.weights)
        check_device_name(self.device)
        check_json_place(self.out, ".png")
        from portrait360.apps.evaluate import evaluate

        settle_process()
        evaluate(
            self.data,
            out=self.out,
            weights=self.weights,
            quick=self.quick,
            inception=self.inception,
            encoder=self.encoder,
            device=self.device,
        )
        words = ["generate", "--seeds", "0-7", "--out", self.out.with_suffix(""), *_weights(self.weights)]
        close(self.out, f"all numbers, and {self.out.with_suffix('.png').name}, a sheet of images", words)

    def resume_hint(self) -> str:
        return "nothing was written"


@dataclass(frozen=True)
class Pose:
    """Estimate camera and body pose of people in images. To photos, both are fitted; where an image has a camera and a
    mask, a model's discriminator predicts the body pose.

    The latter are images of a dataset, the original's test data (aligned_images/, mask/, result.json), or any with
    {"camera": [25 numbers]} in NAME.json and its mask in NAME.mask.png or its alpha channel. Of a folder or zip all
    images are taken. Writes FILE.json and FILE.overlay.png, the posed body outlined over the images.

    Example: portrait360 pose photo.jpg out/train.zip --out out/poses.json
    """

    images: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE ...", help_behavior_hint="")]
    """Images, folders and datasets."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE.json", help_behavior_hint="")] = None
    """The poses to write. Default: they are printed, and no overlay is drawn."""
    weights: Annotated[Path | None, tyro.conf.arg(metavar="W", help_behavior_hint="")] = None
    """Weights (.safetensors), converted ones too. Default: those that come with the package."""
    positional: ClassVar[dict[str, str]] = {"images": "IMAGE"}

    def run(self) -> None:
        check_images_place(self.images)
        check_weights_place(self.weights)
        if self.out is not None:
            check_json_place(self.out, ".overlay.png")
        from portrait360.apps.pose import estimate_poses

        settle_process()
        estimates = estimate_poses(self.images, weights=self.weights, out=self.out)
        if self.out is not None:
            overlay = self.out.with_suffix(".overlay.png").name
            first, place = self.images[0], self.out.with_suffix("")
            photo = first.is_file() and first.suffix.lower() != ".zip"
            words = ["invert", first, "--out", place] if photo else ["dataset", "inspect", first, "--out", place]
            close(self.out, f"{counted(len(estimates), 'pose')}, and {overlay}, the bodies over the images", words)

    def resume_hint(self) -> str:
        return "nothing was written"


@dataclass(frozen=True)
class Convert:
    """Convert weights of 3DPortraitGAN, 3DPortraitGAN_pyramid or PanoHead to this project's format.

    Reads a snapshot of the published training codes (.pkl, also .pkl.xz) as data: nothing in it is run. Which of the
    three it is, its tensors tell. Body-model data in it are left out; the packaged body drives the deformation, or your
    own SMPL file with --body.

    Example: portrait360 convert easy-khair-180-gpc0.8-trans10-025000.pkl --out panohead.safetensors
    """

    snapshot: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OFFICIAL.pkl")]
    """The snapshot."""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE.safetensors")]
    """The weights file to write."""
    body: Annotated[Path | None, tyro.conf.arg(metavar="SMPL.pkl|.npz", help_behavior_hint="")] = None
    """Your SMPL file, read in the same safe way and stored with the weights. SMPL data fall under the SMPL licence, so
    that a weights file made with this flag must not be passed on."""

    def run(self) -> None:
        from portrait360.official.convert import convert_snapshot

        found = convert_snapshot(self.snapshot, self.out, self.body)
        model = found.model
        print(f"licence: {found.licence}")
        if self.body is not None:
            print("note: this file holds SMPL data, which fall under the SMPL licence; do not pass it on.")
        words = ["generate", "--seeds", "0-3", "--out", self.out.with_suffix(""), "--weights", self.out]
        what = f"{found.title}: {model.resolution}x{model.resolution} pixels from {model.raw_resolution}"
        close(self.out, what, words)

    def resume_hint(self) -> str:
        return "nothing was written"


@dataclass(frozen=True)
class Bench:
    """Time every stage of every preset on this machine, and how much memory it takes.

    Weights are random, with a density shaped like a head. Original presets are also rendered by the exact renderer, as
    the baseline, and the fast images are compared with its own. All presets take some minutes.

    Example: portrait360 bench --out bench.json --quick
    """

    out: Annotated[Path, tyro.conf.arg(metavar="FILE.json")]
    """The numbers."""
    quick: Annotated[bool, _PLAIN] = False
    """Time everything once, and only one preset by the exact renderer."""
    presets: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...", help_behavior_hint="")] = ()
    """Only these presets. Default: all; with --training cpu-64, portrait-128 and portrait-256."""
    training: Annotated[bool, _PLAIN] = False
    """Time training instead: images per second, beside the published recipe in plain PyTorch."""
    device: Annotated[str, tyro.conf.arg(metavar="D")] = "auto"
    """Where to train: cpu, cuda, cuda:1, or auto: the GPU if there is one. Views are timed on the CPU."""

    def run(self) -> None:
        check_device_name(self.device)
        for name in self.presets:
            named_preset(name)
        check_place(self.out)
        from portrait360.bench.report import bench, bench_training
        from portrait360.bench.training import DEFAULT_PRESETS

        if self.training:
            presets = self.presets or DEFAULT_PRESETS
            bench_training(self.out, self.quick, presets, self.device)
            words = ["train", "--data", "train.zip", "--preset", presets[0], "--out", "runs/first"]
        else:
            presets = self.presets or tuple(PRESETS)
            bench(self.out, self.quick, presets)
            words = ["bench", "--training", "--out", self.out.with_name(f"{self.out.stem}-training.json")]
        close(self.out, f"times of {counted(len(presets), 'preset')}", words)

    def resume_hint(self) -> str:
        return "nothing was written"


def commands(arguments: Sequence[str]) -> Any:
    """All commands, as tyro reads them; that of `train` with every value of a preset only if it is asked for."""
    train = train_command() if arguments[:1] == ["train"] else None
    return (
        Annotated[Generate, tyro.conf.subcommand("generate")]
        | Annotated[Page, tyro.conf.subcommand("page")]
        | Annotated[Invert, tyro.conf.subcommand("invert")]
        | Annotated[View, tyro.conf.subcommand("view")]
        | Annotated[
            DatasetCommand,
            tyro.conf.subcommand(
                "dataset", description="Make a dataset, synthetic or of photos, inspect one, convert it, or pack it."
            ),
        ]
        | Annotated[Train, tyro.conf.subcommand("train", constructor=train)]
        | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
        | Annotated[Pose, tyro.conf.subcommand("pose")]
        | Annotated[Convert, tyro.conf.subcommand("convert")]
        | Annotated[Bench, tyro.conf.subcommand("bench")]
    )
