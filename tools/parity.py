"""Agreement of the networks with numbers that the published code computed, stage by stage.

    python -m tools.parity golden_a.npz golden_512_a.npz [--salt a] [--out table.json] [--all]

prints the largest error of each stage (with `--all`, of each array) as a Markdown table. Exit status 1: something is
farther away than float32 rounding explains, or an output was not compared; 2: a file cannot be used.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from portrait360.runtime.files import atomic_write
from portrait360.runtime.process import settle_process
from portrait360.types import Portrait360Error
from tools.comparison import Comparison, Row, rows_table, stages_table
from tools.family_stages import compare_full_size_relative, compare_panohead, compare_pyramid
from tools.golden import full_size_networks, read_golden, small_networks
from tools.stages import compare_full_size, compare_small


@dataclasses.dataclass(frozen=True)
class Parity:
    """Rows of one golden file, and names of its outputs that were not compared."""

    rows: list[Row]
    not_compared: list[str]

    @property
    def ok(self) -> bool:
        return bool(self.rows) and not self.not_compared and all(row.ok for row in self.rows)


def compare(path: Path, salt: str = "a") -> Parity:
    """Compare every output in a file of golden numbers with this project's.

    Args:
        path: a small or a full-size file (see `tools.golden`).
        salt: what the weights of a full-size file were generated with.

    Raises:
        InputError: missing, damaged, or a file of something else.
    """
    golden = read_golden(path)
    comparison = Comparison(golden)
    with torch.enable_grad():
        if golden.is_full_size:
            full_size = compare_full_size if golden.family == "original" else compare_full_size_relative
            full_size(comparison, full_size_networks(golden, salt))
        elif golden.family == "original":
            compare_small(comparison, small_networks(golden))
        else:
            small = compare_panohead if golden.family == "panohead" else compare_pyramid
            small(comparison, small_networks(golden))
    return Parity(comparison.rows, golden.unused())


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    # Arguments.
    parser = argparse.ArgumentParser(
        prog="python -m tools.parity",
        description="Print (and write as .json) how far the networks are from golden numbers of the published code.",
    )
    parser.add_argument("golden", nargs="+", type=Path, help="files of golden numbers (.npz)")
    parser.add_argument("--salt", default="a", help="what weights of full-size files were generated with")
    parser.add_argument("--out", type=Path, help="also write every row to this JSON file")
    parser.add_argument("--all", action="store_true", help="show every array instead of every stage")
    options = parser.parse_args(arguments)

    # Compare file by file.
    settle_process()
    results: list[Parity] = []
    try:
        for number, path in enumerate(options.golden, 1):
            print(f"{number} of {len(options.golden)}: {path.name}", file=sys.stderr, flush=True)
            results.append(compare(path, options.salt))
        if options.out is not None:
            _write(options.out, results)
    except Portrait360Error as error:
        print(f"error: {error.message}", file=sys.stderr)
        print(f"hint: {error.hint}", file=sys.stderr)
        return 2

    # Print the table and what was left out.
    rows = [row for result in results for row in result.rows]
    print(rows_table(rows) if options.all else stages_table(rows))
    for path, result in zip(options.golden, results, strict=True):
        if result.not_compared:
            print(f"\n{path.name}: not compared: {', '.join(result.not_compared)}")
    return 0 if all(result.ok for result in results) else 1


def _write(path: Path, results: list[Parity]) -> None:
    content = {
        "torch": torch.__version__,
        "rows": [dataclasses.asdict(row) for result in results for row in result.rows],
        "not_compared": [name for result in results for name in result.not_compared],
    }
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
