"""Locks between programs; a thread's locks do not reach that far."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

TAKEN = {errno.EAGAIN, errno.EACCES, errno.EDEADLK}  # what a lock held by another program gives
PATIENCE_S = 2.0  # a program that stopped while it held a lock must not stop the others
PAUSE_S = 0.01

if sys.platform == "win32":
    import msvcrt

    FAR = 1 << 40  # a byte nobody writes: Windows' locks would keep our own other handles from reading

    def take(descriptor: int) -> None:
        """Lock an open file for this handle alone, at once.

        Raises:
            OSError: Another handle holds it (`TAKEN`), or the file system knows no locks.
        """
        os.lseek(descriptor, FAR, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)

else:
    import fcntl

    def take(descriptor: int) -> None:
        """Lock an open file for this handle alone, at once.

        Raises:
            OSError: Another handle holds it (`TAKEN`), or the file system knows no locks.
        """
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_same_file(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one of that name, and not one that was moved or removed meanwhile."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of `path` against other programs and threads, by a file `.NAME.lock` that is there meanwhile.

    Where no lock can be had (a folder that cannot be written, a file system without locks, another program that holds
    it for more than `PATIENCE_S` seconds) the block runs without: a rare lost entry is better than a program that waits
    for ever.
    """
    lock_path = path.with_name(f".{path.name}.lock")
    handle = _opened_and_taken(lock_path, time.monotonic() + PATIENCE_S)
    try:
        yield
    finally:
        if handle is not None:
            with suppress(OSError):  # Windows removes no open file; one that stays does no harm
                lock_path.unlink()
            handle.close()


def _opened_and_taken(lock_path: Path, deadline: float) -> FileIO | None:
    while True:
        try:
            handle = FileIO(lock_path, "a")
        except OSError:
            return None
        try:
            take(handle.fileno())
        except OSError as error:
            handle.close()
            if error.errno not in TAKEN or time.monotonic() > deadline:
                return None
            time.sleep(PAUSE_S)
            continue
        if is_same_file(handle.fileno(), lock_path):
            return handle
        handle.close()  # its holder removed it between opening and locking
