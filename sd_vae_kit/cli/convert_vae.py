"""`convert`: the same VAE in another layout or precision."""

from __future__ import annotations

import argparse
from pathlib import Path

from torch import Tensor
from torch.nn import functional as F

from sd_vae_kit.cli.command_result import CommandResult
from sd_vae_kit.cli.targets import check_safetensors_target
from sd_vae_kit.cli.vae_choice import hashing_bar, open_library, read
from sd_vae_kit.core.convert import convert
from sd_vae_kit.core.files.safetensors_file import save
from sd_vae_kit.core.fp16_safe import Safe, make_fp16_safe
from sd_vae_kit.core.vae import VaeWeights
from sd_vae_kit.errors import OptionError
from sd_vae_kit.pictures.picture_file import open_picture, to_image
from sd_vae_kit.standalone import demo

SAMPLE_SIDE = 256  # pixels: how large values become does not depend on the size


def run(options: argparse.Namespace) -> CommandResult:
    """Write OUT and report what is in it; the VAE inside a full checkpoint becomes a file of its own."""
    target = check_safetensors_target(options.output, options.vae)
    library = open_library(options)
    entry, weights = read(library, options.vae)
    source_sha256 = library.sha256(entry, hashing_bar(entry.path, quiet=options.json))
    safe = None
    if options.fp16_safe:
        safe = _made_safe(weights, options.dtype, label=Path(options.vae).name)
        weights = safe.weights
    tensors, metadata = convert(weights, options.layout, options.dtype)
    save(target, tensors, metadata)
    entry, written = library.read(target)  # read back: what is reported is what is there
    sha256 = library.sha256(entry, hashing_bar(entry.path, quiet=options.json))
    detection = written.detection
    data: dict[str, object] = {
        "path": str(target),
        "layout": detection.layout,
        "dtype": written.dtype,
        "tensors": len(tensors),
        "sha256": sha256,
        "source_sha256": source_sha256,
        "warnings": list(detection.warnings),
    }
    line = f"{target}: {detection.layout}, {written.dtype}, {len(tensors)} tensors, sha256 {sha256[:10]}"
    lines = [line]
    if safe is not None:
        data |= {"folded": safe.folded, "largest_value": safe.largest_after, "fp16_error": safe.error}
        lines.append(_said(safe))
    return CommandResult(data, lines, detection.warnings)


def _made_safe(weights: VaeWeights, dtype: str | None, *, label: str) -> Safe:
    """Fold powers of two into the weights and prove on photographs that half precision is enough.

    Raises:
        OptionError: Another precision was asked for at the same time.
        NanError, VaeMismatchError: It cannot be done.
    """
    if dtype not in (None, "fp16"):
        raise OptionError(f"--fp16-safe writes fp16; leave out --dtype {dtype}.")
    return make_fp16_safe(weights, sample_images(), label=label)


def sample_images() -> list[Tensor]:
    """The demo's photographs, (1, 3, 256, 256) each, in [-1, 1]."""
    files = sorted(demo.PHOTOGRAPHS.glob("*.jpg"))
    images = (to_image(open_picture(path)) for path in files)
    size = (SAMPLE_SIDE, SAMPLE_SIDE)
    return [F.interpolate(image, size, mode="bilinear", antialias=True).clamp(-1.0, 1.0) for image in images]


def _said(safe: Safe) -> str:
    what = f"{len(safe.folded)} factors folded in" if safe.folded else "it was safe already, no weight was changed"
    return (
        f"{what}; on {len(list(demo.PHOTOGRAPHS.glob('*.jpg')))} photographs the largest value inside is "
        f"{safe.largest_after:.0f} (fp16 ends at 65504), the result off by {safe.error:.4f} (RMS in [-1, 1])"
    )
