"""`inspect`: what a file is."""

from __future__ import annotations

import argparse
from pathlib import Path

from sd_vae_kit.cli.command_result import CommandResult
from sd_vae_kit.cli.vae_choice import hashing_bar, listed_entry, open_inspector


def run(options: argparse.Namespace) -> CommandResult:
    """Facts of one file; the scale of an undecided family is the first one's, with a warning."""
    inspector = open_inspector(options)
    if Path(options.vae).exists():
        found = inspector.inspect_path(options.vae, hashing_bar(Path(options.vae), quiet=options.json))
    else:
        entry = listed_entry(inspector.library, options.vae)
        found = inspector.inspect(entry, on_progress=hashing_bar(entry.path, quiet=options.json))
    data: dict[str, object] = {
        "path": str(found.path),
        "layout": found.layout,
        "kind": found.kind,
        "part": found.part,
        "family": found.family,
        "family_known_by": found.family_known_by,
        "known_as": found.known_as,
        "z_channels": found.z_channels,
        "scale_factor": found.scale_factor,
        "shift_factor": found.shift_factor,
        "parameters": found.parameters,
        "dtype": found.dtype,
        "sha256": found.sha256,
        "fingerprint": found.fingerprint,
        "warnings": list(found.warnings),
    }
    shown = {
        **data,
        "family": f"{found.family} ({found.finding.label})" if found.family else "unknown",
        "known_by": found.finding.sentence,
        "parameters": ", ".join(f"{name} {count:,}" for name, count in found.parameters.items()),
    }
    for name in ("warnings", "known_as", "family_known_by"):
        del shown[name]
    return CommandResult(data, [f"{name:<13} {value}" for name, value in shown.items()], found.warnings)
