"""A VAE file made ready to use, in the latent space that it was found to belong to."""

from __future__ import annotations

import os

import torch

from sd_vae_kit.core.dtypes import COMPUTE_WORDS, wanted_dtype
from sd_vae_kit.core.vae import Vae, make_vae
from sd_vae_kit.errors import OptionError
from sd_vae_kit.vaes.family_finder import FamilyFinder
from sd_vae_kit.vaes.library import Library


def load_vae(
    path: str | os.PathLike[str],
    *,
    family: str | None = None,
    dtype: str = "auto",
    device: str | torch.device | None = None,
) -> Vae:
    """Read a file and make it ready to encode and decode.

    Args:
        path: A VAE or a checkpoint with one inside, in any layout that `inspect` names.
        family: Latent space: "sd1", "sdxl", "sd3", "flux", "flux2" or "sana".  `None` finds it out as `inspect` does;
            where that stays undecided, the first one that fits is taken, and `Vae.warnings` says so.
        dtype: What it computes in: "fp32", "fp16", "bf16", or "auto": fp32 on a CPU, elsewhere as the file is stored.
        device: Where it runs; `None` takes CUDA where there is one, else the CPU.

    Raises:
        OptionError: The family is unknown or does not fit, or there is no such dtype.
        VaeKitError: The file cannot be used; the message says what it is instead, or what is wrong with it.
    """
    if dtype not in ("auto", *COMPUTE_WORDS):
        raise OptionError(f"there is no precision {dtype!r}; use auto, {', '.join(COMPUTE_WORDS)}")
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    library = Library([], None)
    entry, weights = library.read(path)
    if family is None:
        family = FamilyFinder(library, None).find(entry, weights=weights).to_run_as
    vae = make_vae(weights, family=family, dtype=wanted_dtype(dtype, place), label=entry.name)
    vae.module.to(place)
    return vae
