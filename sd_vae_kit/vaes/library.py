"""VAE files on disk: what they are called, what they are, which are broken, and their hashes.

Listing reads headers only.  Everything learnt is kept in one cache file, keyed by path, size and modification time, so
that the next listing only asks the file system; the cache may be deleted or damaged at any time.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from sd_vae_kit.core.files.checkpoint import read_header
from sd_vae_kit.core.files.detect import detect
from sd_vae_kit.core.files.header import main_dtype
from sd_vae_kit.core.files.identity import fingerprint, weight_sketch
from sd_vae_kit.core.vae import VaeWeights, read_vae
from sd_vae_kit.errors import (
    BrokenVaeError,
    UnsafeFileError,
    UnsupportedVaeError,
    VaeKitError,
    VaeNotFoundError,
)
from sd_vae_kit.state.file_hash import file_sha256
from sd_vae_kit.vaes.library_cache import Cache, Facts, Identity, Learnt, Stamp

FolderKind = Literal["vae", "checkpoint"]
Progress = Callable[[int, int], object]

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
NEAR_NAMES = 3

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Folder:
    """Where to look: in a "vae" folder every model file counts, in a "checkpoint" folder only `*.vae.*`."""

    path: Path
    kind: FolderKind = "vae"


@dataclass(frozen=True, kw_only=True)
class Entry(Facts):
    """One file of the library as it was when the list was made.

    Attributes:
        name: Path below its folder with `/` and suffix, unique in the library; what settings and infotexts hold.
        path: Where it lies.
        size, mtime_ns: Of the file that was looked at.
        state, reason, kind, part, layout, family, z_channels, dtype: As in `Facts`.
        sha256, fingerprint: `None` until they were computed once.
    """

    name: str
    path: Path
    size: int
    mtime_ns: int
    sha256: str | None = None
    fingerprint: str | None = None


# --- looking at files ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    """A file of a folder: its path below it, and where it really lies (its own name is never resolved)."""

    path: Path
    relative: str
    place: tuple[str, str]
    stamp: Stamp


def _scan(folder: Folder) -> Iterator[_Found]:
    """Model files below a folder; a directory reached by several ways, or round a loop of links, is walked once."""
    directories = [(folder.path, "")]
    linked: list[tuple[Path, str]] = []  # walked last, so that a real place gives a file its name
    seen: set[str] = set()
    while directories or linked:
        path, prefix = (directories or linked).pop(0)
        real = os.path.realpath(path)
        if real in seen:
            continue
        seen.add(real)
        try:
            with os.scandir(path) as items:
                children = sorted(items, key=lambda item: item.name.lower())
        except FileNotFoundError:
            continue
        except OSError as error:
            _log.warning("the folder %s cannot be read: %s", path, error)
            continue
        for child in children:
            with suppress(OSError):  # gone meanwhile, or a link to nowhere
                if child.is_dir():
                    where = linked if child.is_symlink() else directories
                    where.append((Path(child.path), f"{prefix}{child.name}/"))
                elif _is_vae_name(child.name, folder.kind):
                    status = child.stat()
                    stamp = Stamp(status.st_size, status.st_mtime_ns)
                    yield _Found(Path(child.path), prefix + child.name, (real, child.name), stamp)


def _is_vae_name(name: str, kind: FolderKind) -> bool:
    lower = name.lower()
    if lower.startswith(".") or not lower.endswith(SUFFIXES):
        return False
    return kind == "vae" or PurePosixPath(PurePosixPath(lower).stem).suffix == ".vae"


def _examine(path: Path) -> tuple[Facts, bool]:
    """A file's facts, and whether they will stay as long as the file does (a lock or a lost network drive will not)."""
    try:
        header = read_header(path)
        detection = detect(header.tensors, header.metadata, label=path.name)
    except UnsafeFileError as error:
        return Facts("unsafe", str(error)), True
    except UnsupportedVaeError as error:
        return Facts("unsupported", str(error)), True
    except VaeKitError as error:
        return Facts("broken", str(error)), not isinstance(error.__cause__, OSError)
    except Exception as error:  # one file must never break the list, not even by a defect of ours
        _log.exception("examining %s", path)
        return Facts("broken", f"{path.name} cannot be examined ({type(error).__name__}: {error})"), False
    return Facts(
        "ok",
        "",
        detection.kind,
        detection.part,
        detection.layout,
        detection.family,
        detection.z_channels,
        main_dtype(header.tensors[name] for name in detection.names.values()),
    ), True


def _unique_names(found: Sequence[tuple[Folder, _Found]]) -> list[str]:
    """Relative paths; where two folders hold the same one, the later folder's gets the folder's label in front.

    Suffix and stem stay what they are, and the first folder's names never depend on the others.
    """
    names: list[str] = []
    taken: set[str] = set()
    for folder, file in found:
        name = file.relative
        parts = folder.path.absolute().parts
        depth = 1
        while name.casefold() in taken and depth <= len(parts):
            name = f"[{'/'.join(parts[-depth:])}] {file.relative}"
            depth += 1
        taken.add(name.casefold())
        names.append(name)
    return names


# --- the library -----------------------------------------------------------------------------------------------------


class Library:
    """The VAE files of some folders.

    Safe to use from several threads; long work (hashing, reading weights) holds no lock.

    Args:
        folders: Where to look, most important first; folders that do not exist are empty.
        cache_file: Where to keep what was learnt.
    """

    def __init__(self, folders: Iterable[Folder], cache_file: str | os.PathLike[str]) -> None:
        self.folders = tuple(folders)
        self._cache = Cache(Path(cache_file))
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
            found = self._find()
            entries = [
                self._entry(name, file.path, file.stamp)
                for name, (_, file) in zip(_unique_names(found), found, strict=True)
            ]
            with self._lock:
                self._cache.forget_missing({folder.path for folder, _ in found})
                self._cache.save()
                self._entries = tuple(entries)
            return entries

    def get(self, name: str) -> Entry:
        """The entry of that name.

        Args:
            name: As listed; or a base name, with or without suffix, that only one file has.

        Raises:
            VaeNotFoundError: None, or several; the message lists them, or names that are near.
        """
        entries = self._entries
        for entry in entries:
            if entry.name == name:
                return entry
        wanted = name.replace("\\", "/").casefold()
        for short in (_same, _base_name, _stem, _stem_without_vae):
            matches = [entry for entry in entries if short(entry.name).casefold() == wanted]
            if len(matches) == 1:
                return matches[0]
            if matches:
                listed = ", ".join(entry.name for entry in matches)
                raise VaeNotFoundError(f"several VAEs are called {name}: {listed}; give the full name")
        raise VaeNotFoundError(f"there is no VAE {name!r}; {_near(wanted, entries)}")

    def entry_at(self, path: str | os.PathLike[str]) -> Entry:
        """The entry of a path, also of one outside the folders, as the file is now.

        Raises:
            VaeNotFoundError: There is no such file.
        """
        wanted = Path(path).absolute()
        stamp = Stamp.of(wanted)
        real = os.path.realpath(wanted)
        listed = [e for e in self._entries if e.path == wanted] or [
            e for e in self._entries if e.path.name == wanted.name and os.path.realpath(e.path) == real
        ]
        entry = self._entry(listed[0].name if listed else wanted.name, listed[0].path if listed else wanted, stamp)
        with self._lock:
            self._cache.save()
        return entry

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

    def identify(self, entry: Entry) -> Identity:
        """Fingerprint and sketch of the weights in the file as it is now; computed once per version of the file.

        Raises:
            VaeKitError: As in `load`.
        """
        stamp = Stamp.of(entry.path)
        with self._lock:
            record = self._cache.find(entry.path, stamp)
            if record and record.identity:
                return record.identity
        started = time.time_ns()
        state = read_vae(entry.path).state
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

    def _find(self) -> list[tuple[Folder, _Found]]:
        """Files of all folders, each file once, sorted by name; folders in the order given."""
        found: list[tuple[Folder, _Found]] = []
        seen: set[tuple[str, str]] = set()
        for folder in self.folders:
            absolute = replace(folder, path=folder.path.absolute())
            files = sorted(_scan(absolute), key=lambda file: (file.relative.casefold(), file.relative))
            for file in files:
                if file.place not in seen:
                    seen.add(file.place)
                    found.append((absolute, file))
        return found

    def _entry(self, name: str, path: Path, stamp: Stamp) -> Entry:
        with self._lock:
            record = self._cache.find(path, stamp)
        facts = record.facts if record else None
        if facts is None:
            learnt = time.time_ns()
            facts, lasting = _examine(path)
            if lasting:
                with self._lock:
                    record = self._cache.learn(path, stamp, learnt, Learnt(facts))
        return Entry(
            name=name,
            path=path,
            size=stamp.size,
            mtime_ns=stamp.mtime_ns,
            **asdict(facts),
            sha256=record.sha256 if record else None,
            fingerprint=record.identity.fingerprint if record and record.identity else None,
        )

    def _update(self, path: Path, stamp: Stamp, change: Callable[[Entry], Entry]) -> None:
        """Put what was learnt into the list; entries are values, so the list is replaced."""
        version = (path, stamp.size, stamp.mtime_ns)
        self._entries = tuple(
            change(entry) if (entry.path, entry.size, entry.mtime_ns) == version else entry for entry in self._entries
        )


def _same(name: str) -> str:
    return name


def _base_name(name: str) -> str:
    return re.sub(r"^\[[^\]]*\] ", "", name).rsplit("/", 1)[-1]


def _stem(name: str) -> str:
    return PurePosixPath(_base_name(name)).stem


def _stem_without_vae(name: str) -> str:
    return re.sub(r"(?i)\.vae$", "", _stem(name))


def _near(wanted: str, entries: Sequence[Entry]) -> str:
    """What the user may have meant."""
    names = {key(entry.name).casefold(): entry.name for key in (_stem, _base_name, _same) for entry in entries}
    near = [names[match] for match in difflib.get_close_matches(wanted, names, NEAR_NAMES * 3, cutoff=0.5)]
    if near:
        return f"similar are {', '.join(list(dict.fromkeys(near))[:NEAR_NAMES])}"
    if entries:
        return f"there are {', '.join(entry.name for entry in entries[:NEAR_NAMES])}" + (
            f" and {len(entries) - NEAR_NAMES} more" if len(entries) > NEAR_NAMES else ""
        )
    return "the folders that were searched hold none"


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
