"""Messages name parameters; the command line says flags instead, whatever the command."""

from __future__ import annotations

import ast
import dataclasses
from dataclasses import dataclass
from pathlib import Path

import pytest

import portrait360 as p3
from portrait360.cli.errors import with_flags
from portrait360.cli.main import main, parse

SOURCE = Path(p3.__file__).parent
COMMANDS = {
    "generate": "generate --seeds 0 --out d",
    "page": "page --seeds 0 --out a.html",
    "dataset synth": "dataset synth --count 5 --resolution 64 --seed 2 --out a.zip",
    "dataset photos": "dataset photos d --resolution 64 --out a.zip",
    "dataset inspect": "dataset inspect a.zip --out d",
    "dataset shard": "dataset shard a.zip --out d",
    "train": "train --data a.zip --preset cpu-64 --out r",
    "evaluate": "evaluate --data a.zip --out b.json",
    "pose": "pose a.png",
    "convert": "convert a.pkl --out b.safetensors",
    "bench": "bench --out b.json",
}
GENERATE = parse(COMMANDS["generate"].split())


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("`truncation` must lie below 1.", "--truncation-psi must lie below 1."),
        ("Try `truncation=0.7`.", "Try --truncation-psi 0.7."),
        ("Try `neck=(0, 20, 0)`.", "Try --neck 0 20 0."),
        ("Leave it out (`mesh=False`).", "Leave it out (--no-mesh)."),
        ("Try `device=cpu` or `device='cuda'`.", "Try --device cpu or --device cuda."),
        ("Try `out=some (new) place, here.json`.", "Try --out some (new) place, here.json."),
        ("`yaw` stays, as `pip install av` does.", "`yaw` stays, as `pip install av` does."),
        ("", ""),
    ],
)
def test_parameters_become_flags(message, expected):
    assert with_flags(message, GENERATE) == expected


def test_a_flag_that_is_given_or_not():
    command = parse([*COMMANDS["train"].split()])
    assert (
        with_flags("Add `resume=True`, leave out `max_minutes`.", command) == "Add --resume, leave out --max-minutes."
    )
    assert with_flags("`images` is missing", parse(["pose", "a"])) == "IMAGE is missing"


def test_settings_of_a_preset():
    @dataclass(frozen=True)
    class Command:
        preset: str = ""
        settings: tuple[str, ...] = ()

    assert with_flags("`training.r1_gamma=0.2` of `preset`", Command()) == "--training.r1-gamma 0.2 of --preset"
    assert with_flags("`training.r1_gamma`", GENERATE) == "`training.r1_gamma`"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_of_every_command_can_be_said(command, capsys):
    """Each field's name in backticks becomes a flag that the command's help lists."""
    parsed = parse(COMMANDS[command].split())
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    text = capsys.readouterr().out
    for entry in dataclasses.fields(parsed):
        if entry.name == "settings":  # a flag for each of them
            continue
        said = with_flags(f"`{entry.name}`", parsed)
        assert not said.startswith("`")
        if entry.name not in ("file", "folder", "snapshot", "images") and entry.default is not True:
            assert said in text


def test_the_same_error_in_python_and_on_the_command_line(tmp_path, tiny_weights, capsys):
    with pytest.raises(p3.InputError) as caught:
        p3.PortraitModel.from_pretrained(tiny_weights).sample(0, truncation=2)
    assert caught.value.message == "`truncation` must lie between 0 and 1, not be 2."
    words = ["generate", "--seeds", "0", "--out", str(tmp_path), "--weights", str(tiny_weights)]
    assert main([*words, "--truncation-psi", "2"]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error == "error: --truncation-psi must lie between 0 and 1, not be 2."
    assert hint == "hint: Try --truncation-psi 0.7."


def error_texts(path: Path) -> list[str]:
    """The constant parts of all messages and hints that a module raises."""
    texts = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "").endswith("Error"):
            texts += [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return texts


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_message_of_the_library_names_a_flag(path):
    for text in error_texts(path):
        # commands of other programs, and of this one, are given whole
        own = text.replace("pip install --force-reinstall", "").partition("portrait360 ")[0]
        assert " --" not in f" {own}", text
