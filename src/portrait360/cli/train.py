"""The command `train`, with a flag for every value of the training recipe and of the model config."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveTypeInfo, UnsupportedTypeAnnotationError

from portrait360.cli.closing import close
from portrait360.cli.early import check_dataset_place, check_device_name, check_folder_place, check_weights_place
from portrait360.config import PRESETS, check_lengths, named_preset
from portrait360.config.fields import PresetField, preset_fields
from portrait360.runtime.process import settle_process

_PLAIN = tyro.conf.arg(help_behavior_hint="")


@dataclass(frozen=True)
class Train:
    """Train a model on a dataset.

    Ctrl-C, SIGTERM and --max-minutes save a checkpoint; --resume continues exactly where it was.
    Every value of the preset can be changed: --training.batch 32, --model.render.samples 64. They are stored in
    RUN/config.json, and a resumed run keeps them.

    Example: portrait360 train --data train.zip --preset cpu-64 --out runs/first --max-minutes 60
    """

    data: Annotated[Path, tyro.conf.arg(metavar="FILE.zip")]
    """The dataset: a zip, a folder, or a folder of shards."""
    preset: Annotated[str, tyro.conf.arg(metavar="NAME")]
    """Size of the model: cpu-64 trains on two cores; portrait-128 and portrait-256 want a GPU."""
    out: Annotated[Path, tyro.conf.arg(metavar="RUN")]
    """Folder of the run: configuration, checkpoints, logs and sheets."""
    resume: Annotated[bool, _PLAIN] = False
    """Continue the run in --out."""
    max_minutes: Annotated[float | None, tyro.conf.arg(metavar="M", help_behavior_hint="")] = None
    """Save and stop after so many minutes."""
    kimg: Annotated[float | None, tyro.conf.arg(metavar="K", help_behavior_hint="")] = None
    """Train on so many thousand images in all. Default: as the preset says."""
    device: Annotated[str, tyro.conf.arg(metavar="D")] = "auto"
    """cpu, cuda, cuda:1, or auto: the GPU if there is one."""
    init: Annotated[Path | None, tyro.conf.arg(metavar="W", help_behavior_hint="")] = None
    """Start from these weights instead of random ones, for instance on images of your own. They must be of the
    same preset, or of one that it can grow from (cpu-64 into portrait-128)."""
    recipe: Annotated[str, tyro.conf.arg(metavar="NAME")] = "preset"
    """How to train: as the preset says, or `original`, the published recipe."""
    settings: Annotated[Mapping[str, Any], tyro.conf.Suppress, tyro.conf.Fixed] = field(default_factory=dict)
    """Values of the preset to change, by full name; the flags `--training.*` and `--model.*`."""

    def run(self) -> None:
        check_dataset_place(self.data)
        check_device_name(self.device)
        named_preset(self.preset)
        check_lengths(self.kimg, self.max_minutes)
        check_folder_place(self.out)
        check_weights_place(self.init)
        from portrait360.apps.train import train

        settle_process()
        train(
            self.data,
            preset=self.preset,
            out=self.out,
            resume=self.resume,
            max_minutes=self.max_minutes,
            kimg=self.kimg,
            device=self.device,
            init=self.init,
            recipe=self.recipe,
            **self.settings,
        )
        self._close()

    def _close(self) -> None:
        """The last line: how far the run is, and what comes next."""
        from portrait360.runtime.distributed import is_first_process
        from portrait360.training.run_folder import images_shown

        if not is_first_process():
            return
        shown, total = images_shown(self.out)
        if shown < total:
            words = ["train", "--data", self.data, "--preset", self.preset, "--out", self.out, "--resume"]
            what = f"the run, stopped after {shown / 1000:g} of {total / 1000:g} kimg"
        else:
            words = ["evaluate", "--data", "heldout.zip", "--weights", self.out, "--out", self.out / "metrics.json"]
            what = f"the trained model, after {shown / 1000:g} kimg"
        close(self.out, what, words)

    def resume_hint(self) -> str:
        return "the same command with --resume continues from the last checkpoint"


# ---- a flag for every value of a preset ----

_WHOLE = "whole"
"""Keyword for a part as a whole."""
_TITLES = {
    "training": "Values of the training recipe; where presets differ, each default is shown with its presets.",
    "model": "Values of the model; where presets differ, each default is shown with its presets.",
}


@dataclass(frozen=True)
class _Given:
    """A value that stands on the command line, unlike a preset's."""

    value: object


def train_command() -> Callable[..., Train]:
    """`Train` as tyro reads it: its own flags, and one for every value of a preset.

    It is built only where somebody trains: other commands stay as quick as they are.
    """

    def train(
        options: Annotated[Train, tyro.conf.arg(name="")],
        training: dict[str, object],
        model: dict[str, object],
    ) -> Train:
        return dataclasses.replace(options, settings=training | model)

    for root in _TITLES:
        train.__annotations__[root] = Annotated[dict, tyro.conf.arg(constructor=_flags_of(root))]
    train.__annotations__["options"] = Annotated[Train, tyro.conf.arg(name="")]
    train.__doc__ = inspect.getdoc(Train)
    return train


def _flags_of(path: str) -> Callable[..., dict[str, object]]:
    """A function whose keywords are the values of one part of a preset, and which returns those that are given."""

    def given(**values: object) -> dict[str, object]:
        found: dict[str, object] = {}
        for name, value in values.items():
            if isinstance(value, dict):
                found |= value
            elif isinstance(value, _Given):
                found[path if name == _WHOLE else f"{path}.{name}"] = value.value
        return found

    parameters = list(_parameters(path))
    signature: Any = given
    signature.__signature__ = inspect.Signature(parameters)
    given.__annotations__ = {one.name: one.annotation for one in parameters}
    given.__doc__ = _TITLES.get(path) or preset_fields()[path].about
    return given


def _parameters(path: str) -> Iterator[inspect.Parameter]:
    """A keyword for each value of a part, one for each part in it, and one that leaves out a part that may be None."""

    def keyword(name: str, kind: object, default: object) -> inspect.Parameter:
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default)

    for one in preset_fields().values():
        if one.path == path and one.optional:
            yield keyword(_WHOLE, _flag(one, type(None), "None leaves it out.", name=""), None)
        if one.path.rpartition(".")[0] != path:
            continue
        if one.part is None:
            yield keyword(one.name, _flag(one, one.kind, one.about), None)
        else:
            part = Annotated[dict, tyro.conf.arg(constructor=_flags_of(one.path))]
            yield keyword(one.name, part, inspect.Parameter.empty)


def _flag(field: PresetField, kind: Any, about: str, name: str | None = None) -> object:
    """What tyro is to make of a value: parsed as its type, marked as given, and shown with the presets' values."""
    spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(kind, set()))
    assert not isinstance(spec, UnsupportedTypeAnnotationError), field.path
    marked = dataclasses.replace(
        spec,
        metavar=spec.metavar.replace("{None}", "None"),
        instance_from_str=lambda words: _Given(spec.instance_from_str(words)),
        is_instance=lambda value: value is None or isinstance(value, _Given),
        str_from_instance=lambda _: ["None"],
    )
    return Annotated[Any, marked, tyro.conf.arg(name=name, help=about, help_behavior_hint=_defaults(field))]


def _defaults(field: PresetField) -> str:
    """The presets' values, those that most have first."""
    names: dict[str, list[str]] = {}
    for name, preset in PRESETS.items():
        if not preset.model.posable:  # is not trained
            continue
        names.setdefault(_words(field.of(preset)), []).append(name)
    if len(names) == 1:
        return f"(default: {next(iter(names))})"
    originals = [name for name in PRESETS if name.startswith("original-")]
    parts = []
    for value, some in sorted(names.items(), key=lambda pair: -len(pair[1])):
        if set(originals) <= set(some):
            some = [*(name for name in some if name not in originals), "original-*"]
        parts.append(f"{value} in {', '.join(some)}")
    return f"(default: {'; '.join(parts)})"


def _words(value: object) -> str:
    """A value as it stands on the command line."""
    if isinstance(value, tuple):
        return " ".join(_words(one) for one in value) or "nothing"
    if dataclasses.is_dataclass(value):
        return "set"
    return str(value)
