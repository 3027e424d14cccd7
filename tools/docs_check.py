"""A lint of README.md, docs and the other documents of a checkout.

    python -m tools.docs_check

Checks words and sentences (`docs_prose`), tables, keys, names, links and commands. Exit status 1: something is wrong.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.util
import io
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import portrait360
from portrait360.cli.main import parse
from portrait360.evaluation.measures import MEASURES
from portrait360.photos.gates import GATES
from portrait360.types import InputError
from tools.docs_prose import Page, Problem, long_lines, long_readme, several_sentences, wrong_words
from tools.tables import update

PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "tools/README.md", "examples/README.md", "docs/**/*.md")
_GUIDES = "index quickstart portraits photos training evaluation original examples results"
_REFERENCE = "api model conventions equations lab/index"
_SITE = tuple(f"docs/{name}.md" for name in f"{_GUIDES} {_REFERENCE}".split())
REQUIRED = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", *_SITE)
CODE = ("src", "tests", "tools", "examples")


class Checkout:
    """The documents of a checkout."""

    def __init__(self, root: Path) -> None:
        """Read every document below `root`."""
        self.root = root
        found = sorted(path for pattern in PAGES for path in root.glob(pattern))
        self.pages = {path.relative_to(root).as_posix(): Page.read(path, root) for path in found}

    def page(self, name: str) -> Page:
        """A document by its path, empty if it is missing."""
        return self.pages.get(name) or Page(name, "")

    def code(self) -> Iterator[tuple[str, str]]:
        """Path and text of every Python file."""
        for folder in CODE:
            for path in sorted((self.root / folder).rglob("*.py")):
                yield path.relative_to(self.root).as_posix(), path.read_text(encoding="utf-8")


def missing_pages(checkout: Checkout) -> Iterator[Problem]:
    """Every document that readers are promised is there."""
    yield from (Problem(name, 1, "is missing") for name in REQUIRED if name not in checkout.pages)


# ---- tables and keys ----


def stale_tables(checkout: Checkout) -> Iterator[Problem]:
    """Generated tables equal their measurements; results and README have no measured numbers by hand."""
    for page in checkout.pages.values():
        try:
            stale = update(page.text, checkout.root / "docs/measurements").stale
        except InputError as error:
            stale = [error.message]
        yield from (page.problem(1, f"stale table: {name} (run `make results`)") for name in stale)

    for name in ("README.md", "docs/results.md"):
        page = checkout.page(name)
        by_hand = re.sub(r"<!-- table: .*?<!-- end -->", lambda m: "\n" * m[0].count("\n"), page.text, flags=re.DOTALL)
        for number, line in enumerate(by_hand.splitlines(), 1):
            if line.startswith("|") and (name != "README.md" or re.search(r"\| *[-+*]*\d", line)):
                yield page.problem(number, "a table by hand: numbers come from docs/measurements")


def undocumented_keys(checkout: Checkout) -> Iterator[Problem]:
    """Every measure and every other key that `evaluate` writes is on its page, every limit of photos on theirs."""
    evaluation, photos = checkout.page("docs/evaluation.md"), checkout.page("docs/photos.md")
    named = set(re.findall(r"`([a-z0-9_]+)`", evaluation.text))
    keys = {name.removesuffix("_random").removesuffix("_truncated") for name in MEASURES} | {"_random", "_truncated"}
    for file in ("evaluate", "setup", "collected"):
        path = checkout.root / f"src/portrait360/evaluation/{file}.py"
        keys |= _keys_of_literals(path.read_text(encoding="utf-8"))
    yield from (evaluation.problem(1, f"the key `{key}` is not documented") for key in sorted(keys - named))
    yield from (photos.problem(1, f"the limit `{key}` is not named") for key in GATES if f"`{key}`" not in photos.text)


def _keys_of_literals(text: str) -> set[str]:
    """Plain keys of the dict literals in a Python file."""
    dicts = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Dict)]
    keys = {key.value for node in dicts for key in node.keys if isinstance(key, ast.Constant)}
    return {key for key in keys if isinstance(key, str) and re.fullmatch(r"[a-z_]+\w*", key)}


# ---- names that documents and code share ----


def unheld_conventions(checkout: Checkout) -> Iterator[Problem]:
    """Every convention names tests, and they exist."""
    page = checkout.page("docs/conventions.md")
    items = re.split(r"\n(?=- |\n)", page.text)
    for item in items:
        if item.startswith("- ") and not re.search(r"`tests/[\w/]+\.py::\w+`", item):
            yield page.problem(1, f"no test is named: {item.splitlines()[0]}")
    for file, test in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.text):
        path = checkout.root / file
        tree = ast.parse(path.read_text(encoding="utf-8") if path.is_file() else "")
        if test not in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}:
            yield page.problem(1, f"there is no test {file}::{test}")


def unknown_equations(checkout: Checkout) -> Iterator[Problem]:
    """References to equations lead to sections, which stand in order."""
    page = checkout.page("docs/equations.md")
    numbers = re.findall(r"^#+ (\d+(?:\.\d+)?) ", page.text, re.MULTILINE)
    order = [tuple(map(int, number.split("."))) for number in numbers]
    if order != sorted(set(order)):
        yield page.problem(1, "sections are out of order or come twice")

    reference = re.compile(r"\b[Ee]quations\s+(\d[\d., -]*(?:(?:and|to|or) \d[\d., -]*)*)")
    for name, text in checkout.code():
        for named in reference.findall(text):
            unknown = set(re.findall(r"\d+(?:\.\d+)?", named)) - set(numbers)
            yield from (Problem(name, 1, f"docs/equations.md has no section {number}") for number in sorted(unknown))


def unlisted_names(checkout: Checkout) -> Iterator[Problem]:
    """Public names are on the API page; programs, examples and lab notes are in their lists."""
    root, api = checkout.root, checkout.page("docs/api.md")
    listed = set(re.findall(r"^::: ([\w.]+)$", api.text, re.MULTILINE)) | {"portrait360.__version__"}
    for name in portrait360.__all__:
        home = getattr(getattr(portrait360, name), "__module__", "portrait360")
        if f"{home}.{name}" not in listed:
            yield api.problem(1, f"the public name {name} is missing (::: {home}.{name})")
    if _python(checkout.page("README.md"))[:1] != _python(api)[:1]:
        yield checkout.page("README.md").problem(1, "its Python is not that of docs/api.md, which a test runs")

    lists = {"tools/README.md": "tools/*.py", "docs/lab/index.md": "docs/lab/20*.md"}
    lists |= {"examples/README.md": "examples/[0-9]*", "docs/examples.md": "examples/[0-9]*"}
    for name, pattern in lists.items():
        page = checkout.page(name)
        for path in sorted(root.glob(pattern)):
            word = f"`{path.stem}`" if name == "tools/README.md" else path.name
            if path.stem != "__init__" and word not in page.text:
                yield page.problem(1, f"{path.relative_to(root)} is not listed")


def _python(page: Page) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.text, re.DOTALL)


# ---- links and commands ----


def broken_links(checkout: Checkout) -> Iterator[Problem]:
    """Links inside the checkout lead somewhere, anchors too; pages of the site link to the site only."""
    for page in checkout.pages.values():
        for number, line in page.text_lines():
            for target in re.findall(r"\]\(([^)\s]+)\)", line):
                if not target.startswith(("http:", "https:", "mailto:")):
                    yield from (page.problem(number, what) for what in _broken(checkout, page, target))
    for name, text in checkout.code():
        for target in sorted(set(re.findall(r"\bdocs/[\w/-]+\.md\b", text))):
            if not (checkout.root / target).exists() and "DATE" not in target and not name.startswith("tests/tools/"):
                yield Problem(name, 1, f"there is no {target}")


def _broken(checkout: Checkout, page: Page, target: str) -> Iterator[str]:
    file, _, anchor = target.partition("#")
    path = (checkout.root / page.name).parent / file if file else checkout.root / page.name
    if not path.exists():
        yield f"the link {target} leads nowhere"
        return
    name = path.resolve().relative_to(checkout.root.resolve()).as_posix()
    if page.name.startswith("docs/") and not name.startswith("docs/"):
        yield f"the link {target} leaves the site"
    if anchor and anchor not in checkout.page(name).anchors():
        yield f"{name} has no heading #{anchor}"


def wrong_commands(checkout: Checkout) -> Iterator[Problem]:
    """Commands in fenced blocks parse, modules that they start exist, and `make` knows its targets."""
    targets = set(re.findall(r"^([\w-]+):", (checkout.root / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in checkout.pages.values():
        for number, line in page.shell_lines():
            yield from (page.problem(number, what) for what in _wrong(line, targets))
        for number, line in page.text_lines():
            for target in re.findall(r"`make ([\w-]+)`", line):
                if target not in targets:
                    yield page.problem(number, f"make has no target {target}")


def _wrong(line: str, targets: set[str]) -> Iterator[str]:
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"\w+=.*", words[0]):
        del words[0]
    module = words[words.index("-m") + 1] if "-m" in words[:-1] else ""
    if words[:1] == ["make"]:
        yield from (f"make has no target {word}" for word in words[1:] if word not in targets)
    elif words[:1] == ["portrait360"] or module == "portrait360":
        yield from _unparsed(words[words.index("portrait360") + 1 :])
    elif re.match(r"(?:tools|portrait360)\.[a-z]", module) and importlib.util.find_spec(module) is None:
        yield f"there is no module {module}"


def _unparsed(arguments: list[str]) -> Iterator[str]:
    """What the command line says against these arguments."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            parse(arguments)
    except SystemExit as stopped:
        if stopped.code:
            reason = " ".join(re.sub(r"[─│╭╮╰╯]", " ", said.getvalue()).split())
            yield f"`portrait360 {shlex.join(arguments)}` does not parse: {reason[:200]}"


# ---- all ----

CHECKS: tuple[Callable[[Checkout], Iterator[Problem]], ...] = (
    lambda checkout: long_readme(checkout.page("README.md")),
    lambda checkout: (problem for page in checkout.pages.values() for problem in long_lines(page)),
    lambda checkout: (problem for page in checkout.pages.values() for problem in several_sentences(page)),
    lambda checkout: (problem for page in checkout.pages.values() for problem in wrong_words(page)),
    missing_pages,
    stale_tables,
    undocumented_keys,
    unheld_conventions,
    unknown_equations,
    unlisted_names,
    broken_links,
    wrong_commands,
)


def check(root: Path) -> list[Problem]:
    """Everything that is wrong with the documents of a checkout."""
    checkout = Checkout(root)
    return [problem for one in CHECKS for problem in one(checkout)]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.docs_check",
        description="Print what is wrong with the documents of this checkout, a line each.",
    )
    parser.add_argument("--root", type=Path, default=Path(), help="another checkout")
    root = parser.parse_args(arguments).root

    problems = check(root)
    for problem in problems:
        print(problem)
    print(f"{len(problems)} problems" if problems else "the documents are in order")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
