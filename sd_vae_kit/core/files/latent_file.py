"""Latent files: safetensors with one tensor `latent`, scaled as the sampler sees it, and what decoding it needs."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sd_vae_kit.core.files.checkpoint import open_checkpoint
from sd_vae_kit.core.files.safetensors_file import save
from sd_vae_kit.core.networks.latent_format import LatentFormat
from sd_vae_kit.errors import LatentFileError, VaeKitError

NAME = "latent"
MAX_SIDE = 4096  # cells: twice the largest picture; beyond it a file is nonsense


@dataclass(frozen=True, eq=False)
class LatentFile:
    """A latent and where it comes from; a file of another program may lack everything but the tensor.

    Attributes:
        latent: (B, z_channels, h, w), fp32.
        family: Latent space, such as "sd1"; "" if the file does not say.
        scale_factor, shift_factor: How it was scaled from `z`; `None` if the file does not say.
        size: True (height, width) of the picture in pixels, which may end within the last cell; `None` if unknown.
        vae_sha256: Of the VAE file that encoded it; "" if unknown.
    """

    latent: Tensor
    family: str = ""
    scale_factor: float | None = None
    shift_factor: float | None = None
    size: tuple[int, int] | None = None
    vae_sha256: str = ""

    @classmethod
    def of(cls, latent: Tensor, latent_format: LatentFormat, size: tuple[int, int], vae_sha256: str) -> LatentFile:
        """The file for a latent that a VAE with this format has just made."""
        return cls(latent, latent_format.name, latent_format.scale_factor, latent_format.shift_factor, size, vae_sha256)

    @property
    def metadata(self) -> dict[str, str]:
        """What is written beside the tensor; safetensors holds strings only."""
        values = {
            "family": self.family,
            "scale_factor": self.scale_factor,
            "shift_factor": self.shift_factor,
            "height": self.size[0] if self.size else None,
            "width": self.size[1] if self.size else None,
            "vae_sha256": self.vae_sha256,
        }
        return {name: str(value) for name, value in values.items() if value not in (None, "")}


def write_latent(path: str | os.PathLike[str], file: LatentFile) -> None:
    """Write a latent file; it appears complete or not at all.

    Raises:
        VaeKitError: It cannot be written.
    """
    save(path, {NAME: file.latent.contiguous()}, file.metadata)


def read_latent(path: str | os.PathLike[str]) -> LatentFile:
    """Read a latent file.

    Raises:
        LatentFileError: Not there, not safetensors, no usable `latent`, or metadata that contradict it.
    """
    name = Path(path).name
    if not Path(path).exists():
        raise LatentFileError(f"There is no file {os.fspath(path)}; name a latent file, as encode writes it.")
    try:
        with open_checkpoint(path) as checkpoint:
            header = checkpoint.header
            if NAME not in header.tensors:
                held = ", ".join(sorted(header.tensors)[:3]) or "nothing"
                raise LatentFileError(f"{name} is no latent file: it holds {held:.100}, but no tensor named {NAME}.")
            latent = checkpoint.read([NAME])[NAME]
    except LatentFileError:
        raise
    except VaeKitError as error:
        raise LatentFileError(f"{error}") from error
    return check_latent(latent, header.metadata, name)


def check_latent(latent: Tensor, metadata: Mapping[str, str], name: str) -> LatentFile:
    """A latent and its metadata, from whichever container, as values that can be relied on.

    Raises:
        LatentFileError: The tensor cannot be a latent, or the metadata are not numbers or contradict it.
    """
    shape = tuple(latent.shape)
    if latent.dim() != 4 or min(shape) < 1 or max(shape[2:]) > MAX_SIDE or not latent.is_floating_point():
        dtype = str(latent.dtype).removeprefix("torch.")
        raise LatentFileError(f"{name}: the latent is {dtype} {shape}; floating-point (B, channels, h, w) is needed.")
    latent = latent.to(torch.float32)
    if bad := int((~torch.isfinite(latent)).sum()):
        raise LatentFileError(f"{name}: {bad} of the latent's {latent.numel()} values are NaN or infinite.")
    scale, shift = (_number(metadata, key, name) for key in ("scale_factor", "shift_factor"))
    height, width = (_number(metadata, key, name) for key in ("height", "width"))
    if scale == 0:
        raise LatentFileError(f"{name}: its metadata say scale_factor 0.")
    return LatentFile(
        latent,
        metadata.get("family", ""),
        scale,
        shift,
        (int(height), int(width)) if height and width else None,
        metadata.get("vae_sha256", ""),
    )


def _number(metadata: Mapping[str, str], key: str, name: str) -> float | None:
    if key not in metadata:
        return None
    try:
        value = float(metadata[key])
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or (key in ("height", "width") and (value < 1 or value != int(value))):
        raise LatentFileError(f"{name}: its metadata say {key} {metadata[key]!r:.40}, which is not usable.")
    return value
