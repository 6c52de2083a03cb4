"""What was learnt about VAE files, in one JSON file: by path, and only for the version that was looked at.

A missing or damaged cache costs time, never a wrong answer.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import re
import struct
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal
from uuid import uuid4

from sd_vae_kit import __version__
from sd_vae_kit.core.files.detect import Kind, LayoutName
from sd_vae_kit.core.halves import Part
from sd_vae_kit.errors import VaeNotFoundError

State = Literal["ok", "broken", "unsupported", "unsafe"]

CACHE_FORMAT = 1
# A file that is changed twice within one tick of its file system's clock keeps its time.  Whole seconds are taken for a
# clock of 2 s (FAT), others for one of 50 ms (the slowest timer behind a nanosecond stamp, with a margin).
TICK_NS, COARSE_TICK_NS = 50_000_000, 2_000_000_000

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Facts:
    """What a file's header says; all that a listing shows and that does not need the weights.

    Attributes:
        state: Whether it can be used.
        reason: Why not, a sentence for the user; "" if it can.
        kind, part, layout, family, z_channels: As in `Detection`; `None`, "" and 0 where unknown.
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


@dataclass(frozen=True)
class Identity:
    """Which VAE the weights are, in any copy: see core/identity.py."""

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


@dataclass
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


class Cache:
    """Records by absolute path, in one JSON file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: dict[str, Record] = _load_records(path)
        self.changed = False

    def find(self, path: Path, stamp: Stamp) -> Record | None:
        record = self.records.get(str(path))
        return record if record and record.holds_for(stamp) else None

    def learn(self, path: Path, stamp: Stamp, learnt_ns: int) -> Record:
        """The record for this version of the file, an empty one if what was known is of another version."""
        record = self.find(path, stamp)
        if record is None:
            record = self.records[str(path)] = Record(stamp, learnt_ns, __version__)
        self.changed = True
        return record

    def forget_missing(self, folders: Iterable[Path]) -> None:
        """Drop records of files that are gone from these folders, in which others were found.

        A folder that is missing or empty may be a drive that is not connected: its records stay.
        """
        roots = tuple(str(folder) + os.sep for folder in folders)
        for key in [key for key in self.records if key.startswith(roots) and not os.path.isfile(key)]:  # noqa: PTH113
            del self.records[key]
            self.changed = True

    def save(self) -> None:
        """Write atomically if anything changed; a folder that cannot be written costs only time, so it is logged."""
        if not self.changed:
            return
        temporary = self.path.with_name(f".{self.path.name}.{uuid4().hex[:8]}.part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(_dump_records(self.records), encoding="utf-8")
            temporary.replace(self.path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            _log.warning("the cache %s cannot be written: %s", self.path, error)
        else:
            self.changed = False


def _dump_records(records: dict[str, Record]) -> str:
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
    return json.dumps({"format": CACHE_FORMAT, "files": files}, separators=(",", ":"))


def _pack(values: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()


def _unpack(text: str) -> tuple[float, ...]:
    data = base64.b64decode(text, validate=True)
    return struct.unpack(f"<{len(data) // 4}f", data)


def _load_records(path: Path) -> dict[str, Record]:
    """The cache file's records, none if it is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != CACHE_FORMAT:
            return {}
        return {name: _record(values) for name, values in content["files"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, struct.error) as error:
        _log.warning("the cache %s is damaged and is made anew: %s", path, error)
        return {}


def _record(values: dict[str, object]) -> Record:
    """One file's record; checked here, because a damaged cache must not surface later as a wrong hash."""
    size, mtime_ns, learnt_ns = values["size"], values["mtime_ns"], values["learnt_ns"]
    if not (isinstance(size, int) and isinstance(mtime_ns, int) and isinstance(learnt_ns, int)):
        raise ValueError("a number is missing")
    sha256, mark, packed = (values[key] for key in ("sha256", "fingerprint", "sketch"))
    for digest in (sha256, mark):
        if digest is not None and not (isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest)):
            raise ValueError("a hash is damaged")
    facts, version = values["facts"], str(values["version"])
    return Record(
        Stamp(size, mtime_ns),
        learnt_ns,
        version,
        Facts(**facts) if isinstance(facts, dict) and version == __version__ else None,
        sha256 if isinstance(sha256, str) else None,
        Identity(mark, _unpack(packed)) if isinstance(mark, str) and isinstance(packed, str) else None,
    )
