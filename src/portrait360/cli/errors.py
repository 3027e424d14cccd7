"""Messages of the library, which name parameters, in the words of the command line, which has flags."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

_PARAMETER = re.compile(r"`([\w.]+)(?:=([^`]*))?`")
_QUOTES = "'\""
_SPELLINGS = {"truncation": "truncation_psi"}
"""Fields that have other names than the parameters that they are given to."""


def with_flags(message: str, command: Any) -> str:
    """Replace the parameters that a message names in backticks by flags of `command`.

    `` `truncation=0.7` `` becomes `--truncation-psi 0.7`, `` `mesh=False` `` becomes `--no-mesh`. What is no
    parameter of the command stays as it is.
    """
    # What the command takes.
    fields = {field.name for field in dataclasses.fields(command)}
    positional: dict[str, str] = getattr(command, "positional", {})

    # Replace each parameter, with its value if there is one.
    def replaced(match: re.Match[str]) -> str:
        name, value = match.groups()
        name = _SPELLINGS.get(name, name)
        # `training.batch` is one of the settings that `train` has a flag for each
        if name not in fields and not ("." in name and "settings" in fields):
            return match[0]
        flag = positional.get(name) or f"--{name.replace('_', '-')}"
        if value in (None, "True"):
            return flag
        if value == "False":
            return f"--no-{flag.removeprefix('--')}"
        if value.startswith("("):
            value = value.strip("()").replace(",", "")
        return f"{flag} {value.strip(_QUOTES)}"

    return _PARAMETER.sub(replaced, message)
