"""`portrait360 view`: bad input is explained before anything is served."""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path

import pytest

from portrait360.cli.main import main


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert main(["view", "--no-browser", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 2  # a sentence and a hint
    return captured.err


@pytest.mark.parametrize("port", ["-1", "65536"])
def test_a_port_that_cannot_be(port, capsys, tmp_path):
    assert "--port must lie between 0 and 65535" in complaint(capsys, "--port", port, "--out", tmp_path)


def test_a_port_that_is_taken(capsys, tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        said = complaint(capsys, "--port", str(port), "--out", tmp_path / "new")
    assert f"port {port} cannot be used" in said
    assert not (tmp_path / "new").exists()


def test_a_portrait_that_is_not_there(capsys, tmp_path):
    assert "no portrait file" in complaint(capsys, tmp_path / "ada.safetensors", "--out", tmp_path)


def test_a_portrait_of_other_weights(capsys, tmp_path, tiny_weights):
    from portrait360.portrait.model import PortraitModel

    PortraitModel.from_pretrained().sample(0).save(tmp_path / "ada", video=False, mesh=False, size=64)
    file = tmp_path / "ada" / "portrait.safetensors"
    said = complaint(capsys, file, "--weights", tiny_weights, "--port", "0", "--out", tmp_path / "new")
    assert "was made with other weights" in said
    assert not (tmp_path / "new").exists()


def test_a_folder_that_is_a_file(capsys, tmp_path):
    (tmp_path / "file").touch()
    assert "is a file" in complaint(capsys, "--out", tmp_path / "file")


def test_a_package_that_is_missing(capsys, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "uvicorn" else found(name, *more)
    )
    said = complaint(capsys, "--out", tmp_path / "new")
    assert "needs the package uvicorn" in said
    assert "portrait360[viewer]" in said
