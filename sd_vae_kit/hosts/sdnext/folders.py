"""Where SD.Next keeps files, and the files that this extension keeps beside them."""

from __future__ import annotations

from pathlib import Path

from modules import paths, shared

from sd_vae_kit.hosts.kept_files import open_kept_files
from sd_vae_kit.hosts.parts import HostFiles, HostFolders
from sd_vae_kit.vaes.catalogue import KnownVae
from sd_vae_kit.vaes.library import Library
from sd_vae_kit.vaes.model_folders import Folder


def data_folder() -> Path:
    """Where this extension keeps what it remembers."""
    return Path(getattr(shared.cmd_opts, "vae_kit_dir", None) or Path(paths.data_path) / "vae-kit")


def folder_for(known: KnownVae) -> Path:
    """Where a file belongs: tiny autoencoders where the web UI looks for them, others among its VAEs."""
    return Path(paths.models_path) / "TAESD" if known.kind == "tiny" else Path(shared.opts.vae_dir)


def open_library() -> Library:
    """The web UI's VAE files."""
    folders = [Folder(Path(shared.opts.vae_dir), "vae"), Folder(Path(shared.opts.ckpt_dir), "checkpoint")]
    return Library(folders, data_folder() / "library.json")


def open_files(library: Library) -> HostFiles:
    """What this extension keeps."""
    return open_kept_files(library, HostFolders(data_folder(), (Path(shared.opts.ckpt_dir),), folder_for))
