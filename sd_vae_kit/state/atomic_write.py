"""Writing a file whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4


@contextmanager
def atomic_write(path: Path, *, mode: int | None = None) -> Iterator[Path]:
    """A temporary path beside `path` to write to; when the block ends, the file there takes the place of `path`.

    Whoever reads `path` sees the old file or the whole new one.  If the block raises, `path` stays as it was and the
    temporary file is gone.  A file that is replaced passes its permissions on.

    Args:
        path: The file to make or to replace; its folder exists.
        mode: Permissions of a file that was not there before, such as 0o600; None leaves them to the system.

    Raises:
        OSError: The folder cannot be written to, the disk is full, or the file is held by another program.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}.part")
    try:
        if mode is not None:
            temporary.touch(mode)  # before anything is in it
        yield temporary
        if path.exists():
            with suppress(OSError):  # a file system without permissions, as some network drives
                shutil.copymode(path, temporary)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
