"""The people that a viewer shows: of seeds, of files, and those of earlier times in its folder."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from portrait360.portrait.arguments import check_seed, check_truncation
from portrait360.portrait.model import PortraitModel
from portrait360.portrait.portrait import Portrait
from portrait360.types import InputError, Portrait360Error

PORTRAIT_FILE, MESH_FILE = "portrait.safetensors", "portrait.glb"
_LOADED = 4
"""Portraits that are kept ready; a tri-grid may take a hundred megabytes."""
_MOST_SHOWN = 200


@dataclass(frozen=True)
class Seeded:
    """The person of a seed."""

    seed: int
    truncation: float

    def portrait(self, model: PortraitModel) -> Portrait:
        return model.sample(self.seed, truncation=self.truncation)

    @property
    def folder_name(self) -> str:
        """As `generate` calls it; another truncation is another person."""
        usual = f"seed{self.seed:04d}"
        return usual if self.truncation == 0.7 else f"{usual}-{round(100 * self.truncation)}"


@dataclass(frozen=True)
class Filed:
    """The person of a portrait file."""

    path: Path

    def portrait(self, model: PortraitModel) -> Portrait:
        return Portrait.load(self.path, weights=model.info.path, device=str(model.device))

    @property
    def folder_name(self) -> str:
        return self.path.parent.name if self.path.name == PORTRAIT_FILE else self.path.stem


Source = Seeded | Filed
"""What a portrait is made from, in a few words: other processes make it again."""


@dataclass(frozen=True)
class Person:
    """One entry of the list."""

    number: int
    name: str
    source: Source
    folder: Path
    """Where the person's files are, or would be written."""

    @property
    def saved(self) -> bool:
        return (self.folder / PORTRAIT_FILE).is_file()

    @property
    def mesh(self) -> Path | None:
        """The mesh that was written."""
        path = self.folder / MESH_FILE
        return path if path.is_file() else None

    def as_json(self) -> dict[str, Any]:
        """For the page."""
        return {"id": self.number, "name": self.name, "saved": self.saved, "mesh": self.mesh is not None}


class People:
    """A list that grows; several threads may use it."""

    def __init__(self, model: PortraitModel, folder: Path) -> None:
        self.model, self.folder = model, folder
        self._people: dict[int, Person] = {}
        self._numbers = itertools.count()
        self._loaded: OrderedDict[int, Portrait] = OrderedDict()
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._people)

    def listing(self) -> list[dict[str, Any]]:
        """All of them, for the page."""
        with self._lock:
            return [person.as_json() for person in self._people.values()]

    def find(self, number: int) -> Person:
        """Raises InputError where there is nobody of this number."""
        with self._lock:
            person = self._people.get(number)
        if person is None:
            raise InputError(f"there is no person {number}.", "Reload the page.")
        return person

    def portrait(self, person: Person) -> Portrait:
        """The person's portrait, made or loaded where it is not at hand."""
        with self._lock:
            portrait = self._loaded.pop(person.number, None) or person.source.portrait(self.model)
            self._loaded[person.number] = portrait
            if len(self._loaded) > _LOADED:
                self._loaded.popitem(last=False)
            return portrait

    # ---- what adds to the list ----

    def add_seed(self, seed: int, truncation: float) -> Person:
        """The person of a seed, who may be in the list.

        Raises:
            InputError: a number is out of range, or the list is full.
        """
        check_seed(seed)
        check_truncation(truncation)
        return self._add(f"Seed {seed}", Seeded(seed, truncation))

    def add_file(self, path: Path, name: str | None = None) -> Person:
        """The person of a portrait file, who may be in the list.

        Raises:
            CheckpointError: the file is damaged, or of other weights.
        """
        source = Filed(path)
        return self._add(name or source.folder_name, source)

    def add_saved(self) -> list[str]:
        """Those whose files lie in the folder; a sentence for each that cannot be shown."""
        problems = []
        for file in sorted(self.folder.glob(f"*/{PORTRAIT_FILE}")):
            try:
                self.add_file(file)
            except Portrait360Error as error:
                problems.append(error.message)
        return problems

    def _add(self, name: str, source: Source) -> Person:
        with self._lock:
            for person in self._people.values():
                if person.source == source:
                    return person
            if len(self) >= _MOST_SHOWN:
                raise InputError(f"the viewer shows {_MOST_SHOWN} people already.", "Start it again.")
            own = source.path.parent if isinstance(source, Filed) and source.path.name == PORTRAIT_FILE else None
            person = Person(next(self._numbers), name, source, own or self.folder / source.folder_name)
            self.portrait(person)  # what cannot be shown is not listed
            self._people[person.number] = person
            return person
