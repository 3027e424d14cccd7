"""Prose of the documents: words, sentences and lines, as `docs_check` wants them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

README_WORDS = 700
LONGEST_LINE = 200
_WORDS: dict[str, str] = {
    r"\b(?:network|encoder|discriminator|model|dlib) (?:says|sees|tells)\b|\bis taught\b|\btaught by\b": "predicts",
    r"\bverdicts?\b|\bjudg(?:e|es|ed|ing)\b": "logit, discriminator output",
    r"\bby heart\b": "overfits",
    r"\bmiddle parts?\b|\bcloser windows?\b|\blook(?:s|ing)? closer\b": "centre crop, zoomed crop",
    r"\bbefore (?:plain )?grey\b": "on a grey background",
    r"\breal pictures?\b": "held-out synthetic portraits",
    r"\b(?:people|persons|portraits) (?:are|were) drawn\b": "portraits are rendered",
    r"\bnecks of real\b|\bas self-learned\b": "predicted neck pose error on held-out portraits",
    r"\bfaces on the backs? of heads?\b": "back-face rate",
    r"\bcoarse (?:pose )?labels?\b": "noisy pose labels",
    r"\bgenerated one is like\b": "recall (improved precision/recall, k = 3)",
    r"\bheld to be empty\b": "unoccupied cells",
    r"\bnumbers of the day\b|\blessons\b|\bspoilt\b": "step inputs, fine-tuning data, corrupted",
    r"\bpictures?\b": "image",
}
"""What a text does not say, and what it says instead."""
_HISTORY: dict[str, str] = {r"\b\d[\d,]* kimg\b|\bof then\b|\bof that time\b": "history, which belongs in docs/lab"}
"""The same, outside of `_WITH_HISTORY`."""
_WITH_HISTORY = ("docs/lab/", "CHANGELOG.md", "docs/equations.md")
"""Lab notes, the changelog, and the schedule of the published training."""


class Problem(NamedTuple):
    """What is wrong, and where."""

    name: str
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.name}:{self.line}: {self.what}"


@dataclass(frozen=True)
class Page:
    """A document: its path from the root of the checkout, and its Markdown."""

    name: str
    text: str

    @classmethod
    def read(cls, path: Path, root: Path) -> Page:
        """Read a document below `root`."""
        return cls(path.relative_to(root).as_posix(), path.read_text(encoding="utf-8"))

    def problem(self, line: int, what: str) -> Problem:
        """A problem of this page."""
        return Problem(self.name, line, what)

    def text_lines(self) -> Iterator[tuple[int, str]]:
        """Lines outside of fenced code, with their numbers."""
        fenced = False
        for number, line in enumerate(self.text.splitlines(), 1):
            if line.lstrip().startswith("```"):
                fenced = not fenced
            elif not fenced:
                yield number, line

    def prose(self) -> Iterator[tuple[int, str]]:
        """Those lines without inline code, targets of links and comments."""
        for number, line in self.text_lines():
            text = re.sub(r"`[^`]*`", "`code`", line)
            yield number, re.sub(r"(?<=\])\([^)]*\)|<!--.*?-->", "", text)

    def shell_lines(self) -> Iterator[tuple[int, str]]:
        """Lines of fenced shell code, continued ones joined."""
        for block in re.finditer(r"```bash\n(.*?)```", self.text, re.DOTALL):
            first = self.text.count("\n", 0, block.start()) + 2
            for offset, line in enumerate(block[1].replace("\\\n", " ").splitlines()):
                yield first + offset, line

    def anchors(self) -> set[str]:
        """What `#...` of links may name: the headings in small letters, without punctuation."""
        headings = re.findall(r"^#+ +(.*?)\s*$", self.text, re.MULTILINE)
        plain = [re.sub(r"[^\w\s-]", "", heading.lower()).strip() for heading in headings]
        return {re.sub(r"\s", "-", heading) for heading in plain}


def long_readme(page: Page) -> Iterator[Problem]:
    """The README has at most 700 words, everything counted."""
    words = len(page.text.split())
    if words > README_WORDS:
        yield page.problem(1, f"{words} words; at most {README_WORDS}")


def long_lines(page: Page) -> Iterator[Problem]:
    """No line is longer than 200 characters, tables aside."""
    for number, line in enumerate(page.text.splitlines(), 1):
        if len(line) > LONGEST_LINE and not line.startswith("|"):
            yield page.problem(number, f"{len(line)} characters; at most {LONGEST_LINE} outside of tables")


def several_sentences(page: Page) -> Iterator[Problem]:
    """One sentence per line, tables aside."""
    for number, line in page.prose():
        if not line.startswith(("|", "#")) and sentence_ends(line):
            yield page.problem(number, "more than one sentence on a line")


def sentence_ends(line: str) -> list[int]:
    """Where sentences of a line end, without the last one."""
    begin = re.match(r"\s*(?:[-*]|\d+\.)?\s*", line)
    return [found.end() for found in re.finditer(r"(?<!\bal)(?<=[^\s.])[.!?][\"*_)]* +(?=[A-Z*`\[])", line)
            if begin is not None and found.start() >= begin.end()]  # fmt: skip


def wrong_words(page: Page) -> Iterator[Problem]:
    """The field's words, and history only where it belongs."""
    patterns = _WORDS if page.name.startswith(_WITH_HISTORY) else _WORDS | _HISTORY
    for number, line in page.prose():
        for pattern, instead in patterns.items():
            found = re.search(pattern, line, re.IGNORECASE)
            if found:
                yield page.problem(number, f"{found[0]!r}: write {instead!r}")
