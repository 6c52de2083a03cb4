"""An open model file: bytes from any place in it, and the words for what is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

import torch
from torch import Tensor

from sd_vae_kit.errors import BrokenVaeError, UnsupportedVaeError, VaeNotFoundError

AGAIN = "copy or download it again"


@dataclass(frozen=True)
class ModelBytes:
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
        """Raise `BrokenVaeError` with the file's name in front and the remedy behind."""
        raise BrokenVaeError(f"{self.name} {what}; {AGAIN}")

    def promises(self, size: int) -> NoReturn:
        """Raise `BrokenVaeError` for a file that is shorter or longer than its header says."""
        self.broken(f"has {self.size:,} bytes, its header promises {size:,}")


@contextmanager
def opened(path: Path) -> Iterator[ModelBytes]:
    """The file for reading; what the operating system complains about becomes an error of ours."""
    try:
        if path.is_dir():
            raise UnsupportedVaeError(f"{path.name} is a folder; choose the .safetensors file inside it")
        with path.open("rb") as file:
            yield ModelBytes(file, path.name, os.fstat(file.fileno()).st_size)
    except FileNotFoundError as error:
        raise VaeNotFoundError(f"{path.name} is no longer in {path.parent}; refresh the list") from error
    except PermissionError as error:
        raise BrokenVaeError(
            f"{path.name} cannot be opened (no permission, or locked by another program); "
            "check its permissions, or wait until its copy or download has ended"
        ) from error
    except OSError as error:
        raise BrokenVaeError(f"{path.name} cannot be read: {error.strerror or error}; check the disk") from error
