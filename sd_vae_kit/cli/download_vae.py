"""`download`: a known VAE, verified, or the list of what is known."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import platformdirs
from tqdm import tqdm

from sd_vae_kit.cli.command_result import CommandResult
from sd_vae_kit.core.networks.latent_format import FORMATS
from sd_vae_kit.download import DownloadProgress
from sd_vae_kit.errors import OptionError
from sd_vae_kit.settings.store import SettingsStore
from sd_vae_kit.state.file_hash import file_sha256
from sd_vae_kit.vaes.catalogue import Catalogue, KnownVae, with_own_entries
from sd_vae_kit.vaes.install import install


def run(options: argparse.Namespace) -> CommandResult:
    """Fetch one entry, or list them.

    Raises:
        OptionError: Options that contradict each other, or a folder that does not exist.
        VaeKitError: The name is unknown, or the download failed.
    """
    data = Path(options.data_dir or platformdirs.user_data_dir("vae-kit", appauthor=False)).expanduser()
    known = with_own_entries(data / "catalogue.json")
    if options.list:
        if options.name or options.dir or options.accept:
            raise OptionError("--list takes no NAME, --dir or --accept; leave them out.")
        return _listed(known, options.family)
    if not options.name:
        raise OptionError("Name what to download, or add --list to see what is known.")
    if options.family:
        raise OptionError("--family belongs to --list; leave it out.")
    if options.dir and not Path(options.dir).is_dir():
        raise OptionError(f"The folder {options.dir} does not exist; make it or choose another.")
    folder = Path(options.dir) if options.dir else data / "models" / "VAE"
    return _fetched(known.find(options.name), folder, data, options)


def _fetched(known: KnownVae, folder: Path, data: Path, options: argparse.Namespace) -> CommandResult:
    settings = SettingsStore(data / "settings.json").settings.download
    started = time.perf_counter()
    with tqdm(unit="B", unit_scale=True, desc=known.file, total=known.size, disable=options.json or None) as bar:

        def show(progress: DownloadProgress) -> None:
            bar.total = progress.total
            bar.update(progress.done - bar.n)

        path = install(known, folder, settings, accepted=options.accept, on_progress=show)
    digits = known.sha256 or file_sha256(path)
    outcome: dict[str, object] = {
        "name": known.name,
        "path": str(path),
        "family": known.family,
        "size": path.stat().st_size,
        "sha256": digits,
        "verified": known.sha256 is not None,
        "licence": known.licence,
        "seconds": round(time.perf_counter() - started, 3),
        "warnings": list(known.cautions),
    }
    lines = [f"{name:<9} {value}" for name, value in outcome.items() if name != "warnings"]
    return CommandResult(outcome, lines, known.cautions)


def _listed(known: Catalogue, family: str | None) -> CommandResult:
    if family is not None and family not in FORMATS:
        raise OptionError(f"There is no family {family!r}; use one of {', '.join(FORMATS)}.")
    entries = [entry for entry in known.entries if family in (None, entry.family)]
    return CommandResult({"entries": [_facts(entry) for entry in entries]}, [_line(entry) for entry in entries])


def _facts(entry: KnownVae) -> dict[str, object]:
    return {
        "name": entry.name,
        "file": entry.file,
        "family": entry.family,
        "kind": entry.kind,
        "part": entry.part,
        "size": entry.size,
        "sha256": entry.sha256,
        "licence": entry.licence,
        "fp16_safe": entry.fp16_safe,
        "note": entry.note,
        "can_install": entry.can_install,
        "cautions": list(entry.cautions),
    }


def _line(entry: KnownVae) -> str:
    """One line for people: what it is, whether it can be fetched, what it is good for."""
    mark = "!" if entry.can_install and entry.cautions else "+" if entry.can_install else " "
    size = f"{entry.size / 1e6:,.0f} MB" if entry.size else ""
    return f"{mark} {entry.family:<6} {entry.name:<46} {size:>8}  {entry.note}"
