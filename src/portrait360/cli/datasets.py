"""The commands below `portrait360 dataset`; see `cli.commands`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from portrait360.cli.closing import close
from portrait360.cli.early import check_dataset_place, check_folder_place, check_photo_folder
from portrait360.runtime.words import counted
from portrait360.synthetic.arguments import check_synth_arguments

_PLAIN = tyro.conf.arg(help_behavior_hint="")
_PRESET = "cpu-64"
"""What the next command trains: it runs on every machine."""


@dataclass(frozen=True)
class DatasetSynth:
    """Render synthetic portraits with exact camera, body pose and mask each.

    The same seed gives the same bytes whatever the number of workers, and a run that was stopped continues
    when the same command is given again. The first run fetches the parts (hair, clothes, skins; 89 MB) with npm.

    Example: portrait360 dataset synth --count 20000 --resolution 128 --seed 1 --out train.zip --label-noise 4
    """

    count: Annotated[int, tyro.conf.arg(metavar="N")]
    """Number of portraits."""
    resolution: Annotated[int, tyro.conf.arg(metavar="R")]
    """Side of the square images in pixels."""
    seed: Annotated[int, tyro.conf.arg(metavar="S")]
    """Which people, cameras and poses."""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE.zip")]
    """The dataset to write."""
    label_noise: Annotated[float | None, tyro.conf.arg(metavar="DEG", help_behavior_hint="")] = None
    """Also write coarse body poses, as estimators would give them, with noise of so many degrees. Training
    reads these, measuring the exact ones."""
    workers: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """Processes that render. Default: one per core."""
    depth: Annotated[bool, _PLAIN] = False
    """Also write depth images."""
    views: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """Images of each person, each with a camera, pose, expression and light of its own."""

    def run(self) -> None:
        check_synth_arguments(
            self.out,
            count=self.count,
            resolution=self.resolution,
            seed=self.seed,
            label_noise=self.label_noise,
            workers=self.workers,
            views=self.views,
        )
        from functools import partial

        from portrait360.synthetic.job import render_dataset
        from portrait360.synthetic.source import PortraitSource

        rendered = render_dataset(
            self.out,
            count=self.count,
            resolution=self.resolution,
            seed=self.seed,
            label_noise=self.label_noise,
            workers=self.workers,
            depth=self.depth,
            views=self.views,
            source_factory=PortraitSource if self.views == 1 else partial(PortraitSource, views=self.views),
        )
        what = f"{counted(self.count, 'image')} of {self.resolution}x{self.resolution} pixels"
        what = what if rendered else f"was finished before: {what}"
        close(self.out, what, ["dataset", "inspect", self.out, "--out", self.out.with_name("inspect")])

    def resume_hint(self) -> str:
        return "the same command continues"


@dataclass(frozen=True)
class DatasetPhotos:
    """Make a dataset of a folder of photos: find each person, estimate camera and body pose, crop and mask.

    Writes FILE.zip, and FILE.report.json and FILE.report.html with what became of every photo and why. A run that was
    stopped continues when the same command is given again.

    Example: portrait360 dataset photos photos --resolution 512 --out photos.zip --balance 4
    """

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """The photos; folders below are searched as well."""
    resolution: Annotated[int, tyro.conf.arg(metavar="R")]
    """Side of the square images in pixels."""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE.zip")]
    """The dataset to write."""
    workers: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """Processes that read photos. Default: one per core."""
    balance: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """Repeat people seen from rare sides, such as from behind, up to N times. Default: nobody is repeated."""
    engine: Annotated[str, tyro.conf.arg(metavar="NAME")] = "local"
    """local: processes on this machine; ray: a Ray cluster, whose machines must all see the folder."""
    shards: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Also pack the dataset into WebDataset shards in this folder."""
    limits: Annotated[Path | None, tyro.conf.arg(metavar="FILE.json", help_behavior_hint="")] = None
    """When to reject, for instance {"smallest_side": 200}; docs/photos.md lists all limits. Others keep their
    defaults."""
    quality: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """Your quality network (.safetensors or .onnx). Its scores are in the report; they reject nobody unless --limits
    has a least_quality."""
    matting: Annotated[Path | None, tyro.conf.arg(metavar="FILE.onnx", help_behavior_hint="")] = None
    """Your matting network in place of mediapipe's segmentation."""
    body: Annotated[Path | None, tyro.conf.arg(metavar="SMPL.pkl|.npz", help_behavior_hint="")] = None
    """Your SMPL file, read as data: body poses are then turns about its joints. Default: the packaged body."""

    def run(self) -> None:
        check_photo_folder(self.folder)
        from portrait360.apps.dataset import make_dataset

        report = make_dataset(
            self.folder,
            self.out,
            resolution=self.resolution,
            limits=self.limits,
            workers=self.workers,
            balance=self.balance,
            matting=self.matting,
            quality=self.quality,
            body=self.body,
            engine=self.engine,
            shards=self.shards,
        )
        words = ["dataset", "inspect", self.out, "--out", self.out.with_name("inspect")]
        close(self.out, f"{counted(report.images, 'image')}: {report.sentence()}", words)

    def resume_hint(self) -> str:
        return "the same command continues"


@dataclass(frozen=True)
class DatasetShard:
    """Pack a dataset into WebDataset shards, for training on more than memory holds or on many machines.

    `train --data DIR` reads them: each process its own shards, a few at a time.

    Example: portrait360 dataset shard train.zip --out shards
    """

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE.zip")]
    """The dataset: a zip or a folder."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder for the shards."""
    per_shard: Annotated[int, tyro.conf.arg(metavar="N")] = 1000
    """Most images in a shard."""

    def run(self) -> None:
        check_dataset_place(self.file)
        check_folder_place(self.out)
        from portrait360.data.shards import write_shards

        images, shards = write_shards(self.file, self.out, self.per_shard)
        words = ["train", "--data", self.out, "--preset", _PRESET, "--out", "runs/first"]
        close(self.out, f"{counted(images, 'image')} in {counted(shards, 'shard')}", words)

    def resume_hint(self) -> str:
        return "nothing was written"


@dataclass(frozen=True)
class DatasetInspect:
    """Inspect a dataset: a contact sheet, histograms of its labels, and bodies outlined over images.

    Writes DIR/sheet.png, the yaw and pose histograms, the body overlay and summary.json. Refuses labels of other
    conventions, and warns where labels do not fit their images.

    Example: portrait360 dataset inspect train.zip --out out/inspect
    """

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE.zip")]
    """The dataset: a zip or a folder."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder for the images."""

    def run(self) -> None:
        check_dataset_place(self.file)
        check_folder_place(self.out)
        from portrait360.apps.inspect import inspect

        summary = inspect(self.file, self.out)
        train: list[str | Path] = ["train", "--data", self.file, "--preset", _PRESET, "--out", "runs/first"]
        joined = self.file.with_name(f"{self.file.stem}-with-masks.zip")
        convert: list[str | Path] = ["dataset", "convert", self.file, "--masks", "MASKS.zip", "--out", joined]
        what = f"sheet.png, overlay.png and more of {counted(summary['count'], 'image')}"
        close(self.out, what, train if summary["masks"] else convert)

    def resume_hint(self) -> str:
        return "nothing was written"


@dataclass(frozen=True)
class DatasetConvert:
    """Convert a dataset of other conventions to this project's (docs/conventions.md).

    Labels are rewritten as the flags say that they are meant; images and masks stay byte for byte. `dataset inspect`
    and `train` name the flags that a dataset needs.

    Example: portrait360 dataset convert other.zip --axes opengl --pose degrees --out train.zip
    """

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IN")]
    """The dataset: a zip or a folder."""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE.zip")]
    """The dataset to write."""
    axes: Literal["opencv", "opengl"] = "opencv"
    """Of its cameras: right, down, forward (opencv) or right, up, backward (opengl)."""
    matrix: Literal["c2w", "w2c"] = "c2w"
    """What its matrices map: camera to world, or world to camera."""
    intrinsics: Literal["normalised", "pixels"] = "normalised"
    """Its intrinsics: divided by the image size, or in pixels."""
    pose: Literal["radians", "degrees"] = "radians"
    """Unit of its body poses."""
    masks: Annotated[Path | None, tyro.conf.arg(metavar="MASKS.zip", help_behavior_hint="")] = None
    """A separate zip or folder of masks to put beside the images, as 3DPortraitGAN and PanoHead have it."""

    def run(self) -> None:
        check_dataset_place(self.file)
        if self.masks is not None:
            check_dataset_place(self.masks)
        from portrait360.data.conventions import Conventions
        from portrait360.data.convert import convert_dataset

        conventions = Conventions(self.axes, self.matrix, self.intrinsics, self.pose)
        count = convert_dataset(self.file, self.out, conventions, masks_path=self.masks)
        words = ["dataset", "inspect", self.out, "--out", self.out.with_name("inspect")]
        close(self.out, f"{counted(count, 'image')} with labels in this project's conventions", words)

    def resume_hint(self) -> str:
        return "nothing was written"


DatasetCommand = (
    Annotated[DatasetSynth, tyro.conf.subcommand("synth")]
    | Annotated[DatasetPhotos, tyro.conf.subcommand("photos")]
    | Annotated[DatasetInspect, tyro.conf.subcommand("inspect")]
    | Annotated[DatasetConvert, tyro.conf.subcommand("convert")]
    | Annotated[DatasetShard, tyro.conf.subcommand("shard")]
)
