"""Which checkpoints were used with which VAE, and when last.  The file may be deleted or damaged at any time."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from uuid import uuid4

from sd_vae_kit.vaes.library import Entry

FILE_NAME = "history.json"
VERSION = 1
KEPT = 500  # pairs; the ones not used for longest are forgotten first

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Use:
    """One checkpoint with one VAE.

    Attributes:
        vae: The library's name of the file when it was used.
        path: Where it was.
        sha256: Its hash, "" where that was not known then; a file that moved is recognised by it.
        checkpoint: Name of the checkpoint.
        last: Day of the last use, as 2026-11-22.
    """

    vae: str
    path: str
    sha256: str
    checkpoint: str
    last: str


class History:
    """The pairs on disk; safe to use from several threads.

    Args:
        path: The file.
        today: The day, in ISO form.
    """

    def __init__(self, path: Path, today: Callable[[], str] = lambda: date.today().isoformat()) -> None:
        self._path = path
        self._today = today
        self._lock = threading.Lock()
        self._uses: dict[tuple[str, str], Use] | None = None

    def note(self, entry: Entry, checkpoint: str) -> None:
        """Remember that `checkpoint` was used with the file; written at most once a day for a pair."""
        use = Use(entry.name, str(entry.path), entry.sha256 or "", checkpoint, self._today())
        with self._lock:
            uses = self._read()
            known = uses.get((use.path, checkpoint))
            if known == use or (known and not use.sha256 and replace(use, sha256=known.sha256) == known):
                return
            uses.pop((use.path, checkpoint), None)
            uses[use.path, checkpoint] = use
            for oldest in list(uses)[:-KEPT]:
                del uses[oldest]
            self._write(uses)

    def checkpoints_of(self, path: Path, sha256: str | None) -> tuple[str, ...]:
        """Checkpoints that were used with a file, or with one of the same hash, the latest first."""
        with self._lock:
            uses = list(self._read().values())
        same = [use for use in uses if use.path == str(path) or (sha256 and use.sha256 == sha256)]
        return tuple(dict.fromkeys(use.checkpoint for use in reversed(same)))

    def _read(self) -> dict[tuple[str, str], Use]:
        """What is known; nothing if the file is missing, damaged, or of another version."""
        if self._uses is None:
            self._uses = {(use.path, use.checkpoint): use for use in _uses_in(self._path)}
        elif not self._path.exists():
            self._uses = {}  # the user has deleted it
        return self._uses

    def _write(self, uses: dict[tuple[str, str], Use]) -> None:
        """Replace the file atomically; a folder that cannot be written costs only the memory, so it is logged."""
        temporary = self._path.with_name(f".{self._path.name}.{uuid4().hex[:8]}.part")
        text = json.dumps({"version": VERSION, "uses": [asdict(use) for use in uses.values()]}, indent=1)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(text, "utf-8")
            temporary.replace(self._path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            _log.warning("the history %s cannot be written: %s", self._path, error)


def _uses_in(path: Path) -> list[Use]:
    try:
        content = json.loads(path.read_text("utf-8"))
        if content["version"] != VERSION:
            return []
        uses = [Use(**values) for values in content["uses"]]
        return [use for use in uses if all(isinstance(value, str) for value in asdict(use).values())]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        _log.warning("the history %s is damaged and is made anew: %s", path, error)
        return []
