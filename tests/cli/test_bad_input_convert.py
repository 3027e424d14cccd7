"""Bad input for `convert`: one clear sentence, a hint, exit status 2, and nothing half-written."""

from __future__ import annotations

import pytest

from support.bad_input import check


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("none.pkl", None, "there is no SMPL file"),
        ("empty.pkl", b"", "not an SMPL body model .* is empty"),
        ("text.npz", b"hello", "not an SMPL body model .* damaged"),
        ("code.pkl", b"cos\nsystem\n(S'true'\ntR.", "names os.system"),
        ("zip.npz", b"PK\x03\x04" + b"\0" * 99, "compression is damaged"),
        ("other.pkl", b"\x80\x02}.", "has no v_template"),
    ],
)
def test_bad_bodies_for_convert(capfd, tmp_path, name, content, sentence):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    (tmp_path / "original.pkl").write_bytes(b"\x80\x02}.")
    words = ["convert", str(tmp_path / "original.pkl"), "--out", str(tmp_path / "new" / "out.safetensors")]
    check(capfd, tmp_path, [*words, "--body", str(tmp_path / name)], sentence)
