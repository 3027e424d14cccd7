"""Bad input for `dataset inspect`: one clear sentence, a hint, exit status 2, and nothing half-written."""

from __future__ import annotations

from support.bad_input import check


def test_inspect_into_a_file(capfd, tmp_path, tiny_dataset):
    (tmp_path / "file").write_text("mine")
    check(
        capfd,
        tmp_path,
        ["dataset", "inspect", str(tiny_dataset), "--out", str(tmp_path / "file")],
        "is a file",
    )
