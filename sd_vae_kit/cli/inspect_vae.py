"""`inspect`: what a file is."""

from __future__ import annotations

import argparse

from sd_vae_kit.cli.command_result import CommandResult
from sd_vae_kit.cli.vae_choice import choose, open_library
from sd_vae_kit.core.files.completeness import parameter_counts
from sd_vae_kit.core.files.identity import fingerprint
from sd_vae_kit.core.networks.latent_format import FORMATS, family_label
from sd_vae_kit.core.vae import choose_format


def run(options: argparse.Namespace) -> CommandResult:
    """Facts of one file; the scale of an undecided family is the first one's, with a warning."""
    chosen = choose(open_library(options), options.vae, quiet=options.json)
    detection = chosen.weights.detection
    decided = chosen.family if chosen.family in FORMATS else None
    latent_format, warning = choose_format(detection, decided, label=chosen.entry.name)
    counts = parameter_counts(detection)
    warnings = [*detection.warnings, *([warning] if warning else [])]
    data: dict[str, object] = {
        "path": str(chosen.entry.path),
        "layout": detection.layout,
        "kind": detection.kind,
        "part": detection.part,
        "family": chosen.family,
        "z_channels": detection.z_channels,
        "scale_factor": latent_format.scale_factor,
        "shift_factor": latent_format.shift_factor,
        "parameters": counts,
        "dtype": chosen.weights.dtype,
        "sha256": chosen.sha256,
        "fingerprint": fingerprint(chosen.weights.state),
        "warnings": warnings,
    }
    shown = {
        **data,
        "family": f"{chosen.family} ({family_label(chosen.family)})" if chosen.family else "unknown",
        "parameters": ", ".join(f"{name} {count:,}" for name, count in counts.items()),
    }
    del shown["warnings"]
    return CommandResult(data, [f"{name:<13} {value}" for name, value in shown.items()], warnings)
