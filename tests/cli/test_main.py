from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from portrait360.cli import main as cli
from portrait360.cli.commands import (
    Bench,
    Convert,
    DatasetConvert,
    DatasetInspect,
    DatasetPhotos,
    DatasetShard,
    DatasetSynth,
    Evaluate,
    Generate,
    Page,
    Pose,
    Train,
)
from portrait360.cli.main import main, parse
from portrait360.types import InputError

COMMANDS = {
    "generate": Generate,
    "page": Page,
    "dataset synth": DatasetSynth,
    "dataset photos": DatasetPhotos,
    "dataset inspect": DatasetInspect,
    "dataset shard": DatasetShard,
    "dataset convert": DatasetConvert,
    "train": Train,
    "evaluate": Evaluate,
    "pose": Pose,
    "convert": Convert,
    "bench": Bench,
}


def test_flags_arrive_as_values():
    words = "generate --seeds 0-3 --out d --weights w.safetensors --truncation-psi 0.5 --no-video"
    assert parse([*words.split(), "--neck", "-10", "0", "5.5"]) == Generate(
        seeds="0-3",
        out=Path("d"),
        weights=Path("w.safetensors"),
        truncation_psi=0.5,
        neck=(-10.0, 0.0, 5.5),
        video=False,
    )
    words = "page ada.safetensors --out a.html --with-mesh"
    assert parse(words.split()) == Page(Path("a.html"), Path("ada.safetensors"), with_mesh=True)
    assert parse("page --model --out a.html".split()) == Page(Path("a.html"), model=True)
    words = "dataset synth --count 5 --resolution 64 --seed 2 --out a.zip --label-noise 4 --workers 1"
    assert parse(words.split()) == DatasetSynth(5, 64, 2, Path("a.zip"), 4.0, 1)
    words = "dataset photos d --resolution 512 --out a.zip --workers 2 --balance 4 --engine ray --shards s"
    assert parse(words.split()) == DatasetPhotos(Path("d"), 512, Path("a.zip"), 2, 4, "ray", Path("s"))
    assert parse("dataset inspect a.zip --out d".split()) == DatasetInspect(Path("a.zip"), Path("d"))
    assert parse("dataset shard a.zip --out d --per-shard 9".split()) == DatasetShard(Path("a.zip"), Path("d"), 9)
    words = "dataset convert d --out a.zip --axes opengl --matrix w2c --intrinsics pixels --pose degrees --masks m.zip"
    assert parse(words.split()) == DatasetConvert(
        Path("d"), Path("a.zip"), "opengl", "w2c", "pixels", "degrees", Path("m.zip")
    )
    words = "train --data a.zip --preset cpu-64 --out r --resume --max-minutes 1.5 --kimg 2 --device cpu"
    assert parse(words.split()) == Train(Path("a.zip"), "cpu-64", Path("r"), True, 1.5, 2.0, "cpu")
    assert parse("bench --out b.json".split()) == Bench(Path("b.json"))
    assert parse("bench --out b.json --quick --presets tiny cpu-64".split()) == Bench(
        Path("b.json"), True, ("tiny", "cpu-64")
    )
    assert parse("bench --out b.json --training --device cuda".split()) == Bench(
        Path("b.json"), training=True, device="cuda"
    )
    words = "pose a.png b.zip --out p.json --weights w.safetensors"
    assert parse(words.split()) == Pose((Path("a.png"), Path("b.zip")), Path("p.json"), Path("w.safetensors"))


def test_what_need_not_be_given():
    assert parse("generate --seeds 1 --out d".split()) == Generate(Path("d"), "1")
    assert parse("dataset synth --count 5 --resolution 64 --seed 2 --out a.zip".split()).label_noise is None
    for words in (
        "train --data a.zip --preset cpu-64 --out r",
        "generate --seeds 1 --out d",
        "evaluate --data a.zip --out m.json",
        "bench --out b.json",
    ):
        assert parse(words.split()).device == "auto"


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("generate --seed 3 --out d", "hint: there is no --seed; did you mean --seeds?"),
        ("dataset synth --cuont 3 --resolution 64 --seed 1 --out a.zip", "there is no --cuont; did you mean --count?"),
        ("train --dataset a.zip --preset cpu-64 --out r", "there is no --dataset; did you mean --data?"),
    ],
)
def test_misspelt_flags_are_named_with_what_was_meant(words, hint, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words.split())
    assert stop.value.code == 2
    assert hint in capsys.readouterr().err


def test_flags_that_are_like_nothing_get_no_hint(capsys):
    with pytest.raises(SystemExit):
        main("generate --seeds 3 --out d --quux 1".split())
    assert "did you mean" not in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_that_parses(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    assert not stop.value.code
    text = capsys.readouterr().out
    (example,) = re.findall(rf"Example: portrait360 ({command} [^\n]*)", text)
    assert isinstance(parse(example.split()), COMMANDS[command])


@pytest.mark.parametrize("words", ["--help", "dataset --help"])
def test_help_lists_the_commands(words, capsys):
    with pytest.raises(SystemExit):
        main(words.split())
    text = capsys.readouterr().out
    for name in (
        ("synth", "photos", "inspect", "convert", "shard")
        if "dataset" in words
        else ("generate", "dataset", "train", "pose")
    ):
        assert f"• {name}" in text


def test_version(capsys):
    assert main(["--version"]) == 0
    assert re.fullmatch(r"portrait360 \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_help_is_quick_because_heavy_packages_stay_out():
    code = (
        "import sys; from portrait360.cli.main import parse; parse(['generate', '--seeds', '0', '--out', 'd']);"
        "print([name for name in ('torch', 'numba', 'numpy', 'scipy', 'av') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def run_as(monkeypatch, action) -> int:
    monkeypatch.setattr(Generate, "run", lambda self: action())
    return main("generate --seeds 0 --out some/folder".split())


def raiser(error):
    def action():
        raise error

    return action


def test_success_returns_zero(monkeypatch, capsys):
    assert run_as(monkeypatch, lambda: None) == 0
    assert capsys.readouterr() == ("", "")


def test_errors_of_the_user_are_two_lines(monkeypatch, capsys):
    assert run_as(monkeypatch, raiser(InputError("it is wrong.", "Do it right."))) == 2
    assert capsys.readouterr().err == "error: it is wrong.\nhint: Do it right.\n"


def test_ctrl_c_says_what_is_left_and_returns_130(monkeypatch, capsys):
    assert run_as(monkeypatch, raiser(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == f"\nstopped; finished portraits are in {Path('some/folder')}\n"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "", "place"), "the disk is full"),
        (PermissionError(errno.EACCES, "", "place"), "no permission to use place"),
        (MemoryError(), "not enough memory"),
    ],
)
def test_troubles_of_the_machine_are_explained(monkeypatch, capsys, error, words):
    assert run_as(monkeypatch, raiser(error)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert words in lines[0]
    assert lines[1].startswith("hint: ")


@pytest.mark.parametrize("error", [ZeroDivisionError("a bug"), OSError(errno.EBADF, "a mistake of ours")])
def test_bugs_keep_their_traceback(monkeypatch, error):
    with pytest.raises(type(error)):
        run_as(monkeypatch, raiser(error))


def test_a_reader_that_has_enough_is_no_error(tmp_path):
    # `portrait360 ... | head -1`: the pipe is closed long before this prints.
    code = (
        "import sys; from portrait360.cli import commands, main as cli;"
        "commands.Generate.run = lambda self: print('x' * 100000);"
        "sys.argv[1:] = ['generate', '--seeds', '0', '--out', 'd']; cli.entry_point()"
    )
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.slow
def test_triton_ends_silently():
    """Its bindings list everything as leaked that the garbage collector may not look through at the end."""
    code = (
        "import sys; from portrait360.cli import commands, main as cli\n"
        "def run(self):\n    import triton\n"
        "commands.Generate.run = run; sys.argv[1:] = ['generate', '--seeds', '0', '--out', 'd']; cli.entry_point()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_sigterm_cleans_up_like_ctrl_c(tmp_path):
    code = f"""
import signal, sys
from pathlib import Path
from portrait360.cli import commands, main as cli
from portrait360.runtime.files import atomic_folder
def run(self):
    with atomic_folder(Path({str(tmp_path)!r}) / "out" / "seed0000") as folder:
        (folder / "half").write_bytes(b"")
        print("ready", flush=True)
        while True:
            signal.pause()
commands.Generate.run = run
sys.argv[1:] = ["generate", "--seeds", "0", "--out", "d"]
cli.entry_point()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert errors == "\nstopped; finished portraits are in d\n"
    assert list(tmp_path.iterdir()) == []


def test_errors_name_flags_instead_of_parameters(monkeypatch, capsys):
    assert run_as(monkeypatch, raiser(InputError("`size` is wrong.", "Try `size=512` or `mesh=False`."))) == 2
    assert capsys.readouterr().err == "error: --size is wrong.\nhint: Try --size 512 or --no-mesh.\n"


def test_module_and_program_are_the_same():
    for command in (
        [sys.executable, "-m", "portrait360"],
        [str(Path(sys.executable).parent / "portrait360")],
    ):
        result = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
        assert result.stdout.startswith("portrait360 ")


SYNTH = "dataset synth --resolution 64 --seed 1 --out a.zip"


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        ("", "Expected one of {generate, page, invert, view, dataset,", "run portrait360 --help"),
        ("bake", "Unrecognized options: bake", "Available subcommands: generate, page, invert, view, dataset,"),
        ("dataset bake", "Unrecognized options: bake", "Available subcommands: synth, photos, inspect, convert, shard"),
        (f"{SYNTH} --count x", "Error parsing --count: expected a whole number, not 'x'.", "--help"),
        (f"{SYNTH} --count 2 --workers 1.5", "Error parsing --workers: expected a whole number, not '1.5'.", "--help"),
        (
            "train --data d --out o --preset p --max-minutes soon",
            "Error parsing --max-minutes: expected a number, not 'soon'.",
            "--help",
        ),
        (
            "generate --seeds 0 --out d --truncation-psi big",
            "Error parsing --truncation-psi: expected a number, not 'big'.",
            "--help",
        ),
        (SYNTH, "Missing from portrait360 dataset synth: --count N", "portrait360 dataset synth --help"),
        (
            "dataset inspect --out d",
            "Missing from portrait360 dataset inspect: FILE.zip",
            "portrait360 dataset inspect --help",
        ),
        ("generate --seeds", "Missing value for argument '--seeds'", "portrait360 generate --help"),
        ("generate --seeds 0 --out d --neck 1 2", "'--neck'. Expected 3 values.", "portrait360 generate --help"),
        ("generate --seeds 0 --out d --no-vido", "options: --no-vido", "Perhaps you meant: --no-video"),
        ("generate --seeds 0 --out d --nex 5", "--nex", "--help"),
        ("generate --seds 0 --out d", "--seds", "portrait360 generate --help"),
        ("pose x --wieghts 3", "--wieghts", "--weights W"),
        ("pose x --limits y", "--limits", "in portrait360 dataset photos --help"),
    ],
)
def test_bad_arguments_are_explained_by_tyro(monkeypatch, capsys, words, message, hint):
    """One sentence and where help is to be had, on standard error, with the status of bad input."""
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stop:
        main(words.split())
    assert stop.value.code == cli.EXIT_BAD_INPUT
    output = capsys.readouterr()
    assert output.out == ""
    text = " ".join(output.err.replace("│", " ").replace("|", " ").split())
    assert message in text
    assert hint in text
