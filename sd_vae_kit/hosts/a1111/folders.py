"""Where A1111 and its relatives keep files, and the files that this extension keeps beside them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from modules import paths, sd_models, sd_vae, shared

from sd_vae_kit.hosts.kept_files import open_kept_files
from sd_vae_kit.hosts.parts import HostFiles, HostFolders
from sd_vae_kit.vaes.catalogue import KnownVae
from sd_vae_kit.vaes.library import Library
from sd_vae_kit.vaes.model_folders import Folder, FolderKind


def folders() -> list[Folder]:
    """Where the web UI looks for VAEs, and beside its checkpoints."""
    return list(_folders())


def _folders() -> Iterator[Folder]:
    own: tuple[tuple[object, FolderKind], ...] = (
        (getattr(sd_vae, "vae_path", None), "vae"),
        (getattr(sd_models, "model_path", None), "checkpoint"),
    )
    yield from (Folder(Path(str(path)), kind) for path, kind in own if path)
    flags: tuple[tuple[str, FolderKind], ...] = (("vae_dir", "vae"), ("ckpt_dir", "checkpoint"))
    for flag, kind in flags:
        named = getattr(shared.cmd_opts, flag, None)
        if named and os.path.isdir(named):  # noqa: PTH112 - a string of the web UI's
            yield Folder(Path(named), kind)


def data_folder() -> Path:
    """Where this extension keeps what it remembers."""
    return Path(getattr(shared.cmd_opts, "vae_kit_dir", None) or Path(paths.data_path) / "vae-kit")


def tiny_folder() -> Path:
    """Where the web UI looks for tiny autoencoders."""
    return Path(paths.models_path) / "VAE-taesd"


def folder_for(known: KnownVae) -> Path:
    """Where a file belongs: tiny autoencoders where the web UI looks for them, others where the user keeps VAEs."""
    if known.kind == "tiny":
        return tiny_folder()
    named = getattr(shared.cmd_opts, "vae_dir", None)
    return Path(named) if named and Path(named).is_dir() else Path(sd_vae.vae_path)


def open_library() -> Library:
    """The web UI's VAE files."""
    return Library(folders(), data_folder() / "library.json")


def open_tiny_library() -> Library:
    """The web UI's tiny autoencoders."""
    return Library([Folder(tiny_folder())], data_folder() / "taesd.json")


def open_files(library: Library) -> HostFiles:
    """What this extension keeps."""
    checkpoints = tuple(folder.path for folder in folders() if folder.kind == "checkpoint")
    return open_kept_files(library, HostFolders(data_folder(), checkpoints, folder_for))
