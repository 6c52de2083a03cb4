"""`convert`: the same VAE in another layout or precision."""

from __future__ import annotations

import argparse

from sd_vae_kit.cli.outcome import Outcome
from sd_vae_kit.cli.targets import check_safetensors_target
from sd_vae_kit.cli.vae_choice import choose, open_library
from sd_vae_kit.core.convert import convert, save


def run(options: argparse.Namespace) -> Outcome:
    """Write OUT and report what is in it; the VAE inside a full checkpoint becomes a file of its own."""
    target = check_safetensors_target(options.output, options.vae)
    library = open_library(options)
    chosen = choose(library, options.vae, quiet=options.json)
    tensors, metadata = convert(chosen.weights, options.layout, options.dtype)
    save(target, tensors, metadata)
    written = choose(library, str(target), quiet=options.json)  # read back: what is reported is what is there
    detection = written.weights.detection
    data: dict[str, object] = {
        "path": str(target),
        "layout": detection.layout,
        "dtype": written.weights.dtype,
        "tensors": len(tensors),
        "sha256": written.sha256,
        "source_sha256": chosen.sha256,
        "warnings": list(detection.warnings),
    }
    line = (
        f"{target}: {detection.layout}, {written.weights.dtype}, {len(tensors)} tensors, sha256 {written.sha256[:10]}"
    )
    return Outcome(data, [line], detection.warnings)
