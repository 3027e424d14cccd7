"""What is wrong with some arguments, in one sentence: tyro's boxes are for reading at leisure."""

from __future__ import annotations

import re

_BORDERS = "│|"
_RULES = "─-"


class BadArgumentsError(Exception):
    """The arguments ask for no command. `message` says why, `hint` what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def explain_box(box: str, help_command: str) -> BadArgumentsError:
    """The box that tyro prints about bad arguments, as a sentence and a hint.

    Args:
        box: what tyro printed.
        help_command: the command that prints help on what the user tried.
    """
    parts = _parts(box)
    wrong = " ".join(parts[0]) if parts else ""
    hint = f"See `{help_command}`."
    unknown = next((part[1:] for part in parts if part[0] == "Unrecognized options:"), None)
    if unknown:
        return BadArgumentsError(f"there is no {unknown[0]} here.", hint)
    if match := re.match(r"Error parsing (\S+): (.*)", wrong):
        return BadArgumentsError(_bad_value(match[1], match[2]), hint)
    if wrong.startswith("Missing from"):
        title_end = next(i for i, line in enumerate(parts[0]) if line.endswith(":"))
        return BadArgumentsError(f"something is missing: {', '.join(parts[0][title_end + 1 :])}.", hint)
    if match := re.match(r"Missing value for argument '(\S+)'\. Expected (\d+) value", wrong):
        return BadArgumentsError(f"{match[1]} takes {match[2]} value{'s' * (match[2] != '1')}.", hint)
    if match := re.match(r"Unrecognized (?:or misplaced )?options: ([^\s,]+)", wrong):
        similar = _similar(box)
        here = [option for option, commands in similar if help_command in commands]
        options = " or ".join(here) or _after(parts, "Available subcommands:")
        if options:
            hint += f" Perhaps you meant {options}."
        elif elsewhere := [c for option, commands in similar if option.split()[0] == match[1] for c in commands]:
            hint += f" It belongs to `{elsewhere[0].removesuffix(' --help')}`."
        return BadArgumentsError(f"there is no {match[1]} here.", hint)
    if match := re.match(r"Expected one of \{(.*)\}", wrong):
        return BadArgumentsError(f"a command is missing: {match[1].replace(', ', ' or ')}.", hint)
    return BadArgumentsError(wrong or "these arguments make no sense.", hint)


def _parts(box: str) -> list[list[str]]:
    """The lines between rules, without the help texts (which are indented twice)."""
    parts: list[list[str]] = [[]]
    for line in box.splitlines()[1:-1]:
        text = line.strip(_BORDERS)
        if not text.strip(_RULES + " "):
            parts.append([])
        elif not text.startswith(" " * 9):
            if text.strip() == "Unrecognized options:":
                parts.append([])
            parts[-1].append(text.strip())
    return [part for part in parts if part]


def _similar(box: str) -> list[tuple[str, list[str]]]:
    """Options that tyro takes to be meant, each with the commands that print help on it."""
    found: list[tuple[str, list[str]]] = []
    text = ""
    for line in box.partition("Perhaps you meant:")[2].splitlines()[1:]:
        inner = line.strip(_BORDERS)
        if not inner.strip(_RULES + " "):
            break
        if inner.startswith(" " * 9):
            text += " " + inner.strip()
            found[-1][1][:] = re.findall(r"\bin (portrait360(?: [a-z]+)* --help)", text)
        else:
            text = ""
            found.append((inner.strip(), []))
    return found


def _bad_value(flag: str, reason: str) -> str:
    given = re.findall(r"'([^']*)'", reason)
    kind = ""
    if re.search("float", reason, re.IGNORECASE):
        kind = "a number, "
    elif re.search(r"\bint\b", reason, re.IGNORECASE):
        kind = "a whole number, "
    return f"{flag} takes {kind}not {given[-1] if given else 'this'!r}." if kind else f"{flag}: {reason}."


def _after(parts: list[list[str]], title: str) -> str:
    for part in parts:
        words = " ".join(part)
        if words.startswith(title):
            return words.removeprefix(title).strip().replace(", ", " or ")
    return ""
