"""safetensors files: the header, checked against the file's size before anything relies on it, and the tensors.

Tensors are read into private memory instead of being mapped, so that a file that shrinks while it is read is an error
message and not a crash of the process.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Collection
from math import prod

from torch import Tensor

from sd_vae_kit.core.dtypes import BY_SAFETENSORS
from sd_vae_kit.core.files.contents import Contents
from sd_vae_kit.core.files.header import Header, TensorInfo
from sd_vae_kit.core.files.model_bytes import ModelBytes

HEADER_LIMIT = 100_000_000  # bytes; the safetensors library's own limit


def safetensors_contents(file: ModelBytes, start: bytes) -> Contents:
    """Read the header of a safetensors file; `start` is the beginning of the file."""
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
    return Contents(Header(tensors, {k: v for k, v in pairs if isinstance(v, str)}, "safetensors"), read)


def _parse_safetensors_header(file: ModelBytes, data: bytes) -> dict[str, object]:
    try:
        entries = json.loads(data)
    except (ValueError, RecursionError):
        file.broken("has a damaged header")
    if not isinstance(entries, dict):
        file.broken("has a damaged header")
    return entries


def _sizes(value: object) -> tuple[int, ...] | None:
    return tuple(value) if isinstance(value, list) and all(type(v) is int and v >= 0 for v in value) else None


def _safetensors_entry(file: ModelBytes, name: str, entry: object) -> tuple[TensorInfo, tuple[int, int]]:
    values = entry if isinstance(entry, dict) else {}
    shape, span, code = _sizes(values.get("shape")), _sizes(values.get("data_offsets")), values.get("dtype")
    if shape is None or span is None or len(span) != 2 or not isinstance(code, str) or span[0] > span[1]:
        file.broken(f"has a damaged header: the entry of {name:.80} is incomplete")
    dtype = BY_SAFETENSORS.get(code)
    if dtype is not None and prod(shape) * dtype.itemsize != span[1] - span[0]:
        file.broken(f"has a damaged header: {name:.80} {code} {shape} does not fill {span[1] - span[0]} bytes")
    return TensorInfo(dtype, shape), (span[0], span[1])


def _check_spans(file: ModelBytes, data_start: int, spans: dict[str, tuple[int, int]]) -> None:
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
