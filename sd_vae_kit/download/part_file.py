"""What has arrived of a file: `NAME.part` beside its place, hashed as it grows, put in place only when it is right."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from sd_vae_kit.errors import DownloadError, NoSpaceError, TargetExistsError
from sd_vae_kit.state.locks import TAKEN, is_same_file, take
from sd_vae_kit.units import MIB

BLOCK = MIB
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG} if hasattr(errno, "EDQUOT") else {errno.ENOSPC, errno.EFBIG}

_log = logging.getLogger(__name__)


class PartFile:
    """The growing file; only one program at a time has it open.

    Attributes:
        target: Where the finished file goes.
        path, note_path: What has arrived, and from which address and version (ETag) it came.
        size: Bytes that have arrived.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.with_name(target.name + ".part")
        self.note_path = target.with_name(target.name + ".part.json")
        self.size = 0
        self._sha256 = hashlib.sha256()
        self._git = _GitBlob(None)

    def __enter__(self) -> PartFile:
        with self._disk_errors():
            self.target.parent.mkdir(parents=True, exist_ok=True)
            self._file = _open_locked(self.path)
            for block in self._blocks():
                self.size += len(block)
                self._sha256.update(block)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self.size == 0:
            self._remove()

    def origin(self) -> tuple[str, str]:
        """Address and strong ETag that the bytes came from; empty where not known."""
        try:
            note = json.loads(self.note_path.read_text("utf-8"))
            return str(note["url"]), str(note["etag"])
        except (OSError, ValueError, KeyError, TypeError):
            return "", ""

    def begin(self, position: int, total: int | None, url: str, etag: str) -> None:
        """Get ready for bytes from `position` on, which is 0 or `size`."""
        with self._disk_errors():
            if position != self.size:
                self.discard()
            if not self.size:
                self._git = _GitBlob(total)
            self.note_path.write_text(json.dumps({"url": url, "etag": etag}), "utf-8")

    def write(self, data: bytes) -> None:
        """Append; after an error the file is exactly as long as it was."""
        with self._disk_errors():
            try:
                _write_all(self._file.fileno(), data)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file.fileno(), self.size)
                    self._file.seek(self.size)
                raise
        self.size += len(data)
        self._sha256.update(data)
        self._git.update(data)

    def discard(self) -> None:
        """Forget what has arrived."""
        self._file.truncate(0)
        self._file.seek(0)
        self.size = 0
        self._sha256 = hashlib.sha256()
        self._git = _GitBlob(None)
        self.note_path.unlink(missing_ok=True)

    def sha256(self) -> str:
        """Of what has arrived."""
        return self._sha256.hexdigest()

    def git_blob_sha1(self) -> str:
        """Of what has arrived, as git names a file's content; read once more if the length was not known before."""
        if self._git.total != self.size:
            self._git = _GitBlob(self.size)
            for block in self._blocks():
                self._git.update(block)
        return self._git.hexdigest()

    def publish(self) -> Path:
        """Put the file in its place in one step; what is in that place already is never replaced.

        Raises:
            TargetExistsError: Another program put a file there meanwhile.
        """
        with self._disk_errors():
            os.fsync(self._file.fileno())
            self._file.close()
            try:
                _move_without_replacing(self.path, self.target)
            except FileExistsError as error:
                raise TargetExistsError(
                    f"{self.target.name} appeared in {self.target.parent} meanwhile; it was left as it is."
                ) from error
            self.note_path.unlink(missing_ok=True)
            _sync_folder(self.target.parent)
        return self.target

    def _blocks(self) -> Iterator[bytes]:
        self._file.seek(0)
        while block := self._file.read(BLOCK):
            yield block

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
            self.note_path.unlink(missing_ok=True)

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._explain(error)

    def _explain(self, error: OSError) -> NoReturn:
        folder = self.target.parent
        if error.errno in FULL:
            raise NoSpaceError(
                f"The disk of {folder} is full; free some space and try again, {self.size:,} bytes are kept in "
                f"{self.path.name}."
            ) from error
        raise DownloadError(
            f"{self.target.name} cannot be written to {folder}: {error.strerror or error}; check its permissions."
        ) from error


class _GitBlob:
    """SHA-1 of the word blob, the length, a zero byte and the bytes: what git calls a file's content."""

    def __init__(self, total: int | None) -> None:
        self.total = total
        self._sha1 = hashlib.sha1(b"blob %d\0" % (total or 0), usedforsecurity=False)

    def update(self, data: bytes) -> None:
        if self.total is not None:
            self._sha1.update(data)

    def hexdigest(self) -> str:
        return self._sha1.hexdigest()


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _open_locked(path: Path) -> FileIO:
    """The part file, opened for reading and writing, locked against other downloads of the same file."""
    while True:
        path.touch()
        file = FileIO(path, "r+")
        try:
            take(file.fileno())
        except OSError as error:
            if error.errno in TAKEN:
                file.close()
                raise DownloadError(
                    f"{path.name.removesuffix('.part')} is being downloaded already; wait until that has ended."
                ) from error
            # a file system without locks, as some network drives: better unlocked than not at all
            _log.info("%s cannot be locked (%s); it is downloaded all the same", path, error)
        if is_same_file(file.fileno(), path):
            return file
        file.close()  # the other download finished between opening and locking: its file was moved into place


if sys.platform == "win32":

    def _sync_folder(folder: Path) -> None:
        """Windows has no such thing."""

else:

    def _sync_folder(folder: Path) -> None:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _move_without_replacing(source: Path, target: Path) -> None:
    """Rename, but fail with FileExistsError if something has the new name; a plain rename would replace it."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # no hard links here (FAT, some network drives); Windows' rename refuses an existing name itself
        if target.exists():
            raise FileExistsError(errno.EEXIST, "exists", str(target)) from None
        source.rename(target)
    else:
        source.unlink()
