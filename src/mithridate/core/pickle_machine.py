"""A machine that follows pickles of plain data; Python's own, which calls what it is told to, is never asked."""

from __future__ import annotations

import pickletools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

from mithridate.core.stand_ins import Allowed, Named, StandIn, Storage, is_storage

_WHOLE = 2**63
_KEYS = frozenset({type(None), bool, int, float, str})
_PLAIN = _KEYS | {bytes, bytearray}
_PARTS = 8
"""Of what a stand-in is made at most."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much is read at most.

    >>> Limits(depth=4).depth
    4
    """

    file_bytes: int = 2**28
    """Bytes of the file: 256 MiB."""
    operations: int = 2**20
    """Instructions of the pickle, each of which takes some 100 bytes of memory at most."""
    values: int = 8_000_000
    """Values, counted each time that they are reached: one list may be named many times."""
    depth: int = 32
    """Containers inside each other."""
    pixels: int = 2**24
    """Pixels of one image: 4096 x 4096."""
    parts: int = 10_000
    """Parts of a torch file."""


LIMITS = Limits()


class Source:
    """A file that never reads more than is there: what a pickle says of lengths is not believed."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.left, self.size = file, size, size

    def read(self, count: int) -> bytes:
        if not 0 <= count <= self.left:
            raise ValueError(f"is cut off: {count:,} bytes should follow, {self.left:,} do")
        self.left -= count
        return self.file.read(count)

    def readline(self) -> bytes:
        line = self.file.readline(self.left)
        self.left -= len(line)
        return line


class Machine:
    """Follows the instructions of one pickle; `load` gives values of tensors, pickles in pickles share `steps`."""

    def __init__(
        self,
        source: Source,
        allowed: Allowed,
        limits: Limits,
        load: Callable[[str], bytes] | None = None,
        steps: Iterator[int] | None = None,
    ) -> None:
        self.source, self.allowed, self.limits, self.load = source, allowed, limits, load
        self.steps = iter(range(limits.operations)) if steps is None else steps
        self.budget = 4 * source.size + 2**16
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memory: dict[int, Any] = {}
        self.named: dict[tuple[str, str], Named] = {}
        self.storages: dict[str, Storage] = {}

    def run(self) -> Any:
        """Returns what the pickle makes, stand-ins still in it."""
        for _ in self.steps:
            code = self.source.read(1)
            if code == b".":
                if len(self.stack) != 1 or self.below:
                    raise ValueError("ends with parts left over")
                return self.stack[0]
            if code not in _CODES:
                seen = f"the instruction {_NAMES[code]}" if code in _NAMES else f"{code!r} in place of an instruction"
                raise ValueError(f"has {seen}, which no pickle of plain data has")
            step, reader = _CODES[code]
            step(self, None if reader is None else reader(self.source))
        raise ValueError(f"has more than {self.limits.operations:,} instructions, the most that are followed")

    def frame(self, count: int) -> None:
        if count > self.source.left:
            raise ValueError(f"is cut off: {count:,} bytes should follow, {self.source.left:,} do")

    def push(self, value: Any) -> None:
        if type(value) is int and not -_WHOLE <= value < _WHOLE:
            raise ValueError("holds a whole number of more than 64 bits")
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack:
            raise ValueError("takes from an empty stack; it is damaged")
        return self.stack.pop()

    def mark(self, _: Any) -> None:
        if len(self.below) >= 2 * self.limits.depth:  # parts of stand-ins are containers too
            raise ValueError(f"is nested more than {self.limits.depth} deep")
        self.below.append(self.stack)
        self.stack = []

    def above(self) -> list[Any]:
        """What was made since the last mark."""
        if not self.below:
            raise ValueError("ends a part that it did not begin; it is damaged")
        found, self.stack = self.stack, self.below.pop()
        return found

    def last(self, count: int) -> tuple[Any, ...]:
        found = [self.pop() for _ in range(count)]
        return tuple(reversed(found))

    def append(self, values: list[Any]) -> None:
        if not self.stack or type(self.stack[-1]) is not list:
            raise ValueError("adds to something that is no list")
        self.stack[-1].extend(values)

    def set_items(self, values: list[Any]) -> None:
        into = self.stack[-1] if self.stack else None
        if type(into) not in (dict, OrderedDict) or len(values) % 2:
            raise ValueError("sets entries of something that is no dictionary")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if type(key) not in _KEYS:
                raise ValueError(f"holds a dictionary with a {type(key).__name__} for a key")
            into[key] = value  # type: ignore[index]

    def get(self, index: int) -> None:
        if index not in self.memory:
            raise ValueError(f"recalls part {str(index)[:20]}, which it did not keep")
        self.stack.append(self.memory[index])

    def put(self, index: int | None) -> None:
        index = len(self.memory) if index is None else index
        if not 0 <= index <= self.limits.operations:
            raise ValueError(
                f"keeps a part under the number {str(index)[:20]}; expected 0 to {self.limits.operations:,}"
            )
        if not self.stack:
            raise ValueError("keeps a part that is not there; it is damaged")
        self.memory[index] = self.stack[-1]

    def name(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise ValueError("names something by what is no text")
        if (module, name) not in self.allowed:
            raise ValueError(
                f"asks for {f'{module}.{name}'[:100]!r} when it is loaded; files of this format have no need of it, so "
                "it may be an attack on who loads it"
            )
        if (module, name) not in self.named:
            self.named[module, name] = Named(module, name, self.allowed[module, name])
        self.stack.append(self.named[module, name])

    def handle(self, parts: Any) -> None:
        """Counts the bytes that stand-ins are given: the same ones can be named again and again."""
        if isinstance(parts, (tuple, list)):
            self.budget -= sum(len(part) for part in parts[:_PARTS] if isinstance(part, (str, bytes, bytearray)))
        if self.budget < 0:
            raise ValueError("makes something of the same bytes again and again")

    def call(self, _: Any) -> None:
        named, arguments = self.last(2)
        if not isinstance(named, Named) or type(arguments) is not tuple:
            raise ValueError("calls something that is no name")
        self.handle(arguments)
        self.stack.append(named.maker(*arguments))

    def build(self, _: Any) -> None:
        state = self.pop()
        made = self.stack[-1] if self.stack else None
        if type(made) is OrderedDict:  # state dicts carry versions of modules this way
            return
        if not isinstance(made, StandIn):
            raise ValueError(f"sets the state of a {type(made).__name__}")
        self.handle(state)
        made.set_state(state, self.limits.pixels)

    def stored(self, _: Any) -> None:
        said = self.pop()
        if self.load is None or type(said) is not tuple or len(said) not in (5, 6) or said[0] != "storage":
            raise ValueError("refers to something outside of it, which this format does not have")
        kind, key, _, count = said[1:5]
        if not is_storage(kind) or type(key) is not str or type(count) is not int or not 0 <= count < _WHOLE:
            raise ValueError("refers to values in an odd way")
        if said[5:] not in ((), (None,)):
            raise ValueError("refers to a part of other values, as no torch since 1.0 does")
        made = self.storages.setdefault(key, Storage(key, kind.name, count, self.load))
        if (made.kind, made.count) != (kind.name, count):
            raise ValueError(f"says two things of the values {key[:40]!r}")
        self.stack.append(made)

    def globally(self, names: str) -> None:
        module, _, name = names.partition(" ")
        self.name(module, name)

    def push_above(self, kind: type) -> None:
        found = self.above()
        self.stack.append(kind(found))

    def dictionary(self, _: Any) -> None:
        found = self.above()
        self.stack.append({})
        self.set_items(found)


_Step = Callable[[Machine, Any], None]
_VALUES = (
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8 "
    "UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8"
)
_STEPS: dict[str, _Step] = {
    **dict.fromkeys(_VALUES.split(), Machine.push),
    "PROTO": lambda machine, argument: None,
    "FRAME": Machine.frame,
    "NONE": lambda machine, _: machine.stack.append(None),
    "NEWTRUE": lambda machine, _: machine.stack.append(True),
    "NEWFALSE": lambda machine, _: machine.stack.append(False),
    "MARK": Machine.mark,
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "EMPTY_TUPLE": lambda machine, _: machine.stack.append(()),
    "TUPLE1": lambda machine, _: machine.stack.append(machine.last(1)),
    "TUPLE2": lambda machine, _: machine.stack.append(machine.last(2)),
    "TUPLE3": lambda machine, _: machine.stack.append(machine.last(3)),
    "TUPLE": lambda machine, _: machine.push_above(tuple),
    "LIST": lambda machine, _: machine.push_above(list),
    "DICT": Machine.dictionary,
    "APPEND": lambda machine, _: machine.append([machine.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.above()),
    "SETITEM": lambda machine, _: machine.set_items(list(machine.last(2))),
    "SETITEMS": lambda machine, _: machine.set_items(machine.above()),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), Machine.get),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), Machine.put),
    "GLOBAL": Machine.globally,
    "STACK_GLOBAL": lambda machine, _: machine.name(*machine.last(2)),
    "REDUCE": Machine.call,
    "NEWOBJ": Machine.call,
    "BUILD": Machine.build,
    "BINPERSID": Machine.stored,
}
"""What each instruction does; others (extensions, sets, classes by name, buffers) are refused."""


_NAMES = {code.code.encode("latin1"): code.name for code in pickletools.opcodes}
_CODES: dict[bytes, tuple[_Step, Any]] = {
    code.code.encode("latin1"): (_STEPS[code.name], None if code.arg is None else code.arg.reader)
    for code in pickletools.opcodes
    if code.name in _STEPS
}


# --- what it made ----------------------------------------------------------------------------------------------------


class _Made(NamedTuple):
    """What a container or stand-in becomes."""

    value: Any
    count: int = 1
    """Values in it, each as often as it is named."""
    height: int = 0
    """Containers inside each other."""


def finished(value: Any, limits: Limits) -> Any:
    """Replaces stand-ins by what they stand for; never recursive, so that depth is an error and not a crash.

    Raises:
        ValueError: too deep, too many values, containing itself, or left unfinished.
    """
    done: dict[int, _Made] = {}
    inside: set[int] = set()
    todo = [(value, False)]
    while todo:
        node, ready = todo.pop()
        if id(node) in done or type(node) in _PLAIN:
            continue
        if not isinstance(node, (list, tuple, dict)):
            done[id(node)] = _Made(_leaf(node))
        elif ready:
            inside.discard(id(node))
            done[id(node)] = _rebuilt(node, done, limits)
        else:
            inside.add(id(node))
            if len(inside) > limits.depth:
                raise ValueError(f"is nested more than {limits.depth} deep")
            todo.append((node, True))
            for child in node.values() if isinstance(node, dict) else node:
                if id(child) in inside:
                    raise ValueError("holds something that contains itself")
                if type(child) not in _PLAIN and id(child) not in done:
                    todo.append((child, False))
    return done[id(value)].value if id(value) in done else value


def _leaf(node: Any) -> Any:
    if isinstance(node, StandIn):
        return node.value()
    said = f"{node.module}.{node.name}" if isinstance(node, Named) else f"a {type(node).__name__}"
    raise ValueError(f"holds {said} where a value was expected")


def _rebuilt(node: Any, done: dict[int, _Made], limits: Limits) -> _Made:
    values = list(node.values() if isinstance(node, dict) else node)
    count, height = 1 + len(values), 1
    for place, child in enumerate(values):
        if type(child) not in _PLAIN:
            made = done[id(child)]
            values[place], count, height = made.value, count + made.count - 1, max(height, made.height + 1)
    if count > limits.values:
        raise ValueError(f"holds more than {limits.values:,} values, each counted as often as it is named")
    if height > limits.depth:
        raise ValueError(f"is nested more than {limits.depth} deep")
    if isinstance(node, dict):
        return _Made(dict(zip(node, values, strict=True)), count, height)
    return _Made(tuple(values) if isinstance(node, tuple) else values, count, height)


def check_end(source: Source) -> None:
    if source.left:
        raise ValueError(f"has {source.left:,} bytes after its end")
