"""Torch checkpoints since 1.6: a zip archive with the pickle `*/data.pkl` and the storages `*/data/KEY`."""

from __future__ import annotations

import struct
import zipfile
import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from sd_vae_kit.core.files.contents import Contents
from sd_vae_kit.core.files.model_bytes import AGAIN, ModelBytes
from sd_vae_kit.core.files.pickle_machine import interpret_bytes
from sd_vae_kit.core.files.pickle_tensors import (
    assemble,
    check_reach,
    collect_tensors,
    pickle_errors,
    pickle_header,
    storage_bytes,
)
from sd_vae_kit.core.files.pickle_values import PickleStorage
from sd_vae_kit.errors import BrokenVaeError, UnsupportedVaeError

PICKLE_LIMIT = 256_000_000  # bytes of the pickle; real ones stay below 2 MB


@dataclass(frozen=True)
class _Archive:
    """An open archive and where torch's entries lie in it."""

    file: ModelBytes
    archive: zipfile.ZipFile
    entries: dict[str, zipfile.ZipInfo]
    root: str

    @property
    def index(self) -> zipfile.ZipInfo:
        """The entry with the pickle."""
        return self.entries[f"{self.root}data.pkl"]

    def storage(self, storage: PickleStorage) -> zipfile.ZipInfo | None:
        return self.entries.get(f"{self.root}data/{storage.key}")

    def bytes_of(self, entry: zipfile.ZipInfo) -> bytes:
        try:
            return self.archive.read(entry)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, struct.error) as error:
            raise BrokenVaeError(f"{self.file.name} is damaged ({error}); {AGAIN}") from error


def zip_contents(file: ModelBytes) -> Contents:
    """Read the pickle of an archive and check its storages against it."""
    archive = _open_archive(file)
    _refuse_other_archives(archive)
    with pickle_errors(file):
        refs = collect_tensors(interpret_bytes(archive.bytes_of(archive.index)))
    check_reach(file, refs)
    for ref in refs.values():
        _check_storage(file, archive.storage(ref.storage), ref.storage)

    def load(storage: PickleStorage) -> Tensor:
        entry = archive.storage(storage)
        assert entry is not None  # `_check_storage` refused such a file
        data = bytearray(archive.bytes_of(entry))
        return torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)

    return Contents(pickle_header(refs), lambda names: assemble(refs, names, load))


def _open_archive(file: ModelBytes) -> _Archive:
    try:
        archive = zipfile.ZipFile(file.file)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error):
        file.broken(f"is incomplete: the table of contents at the end of its {file.size:,} bytes is missing")
    entries = {info.filename: info for info in archive.infolist()}
    main = next((n for n in entries if n == "data.pkl" or (n.count("/") == 1 and n.endswith("/data.pkl"))), None)
    if main is None:
        raise UnsupportedVaeError(f"{file.name} is a zip archive without torch weights; unpack it")
    return _Archive(file, archive, entries, main.removesuffix("data.pkl"))


def _refuse_other_archives(archive: _Archive) -> None:
    """Raise for what torch writes beside checkpoints, and for an index that no checkpoint has."""
    file = archive.file
    if f"{archive.root}constants.pkl" in archive.entries:
        raise UnsupportedVaeError(
            f"{file.name} is a TorchScript program, not a file of weights; get the VAE as .safetensors"
        )
    if archive.index.file_size > PICKLE_LIMIT:
        file.broken(f"holds an index of {archive.index.file_size:,} bytes")
    byteorder = archive.entries.get(f"{archive.root}byteorder")
    if byteorder is not None and archive.bytes_of(byteorder) != b"little":
        raise UnsupportedVaeError(f"{file.name} was saved on a big-endian machine; save it there as .safetensors")


def _check_storage(file: ModelBytes, entry: zipfile.ZipInfo | None, storage: PickleStorage) -> None:
    if entry is None:
        file.broken(f"is incomplete: it lacks the data of storage {storage.key:.80}")
    if entry.compress_type != zipfile.ZIP_STORED or entry.header_offset + entry.file_size > file.size:
        file.broken(f"is damaged: storage {storage.key:.80} is not stored as torch does")
    if entry.file_size != storage_bytes(storage):
        sizes = f"{entry.file_size:,} of {storage_bytes(storage):,} bytes"
        file.broken(f"is damaged: storage {storage.key:.80} has {sizes}")
