"""`plan`: what encoding and decoding a picture of some size would take, and how it would be run; nothing is run."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from math import ceil

import torch

from sd_vae_kit.cli.command_result import CommandResult
from sd_vae_kit.cli.network_run import tiling_of
from sd_vae_kit.cli.vae_choice import best_device, open_library, read
from sd_vae_kit.core.dtypes import dtype_word, wanted_dtype
from sd_vae_kit.core.halves import Half
from sd_vae_kit.core.run.planning import graph_of, most_bands, planned
from sd_vae_kit.core.run.sentence import sentence, stepped_aside
from sd_vae_kit.core.vae import build, compute_dtype
from sd_vae_kit.errors import OptionError, StepAsideError
from sd_vae_kit.settings.sections import TilingSettings

LARGEST_SIDE = 65536


@dataclass(frozen=True)
class Wanted:
    """What a prediction is asked for.

    Attributes:
        size: (height, width) of the picture in pixels.
        dtype, device: What would be computed in, and where.
        tiling: When to run in bands, and in how much memory.
    """

    size: tuple[int, int]
    dtype: torch.dtype
    device: torch.device
    tiling: TilingSettings


def run(options: argparse.Namespace) -> CommandResult:
    """The prediction for the decoder, and beside it for the encoder."""
    tiling, size = tiling_of(options), (options.height, options.width)
    for name, side in zip(("--height", "--width"), size, strict=True):
        if not 1 <= side <= LARGEST_SIDE:
            raise OptionError(f"{name} is {side}; it is a number of pixels from 1 to {LARGEST_SIDE}.")
    _, weights = read(open_library(options), options.vae)
    device = best_device()
    dtype = wanted_dtype(options.dtype, device) or compute_dtype(weights.state)
    module = build(weights, dtype=dtype)
    cell = weights.detection.downscale
    cells = (ceil(size[0] / cell), ceil(size[1] / cell))
    wanted = Wanted(size, dtype, device, tiling)
    parts: dict[str, dict[str, object]] = {}
    halves: tuple[tuple[str, Half], ...] = (("decode", "decoder"), ("encode", "encoder"))
    for word, half in halves:
        if weights.detection.part in ("both", half):
            padded = cells if half == "decoder" else (cells[0] * cell, cells[1] * cell)
            channels = weights.detection.z_channels if half == "decoder" else 3
            parts[word] = _facts(module, half, (1, channels, *padded), wanted)
    first = next(iter(parts.values()))
    data = {"height": size[0], "width": size[1], "dtype": dtype_word(dtype), **first, **parts}
    lines = [f"{word}: {facts['sentence']}" for word, facts in parts.items()]
    return CommandResult(data, lines, [str(w) for f in parts.values() for w in f["warnings"]])  # type: ignore[attr-defined]


def _facts(module: torch.nn.Module, half: Half, shape: tuple[int, ...], wanted: Wanted) -> dict[str, object]:
    """One half's prediction.  A network that cannot be planned has no numbers, and says why."""
    try:
        graph = graph_of(module, half)
        choice = planned(graph, shape, wanted.dtype, wanted.device, wanted.tiling)
    except StepAsideError as error:
        said = str(stepped_aside(str(error)))
        return {"plan": "whole", "bands": 1, "predicted_mb": None, "sentence": said, "warnings": [said]}
    warnings = []
    if not choice.fits and wanted.tiling.enabled:
        warnings.append(f"nothing fits into {choice.budget_mb} MiB; the smallest plan would be run")
    return {
        "plan": choice.kind,
        "bands": most_bands(graph, choice.plan, shape),
        "predicted_mb": choice.predicted_mb,
        "whole_mb": choice.whole_mb,
        "free_mb": choice.free_mb,
        "budget_mb": choice.budget_mb,
        "fits": choice.fits,
        "reason": choice.reason,
        "sentence": str(sentence(wanted.size, choice, wanted.tiling)),
        "warnings": warnings,
    }
