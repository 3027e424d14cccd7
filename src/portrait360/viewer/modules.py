"""JavaScript modules joined into one script, so that a page needs no server and no build step.

Only the plainest forms are known: `import { a, b } from "./name.js";` on lines of their own, and `export` in front of a
declaration. All modules then share one scope, hence no two may declare the same name.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_IMPORT = re.compile(r'^import \{[^}]*\} from "\./([a-z_]+\.js)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function|class|const)\b)", re.MULTILINE)
_DECLARED = re.compile(r"^(?:export )?(?:async )?(?:function\*?|class|const|let)\s+([A-Za-z_$][\w$]*)", re.MULTILINE)


def joined_modules(main: str, read: Callable[[str], str]) -> str:
    """The module `main` and all that it imports, each after what it needs.

    Args:
        main: name of the file that starts.
        read: gives the text of a file of that name.

    Raises:
        ValueError: modules import in a circle, declare a name twice, or use a form that is not known.
    """
    parts: list[str] = []
    owners: dict[str, str] = {}
    _add(main, read, parts, owners, ())
    return "\n".join(parts)


def _add(
    name: str, read: Callable[[str], str], parts: list[str], owners: dict[str, str], path: tuple[str, ...]
) -> None:
    if name in path:
        raise ValueError(f"modules import in a circle: {' -> '.join([*path, name])}")
    if f"file:{name}" in owners:
        return

    # What it needs comes first.
    text = read(name)
    for needed in _IMPORT.findall(text):
        _add(needed, read, parts, owners, (*path, name))

    # Its own names must be new.
    owners[f"file:{name}"] = name
    for declared in _DECLARED.findall(text):
        if declared in owners:
            raise ValueError(f"{declared} is declared in {owners[declared]} and in {name}")
        owners[declared] = name

    body = _EXPORT.sub("", _IMPORT.sub("", text))
    left = re.search(r"^\s*(?:import|export)\b.*", body, re.MULTILINE)
    if left is not None:
        raise ValueError(f"{name} has a form that cannot be joined: {left[0].strip()}")
    parts.append(f"// ---- {name} ----\n\n{body}")
