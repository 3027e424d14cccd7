"""Flags that do not exist, and those that were likely meant."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, get_args

from portrait360.cli.commands import commands


def misspelt(arguments: Sequence[str]) -> dict[str, str]:
    """Flags among the arguments that their command lacks, each with the one of its flags that it is most like.

    `--seed` of `generate` gives `--seeds`. Values of presets, which `train` has a flag for each, are not looked at.
    """
    command = _chosen(commands(()), list(arguments))
    if command is None:
        return {}
    fields = [field.name.replace("_", "-") for field in dataclasses.fields(command)]
    known = [f"--{name}" for name in fields] + [f"--no-{name}" for name in fields]
    given = [word.partition("=")[0].replace("_", "-") for word in arguments if word.startswith("--")]
    unknown = [flag for flag in given if flag not in known and "." not in flag and flag != "--help"]
    close = {flag: get_close_matches(flag, known[: len(fields)], 1, cutoff=0.7) for flag in unknown}
    return {flag: found[0] for flag, found in close.items() if found}


def _chosen(kind: Any, words: list[str]) -> type | None:
    """The class of the command that the words name, among subcommands as tyro annotates them."""
    if not words:
        return None
    for option in get_args(kind):
        inner, *notes = get_args(option) or (option,)
        if any(getattr(note, "name", None) == words[0] for note in notes):
            return inner if isinstance(inner, type) else _chosen(inner, words[1:])
    return None
