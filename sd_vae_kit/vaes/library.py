"""VAE files on disk: what they are called, what they are, which are broken, and their hashes.

Listing reads headers only.  Everything learnt is kept in one cache file, keyed by path, size and modification time, so
that the next listing only asks the file system; the cache may be deleted or damaged at any time.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path

from sd_vae_kit.core.files.detection import Detection
from sd_vae_kit.core.files.identity import fingerprint, weight_sketch
from sd_vae_kit.core.files.inspection import inspect_header
from sd_vae_kit.core.vae import VaeWeights, read_vae
from sd_vae_kit.errors import BrokenVaeError, UnsafeFileError, UnsupportedVaeError, VaeKitError
from sd_vae_kit.state.file_hash import file_sha256
from sd_vae_kit.vaes.entry import Entry
from sd_vae_kit.vaes.entry_names import entry_named
from sd_vae_kit.vaes.library_cache import Cache, Facts, Identity, Learnt, Record, Stamp
from sd_vae_kit.vaes.model_folders import Folder, find_files, unique_names

Progress = Callable[[int, int], object]

_log = logging.getLogger(__name__)


class Library:
    """The VAE files of some folders.

    Safe to use from several threads; long work (hashing, reading weights) holds no lock.

    Args:
        folders: Where to look, most important first; folders that do not exist are empty.
        cache_file: Where to keep what was learnt; `None` keeps it in memory only.
    """

    def __init__(self, folders: Iterable[Folder], cache_file: str | os.PathLike[str] | None) -> None:
        self.folders = tuple(folders)
        self._cache = Cache(None if cache_file is None else Path(cache_file))
        self._lock = threading.RLock()
        self._refreshing = threading.Lock()
        self._entries: tuple[Entry, ...] = ()

    @property
    def entries(self) -> list[Entry]:
        """The list as of the last `refresh`."""
        return list(self._entries)

    def refresh(self) -> list[Entry]:
        """Look at the folders again and return the new list, sorted by name within each kind of folder."""
        with self._refreshing:
            found = find_files(self.folders)
            entries = [
                self._entry(name, file.path, file.stamp)
                for name, (_, file) in zip(unique_names(found), found, strict=True)
            ]
            with self._lock:
                self._cache.forget_missing({folder.path for folder, _ in found})
                self._cache.save()
                self._entries = tuple(entries)
            return entries

    def get(self, name: str) -> Entry:
        """The entry that a name means; arguments and errors as for `entry_named`."""
        return entry_named(self._entries, name)

    def entry_at(self, path: str | os.PathLike[str]) -> Entry:
        """The entry of a path, also of one outside the folders, as the file is now.

        Raises:
            VaeNotFoundError: There is no such file.
        """
        name, place = self._listed(path)
        entry = self._entry(name, place, Stamp.of(place))
        with self._lock:
            self._cache.save()
        return entry

    def recall(self, path: str | os.PathLike[str]) -> Entry | None:
        """The entry of a path if its weights were read before and the file is what it was; nothing is read.

        Raises:
            VaeNotFoundError: There is no such file.
        """
        name, place = self._listed(path)
        stamp = Stamp.of(place)
        with self._lock:
            record = self._cache.find(place, stamp)
        if record is None or record.identity is None or record.facts is None or not record.facts.is_complete:
            return None
        return _made_entry(name, place, stamp, record.facts, record)

    def read(self, path: str | os.PathLike[str]) -> tuple[Entry, VaeWeights]:
        """The entry of a path and its weights, from one look at the file.

        Raises:
            VaeKitError: As in `load`.
        """
        name, place = self._listed(path)
        stamp, started = Stamp.of(place), time.time_ns()
        weights = read_vae(place)
        _check_unchanged(place, stamp)
        facts = _facts_of(weights.detection, weights.dtype)
        with self._lock:
            record = self._cache.learn(place, stamp, started, Learnt(facts))
            self._cache.save()
        return _made_entry(name, place, stamp, facts, record), weights

    def find_by_hash(self, prefix: str) -> Entry | None:
        """The entry whose sha256 begins with these hex digits (A1111 writes ten), `None` if none is known to.

        Only hashes that were computed before are compared; usable files come first.
        """
        wanted = prefix.strip().lower()
        if not re.fullmatch("[0-9a-f]{6,64}", wanted):
            return None
        matches = [entry for entry in self._entries if entry.sha256 and entry.sha256.startswith(wanted)]
        return min(matches, key=lambda entry: entry.state != "ok", default=None)

    def sha256(self, entry: Entry, on_progress: Progress | None = None) -> str:
        """The sha256 of the file as it is now, 64 hex digits; computed once per version of the file.

        Args:
            entry: Any entry of this library.
            on_progress: Called with (bytes done, bytes in total) every 4 MiB; `False` stops.

        Raises:
            Interrupted: `on_progress` returned `False`.
            VaeNotFoundError: The file is gone.
            BrokenVaeError: It cannot be read, or changed meanwhile.
        """
        stamp = Stamp.of(entry.path)
        with self._lock:
            record = self._cache.find(entry.path, stamp)
            if record and record.sha256:
                return record.sha256
        started = time.time_ns()
        digest = _hash_file(entry.path, stamp, on_progress)
        with self._lock:
            self._cache.learn(entry.path, stamp, started, Learnt(sha256=digest))
            self._cache.save()
            self._update(entry.path, stamp, lambda known: replace(known, sha256=digest))
        return digest

    def identify(self, entry: Entry, weights: VaeWeights | None = None) -> Identity:
        """Fingerprint and sketch of the weights in the file as it is now; computed once per version of the file.

        Args:
            entry: Any entry of this library.
            weights: The file's, if they were read; they are read where needed otherwise.

        Raises:
            VaeKitError: As in `load`.
        """
        stamp = Stamp.of(entry.path)
        with self._lock:
            record = self._cache.find(entry.path, stamp)
            if record and record.identity:
                return record.identity
        started = time.time_ns()
        state = (weights or read_vae(entry.path)).state
        identity = Identity(fingerprint(state), weight_sketch(state))
        _check_unchanged(entry.path, stamp)
        with self._lock:
            self._cache.learn(entry.path, stamp, started, Learnt(identity=identity))
            self._cache.save()
            self._update(entry.path, stamp, lambda known: replace(known, fingerprint=identity.fingerprint))
        return identity

    def load(self, entry: Entry) -> VaeWeights:
        """Read the weights of the file as it is now, whatever the list said about it.

        Raises:
            VaeNotFoundError: The file is gone.
            VaeKitError: It cannot be used; as in `read_vae`.
        """
        stamp = Stamp.of(entry.path)
        weights = read_vae(entry.path)
        _check_unchanged(entry.path, stamp)
        return weights

    def _listed(self, path: str | os.PathLike[str]) -> tuple[str, Path]:
        """The name and place under which a path is listed, its own if it is not."""
        wanted = Path(path).absolute()
        real = os.path.realpath(wanted)
        listed = [e for e in self._entries if e.path == wanted] or [
            e for e in self._entries if e.path.name == wanted.name and os.path.realpath(e.path) == real
        ]
        return (listed[0].name, listed[0].path) if listed else (wanted.name, wanted)

    def _entry(self, name: str, path: Path, stamp: Stamp) -> Entry:
        with self._lock:
            record = self._cache.find(path, stamp)
        facts = record.facts if record and record.facts and record.facts.is_complete else None
        if facts is None:
            learnt = time.time_ns()
            facts, lasting = _examine(path)
            if lasting:
                with self._lock:
                    record = self._cache.learn(path, stamp, learnt, Learnt(facts))
        return _made_entry(name, path, stamp, facts, record)

    def _update(self, path: Path, stamp: Stamp, change: Callable[[Entry], Entry]) -> None:
        """Put what was learnt into the list; entries are values, so the list is replaced."""
        version = (path, stamp.size, stamp.mtime_ns)
        self._entries = tuple(
            change(entry) if (entry.path, entry.size, entry.mtime_ns) == version else entry for entry in self._entries
        )


def _made_entry(name: str, path: Path, stamp: Stamp, facts: Facts, record: Record | None) -> Entry:
    return Entry(
        name=name,
        path=path,
        size=stamp.size,
        mtime_ns=stamp.mtime_ns,
        **asdict(facts),
        sha256=record.sha256 if record else None,
        fingerprint=record.identity.fingerprint if record and record.identity else None,
    )


def _examine(path: Path) -> tuple[Facts, bool]:
    """A file's facts, and whether they will stay as long as the file does (a lock or a lost network drive will not)."""
    try:
        found = inspect_header(path)
    except UnsafeFileError as error:
        return Facts("unsafe", str(error)), True
    except UnsupportedVaeError as error:
        return Facts("unsupported", str(error)), True
    except VaeKitError as error:
        return Facts("broken", str(error)), not isinstance(error.__cause__, OSError)
    except Exception as error:  # one file must never break the list, not even by a defect of ours
        _log.exception("examining %s", path)
        return Facts("broken", f"{path.name} cannot be examined ({type(error).__name__}: {error})"), False
    return _facts_of(found.detection, found.dtype), True


def _facts_of(detection: Detection, dtype: str) -> Facts:
    return Facts(
        "ok",
        kind=detection.kind,
        part=detection.part,
        layout=detection.layout,
        family=detection.family,
        family_known_by=detection.family_known_by,
        z_channels=detection.z_channels,
        downscale=detection.downscale,
        dtype=dtype,
    )


def _hash_file(path: Path, stamp: Stamp, on_progress: Progress | None) -> str:
    try:
        digits = file_sha256(path, on_progress)
    except OSError as error:
        raise BrokenVaeError(f"{path.name} cannot be read: {error.strerror or error}; check the disk") from error
    _check_unchanged(path, stamp)
    return digits


def _check_unchanged(path: Path, stamp: Stamp) -> None:
    if Stamp.of(path) != stamp:
        raise BrokenVaeError(f"{path.name} changed while it was read; wait for its copy to end and refresh the list")
