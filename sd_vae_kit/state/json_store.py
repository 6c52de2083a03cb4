"""One value in one JSON file that people may edit, copy, damage or delete, and that several programs may write."""

from __future__ import annotations

import json
import logging
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from sd_vae_kit.state.atomic_write import atomic_write
from sd_vae_kit.state.locks import locked

T = TypeVar("T")

# What reading a file that somebody damaged may raise: no access, not JSON, nested too deep, other types, keys missing.
DAMAGE = (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError, struct.error)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FileStamp:
    """Which version of a file was seen."""

    mtime_ns: int
    size: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> FileStamp | None:
        """None if there is no such file.

        Raises:
            OSError: The file may be there and cannot be looked at.
        """
        try:
            status = path.stat()
        except FileNotFoundError:
            return None
        return cls(status.st_mtime_ns, status.st_size, status.st_ino)


@dataclass(frozen=True)
class JsonFormat(Generic[T]):
    """How a value stands in its file, and what is said if it cannot be read or written.

    Attributes:
        decode: The value of a JSON object; raises one of `DAMAGE` for an object that is not right.
        encode: The JSON object of a value.
        empty: The value without a file.
        version: Key and number that the file must have; a file with another number counts as not there.
        damaged: Warning with {path}, {error} and {kept}, the name under which the old file is left.
        unwritable: Warning with {path} and {error}.
        sets_aside: Whether a damaged file is kept as `NAME.broken`; else it stays until it is written over.
        indent: As in `json.dumps`; None writes one line.
        mode: Permissions of a new file; None leaves them to the system.
    """

    decode: Callable[[Mapping[str, object]], T]
    encode: Callable[[T], Mapping[str, object]]
    empty: Callable[[], T]
    version: tuple[str, int] | None = None
    damaged: str = "the cache {path} is damaged and is made anew: {error}"
    unwritable: str = "the cache {path} cannot be written: {error}"
    sets_aside: bool = False
    indent: int | None = None
    mode: int | None = None

    def text_of(self, value: T) -> str:
        """The file's text."""
        content = dict(self.encode(value))
        if self.version is not None:
            content = {self.version[0]: self.version[1], **content}
        separators = (",", ":") if self.indent is None else None
        return json.dumps(content, indent=self.indent, separators=separators, ensure_ascii=False) + "\n"

    def parse(self, text: str) -> T | None:
        """The value of the file's text; None for a file of another version.

        Raises:
            Exception: One of `DAMAGE`.
        """
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
        if self.version is not None and content[self.version[0]] != self.version[1]:
            return None
        return self.decode(content)


class JsonStore(Generic[T]):
    """The value and its file.  Safe to use from several threads and programs.

    The value is never changed in place: a change is a function from the old value to the new one, and it is applied to
    what the file says at that moment, so that two programs keep each other's changes.

    Args:
        path: The file, which need not exist; None keeps the value in memory only.
        form: How it is written.
        warn: Takes each warning, one line; the log by default.
    """

    def __init__(self, path: Path | None, form: JsonFormat[T], warn: Callable[[str], object] | None = None) -> None:
        self.path = path
        self._form = form
        self._warn = warn or _log.warning
        self._lock = threading.RLock()
        self._value = form.empty()
        self._seen: FileStamp | None = None
        self._complaint = ""
        self.reload()

    @property
    def value(self) -> T:
        """As it was last read or written."""
        return self._value

    def reload(self) -> T:
        """The value of the file as it is now.

        A file that was deleted gives the empty value.  One that is damaged gives one warning and the value that was
        known before.
        """
        with self._lock:
            if self.path is None:
                return self._value
            try:
                stamp = FileStamp.of(self.path)
                if stamp == self._seen:
                    return self._value
                self._seen = stamp
                text = self.path.read_text("utf-8-sig") if stamp is not None else None
                read = self._form.empty() if text is None else self._form.parse(text)
                self._value = self._value if read is None else read
                self._complaint = ""
            except FileNotFoundError:  # deleted between the two looks
                self._seen, self._value = None, self._form.empty()
            except DAMAGE as error:
                self._report_damage(self.path, error)
            return self._value

    def update(self, change: Callable[[T], T]) -> T:
        """Change the value and its file; on any error both stay as they were.

        Raises:
            OSError: The file cannot be written.
            Exception: Whatever `change` raises.
        """
        with self._lock:
            if self.path is None:
                self._value = change(self._value)
                return self._value
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with locked(self.path):
                value = change(self.reload())
                self._write(self.path, value)
            self._value = value
            return value

    def remember(self, change: Callable[[T], T]) -> bool:
        """Change the value, and its file if that can be written; a file that cannot be written is a warning.

        Returns:
            Whether the file holds the change.
        """
        with self._lock:
            try:
                self.update(change)
            except OSError as error:
                self._warn(self._form.unwritable.format(path=self.path, error=error))
                self._value = change(self._value)
                return False
            return True

    def clear(self) -> None:
        """Forget the value and delete the file.

        Raises:
            OSError: The file cannot be deleted.
        """
        with self._lock:
            if self.path is not None:
                self.path.unlink(missing_ok=True)
            self._seen, self._value = None, self._form.empty()

    def _write(self, path: Path, value: T) -> None:
        with atomic_write(path, mode=self._form.mode) as temporary:
            # a name that is no text, as Linux allows, becomes JSON's own escape
            temporary.write_text(self._form.text_of(value), "utf-8", "backslashreplace")
        self._seen = FileStamp.of(path)

    def _report_damage(self, path: Path, error: Exception) -> None:
        kept = path
        if self._form.sets_aside:
            kept = path.with_name(path.name + ".broken")
            try:
                path.replace(kept)
                self._seen = None
            except OSError:
                kept = path
        message = self._form.damaged.format(path=path, error=error, kept=kept.name)
        if message != self._complaint:  # said once, not at every look
            self._complaint = message
            self._warn(message)
