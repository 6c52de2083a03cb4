"""The sha256 of a file, in steps, so that a caller can show progress and stop."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from sd_vae_kit.errors import Interrupted
from sd_vae_kit.units import MIB

BLOCK = 4 * MIB


def hash_in_steps(path: Path) -> Iterator[tuple[int, str]]:
    """(bytes read, "") again and again while the file is read, then (size, sha256 as 64 hex digits).

    Raises:
        OSError: The file cannot be read.
    """
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(BLOCK))
    done = 0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            done += count
            yield done, ""
    yield done, digest.hexdigest()


def file_sha256(path: Path, on_progress: Callable[[int, int], object] | None = None) -> str:
    """The sha256 of a whole file, 64 hex digits.

    Args:
        path: The file.
        on_progress: Called with (bytes done, bytes in total) every 4 MiB; `False` stops.

    Raises:
        Interrupted: `on_progress` returned `False`.
        OSError: The file cannot be read.
    """
    total = path.stat().st_size
    digits = ""
    for done, digits in hash_in_steps(path):
        if not digits and on_progress is not None and on_progress(done, max(total, done)) is False:
            raise Interrupted(f"hashing {path.name} was stopped")
    return digits
