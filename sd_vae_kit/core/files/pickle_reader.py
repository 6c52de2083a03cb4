"""Find the tensors of a torch pickle without running the pickle.

A pickle is a program.  This module interprets it instead of executing it: an own stack machine walks the opcodes that
`pickletools` decodes, no global is ever imported, and what a pickle may "call" are the few functions in `_CALLS`, which
note where a tensor lies.  Leftovers of training in real Stable Diffusion checkpoints (callbacks, configurations, numpy
scalars) become `Inert`, an object that does nothing.  Any other global is refused by name.
"""

from __future__ import annotations

import io
import pickletools
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Protocol, cast

LINE_LIMIT = 1 << 16  # text opcodes end at a newline; a longer "line" is not a pickle
WRAPPER_LIMIT = 8  # how deep the weights may be wrapped


class UnsafeGlobalError(Exception):
    """The pickle asks for something outside the tables below; the message is its dotted name."""


class NotAPickleError(Exception):
    """The bytes are no pickle, or one that ends too early or contradicts itself."""


@dataclass(frozen=True, eq=False)
class Storage:
    """A run of elements in the file: `key` names it, `start` is where a view of it begins (elements)."""

    key: str
    dtype: str
    numel: int
    start: int = 0


@dataclass(frozen=True, eq=False)
class TensorRef:
    """A tensor that has not been read: `offset` and `stride` count elements of `dtype`."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def end(self) -> int:
        """One past the last element it reaches in its storage, 0 for a tensor without elements."""
        if 0 in self.shape:
            return 0
        last = sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        return self.offset + last + 1


class Inert:
    """What a harmless leftover of training becomes: takes any contents, does nothing."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


@dataclass(frozen=True)
class _StorageType:
    dtype: str


@dataclass(frozen=True)
class _Dtype:
    name: str


@dataclass(frozen=True)
class _Call:
    """A name the pickle may call; `run` is one of this module's own functions."""

    run: Callable[..., object]


class Source(Protocol):
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


# --- what a pickle may name ------------------------------------------------------------------------------------------

STORAGE_TYPES = {
    "FloatStorage": "fp32",
    "HalfStorage": "fp16",
    "BFloat16Storage": "bf16",
    "DoubleStorage": "fp64",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "UntypedStorage": "uint8",
    "Float8_e4m3fnStorage": "fp8_e4m3fn",
    "Float8_e5m2Storage": "fp8_e5m2",
}
TORCH_DTYPES = {
    "float32": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "float64": "fp64",
    "float8_e4m3fn": "fp8_e4m3fn",
    "float8_e5m2": "fp8_e5m2",
    "int64": "int64",
    "int32": "int32",
    "int16": "int16",
    "int8": "int8",
    "uint8": "uint8",
    "bool": "bool",
}
# Training leftovers seen in published SD checkpoints; as they become Inert, whole packages can be named.
INERT_PACKAGES = ("pytorch_lightning", "lightning", "lightning_fabric", "lightning_utilities", "omegaconf")
INERT_GLOBALS = frozenset(
    {
        *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
        *(f"numpy.{name}" for name in ("dtype", "ndarray", "float16", "float32", "float64", "int32", "int64", "bool_")),
        *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("object", "complex", "slice")),
        *(f"pathlib.{name}" for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
        *(f"datetime.{name}" for name in ("date", "datetime", "timedelta", "timezone")),
        "_codecs.encode",
        "argparse.Namespace",
        "collections.Counter",
        "copy_reg._reconstructor",
        "copyreg._reconstructor",
        "torch.Size",
        "torch.Tensor",
        "torch.device",
        "torch.nn.parameter.Parameter",
        "torch.serialization._get_layout",
        "typing.Any",
    }
)


def _ints(values: object) -> tuple[int, ...]:
    if not isinstance(values, tuple | list) or not all(type(v) is int and v >= 0 for v in values):
        raise NotAPickleError("a tensor's shape or stride is not a row of sizes")
    return tuple(values)


def _tensor(storage: object, offset: object, shape: object, stride: object, dtype: str | None = None) -> TensorRef:
    if not isinstance(storage, Storage) or type(offset) is not int or offset < 0:
        raise NotAPickleError("a tensor without storage")
    sizes, steps = _ints(shape), _ints(stride)
    if len(sizes) != len(steps):
        raise NotAPickleError(f"a tensor's shape {sizes} and stride {steps} differ in length")
    return TensorRef(storage, dtype or storage.dtype, storage.start + offset, sizes, steps)


def _tensor_v2(storage: object, offset: object, shape: object, stride: object, *_: object) -> TensorRef:
    return _tensor(storage, offset, shape, stride)


def _tensor_v3(
    storage: object, offset: object, shape: object, stride: object, _grad: object, _hooks: object, dtype: object,
    *_: object,
) -> TensorRef:  # fmt: skip
    if not isinstance(dtype, _Dtype):
        raise NotAPickleError("a tensor without element type")
    return _tensor(storage, offset, shape, stride, dtype.name)


def _parameter(data: object = None, *_: object) -> object:
    return data


def _from_type(call: object, _type: object, args: object, *_: object) -> object:
    if not isinstance(call, _Call) or not isinstance(args, tuple):
        raise NotAPickleError("a tensor subclass that cannot be rebuilt")
    return call.run(*args)


def _dict(pairs: object = None, *_: object) -> dict[object, object]:
    result: dict[object, object] = {}
    if isinstance(pairs, dict):
        result.update(pairs)
    elif isinstance(pairs, list | tuple):
        for pair in pairs:
            if isinstance(pair, list | tuple) and len(pair) == 2:
                _put(result, pair[0], pair[1])
    return result


def _list(items: object = None, *_: object) -> list[object]:
    return list(items) if isinstance(items, list | tuple) else []


def _tuple(items: object = None, *_: object) -> tuple[object, ...]:
    return tuple(_list(items))


def _number(value: object = 0, *_: object) -> object:
    return value if isinstance(value, int | float) else 0


_CALLS: dict[str, Callable[..., object]] = {
    "torch._utils._rebuild_tensor": _tensor_v2,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "collections.OrderedDict": _dict,
    "collections.defaultdict": lambda *_: {},
    **{
        f"{module}.{name}": run
        for module in ("builtins", "__builtin__")
        for name, run in (
            ("dict", _dict), ("list", _list), ("set", _list), ("frozenset", _list), ("tuple", _tuple),
            ("int", _number), ("float", _number), ("bool", _number), ("long", _number),
        )
    },
}  # fmt: skip


def resolve(module: str, name: str) -> object:
    """What stands for a global in this machine.

    Raises:
        UnsafeGlobalError: The tables above do not list it.
    """
    full = f"{module}.{name}"
    if full in _CALLS:
        return _Call(_CALLS[full])
    if module in ("torch", "torch.storage", "torch.cuda") and name in STORAGE_TYPES:
        return _StorageType(STORAGE_TYPES[name])
    if module == "torch" and name in TORCH_DTYPES:
        return _Dtype(TORCH_DTYPES[name])
    if full in INERT_GLOBALS or module.split(".")[0] in INERT_PACKAGES or module == "numpy.dtypes":
        return Inert(full)
    raise UnsafeGlobalError(full)


# --- the machine -----------------------------------------------------------------------------------------------------

_CONSTANT_OPS = (
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
    "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
)  # fmt: skip
_MARK = object()


def _put(target: dict[object, object], key: object, value: object) -> None:
    """Keep entries whose key is a plain value; weights are never under another, and hashing one can be made slow."""
    if isinstance(key, str | int | float | bytes) or key is None:
        target[key] = value


class _Machine:
    """One pickle's stack and memo."""

    def __init__(self, storages: dict[str, Storage]) -> None:
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
        if not isinstance(function, _Call) or not isinstance(args, tuple):
            raise NotAPickleError("it calls what is not a function")
        return function.run(*args)

    def persistent(self, identifier: object) -> object:
        if not isinstance(identifier, tuple) or len(identifier) < 5 or identifier[0] != "storage":
            return Inert("persistent object")
        _, kind, key, _location, numel, *view = identifier
        if not isinstance(kind, _StorageType) or not isinstance(key, str | int) or type(numel) is not int or numel < 0:
            raise NotAPickleError("a storage without type or size")
        start = 0
        if view and isinstance(view[0], tuple) and len(view[0]) == 3 and type(view[0][1]) is int:
            start = view[0][1]  # (view key, offset, size): how torch <= 0.4 wrote storages that share memory
        whole = self.storages.setdefault(str(key), Storage(str(key), kind.dtype, numel))
        if (whole.dtype, whole.numel) != (kind.dtype, numel):
            raise NotAPickleError(f"storage {key!s:.80} has two sizes")
        return Storage(whole.key, whole.dtype, whole.numel, max(start, 0)) if start else whole

    def set_items(self, target: object, items: list[object]) -> None:
        if isinstance(target, dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                _put(target, key, value)
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


def interpret(source: Source, storages: dict[str, Storage] | None = None) -> object:
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


def _run(machine: _Machine, source: Source) -> object:
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


# --- the weights in the result ---------------------------------------------------------------------------------------

WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "params_ema", "params", "weights")


def _has_tensors(value: object) -> bool:
    seen: set[int] = set()
    queue = [value]
    while queue:
        item = queue.pop()
        if isinstance(item, TensorRef):
            return True
        if isinstance(item, dict) and id(item) not in seen:
            seen.add(id(item))
            queue.extend(item.values())
    return False


def _unwrap(value: object) -> object:
    """Follow `state_dict`, `model` and the like down to the dictionary that holds the weights."""
    for _ in range(WRAPPER_LIMIT):
        if not isinstance(value, dict):
            break
        inner = next((value[k] for k in WRAPPERS if _has_tensors(value.get(k))), None)
        if inner is None:
            break
        value = inner
    return value


def collect_tensors(value: object) -> dict[str, TensorRef]:
    """Tensors by name; dictionaries inside dictionaries give dotted names, each dictionary is visited once."""
    found: dict[str, TensorRef] = {}
    seen: set[int] = set()
    queue: list[tuple[str, Mapping[object, object]]] = []
    root = _unwrap(value)
    if isinstance(root, TensorRef):
        return {"tensor": root}
    if isinstance(root, dict):
        queue.append(("", root))
    while queue:
        prefix, contents = queue.pop()
        if id(contents) in seen:
            continue
        seen.add(id(contents))
        for key, item in contents.items():
            if isinstance(item, TensorRef):
                found[sys.intern(f"{prefix}{key}")] = item
            elif isinstance(item, dict):
                queue.append((f"{prefix}{key}.", item))
    return found
