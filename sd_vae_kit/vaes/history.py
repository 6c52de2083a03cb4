"""Which checkpoints were used with which VAE, and when last.  The file may be deleted or damaged at any time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import TypeAlias

from sd_vae_kit.state.json_store import JsonFormat, JsonStore
from sd_vae_kit.vaes.entry import Entry

FILE_NAME = "history.json"
KEPT = 500  # pairs; the ones not used for longest are forgotten first


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


Uses: TypeAlias = dict[tuple[str, str], Use]  # by path and checkpoint, the latest last


def _decoded(content: Mapping[str, object]) -> Uses:
    """Raises ValueError or TypeError for an entry that is not one."""
    listed = content["uses"]
    if not isinstance(listed, list):
        raise TypeError("uses is not a list")
    uses = [Use(**values) for values in listed]
    whole = (use for use in uses if all(isinstance(value, str) for value in asdict(use).values()))
    return {(use.path, use.checkpoint): use for use in whole}


def _encoded(uses: Uses) -> dict[str, object]:
    return {"uses": [asdict(use) for use in uses.values()]}


FORMAT: JsonFormat[Uses] = JsonFormat(
    _decoded,
    _encoded,
    dict,
    version=("version", 1),
    damaged="the history {path} is damaged and is made anew: {error}",
    unwritable="the history {path} cannot be written: {error}",
    indent=1,
)


class History:
    """The pairs on disk; safe to use from several threads and programs.

    Args:
        path: The file.
        today: The day, in ISO form.
    """

    def __init__(self, path: Path, today: Callable[[], str] = lambda: date.today().isoformat()) -> None:
        self._store = JsonStore(path, FORMAT)
        self._today = today

    def note(self, entry: Entry, checkpoint: str) -> None:
        """Remember that `checkpoint` was used with the file; written at most once a day for a pair."""
        use = Use(entry.name, str(entry.path), entry.sha256 or "", checkpoint, self._today())
        known = self._store.reload().get((use.path, checkpoint))
        if known == use or (known and not use.sha256 and replace(use, sha256=known.sha256) == known):
            return
        self._store.remember(lambda uses: _with_newest(uses, use))

    def checkpoints_of(self, path: Path, sha256: str | None) -> tuple[str, ...]:
        """Checkpoints that were used with a file, or with one of the same hash, the latest first."""
        uses = self._store.reload().values()
        same = [use for use in uses if use.path == str(path) or (sha256 and use.sha256 == sha256)]
        return tuple(dict.fromkeys(use.checkpoint for use in reversed(same)))


def _with_newest(uses: Uses, use: Use) -> Uses:
    """The pairs with this one as the latest, without those that are too many."""
    others = [known for pair, known in uses.items() if pair != (use.path, use.checkpoint)]
    return {(kept.path, kept.checkpoint): kept for kept in [*others, use][-KEPT:]}
