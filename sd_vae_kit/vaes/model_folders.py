"""Model files below the folders of a library, and what each is called there."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from sd_vae_kit.vaes.library_cache import Stamp

FolderKind = Literal["vae", "checkpoint"]

CHECKPOINT_SUFFIXES = (".safetensors", ".ckpt", ".pt")  # of whole models
SUFFIXES = (*CHECKPOINT_SUFFIXES, ".pth", ".bin")  # of VAEs

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Folder:
    """Where to look: in a "vae" folder every model file counts, in a "checkpoint" folder only `*.vae.*`."""

    path: Path
    kind: FolderKind = "vae"


@dataclass(frozen=True)
class FoundFile:
    """A file of a folder: its path below it, and where it really lies (its own name is never resolved)."""

    path: Path
    relative: str
    place: tuple[str, str]
    stamp: Stamp


def _scan(folder: Folder) -> Iterator[FoundFile]:
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
                    yield FoundFile(Path(child.path), prefix + child.name, (real, child.name), stamp)


def _is_vae_name(name: str, kind: FolderKind) -> bool:
    lower = name.lower()
    if lower.startswith(".") or not lower.endswith(SUFFIXES):
        return False
    return kind == "vae" or PurePosixPath(PurePosixPath(lower).stem).suffix == ".vae"


def find_files(folders: Sequence[Folder]) -> list[tuple[Folder, FoundFile]]:
    """Files of all folders, each file once, sorted by name; folders in the order given."""
    found: list[tuple[Folder, FoundFile]] = []
    seen: set[tuple[str, str]] = set()
    for folder in folders:
        absolute = replace(folder, path=folder.path.absolute())
        files = sorted(_scan(absolute), key=lambda file: (file.relative.casefold(), file.relative))
        for file in files:
            if file.place not in seen:
                seen.add(file.place)
                found.append((absolute, file))
    return found


def unique_names(found: Sequence[tuple[Folder, FoundFile]]) -> list[str]:
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
