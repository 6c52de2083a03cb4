"""The weights in what a torch pickle describes: found by name, and cut out of the storages that hold them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from math import prod

import torch
from torch import Tensor

from sd_vae_kit.core.files.header import Header, TensorInfo
from sd_vae_kit.core.files.model_bytes import AGAIN, ModelBytes
from sd_vae_kit.core.files.pickle_values import NotAPickleError, PickleStorage, TensorRef, UnsafeGlobalError
from sd_vae_kit.errors import BrokenVaeError, UnsafeFileError

WRAPPER_LIMIT = 8  # how deep the weights may be wrapped
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


# --- from references to tensors ---------------------------------------------------------------------------------------


@contextmanager
def pickle_errors(file: ModelBytes) -> Iterator[None]:
    try:
        yield
    except UnsafeGlobalError as error:
        raise UnsafeFileError(
            f"{file.name} was refused: opening it would run {error}; nothing was executed. "
            "Get the VAE as .safetensors, or delete the file if you do not trust its source"
        ) from error
    except NotAPickleError as error:
        raise BrokenVaeError(
            f"{file.name} is neither a safetensors file nor a readable torch checkpoint ({error}); {AGAIN}"
        ) from error


def pickle_header(refs: dict[str, TensorRef]) -> Header:
    return Header({name: TensorInfo(ref.dtype, ref.shape) for name, ref in refs.items()}, {}, "pickle")


def storage_bytes(storage: PickleStorage) -> int:
    return storage.numel * storage.dtype.itemsize


def check_reach(file: ModelBytes, refs: dict[str, TensorRef]) -> None:
    for name, ref in refs.items():
        if ref.end * ref.dtype.itemsize > storage_bytes(ref.storage):
            file.broken(f"is damaged: {name:.80} reaches beyond its data")


def assemble(
    refs: dict[str, TensorRef], names: Collection[str], load: Callable[[PickleStorage], Tensor]
) -> dict[str, Tensor]:
    """Read each storage once, cut the tensors out of it; every tensor gets memory of its own."""
    users: dict[str, list[str]] = {}
    for name in names:
        users.setdefault(refs[name].storage.key, []).append(name)
    tensors: dict[str, Tensor] = {}
    for sharing in users.values():
        data = load(refs[sharing[0]].storage)
        for name in sharing:
            tensors[name] = _cut(data, refs[name], share=len(sharing) > 1)
    return tensors


def _cut(data: Tensor, ref: TensorRef, *, share: bool) -> Tensor:
    if prod(ref.shape) == 0:
        return torch.empty(ref.shape, dtype=ref.dtype)
    whole = data.view(ref.dtype)
    tensor = torch.as_strided(whole, ref.shape, ref.stride, ref.offset)
    if share or not tensor.is_contiguous() or tensor.numel() < whole.numel():
        tensor = tensor.clone(memory_format=torch.contiguous_format)
    return tensor
