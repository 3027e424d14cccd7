"""Numpy arrays and builtin values inside pickles, rebuilt from their raw bytes by this project's own code."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from portrait360.official.pickle_data import Name, Thing, refuse

_NUMERIC = re.compile(r"[<|=]?([biuf][1248]|b1|\?)")


class Array(Thing):
    """A numpy array: its value comes with its state."""

    value: np.ndarray | None = None

    def set_state(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        if isinstance(raw, str):
            raw = raw.encode("latin1")
        if not isinstance(dtype, ArrayType) or not isinstance(raw, bytes):
            raise refuse("it holds an array that is not numeric")
        values = np.frombuffer(raw, dtype.resolve())
        if any(type(n) is not int or n < 0 for n in shape) or math.prod(shape) != values.size:
            raise refuse("an array's size does not match its shape")
        self.value = values.reshape(shape, order="F" if fortran else "C").copy()


class ArrayType(Thing):
    """A numpy dtype."""

    @property
    def code(self) -> str:
        """Byte order, kind and size, as in `<f8`."""
        code, order = str(self.arguments[0]), str(self.state.get("order", "|"))
        return code if code[:1] in "<>|=" else order + code

    @property
    def numeric(self) -> bool:
        """Whether arrays of this type hold plain little-endian numbers."""
        return _NUMERIC.fullmatch(self.code) is not None

    def resolve(self) -> np.dtype:
        if not self.numeric:
            raise refuse(f"it holds an array of type {self.code}")
        return np.dtype(self.code)

    def set_state(self, state: Any) -> None:
        self.state["order"] = state[1]


def _scalar(dtype: Any, raw: Any) -> Any:
    if not isinstance(dtype, ArrayType) or not isinstance(raw, bytes):
        raise refuse("it holds a number of unknown type")
    return np.frombuffer(raw, dtype.resolve(), count=1)[0].item()


def _latin1(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise refuse("it encodes text in an unknown way")
    return text.encode("latin1")


def _plain(kind: type, *sources: type) -> Any:
    """A builtin type that takes at most one value, of the given types."""

    def make(*arguments: Any) -> Any:
        if len(arguments) > 1 or (arguments and not isinstance(arguments[0], sources)):
            raise refuse(f"it makes a {kind.__name__} in an unknown way")
        return kind(*arguments)

    return make


def ordered(*arguments: Any) -> dict[Any, Any]:
    """A dictionary of the pairs that OrderedDict and its like were made from."""
    pairs = arguments[0] if arguments else []
    if not isinstance(pairs, list) or any(not isinstance(p, (list, tuple)) or len(p) != 2 for p in pairs):
        raise refuse("a dictionary has an unknown form")
    if any(not isinstance(key, (str, int)) for key, _ in pairs):
        raise refuse("a dictionary has an unknown form")
    return dict(pairs)


ARRAY_CALLS: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): lambda *arguments: ArrayType(Name("numpy", "dtype"), arguments),
    ("_codecs", "encode"): _latin1,
}
"""Names that the pickles of numbers and arrays call, and what takes their place."""
for _core in ("numpy.core.multiarray", "numpy._core.multiarray"):
    ARRAY_CALLS[_core, "_reconstruct"] = lambda *arguments: Array(Name("numpy", "ndarray"), arguments)
    ARRAY_CALLS[_core, "scalar"] = _scalar

BUILTIN_CALLS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): ordered,
    ("copyreg", "_reconstructor"): lambda origin, *_: Thing(origin),
    ("builtins", "list"): _plain(list, list, tuple, set),
    ("builtins", "tuple"): _plain(tuple, list, tuple),
    ("builtins", "int"): _plain(int, int, float),
    ("builtins", "float"): _plain(float, int, float),
    ("builtins", "bool"): _plain(bool, int, float),
    ("builtins", "str"): _plain(str, str),
    ("builtins", "dict"): ordered,
    ("builtins", "set"): _plain(list, list, tuple, set),
    ("builtins", "frozenset"): _plain(list, list, tuple, set),
}
"""The same for builtin values."""
_OLD_MODULES = {"builtins": "__builtin__", "copyreg": "copy_reg"}
for (_module, _kind), _make in list(BUILTIN_CALLS.items()):
    if _module in _OLD_MODULES:
        BUILTIN_CALLS[_OLD_MODULES[_module], _kind] = _make  # the names in protocols 0 to 2

WORDS = {("numpy", "ndarray"), ("builtins", "object"), ("__builtin__", "object")}
"""Names that only stand for types."""
