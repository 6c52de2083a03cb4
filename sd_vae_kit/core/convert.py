"""The same VAE in another file: another layout of names, another precision, always safetensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sd_vae_kit.core.dtypes import COMPUTE_WORDS, DTYPES
from sd_vae_kit.core.files import key_names as layouts
from sd_vae_kit.core.networks.autoencoder import KlConfig
from sd_vae_kit.core.vae import VaeWeights
from sd_vae_kit.errors import OptionError

LAYOUTS = ("ldm", "diffusers")


def convert(
    weights: VaeWeights, layout: str | None = None, dtype: str | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights in another layout and precision, ready for `save`; the originals are only read.

    Args:
        weights: From `read_vae`.
        layout: "ldm" (for a TAESD: its published names) or "diffusers"; `None` keeps the file's.
        dtype: "fp16", "bf16" or "fp32"; `None` keeps each tensor's.

    Returns:
        Tensors by their new names, and the metadata of the new file: the old ones, the family if it is known, and
        `format`, without which diffusers refuses a file.

    Raises:
        OptionError: An unknown layout or precision, or weights beyond fp16's range.
    """
    detection = weights.detection
    is_diffusers = detection.layout in ("diffusers", "taesd-diffusers")
    wanted = layout or ("diffusers" if is_diffusers else "ldm")
    if wanted not in LAYOUTS:
        raise OptionError(f"there is no layout {layout!r}; use {' or '.join(LAYOUTS)}")
    state = _cast(weights.state, dtype)
    if wanted == "diffusers":
        config = detection.config
        levels = len(config.decoder.ch_mult) if isinstance(config, KlConfig) and config.decoder else 0
        renamed = layouts.to_diffusers(state, detection.kind, levels)
    else:
        renamed = layouts.to_original(state, detection.kind, detection.part)
    metadata = {**weights.metadata, "format": "pt"}
    if len(detection.families) == 1:
        metadata["family"] = detection.family
    return {name: tensor.contiguous() for name, tensor in renamed.items()}, metadata


def _cast(state: Mapping[str, Tensor], dtype: str | None) -> dict[str, Tensor]:
    if dtype is None:
        return dict(state)
    if dtype not in COMPUTE_WORDS:
        raise OptionError(f"there is no precision {dtype!r} to convert to; use {', '.join(COMPUTE_WORDS)}")
    cast = {name: tensor.to(DTYPES[dtype]) for name, tensor in state.items()}
    lost = [name for name, tensor in cast.items() if not bool(torch.isfinite(tensor).all())]
    if lost:
        raise OptionError(f"{lost[0]} holds numbers beyond {dtype}'s range (65504 in fp16); use bf16 or fp32")
    return cast
