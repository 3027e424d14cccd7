"""Pickles made to do harm, by hand or by Python's own pickler. None of them may be read."""

from __future__ import annotations

import builtins
import functools
import io
import operator
import os
import pickle
import struct
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, ClassVar

CANARY = "PORTRAIT360_CANARY"
"""Environment variable that the files would set if anything in them ran."""
HARM = f"import os; os.environ['{CANARY}'] = 'ran'"


class Reduce:
    """Pickles as a call of `function(*arguments)`, with what may follow a call."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None, items: Any = None, pairs: Any = None) -> None:
        self.parts = (function, arguments, state, items, pairs)

    def __reduce__(self):
        return self.parts


def dumps(value: Any, protocol: int = 2) -> bytes:
    return pickle.dumps(value, protocol)


def named(module: str, name: str) -> Any:
    """A function that pickles as `module.name`, whether that exists or not."""

    def function(*_: Any) -> None: ...

    function.__module__, function.__qualname__, function.__name__ = module, name, name
    return function


class Registering(pickle._Pickler):
    """Python's pickler in Python, without its check that names can be imported."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        module, name = obj.__module__, getattr(obj, "__qualname__", obj.__name__)
        self.write(pickle.GLOBAL + f"{module}\n{name}\n".encode())
        self.memoize(obj)

    dispatch: ClassVar[dict[Any, Any]] = {
        **pickle._Pickler.dispatch,
        type(named): save_global,
        type: save_global,
    }


def storage_bytes(pid: Any = ..., magic: int = 0x1950A86A20F9469CFC6C, count: int = 4, data: bytes = b"\0" * 16,
                  little: bool = True, extra: bytes = b"") -> bytes:  # fmt: skip
    """A legacy save of one float storage, right by default."""

    class Pickler(Registering):
        def persistent_id(self, obj: Any) -> Any:
            if obj != "STORAGE":
                return None
            return ("storage", FloatStorage, "0", "cpu", count, None) if pid is ... else pid

    stream = io.BytesIO()
    for value in (magic, 1001, {"little_endian": little}):
        stream.write(dumps(value))
    Pickler(stream, 2).dump("STORAGE")
    stream.write(dumps(["0"]))
    return stream.getvalue() + struct.pack("<q", count) + data + extra


class FloatStorage:
    """Stands for torch's class of this name."""


FloatStorage.__module__ = "torch"


PERSISTENT = named("torch_utils.persistence", "_reconstruct_persistent_obj")
"""How the original's classes pickle: with the source text of their module."""


def by_hand(module: str, name: str, argument: str) -> bytes:
    """Protocol 0, as small exploits are written."""
    return f"c{module}\n{name}\n(S'{argument}'\ntR.".encode()


def tensor(size: Any, stride: Any, offset: Any = 0, data: bytes | None = None) -> Any:
    data = storage_bytes() if data is None else data
    storage = Reduce(named("torch.storage", "_load_from_bytes"), data)
    return Reduce(named("torch._utils", "_rebuild_tensor_v2"), storage, offset, size, stride, False, OrderedDict())


def save(value: Any) -> bytes:
    stream = io.BytesIO()
    Registering(stream, 2).dump(value)
    return stream.getvalue()


def array_state(shape: tuple, code: str, raw: bytes) -> Any:
    dtype = Reduce(named("numpy", "dtype"), code, 0, 1, state=(3, "<", None, None, None, -1, -1, 0))
    return Reduce(
        named("numpy.core.multiarray", "_reconstruct"),
        named("numpy", "ndarray"), (0,), b"b", state=(1, shape, dtype, False, raw),
    )  # fmt: skip


def files() -> dict[str, Callable[[], bytes]]:
    """Name and content of every hostile file."""
    command = f"echo {CANARY}"
    nested = dumps(Reduce(os.system, command))
    return {
        # ---- calls ----
        "os.system": lambda: dumps(Reduce(os.system, command)),
        "posix.system": lambda: by_hand("posix", "system", command),
        "nt.system": lambda: by_hand("nt", "system", command),
        "os.popen": lambda: dumps(Reduce(os.popen, command)),
        "os.chmod": lambda: dumps(Reduce(os.chmod, ".", 0)),
        "subprocess.run": lambda: dumps(Reduce(subprocess.run, [sys.executable, "-c", HARM])),
        "subprocess.Popen": lambda: dumps(Reduce(subprocess.Popen, ["true"])),
        "eval": lambda: dumps(Reduce(builtins.eval, f"exec({HARM!r})")),
        "exec": lambda: dumps(Reduce(builtins.exec, HARM)),
        "exec-protocol-0": lambda: by_hand("__builtin__", "eval", "1"),
        "exec-protocol-4": lambda: dumps(Reduce(builtins.exec, HARM), 4),
        "exec-protocol-5": lambda: dumps(Reduce(builtins.exec, HARM), 5),
        "compile": lambda: dumps(Reduce(builtins.compile, HARM, "x", "exec")),
        "import": lambda: dumps(Reduce(builtins.__import__, "os")),
        "importlib": lambda: by_hand("importlib", "import_module", "os"),
        "getattr": lambda: dumps(Reduce(builtins.getattr, "", "join")),
        "open": lambda: dumps(Reduce(builtins.open, "/tmp/x", "w")),
        "attrgetter": lambda: dumps(Reduce(operator.attrgetter, "system")),
        "methodcaller": lambda: dumps(Reduce(operator.methodcaller, "system", command)),
        "partial": lambda: dumps(Reduce(functools.partial, os.system, command)),
        "map": lambda: dumps(Reduce(builtins.map, builtins.exec, [HARM])),
        "pickle.loads": lambda: dumps(Reduce(pickle.loads, nested)),
        "torch.load": lambda: save(Reduce(named("torch.serialization", "load"), "x")),
        "torch.hub": lambda: save(Reduce(named("torch.hub", "load"), "x")),
        "numpy.load": lambda: save(Reduce(named("numpy", "load"), "x")),
        "numpy.testing": lambda: save(Reduce(named("numpy.testing._private.utils", "runstring"), HARM, {})),
        "runpy": lambda: by_hand("runpy", "run_path", "/tmp/x.py"),
        "ctypes": lambda: by_hand("ctypes", "CDLL", "libc.so.6"),
        "socket": lambda: by_hand("socket", "create_connection", "x"),
        "pty.spawn": lambda: by_hand("pty", "spawn", "/bin/sh"),
        "dotted-name": lambda: save(Reduce(named("torch_utils.persistence", "os.system"), command)),
        "lookalike-module": lambda: save(Reduce(named("training_evil", "run"), command)),
        "module-with-newline": lambda: b"\x80\x04\x8c\x0dtraining\nposix\x8c\x06system\x93\x8c\x01x\x85R.",
        "hidden-in-state": lambda: save(
            {"G": Reduce(named("training.x", "Y"), state={"a": Reduce(os.system, command)})}
        ),
        "stateless-object": lambda: save({"G": Reduce(PERSISTENT, {"module_src": HARM, "state": 3})}),
        "hidden-in-storage": lambda: save({"a": Reduce(named("torch.storage", "_load_from_bytes"), nested)}),
        "hidden-in-storage-id": lambda: save(
            {"a": tensor((4,), (1,), data=storage_bytes(pid=Reduce(os.system, command)))}
        ),
        # ---- operations that real snapshots do not have ----
        "instance": lambda: b"(S'x'\nios\nsystem\n.",
        "object": lambda: b"(cos\nsystem\nS'x'\no.",
        "extension": lambda: b"\x80\x02\x82\x01.",
        "persistent": lambda: b"Pabc\n.",
        "buffer": lambda: b"\x80\x05\x97.",
        # ---- broken machines ----
        "stack-underflow": lambda: b"\x80\x02R.",
        "mark-as-value": lambda: b"\x80\x02(.",
        "no-such-memo": lambda: b"\x80\x02h\x05.",
        "call-of-a-number": lambda: b"\x80\x02K\x01)R.",
        "state-for-a-number": lambda: b"\x80\x02K\x01}b.",
        "state-for-a-name": lambda: b"\x80\x02ccollections\nOrderedDict\n}b.",
        "items-for-a-tuple": lambda: b"\x80\x02)K\x01K\x02s.",
        "list-as-key": lambda: b"\x80\x02}]K\x01s.",
        "deep-tuple-as-key": lambda: b"\x80\x02}K\x01" + b"\x85" * 200_000 + b"K\x01s.",
        # ---- sizes ----
        "memo-index": lambda: b"\x80\x02K\x01r\xff\xff\xff\xff" + b"h\x00.",
        "bytes-length": lambda: b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"abc.",
        "bytes-length-negative": lambda: b"\x80\x04\x8e" + struct.pack("<Q", 2**64 - 1) + b"abc.",
        "text-length": lambda: b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"abc.",
        "number-length": lambda: b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"abc.",
        "number-length-negative": lambda: b"\x80\x02\x8b" + struct.pack("<i", -1) + b"abc.",
        "number-digits": lambda: b"I" + b"9" * 10_000 + b"\n.",
        "storage-count": lambda: save({"a": tensor((4,), (1,), data=storage_bytes(count=2**60))}),
        "storage-short": lambda: save({"a": tensor((4,), (1,), data=storage_bytes(data=b"\0" * 8))}),
        "storage-long": lambda: save({"a": tensor((4,), (1,), data=storage_bytes(extra=b"x"))}),
        "storage-magic": lambda: save({"a": tensor((4,), (1,), data=storage_bytes(magic=7))}),
        "storage-big-endian": lambda: save({"a": tensor((4,), (1,), data=storage_bytes(little=False))}),
        "storage-empty": lambda: save({"a": tensor((4,), (1,), data=b"")}),
        "storage-view": lambda: save(
            {"a": tensor((4,), (1,), data=storage_bytes(pid=("storage", "FloatStorage", "0", "cpu", 4, ("v", 0, 1))))}
        ),
        "tensor-too-long": lambda: save({"a": tensor((5,), (1,))}),
        "tensor-repeats": lambda: save({"a": tensor((10**12,), (0,))}),
        "tensor-offset": lambda: save({"a": tensor((2,), (1,), offset=3)}),
        "tensor-negative-stride": lambda: save({"a": tensor((2,), (-1,), offset=3)}),
        "tensor-negative-size": lambda: save({"a": tensor((-1,), (1,))}),
        "tensor-odd-shape": lambda: save({"a": tensor((2, 2), (1,))}),
        "tensor-float-size": lambda: save({"a": tensor((2.0,), (1,))}),
        "tensor-without-storage": lambda: save(
            {"a": Reduce(named("torch._utils", "_rebuild_tensor_v2"), b"x", 0, (1,), (1,), False, {})}
        ),
        "array-of-objects": lambda: save({"a": array_state((1,), "O8", b"\0" * 8)}),
        "array-too-large": lambda: save({"a": array_state((10**9, 10**9), "f4", b"\0" * 8)}),
        "array-negative": lambda: save({"a": array_state((-1,), "f4", b"\0" * 4)}),
        "list-from-range": lambda: dumps(Reduce(builtins.list, range(3))),
        "bytearray": lambda: dumps(Reduce(builtins.bytearray, 10**12)),
        # ---- not snapshots at all ----
        "text": lambda: b"hello, world\n",
        "zeros": lambda: b"\0" * 1000,
        "zip": lambda: b"PK\x03\x04" + b"\0" * 100,
        "number": lambda: dumps(7),
        "list": lambda: dumps([1, 2]),
        "cut": lambda: dumps({"G": list(range(1000))})[:500],
    }  # fmt: skip
