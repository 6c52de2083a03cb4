"""Torch checkpoints before 1.6: five pickles one after the other, then the storages, each with its length."""

from __future__ import annotations

import struct

from torch import Tensor

from sd_vae_kit.core.files.contents import Contents
from sd_vae_kit.core.files.model_bytes import ModelBytes
from sd_vae_kit.core.files.pickle_machine import BoundedSource, interpret
from sd_vae_kit.core.files.pickle_tensors import (
    assemble,
    check_reach,
    collect_tensors,
    pickle_errors,
    pickle_header,
    storage_bytes,
)
from sd_vae_kit.core.files.pickle_values import NotAPickleError, PickleStorage
from sd_vae_kit.errors import UnsupportedVaeError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # torch.serialization.MAGIC_NUMBER


def legacy_contents(file: ModelBytes) -> Contents:
    """Read the pickles and find the storages."""
    file.file.seek(0)
    source = BoundedSource(file.file, file.size)
    storages: dict[str, PickleStorage] = {}
    with pickle_errors(file):
        magic = interpret(source)
        if magic != LEGACY_MAGIC:
            raise NotAPickleError("a pickle that torch did not write")
        interpret(source)  # protocol version
        system = interpret(source)
        refs = collect_tensors(interpret(source, storages))
        keys = interpret(source)
        if not isinstance(keys, list) or not storages.keys() <= {str(k) for k in keys}:
            raise NotAPickleError("its list of storages is incomplete")
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise UnsupportedVaeError(f"{file.name} was saved on a big-endian machine; save it there as .safetensors")
    check_reach(file, refs)
    places = _legacy_places(file, [str(k) for k in keys], storages)

    def load(storage: PickleStorage) -> Tensor:
        return file.tensor_at(places[storage.key], storage_bytes(storage))

    return Contents(pickle_header(refs), lambda names: assemble(refs, names, load))


def _legacy_places(file: ModelBytes, keys: list[str], storages: dict[str, PickleStorage]) -> dict[str, int]:
    """Where each storage's data begin, found by stepping over them."""
    places: dict[str, int] = {}
    position = file.file.tell()
    promised = position + sum(8 + storage_bytes(s) for s in storages.values())
    if promised > file.size:
        file.promises(promised)
    for key in keys:
        if key not in storages:
            file.broken(f"is damaged: nothing tells the type of storage {key:.80}")
        (numel,) = struct.unpack("<q", file.at(position, 8))
        if numel != storages[key].numel:
            file.broken(f"is damaged: storage {key:.80} has {numel:,} of {storages[key].numel:,} elements")
        places[key] = position + 8
        position += 8 + storage_bytes(storages[key])
    return places
