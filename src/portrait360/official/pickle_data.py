"""Pickles as data: an interpreter of the format that can only build values, never call anything.

Python's own unpickler looks names up and calls what it finds; this one has no such step. `pickletools.genops` splits a
file into operations, and a small stack machine turns them into plain values. Names stay `Name`s; what a pickle would
call or construct is handed to the reader's `rules`, a table of functions of this project; everything else is refused.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from portrait360.types import CheckpointError

HINT = "Only files saved by the original training code can be read; get the file anew from where it was published."
REFUSED = "the file is not read, because "
"""What the sentence of a refusal starts with."""
MOST_OPERATIONS = 20_000_000
_KEYS = (str, int, float, bytes, type(None))
"""Types of dictionary keys and set members. Nested ones could exhaust the C stack when they are hashed."""


def refuse(reason: str) -> CheckpointError:
    """The error for a pickle that this project does not read."""
    return CheckpointError(f"{REFUSED}{reason}.", HINT)


@dataclass(frozen=True)
class Name:
    """`module.name` as a pickle gives it; nothing is imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Thing:
    """An object of a class that this project does not know: its class name, what it was made from, and its state."""

    origin: Name
    arguments: tuple[Any, ...] = ()
    state: dict[str, Any] = field(default_factory=dict)
    entries: dict[Any, Any] = field(default_factory=dict)
    elements: list[Any] = field(default_factory=list)

    def set_state(self, state: Any) -> None:
        """What BUILD does: remember the state."""
        if isinstance(state, dict):
            self.state.update(state)
        else:
            self.state["state"] = state


class Rules:
    """What names may occur and what calling them gives. Subclasses extend; this one refuses all."""

    def check(self, name: Name) -> None:
        """Raise unless the name may occur at all."""
        raise refuse(f"it names {name}")

    def call(self, name: Name, arguments: tuple[Any, ...]) -> Any:
        """The value of name(*arguments), made by this project's own code."""
        raise refuse(f"it calls {name}")

    def persistent(self, identity: Any) -> Any:
        """The value of a persistent id."""
        raise refuse("it refers to objects outside of itself")


def read_pickle(stream: BinaryIO, rules: Rules) -> Any:
    """The value of one pickle; the stream is left behind its end.

    Raises:
        CheckpointError: damaged, too long, or refused by the rules.
    """
    machine = _Machine(rules)
    try:
        for count, (operation, argument, _) in enumerate(pickletools.genops(stream)):
            if count >= MOST_OPERATIONS:
                raise refuse(f"it has more than {MOST_OPERATIONS} operations")
            if operation.name == "STOP":
                return machine.pop()
            machine.step(operation.name, argument)
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, MemoryError) as error:
        raise refuse(f"it is damaged ({type(error).__name__}: {str(error)[:80]})") from error
    raise refuse("it ends too early")


class _Mark:
    pass


class _Machine:
    """The stack, the memo, and one method per kind of operation."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def pop(self) -> Any:
        value = self.stack.pop()
        if isinstance(value, _Mark):
            raise ValueError("a mark where a value should be")
        return value

    def since_mark(self) -> list[Any]:
        values: list[Any] = []
        while not isinstance(self.stack[-1], _Mark):
            values.append(self.stack.pop())
        self.stack.pop()
        return values[::-1]

    def step(self, operation: str, argument: Any) -> None:
        if operation in _LITERALS:
            self.stack.append(argument)
        elif operation in _CONSTANTS:
            self.stack.append(_CONSTANTS[operation]())
        else:
            handler: Callable[[_Machine, Any], Any] | None = _HANDLERS.get(operation)
            if handler is None:
                raise refuse(f"it uses the operation {operation}")
            handler(self, argument)

    # ---- containers ----

    def tuple_of(self, count: int) -> None:
        self.stack.append(tuple([self.pop() for _ in range(count)][::-1]))

    def extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Thing):
            target = target.elements
        if not isinstance(target, list):
            raise TypeError("elements for something that is no list")
        target.extend(values)

    def put_items(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Thing):
            target = target.entries
        if not isinstance(target, dict) or len(values) % 2:
            raise TypeError("entries for something that is no dictionary")
        for key, value in zip(values[::2], values[1::2], strict=True):
            target[_checked_key(key)] = value

    def add_members(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, set):
            raise TypeError("members for something that is no set")
        target.update(_checked_key(value) for value in values)

    # ---- names and objects ----

    def push_name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError("a name that is no text")
        found = Name(module, name)
        self.rules.check(found)
        self.stack.append(found)

    def call(self, keywords: bool = False) -> None:
        extra = self.pop() if keywords else {}
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Name) or not isinstance(arguments, tuple) or extra:
            raise TypeError("a call of something that is no name")
        self.stack.append(self.rules.call(function, arguments))

    def build(self) -> None:
        state, target = self.pop(), self.stack[-1]
        if isinstance(target, Thing):
            target.set_state(state)
        elif not isinstance(target, dict):
            raise TypeError("state for a plain value")

    def remember(self, index: Any) -> None:
        self.memo[int(index)] = self.stack[-1]

    def recall(self, index: Any) -> None:
        self.stack.append(self.memo[int(index)])


def _checked_key(value: Any) -> Any:
    if not isinstance(value, _KEYS):
        raise TypeError(f"a {type(value).__name__} as a key")
    return value


_LITERALS = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING BINBYTES "
    "SHORT_BINBYTES BINBYTES8 BYTEARRAY8 UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8".split()
)
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
    "EMPTY_TUPLE": tuple,
    "MARK": _Mark,
}
_HANDLERS: dict[str, Callable[[_Machine, Any], Any]] = {
    "PROTO": lambda m, a: None,
    "FRAME": lambda m, a: None,
    "POP": lambda m, a: m.stack.pop(),
    "POP_MARK": lambda m, a: m.since_mark(),
    "DUP": lambda m, a: m.stack.append(m.stack[-1]),
    "TUPLE1": lambda m, a: m.tuple_of(1),
    "TUPLE2": lambda m, a: m.tuple_of(2),
    "TUPLE3": lambda m, a: m.tuple_of(3),
    "TUPLE": lambda m, a: m.stack.append(tuple(m.since_mark())),
    "LIST": lambda m, a: m.stack.append(m.since_mark()),
    "FROZENSET": lambda m, a: m.stack.append(frozenset(_checked_key(v) for v in m.since_mark())),
    "DICT": lambda m, a: (lambda values: (m.stack.append({}), m.put_items(values)))(m.since_mark()),
    "APPEND": lambda m, a: m.extend([m.pop()]),
    "APPENDS": lambda m, a: m.extend(m.since_mark()),
    "SETITEM": lambda m, a: m.put_items([m.pop(), m.pop()][::-1]),
    "SETITEMS": lambda m, a: m.put_items(m.since_mark()),
    "ADDITEMS": lambda m, a: m.add_members(m.since_mark()),
    "GLOBAL": lambda m, a: m.push_name(*a.split(" ", 1)),
    "STACK_GLOBAL": lambda m, a: m.push_name(*[m.pop(), m.pop()][::-1]),
    "REDUCE": lambda m, a: m.call(),
    "NEWOBJ": lambda m, a: m.call(),
    "NEWOBJ_EX": lambda m, a: m.call(keywords=True),
    "BUILD": lambda m, a: m.build(),
    "PUT": lambda m, a: m.remember(a),
    "BINPUT": lambda m, a: m.remember(a),
    "LONG_BINPUT": lambda m, a: m.remember(a),
    "MEMOIZE": lambda m, a: m.remember(len(m.memo)),
    "GET": lambda m, a: m.recall(a),
    "BINGET": lambda m, a: m.recall(a),
    "LONG_BINGET": lambda m, a: m.recall(a),
    "BINPERSID": lambda m, a: m.stack.append(m.rules.persistent(m.pop())),
}
