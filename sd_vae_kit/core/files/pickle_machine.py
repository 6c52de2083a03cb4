"""Walk the opcodes of a torch pickle without running it.

A pickle is a program.  This module interprets it instead of executing it: an own stack machine walks the opcodes that
`pickletools` decodes; pickle_values.py says what it may name.
"""

from __future__ import annotations

import io
import pickletools
import warnings
from collections.abc import Callable
from typing import IO, Protocol, cast

from sd_vae_kit.core.files.pickle_values import (
    Call,
    Inert,
    NotAPickleError,
    PickleStorage,
    StorageType,
    put,
    resolve,
)

LINE_LIMIT = 1 << 16  # text opcodes end at a newline; a longer "line" is not a pickle


class ByteSource(Protocol):
    """What the decoder needs of a file."""

    def read(self, size: int, /) -> bytes: ...
    def readline(self) -> bytes: ...
    def tell(self) -> int: ...


class BoundedSource:
    """A file that never reads past its end: a corrupt length must not become an allocation of terabytes."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self.file = file
        self.size = size

    def read(self, size: int, /) -> bytes:
        if size < 0 or size > self.size - self.file.tell():
            raise NotAPickleError("it ends in the middle of a value")
        return self.file.read(size)

    def readline(self) -> bytes:
        return self.file.readline(LINE_LIMIT)

    def tell(self) -> int:
        return self.file.tell()


# --- the machine -----------------------------------------------------------------------------------------------------

_CONSTANT_OPS = (
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
    "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
)  # fmt: skip
_MARK = object()


class _Machine:
    """One pickle's stack and memo."""

    def __init__(self, storages: dict[str, PickleStorage]) -> None:
        self.stack: list[object] = []
        self.memo: dict[int, object] = {}
        self.storages = storages

    def pop(self) -> object:
        value = self.stack.pop()
        if value is _MARK:
            raise NotAPickleError("its stack is inconsistent")
        return value

    def pop_to_mark(self) -> list[object]:
        items: list[object] = []
        while (value := self.stack.pop()) is not _MARK:
            items.append(value)
        return items[::-1]

    def top(self) -> object:
        value = self.stack[-1]
        if value is _MARK:
            raise NotAPickleError("its stack is inconsistent")
        return value

    def call(self, function: object, args: object) -> object:
        if isinstance(function, Inert):
            return Inert(function.name)
        if not isinstance(function, Call) or not isinstance(args, tuple):
            raise NotAPickleError("it calls what is not a function")
        return function.run(*args)

    def persistent(self, identifier: object) -> object:
        """The storage that ("storage", type, key, location, numel[, view]) names."""
        if not isinstance(identifier, tuple) or len(identifier) < 5 or identifier[0] != "storage":
            return Inert("persistent object")
        _, kind, key, _location, numel, *view = identifier
        if not isinstance(kind, StorageType) or not isinstance(key, str | int) or type(numel) is not int or numel < 0:
            raise NotAPickleError("a storage without type or size")
        whole = self.storages.setdefault(str(key), PickleStorage(str(key), kind.dtype, numel))
        if (whole.dtype, whole.numel) != (kind.dtype, numel):
            raise NotAPickleError(f"storage {key!s:.80} has two sizes")
        start = _start_of_view(view)
        return PickleStorage(whole.key, whole.dtype, whole.numel, start) if start else whole

    def set_items(self, target: object, items: list[object]) -> None:
        if isinstance(target, dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                put(target, key, value)
        elif not isinstance(target, Inert):
            raise NotAPickleError("it stores into what is not a dictionary")

    def append_items(self, target: object, items: list[object]) -> None:
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Inert):
            raise NotAPickleError("it appends to what is not a list")

    def global_from_text(self, arg: object) -> object:
        module, _, name = str(arg).partition(" ")  # pickletools joins the two lines with a space
        return resolve(module, name)

    def stack_global(self) -> object:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise NotAPickleError("a global without a name")
        return resolve(module, name)

    def reduce(self) -> object:
        args, function = self.pop(), self.pop()
        return self.call(function, args)

    def newobj_ex(self) -> object:
        _keywords, args, kind = self.pop(), self.pop(), self.pop()
        return self.call(kind, args)

    def inst(self, arg: object) -> object:
        args = tuple(self.pop_to_mark())
        return self.call(self.global_from_text(arg), args)

    def obj(self) -> object:
        kind, *args = self.pop_to_mark()
        return self.call(kind, tuple(args))

    def dict_from_mark(self) -> object:
        result: dict[object, object] = {}
        self.set_items(result, self.pop_to_mark())
        return result


def _start_of_view(view: list[object]) -> int:
    """The first element of [(view key, offset, size)]: how torch <= 0.4 wrote storages that share memory; else 0."""
    first = view[0] if view else None
    if isinstance(first, tuple) and len(first) == 3 and type(first[1]) is int:
        return max(first[1], 0)
    return 0


def _on_top(change: Callable[[_Machine, object, list[object]], None], *, many: bool, width: int = 1) -> object:
    """A step that takes items off the stack and puts them into the object below."""

    def step(machine: _Machine, _arg: object) -> None:
        items = machine.pop_to_mark() if many else [machine.pop() for _ in range(width)][::-1]
        change(machine, machine.top(), items)

    return step


def _pushing(make: Callable[[_Machine, object], object]) -> object:
    def step(machine: _Machine, arg: object) -> None:
        machine.stack.append(make(machine, arg))

    return step


def _ignore(_machine: _Machine, _arg: object) -> None: ...


def _remember(machine: _Machine, arg: object) -> None:
    machine.memo[len(machine.memo) if arg is None else cast(int, arg)] = machine.top()


_STEPS = cast(
    "dict[str, Callable[[_Machine, object], None]]",
    {
        "PROTO": _ignore,
        "FRAME": _ignore,
        "MARK": lambda m, _: m.stack.append(_MARK),
        "POP": lambda m, _: m.stack.pop(),
        "POP_MARK": lambda m, _: m.pop_to_mark(),
        "DUP": _pushing(lambda m, _: m.top()),
        **dict.fromkeys(_CONSTANT_OPS, _pushing(lambda m, arg: arg)),
        "NONE": _pushing(lambda m, _: None),
        "NEWTRUE": _pushing(lambda m, _: True),
        "NEWFALSE": _pushing(lambda m, _: False),
        "EMPTY_DICT": _pushing(lambda m, _: {}),
        "EMPTY_LIST": _pushing(lambda m, _: []),
        "EMPTY_SET": _pushing(lambda m, _: []),
        "EMPTY_TUPLE": _pushing(lambda m, _: ()),
        "TUPLE": _pushing(lambda m, _: tuple(m.pop_to_mark())),
        "TUPLE1": _pushing(lambda m, _: (m.pop(),)),
        "TUPLE2": _pushing(lambda m, _: (m.pop(), m.pop())[::-1]),
        "TUPLE3": _pushing(lambda m, _: (m.pop(), m.pop(), m.pop())[::-1]),
        "LIST": _pushing(lambda m, _: m.pop_to_mark()),
        "FROZENSET": _pushing(lambda m, _: m.pop_to_mark()),
        "DICT": _pushing(lambda m, _: m.dict_from_mark()),
        "GLOBAL": _pushing(lambda m, arg: m.global_from_text(arg)),
        "STACK_GLOBAL": _pushing(lambda m, _: m.stack_global()),
        "REDUCE": _pushing(lambda m, _: m.reduce()),
        "NEWOBJ": _pushing(lambda m, _: m.reduce()),
        "NEWOBJ_EX": _pushing(lambda m, _: m.newobj_ex()),
        "INST": _pushing(lambda m, arg: m.inst(arg)),
        "OBJ": _pushing(lambda m, _: m.obj()),
        "PERSID": _pushing(lambda m, arg: m.persistent(arg)),
        "BINPERSID": _pushing(lambda m, _: m.persistent(m.pop())),
        "BUILD": lambda m, _: m.pop(),  # an object's attributes (`_metadata` of a state dict) are not weights
        "SETITEM": _on_top(_Machine.set_items, many=False, width=2),
        "SETITEMS": _on_top(_Machine.set_items, many=True),
        "APPEND": _on_top(_Machine.append_items, many=False),
        "APPENDS": _on_top(_Machine.append_items, many=True),
        "ADDITEMS": _on_top(_Machine.append_items, many=True),
        "MEMOIZE": _remember,
        **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _remember),
        **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _pushing(lambda m, arg: m.memo[cast(int, arg)])),
    },
)  # fmt: skip


def interpret(source: ByteSource, storages: dict[str, PickleStorage] | None = None) -> object:
    """The object one pickle describes, as plain containers, numbers, `TensorRef` and `Inert`; stops behind its end.

    Args:
        source: Where to read from.
        storages: Filled with every storage the pickle mentions, by key, those of unused tensors too.

    Raises:
        UnsafeGlobalError: It names a global outside the tables; nothing was imported or called.
        NotAPickleError: It cannot be decoded.
    """
    machine = _Machine({} if storages is None else storages)
    try:
        with warnings.catch_warnings():  # Python warns of odd escapes in a damaged pickle's text
            warnings.simplefilter("ignore", DeprecationWarning)
            return _run(machine, source)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError, AttributeError) as error:
        raise NotAPickleError(str(error) or type(error).__name__) from error


def _run(machine: _Machine, source: ByteSource) -> object:
    for opcode, arg, _position in pickletools.genops(cast(IO[bytes], source)):
        if opcode.name == "STOP":
            return machine.pop()
        step = _STEPS.get(opcode.name)
        if step is None:  # extension registry, out-of-band buffers: no checkpoint has them
            raise NotAPickleError(f"it uses the operation {opcode.name}")
        step(machine, arg)
    raise NotAPickleError("it has no end")


def interpret_bytes(data: bytes) -> object:
    """`interpret` for a pickle in memory."""
    return interpret(BoundedSource(io.BytesIO(data), len(data)))
