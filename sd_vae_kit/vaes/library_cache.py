"""What was learnt about VAE files, in one JSON file: by path, and only for the version that was looked at.

A missing or damaged cache costs time, never a wrong answer.
"""

from __future__ import annotations

import base64
import os
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal

from sd_vae_kit.core.files.detection import FamilyKnownBy, Kind, LayoutName
from sd_vae_kit.core.halves import Part
from sd_vae_kit.errors import VaeNotFoundError
from sd_vae_kit.state.json_store import JsonFormat, JsonStore
from sd_vae_kit.version import __version__

State = Literal["ok", "broken", "unsupported", "unsafe"]

# A file that is changed twice within one tick of its file system's clock keeps its time.  Whole seconds are taken for a
# clock of 2 s (FAT), others for one of 50 ms (the slowest timer behind a nanosecond stamp, with a margin).
TICK_NS, COARSE_TICK_NS = 50_000_000, 2_000_000_000


@dataclass(frozen=True)
class Facts:
    """What a file's header says; all that a listing shows and that does not need the weights.

    Attributes:
        state: Whether it can be used.
        reason: Why not, a sentence for the user; "" if it can.
        kind, part, layout, family, z_channels, family_known_by, downscale: As in `Detection`; `None`, "", 0 and
            "undecided" where unknown.
        dtype: That of most of its weights, "fp16".
    """

    state: State
    reason: str = ""
    kind: Kind | None = None
    part: Part | None = None
    layout: LayoutName | None = None
    family: str = ""
    z_channels: int = 0
    dtype: str = ""
    family_known_by: FamilyKnownBy = "undecided"
    downscale: int = 0

    @property
    def is_complete(self) -> bool:
        """Not for what an earlier version learnt of a usable file, which did not note the size of a latent cell."""
        return self.state != "ok" or self.downscale > 0


@dataclass(frozen=True)
class Identity:
    """Which VAE the weights are, in any copy: see core/files/identity.py."""

    fingerprint: str
    weight_sketch: tuple[float, ...]


@dataclass(frozen=True)
class Stamp:
    """A version of a file."""

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """Raises `VaeNotFoundError` if there is no such file any more."""
        try:
            status = path.stat()
        except OSError as error:
            raise VaeNotFoundError(f"{path.name} is no longer in {path.parent}; refresh the list") from error
        return cls(status.st_size, status.st_mtime_ns)


@dataclass(frozen=True)
class Record:
    """What is known about one version of a file, and when it was learnt (ns)."""

    stamp: Stamp
    learnt_ns: int
    version: str
    facts: Facts | None = None
    sha256: str | None = None
    identity: Identity | None = None

    def holds_for(self, stamp: Stamp) -> bool:
        """Not for another version, nor for one so fresh when it was looked at that it may have been replaced unseen."""
        tick = TICK_NS if stamp.mtime_ns % 1_000_000_000 else COARSE_TICK_NS
        return self.stamp == stamp and abs(self.learnt_ns - stamp.mtime_ns) >= tick


@dataclass(frozen=True)
class Learnt:
    """What was found out by one look at a file; None: not looked for."""

    facts: Facts | None = None
    sha256: str | None = None
    identity: Identity | None = None


class Cache:
    """Records by absolute path, in one JSON file; what is learnt is written by `save`.

    Used under its owner's lock; other programs may write the file at any time.
    """

    def __init__(self, path: Path | None) -> None:
        self._store = JsonStore(path, FORMAT)
        self._changes: dict[str, Record | None] = {}  # since the last `save`; None: forgotten

    @property
    def records(self) -> dict[str, Record]:
        """All that is known."""
        return _with_changes(self._store.value, self._changes)

    def find(self, path: Path, stamp: Stamp) -> Record | None:
        """What is known about this version of the file."""
        key = str(path)
        record = self._changes[key] if key in self._changes else self._store.value.get(key)
        return record if record and record.holds_for(stamp) else None

    def learn(self, path: Path, stamp: Stamp, learnt_ns: int, learnt: Learnt) -> Record:
        """The record with what was learnt added; what was known of another version of the file is forgotten."""
        known = self.find(path, stamp) or Record(stamp, learnt_ns, __version__)
        version = known.version if learnt.facts is None else __version__
        found = {item.name: getattr(learnt, item.name) for item in fields(learnt)}
        record = replace(known, version=version, **{name: new for name, new in found.items() if new is not None})
        self._changes[str(path)] = record
        return record

    def forget_missing(self, folders: Iterable[Path]) -> None:
        """Drop records of files that are gone from these folders, in which others were found.

        A folder that is missing or empty may be a drive that is not connected: its records stay.
        """
        roots = tuple(str(folder) + os.sep for folder in folders)
        for key in self.records:
            if key.startswith(roots) and not os.path.isfile(key):  # noqa: PTH113
                self._changes[key] = None

    def save(self) -> None:
        """Write atomically if anything changed; a folder that cannot be written costs only time, so it is logged."""
        changes = self._changes
        if changes and self._store.remember(lambda records: _with_changes(records, changes)):
            self._changes = {}


def _with_changes(records: dict[str, Record], changes: Mapping[str, Record | None]) -> dict[str, Record]:
    changed = {**records, **changes}
    return {path: record for path, record in changed.items() if record is not None}


# --- the file --------------------------------------------------------------------------------------------------------


def _encoded(records: dict[str, Record]) -> dict[str, object]:
    files = {
        path: {
            "size": r.stamp.size,
            "mtime_ns": r.stamp.mtime_ns,
            "learnt_ns": r.learnt_ns,
            "version": r.version,
            "facts": asdict(r.facts) if r.facts else None,
            "sha256": r.sha256,
            "fingerprint": r.identity.fingerprint if r.identity else None,
            "sketch": _pack(r.identity.weight_sketch) if r.identity else None,
        }
        for path, r in records.items()
    }
    return {"files": files}


def _decoded(content: Mapping[str, object]) -> dict[str, Record]:
    """The file's records; checked here, because a damaged cache must not surface later as a wrong hash.

    Raises:
        Exception: One of `DAMAGE`.
    """
    files: Mapping[str, Mapping[str, object]] = content["files"]  # type: ignore[assignment]
    return {name: _record(values) for name, values in files.items()}


def _record(values: Mapping[str, object]) -> Record:
    size, mtime_ns, learnt_ns = (_whole_number(values[key]) for key in ("size", "mtime_ns", "learnt_ns"))
    fingerprint, packed = _digest(values["fingerprint"]), values["sketch"]
    facts, version = values["facts"], str(values["version"])
    return Record(
        Stamp(size, mtime_ns),
        learnt_ns,
        version,
        Facts(**facts) if isinstance(facts, dict) and version == __version__ else None,
        _digest(values["sha256"]),
        Identity(fingerprint, _unpack(packed)) if fingerprint is not None and isinstance(packed, str) else None,
    )


def _whole_number(value: object) -> int:
    if not isinstance(value, int):
        raise ValueError("a number is missing")
    return value


def _digest(value: object) -> str | None:
    if value is None:
        return None
    if not (isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value)):
        raise ValueError("a hash is damaged")
    return value


def _pack(values: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()


def _unpack(text: str) -> tuple[float, ...]:
    data = base64.b64decode(text, validate=True)
    return struct.unpack(f"<{len(data) // 4}f", data)


FORMAT: JsonFormat[dict[str, Record]] = JsonFormat(_decoded, _encoded, dict, version=("format", 1))
