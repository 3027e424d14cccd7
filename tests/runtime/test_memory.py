"""Memory that is kept, given back and counted. The switches hold for a whole process, so the tests use processes."""

from __future__ import annotations

import json
import sys

import pytest

from portrait360.runtime import memory
from support import programs

LINUX = sys.platform.startswith("linux")


def run(code: str) -> dict:
    return json.loads(programs.run(code).output)


@pytest.mark.skipif(not LINUX, reason="these switches are the GNU C library's")
def test_freed_memory_is_kept_and_given_back():
    out = run("""
import json, torch
from portrait360.runtime.memory import keep_freed_memory, release_freed_memory
def resident():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024
def use():
    block = torch.ones(64 * 2**20 // 4)
    del block
    return resident()
start = resident()
gone = use() - start
taken = keep_freed_memory()
kept = use() - start
release_freed_memory()
print(json.dumps({"taken": taken, "gone": gone, "kept": kept, "released": resident() - start}))
""")
    assert out["taken"]
    assert out["gone"] < 32
    assert out["kept"] > 48
    assert out["released"] < 32


@pytest.mark.skipif(not LINUX, reason="needs /proc")
def test_the_peak_counts_from_a_restart():
    out = run("""
import json, torch
from portrait360.runtime.memory import peak_megabytes, restart_peak
block = torch.ones(128 * 2**20 // 4)
high = peak_megabytes()
del block
restart_peak()
low = peak_megabytes()
print(json.dumps({"high": high, "low": low}))
""")
    assert out["high"] - out["low"] > 96


def test_a_c_library_without_the_switches(monkeypatch):
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: object())
    assert not memory.keep_freed_memory()
    memory.release_freed_memory()
    monkeypatch.setattr(memory.sys, "platform", "win32")
    assert not memory.keep_freed_memory()


def test_memory_is_imported_and_unknown_where_the_system_does_not_say(monkeypatch):
    """As on Windows, which has neither /proc nor the module `resource`."""

    def missing(*_: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(memory.Path, "read_text", missing)
    monkeypatch.setitem(sys.modules, "resource", None)
    assert memory.peak_megabytes() == 0.0
