"""Checkpoint files as containers: which tensors they hold, and those tensors; what they mean is `detect`'s business.

Both formats are read by this module itself.  safetensors: its header is checked against the file's size before anything
relies on it, and tensors are read into private memory instead of being mapped, so that a file that shrinks under our
hands is an error message and not a crash of the process.  Pickles: see pickle_reader.py; nothing is ever executed.
What a file is follows from its bytes, not from its suffix.
"""

from __future__ import annotations

import json
import os
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Literal, NoReturn

import torch
from torch import Tensor

from sd_vae_kit.core.files import pickle_reader
from sd_vae_kit.core.files.pickle_reader import NotAPickleError, Storage, TensorRef, UnsafeGlobalError
from sd_vae_kit.errors import BrokenVaeError, UnsafeFileError, UnsupportedVaeError, VaeNotFoundError

HEADER_LIMIT = 100_000_000  # bytes; the safetensors library's own limit
PICKLE_LIMIT = 256_000_000  # bytes of a zip archive's pickle; real ones stay below 2 MB
AGAIN = "copy or download it again"

DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp64": torch.float64,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
    "int64": torch.int64,
    "int32": torch.int32,
    "int16": torch.int16,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "bool": torch.bool,
}
SAFETENSORS_DTYPES = {
    "F32": "fp32", "F16": "fp16", "BF16": "bf16", "F64": "fp64", "F8_E4M3": "fp8_e4m3fn", "F8_E5M2": "fp8_e5m2",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


def dtype_name(dtype: torch.dtype | None) -> str:
    """The project's word for an element type: "fp16", "bf16", "fp8_e4m3fn", ...; "unknown" for one not in `DTYPES`."""
    return next((name for name, known in DTYPES.items() if known == dtype), "unknown")


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's element type, `None` for one this program has no use for, and its shape."""

    dtype: torch.dtype | None
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """What a file says about itself without its tensors being read.

    Attributes:
        tensors: By the names in the file; a pickle's wrappers (`state_dict`) are taken off.
        metadata: safetensors' `__metadata__`; empty for pickles.
        container: Which of the two formats the bytes are in, whatever the suffix says.
    """

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    container: Literal["safetensors", "pickle"]


@dataclass(frozen=True)
class _Contents:
    """An open file's header and the way to its tensors."""

    header: Header
    read: Callable[[Collection[str]], dict[str, Tensor]]


@dataclass(frozen=True)
class _File:
    """An open file with what every message about it needs."""

    file: IO[bytes]
    name: str
    size: int

    def at(self, position: int, count: int) -> bytes:
        """`count` bytes from `position`."""
        data = bytearray(count)
        self.fill(memoryview(data), position)
        return bytes(data)

    def tensor_at(self, position: int, count: int) -> Tensor:
        """`count` bytes from `position` as a uint8 tensor; its memory is not cleared first, unlike a bytearray's."""
        data = torch.empty(count, dtype=torch.uint8)
        self.fill(data.numpy().data, position)
        return data

    def fill(self, view: memoryview, position: int) -> None:
        """Read into `view`, all of it."""
        self.file.seek(position)
        done, count = 0, len(view)
        while done < count:
            got = self.file.readinto(view[done:])  # type: ignore[attr-defined]
            if not got:
                raise BrokenVaeError(f"{self.name} became shorter while it was read; wait for its copy to end")
            done += got

    def broken(self, what: str) -> NoReturn:
        raise BrokenVaeError(f"{self.name} {what}; {AGAIN}")

    def promises(self, size: int) -> NoReturn:
        self.broken(f"has {self.size:,} bytes, its header promises {size:,}")


def main_dtype(infos: Iterable[TensorInfo]) -> str:
    """The word for the type of most weights; norms are sometimes kept wider than the rest."""
    counts: Counter[str] = Counter()
    for info in infos:
        counts[dtype_name(info.dtype)] += prod(info.shape)
    return counts.most_common(1)[0][0] if counts else ""


def read_header(path: str | os.PathLike[str]) -> Header:
    """Names, shapes and types of a file's tensors; tensor data are not read.

    Raises:
        VaeNotFoundError: There is no such file (any more).
        BrokenVaeError: Empty, truncated, damaged, locked, or not a model file at all.
        UnsupportedVaeError: A container this program does not read.
        UnsafeFileError: A pickle that would run code; nothing was executed.
    """
    with _opened(Path(path)) as file:
        return _contents(file).header


def read_tensors(path: str | os.PathLike[str], names: Collection[str]) -> dict[str, Tensor]:
    """The named tensors, on the CPU in the file's dtype, each in memory of its own.

    Raises:
        BrokenVaeError: A name is missing, or as in `read_header`.
        UnsupportedVaeError: A tensor's type has no torch dtype here, or as in `read_header`.
    """
    with _opened(Path(path)) as file:
        contents = _contents(file)
        known = contents.header.tensors
        if missing := [n for n in names if n not in known]:
            raise BrokenVaeError(f"{file.name} has no {missing[0]}; if it was replaced meanwhile, refresh the list")
        if foreign := [n for n in names if known[n].dtype is None]:
            raise UnsupportedVaeError(
                f"{file.name}: the numbers of {foreign[0]} are of a type that is not read; use fp32, fp16 or bf16"
            )
        return contents.read(names)


# --- opening ---------------------------------------------------------------------------------------------------------


@contextmanager
def _opened(path: Path) -> Iterator[_File]:
    try:
        if path.is_dir():
            raise UnsupportedVaeError(f"{path.name} is a folder; choose the .safetensors file inside it")
        with path.open("rb") as file:
            yield _File(file, path.name, os.fstat(file.fileno()).st_size)
    except FileNotFoundError as error:
        raise VaeNotFoundError(f"{path.name} is no longer in {path.parent}; refresh the list") from error
    except PermissionError as error:
        raise BrokenVaeError(
            f"{path.name} cannot be opened (no permission, or locked by another program); "
            "check its permissions, or wait until its copy or download has ended"
        ) from error
    except OSError as error:
        raise BrokenVaeError(f"{path.name} cannot be read: {error.strerror or error}; check the disk") from error


FOREIGN_BYTES = (
    (b"GGUF", "is a GGUF file, which this program does not read; get the VAE as .safetensors"),
    (b"\x89HDF", "is an HDF5 (Keras) file; get the VAE as .safetensors"),
    (b"\x89PNG", "is a PNG picture, not a model; download the model file"),
    (b"\xff\xd8\xff", "is a JPEG picture, not a model; download the model file"),
    (b"\x1f\x8b", "is a gzip archive; unpack it"),
    (b"7z\xbc\xaf", "is a 7z archive; unpack it"),
    (b"Rar!", "is a RAR archive; unpack it"),
)


def _contents(file: _File) -> _Contents:
    """Tell the format by the first bytes and read the header."""
    if file.size == 0:
        raise BrokenVaeError(f"{file.name} is empty (0 bytes); {AGAIN}")
    start = file.at(0, min(file.size, 512))
    for magic, what in FOREIGN_BYTES:
        if start.startswith(magic):
            raise UnsupportedVaeError(f"{file.name} {what}")
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zip_contents(file)
    _refuse_text(file, start)
    if start[257:262] == b"ustar":
        raise UnsupportedVaeError(
            f"{file.name} is a tar archive (a checkpoint of torch 0.1?); load it there and save it as .safetensors"
        )
    if start[8:9] == b"{" or (file.name.lower().endswith(".safetensors") and not start.startswith(b"\x80")):
        return _safetensors_contents(file, start)
    return _legacy_contents(file)


def _refuse_text(file: _File, start: bytes) -> None:
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"version https://git-lfs"):
        raise BrokenVaeError(
            f"{file.name} is a git-lfs pointer, not the weights; run `git lfs pull` or download the file itself"
        )
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<!--")):
        raise BrokenVaeError(f"{file.name} is a web page, not a model (an error page was saved); download it again")
    if text.startswith(b"{") and b"\0" not in start[:8]:  # a safetensors length may begin like text: 0x7b20
        raise BrokenVaeError(f"{file.name} is a JSON text, not a model (perhaps an error message); download it again")
    if not start.strip(b"\0"):
        file.broken(f"begins with zeros: its {file.size:,} bytes were reserved but not copied")


# --- safetensors -----------------------------------------------------------------------------------------------------


def _safetensors_contents(file: _File, start: bytes) -> _Contents:
    if file.size < 8:
        file.broken(f"has only {file.size} bytes")
    (length,) = struct.unpack("<Q", start[:8])
    if length > HEADER_LIMIT or start[8:9] not in (b"{", b""):
        file.broken("is not a safetensors file: it does not begin with a header")
    if 8 + length > file.size:
        file.promises(8 + length)
    entries = _parse_safetensors_header(file, file.at(8, length))
    metadata = entries.pop("__metadata__", None)
    tensors: dict[str, TensorInfo] = {}
    spans: dict[str, tuple[int, int]] = {}
    for name, entry in entries.items():
        tensors[name], spans[name] = _safetensors_entry(file, name, entry)
    _check_spans(file, 8 + length, spans)

    def load(name: str) -> Tensor:
        begin, end = spans[name]
        return _tensor(file.tensor_at(8 + length + begin, end - begin), tensors[name])

    def read(names: Collection[str]) -> dict[str, Tensor]:
        return {n: load(n) for n in sorted(names, key=lambda n: spans[n])}  # in the order of the disk

    pairs = metadata.items() if isinstance(metadata, dict) else ()
    return _Contents(Header(tensors, {k: v for k, v in pairs if isinstance(v, str)}, "safetensors"), read)


def _parse_safetensors_header(file: _File, data: bytes) -> dict[str, object]:
    try:
        entries = json.loads(data)
    except (ValueError, RecursionError):
        file.broken("has a damaged header")
    if not isinstance(entries, dict):
        file.broken("has a damaged header")
    return entries


def _sizes(value: object) -> tuple[int, ...] | None:
    return tuple(value) if isinstance(value, list) and all(type(v) is int and v >= 0 for v in value) else None


def _safetensors_entry(file: _File, name: str, entry: object) -> tuple[TensorInfo, tuple[int, int]]:
    values = entry if isinstance(entry, dict) else {}
    shape, span, code = _sizes(values.get("shape")), _sizes(values.get("data_offsets")), values.get("dtype")
    if shape is None or span is None or len(span) != 2 or not isinstance(code, str) or span[0] > span[1]:
        file.broken(f"has a damaged header: the entry of {name:.80} is incomplete")
    dtype = DTYPES.get(SAFETENSORS_DTYPES.get(code, code))
    if dtype is not None and prod(shape) * dtype.itemsize != span[1] - span[0]:
        file.broken(f"has a damaged header: {name:.80} {code} {shape} does not fill {span[1] - span[0]} bytes")
    return TensorInfo(dtype, shape), (span[0], span[1])


def _check_spans(file: _File, data_start: int, spans: dict[str, tuple[int, int]]) -> None:
    """Tensors fill the file from the header to its end, side by side, as the format demands."""
    end = 0
    for begin, next_end in sorted(spans.values()):
        if begin != end:
            file.broken("has a damaged header: its tensors overlap or leave gaps")
        end = next_end
    if data_start + end != file.size:
        file.promises(data_start + end)


def _tensor(data: Tensor, info: TensorInfo) -> Tensor:
    """Bytes -> tensor over the same memory."""
    assert info.dtype is not None  # `read_tensors` refused the others
    return data.view(info.dtype).reshape(info.shape)


# --- pickles ---------------------------------------------------------------------------------------------------------


@contextmanager
def _pickle_errors(file: _File) -> Iterator[None]:
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


def _pickle_header(refs: dict[str, TensorRef]) -> Header:
    return Header({name: TensorInfo(DTYPES[ref.dtype], ref.shape) for name, ref in refs.items()}, {}, "pickle")


def _storage_bytes(storage: Storage) -> int:
    return storage.numel * DTYPES[storage.dtype].itemsize


def _check_reach(file: _File, refs: dict[str, TensorRef]) -> None:
    for name, ref in refs.items():
        if ref.end * DTYPES[ref.dtype].itemsize > _storage_bytes(ref.storage):
            file.broken(f"is damaged: {name:.80} reaches beyond its data")


def _assemble(
    refs: dict[str, TensorRef], names: Collection[str], load: Callable[[Storage], Tensor]
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
        return torch.empty(ref.shape, dtype=DTYPES[ref.dtype])
    whole = data.view(DTYPES[ref.dtype])
    tensor = torch.as_strided(whole, ref.shape, ref.stride, ref.offset)
    if share or not tensor.is_contiguous() or tensor.numel() < whole.numel():
        tensor = tensor.clone(memory_format=torch.contiguous_format)
    return tensor


def _zip_contents(file: _File) -> _Contents:
    """A torch checkpoint since 1.6: a zip archive with the pickle `*/data.pkl` and the storages `*/data/KEY`."""
    try:
        archive = zipfile.ZipFile(file.file)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error):
        file.broken(f"is incomplete: the table of contents at the end of its {file.size:,} bytes is missing")
    entries = {info.filename: info for info in archive.infolist()}
    main = next((n for n in entries if n == "data.pkl" or (n.count("/") == 1 and n.endswith("/data.pkl"))), None)
    if main is None:
        raise UnsupportedVaeError(f"{file.name} is a zip archive without torch weights; unpack it")
    root = main[: -len("data.pkl")]
    if f"{root}constants.pkl" in entries:
        raise UnsupportedVaeError(
            f"{file.name} is a TorchScript program, not a file of weights; get the VAE as .safetensors"
        )
    if entries[main].file_size > PICKLE_LIMIT:
        file.broken(f"holds an index of {entries[main].file_size:,} bytes")
    byteorder = entries.get(f"{root}byteorder")
    if byteorder is not None and _zip_bytes(file, archive, byteorder) != b"little":
        raise UnsupportedVaeError(f"{file.name} was saved on a big-endian machine; save it there as .safetensors")
    with _pickle_errors(file):
        refs = pickle_reader.collect_tensors(pickle_reader.interpret_bytes(_zip_bytes(file, archive, entries[main])))
    _check_reach(file, refs)
    for ref in refs.values():
        _check_zip_storage(file, entries.get(f"{root}data/{ref.storage.key}"), ref.storage)

    def load(storage: Storage) -> Tensor:
        data = bytearray(_zip_bytes(file, archive, entries[f"{root}data/{storage.key}"]))
        return torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)

    return _Contents(_pickle_header(refs), lambda names: _assemble(refs, names, load))


def _check_zip_storage(file: _File, entry: zipfile.ZipInfo | None, storage: Storage) -> None:
    if entry is None:
        file.broken(f"is incomplete: it lacks the data of storage {storage.key:.80}")
    if entry.compress_type != zipfile.ZIP_STORED or entry.header_offset + entry.file_size > file.size:
        file.broken(f"is damaged: storage {storage.key:.80} is not stored as torch does")
    if entry.file_size != _storage_bytes(storage):
        sizes = f"{entry.file_size:,} of {_storage_bytes(storage):,} bytes"
        file.broken(f"is damaged: storage {storage.key:.80} has {sizes}")


def _zip_bytes(file: _File, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    try:
        return archive.read(entry)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, struct.error) as error:
        raise BrokenVaeError(f"{file.name} is damaged ({error}); {AGAIN}") from error


LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # torch.serialization.MAGIC_NUMBER


def _legacy_contents(file: _File) -> _Contents:
    """A torch checkpoint before 1.6: five pickles one after the other, then the storages, each with its length."""
    file.file.seek(0)
    source = pickle_reader.BoundedSource(file.file, file.size)
    storages: dict[str, Storage] = {}
    with _pickle_errors(file):
        magic = pickle_reader.interpret(source)
        if magic != LEGACY_MAGIC:
            raise NotAPickleError("a pickle that torch did not write")
        pickle_reader.interpret(source)  # protocol version
        system = pickle_reader.interpret(source)
        refs = pickle_reader.collect_tensors(pickle_reader.interpret(source, storages))
        keys = pickle_reader.interpret(source)
        if not isinstance(keys, list) or not storages.keys() <= {str(k) for k in keys}:
            raise NotAPickleError("its list of storages is incomplete")
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise UnsupportedVaeError(f"{file.name} was saved on a big-endian machine; save it there as .safetensors")
    _check_reach(file, refs)
    places = _legacy_places(file, [str(k) for k in keys], storages)

    def load(storage: Storage) -> Tensor:
        return file.tensor_at(places[storage.key], _storage_bytes(storage))

    return _Contents(_pickle_header(refs), lambda names: _assemble(refs, names, load))


def _legacy_places(file: _File, keys: list[str], storages: dict[str, Storage]) -> dict[str, int]:
    """Where each storage's data begin, found by stepping over them."""
    places: dict[str, int] = {}
    position = file.file.tell()
    promised = position + sum(8 + _storage_bytes(s) for s in storages.values())
    if promised > file.size:
        file.promises(promised)
    for key in keys:
        if key not in storages:
            file.broken(f"is damaged: nothing tells the type of storage {key:.80}")
        (numel,) = struct.unpack("<q", file.at(position, 8))
        if numel != storages[key].numel:
            file.broken(f"is damaged: storage {key:.80} has {numel:,} of {storages[key].numel:,} elements")
        places[key] = position + 8
        position += 8 + _storage_bytes(storages[key])
    return places
