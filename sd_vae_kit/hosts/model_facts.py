"""What a loaded model says of itself: precision, family, whether it has a VAE at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from sd_vae_kit.core.files.checkpoint import read_header
from sd_vae_kit.core.networks.latent_format import FORMATS, LatentFormat
from sd_vae_kit.errors import VaeKitError

VAE_PREFIXES = ("first_stage_model.", "vae.")  # of a checkpoint's tensors, below wrappers that reading takes off


def precision_of(module: nn.Module) -> str:
    """Short name of the dtype a module computes in, such as "fp32"."""
    parameter = next(module.parameters(), None)
    name = str(parameter.dtype).removeprefix("torch.") if parameter is not None else ""
    return {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}.get(name, name)


def is_blank(module: nn.Module) -> bool:
    """Whether a VAE has no weights: the checkpoint held none, and the program filled the module with zeros.

    A1111 does so with convolutions and linear layers; norms it makes with ones (sd_disable_initialization.py:171).
    """
    layers = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    return bool(layers) and not any(bool(layer.weight.any()) for layer in layers)


def holds_no_vae(checkpoint: Path) -> bool:
    """Whether a checkpoint's file is without a VAE; False where its names cannot be read.

    The module alone does not tell: put into a model that is there already, such a checkpoint leaves the one before's
    VAE in place (sd_models.py:958), and with --disable-model-loading-ram-optimization the module is random.
    """
    try:
        names = read_header(checkpoint).tensors
    except VaeKitError:
        return False
    return not any(name.startswith(VAE_PREFIXES) for name in names)


def latent_format_of(flags: Mapping[str, bool], scale_factor: object = None) -> LatentFormat:
    """The family a model's own flags speak of: `is_sd3`, `is_sdxl`; else by its scale factor, else SD 1.x / 2.x."""
    for flag, family in (("is_sd3", "sd3"), ("is_sdxl", "sdxl")):
        if flags.get(flag):
            return FORMATS[family]
    same = [f for f in FORMATS.values() if f.z_channels == 4 and f.scale_factor == scale_factor]
    return same[0] if same else FORMATS["sd1"]
