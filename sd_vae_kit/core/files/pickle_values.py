"""What a torch pickle may hold and name: tensors that were not read, harmless leftovers, and the tables of globals.

No global is ever imported.  What a pickle may "call" are the few functions in `_CALLS`, which note where a tensor lies.
Leftovers of training in real Stable Diffusion checkpoints (callbacks, configurations, numpy scalars) become `Inert`, an
object that does nothing.  Any other global is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from sd_vae_kit.core.dtypes import BY_STORAGE, BY_TORCH_NAME


class UnsafeGlobalError(Exception):
    """The pickle asks for something outside the tables below; the message is its dotted name."""


class NotAPickleError(Exception):
    """The bytes are no pickle, or one that ends too early or contradicts itself."""


@dataclass(frozen=True, eq=False)
class PickleStorage:
    """A run of elements in the file: `key` names it, `start` is where a view of it begins (elements)."""

    key: str
    dtype: torch.dtype
    numel: int
    start: int = 0


@dataclass(frozen=True, eq=False)
class TensorRef:
    """A tensor that has not been read: `offset` and `stride` count elements of `dtype`."""

    storage: PickleStorage
    dtype: torch.dtype
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
class StorageType:
    """A storage class that the pickle names."""

    dtype: torch.dtype


@dataclass(frozen=True)
class TypeName:
    """A torch dtype that the pickle names."""

    dtype: torch.dtype


@dataclass(frozen=True)
class Call:
    """A name that the pickle may call; `run` is one of this module's own functions."""

    run: Callable[..., object]


# --- what a pickle may name ------------------------------------------------------------------------------------------

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


def _tensor(
    storage: object, offset: object, shape: object, stride: object, dtype: torch.dtype | None = None
) -> TensorRef:
    if not isinstance(storage, PickleStorage) or type(offset) is not int or offset < 0:
        raise NotAPickleError("a tensor without storage")
    sizes, steps = _ints(shape), _ints(stride)
    if len(sizes) != len(steps):
        raise NotAPickleError(f"a tensor's shape {sizes} and stride {steps} differ in length")
    return TensorRef(storage, dtype or storage.dtype, storage.start + offset, sizes, steps)


def _tensor_v2(storage: object, offset: object, shape: object, stride: object, *_: object) -> TensorRef:
    return _tensor(storage, offset, shape, stride)


def _tensor_v3(storage: object, offset: object, shape: object, stride: object, *rest: object) -> TensorRef:
    """`rest` is (requires_grad, backward hooks, dtype, metadata)."""
    if len(rest) < 3 or not isinstance(rest[2], TypeName):
        raise NotAPickleError("a tensor without element type")
    return _tensor(storage, offset, shape, stride, rest[2].dtype)


def _parameter(data: object = None, *_: object) -> object:
    return data


def _from_type(call: object, _type: object, args: object, *_: object) -> object:
    if not isinstance(call, Call) or not isinstance(args, tuple):
        raise NotAPickleError("a tensor subclass that cannot be rebuilt")
    return call.run(*args)


def _dict(pairs: object = None, *_: object) -> dict[object, object]:
    result: dict[object, object] = {}
    if isinstance(pairs, dict):
        result.update(pairs)
    elif isinstance(pairs, list | tuple):
        for pair in pairs:
            if isinstance(pair, list | tuple) and len(pair) == 2:
                put(result, pair[0], pair[1])
    return result


def put(target: dict[object, object], key: object, value: object) -> None:
    """Keep entries whose key is a plain value; weights are never under another, and hashing one can be made slow."""
    if isinstance(key, str | int | float | bytes) or key is None:
        target[key] = value


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
        return Call(_CALLS[full])
    if module in ("torch", "torch.storage", "torch.cuda") and name in BY_STORAGE:
        return StorageType(BY_STORAGE[name])
    if module == "torch" and name in BY_TORCH_NAME:
        return TypeName(BY_TORCH_NAME[name])
    if full in INERT_GLOBALS or module.split(".")[0] in INERT_PACKAGES or module == "numpy.dtypes":
        return Inert(full)
    raise UnsafeGlobalError(full)
