"""Checkpoint files as containers: which tensors they hold, and those tensors; what they mean is `detect`'s business.

Both formats are read by this package itself: safetensors_container.py, and for pickles zip_container.py and
legacy_container.py; nothing in a pickle is ever executed.  What a file is follows from its bytes, not from its suffix.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from sd_vae_kit.core.files.contents import Contents
from sd_vae_kit.core.files.foreign_bytes import refuse_foreign
from sd_vae_kit.core.files.header import Header
from sd_vae_kit.core.files.legacy_container import legacy_contents
from sd_vae_kit.core.files.model_bytes import AGAIN, ModelBytes, opened
from sd_vae_kit.core.files.safetensors_container import safetensors_contents
from sd_vae_kit.core.files.zip_container import zip_contents
from sd_vae_kit.errors import BrokenVaeError, UnsupportedVaeError


class OpenCheckpoint:
    """An open file whose header was read once; tensors are read as long as it is open.

    Attributes:
        header: Names, shapes, types, metadata.
    """

    def __init__(self, name: str, contents: Contents) -> None:
        self._name = name
        self._contents = contents
        self.header = contents.header

    def read(self, names: Collection[str]) -> dict[str, Tensor]:
        """The named tensors, on the CPU in the file's dtype, each in memory of its own.

        Raises:
            BrokenVaeError: A name is missing, or the file was changed while it was read.
            UnsupportedVaeError: A tensor's type has no torch dtype here.
        """
        known = self.header.tensors
        if missing := [n for n in names if n not in known]:
            raise BrokenVaeError(f"{self._name} has no {missing[0]}; if it was replaced meanwhile, refresh the list")
        if foreign := [n for n in names if known[n].dtype is None]:
            raise UnsupportedVaeError(
                f"{self._name}: the numbers of {foreign[0]} are of a type that is not read; use fp32, fp16 or bf16"
            )
        return self._contents.read(names)


@contextmanager
def open_checkpoint(path: str | os.PathLike[str]) -> Iterator[OpenCheckpoint]:
    """Open a file and read its header; tensor data are not read before they are asked for.

    Raises:
        VaeNotFoundError: There is no such file (any more).
        BrokenVaeError: Empty, truncated, damaged, locked, or not a model file at all.
        UnsupportedVaeError: A container this program does not read.
        UnsafeFileError: A pickle that would run code; nothing was executed.
    """
    with opened(Path(path)) as file:
        yield OpenCheckpoint(file.name, _contents(file))


def read_header(path: str | os.PathLike[str]) -> Header:
    """Names, shapes and types of a file's tensors; errors as for `open_checkpoint`."""
    with open_checkpoint(path) as checkpoint:
        return checkpoint.header


def read_tensors(path: str | os.PathLike[str], names: Collection[str]) -> dict[str, Tensor]:
    """The named tensors; errors as for `open_checkpoint` and `OpenCheckpoint.read`."""
    with open_checkpoint(path) as checkpoint:
        return checkpoint.read(names)


def _contents(file: ModelBytes) -> Contents:
    """Tell the format by the first bytes and read the header."""
    if file.size == 0:
        raise BrokenVaeError(f"{file.name} is empty (0 bytes); {AGAIN}")
    start = file.at(0, min(file.size, 512))
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return zip_contents(file)
    refuse_foreign(file, start)
    if start[8:9] == b"{" or (file.name.lower().endswith(".safetensors") and not start.startswith(b"\x80")):
        return safetensors_contents(file, start)
    return legacy_contents(file)
