"""The VAEs that come with the demo checkpoint, and how others are loaded for its latent space."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from sd_vae_kit.core.run.runner import Runner
from sd_vae_kit.core.vae import Vae, load_vae, make_vae
from sd_vae_kit.standalone.demo_model import FAMILY
from sd_vae_kit.standalone.folders import TINY_DECODER, Folders
from sd_vae_kit.vaes.entry import Entry
from sd_vae_kit.vaes.library import Library


@dataclass(frozen=True)
class DemoVaes:
    """The demo checkpoint's VAEs, in memory.

    Attributes:
        own: The VAE that the demo model encodes its photographs with; it is never exchanged.
        tiny_decoder: A TAESD that decodes previews where none is installed.
    """

    own: Vae
    tiny_decoder: Vae

    @classmethod
    def load(cls, folders: Folders, runner: Runner) -> DemoVaes:
        """Both, on the app's device, run by `runner`."""
        paths = (folders.own_vae_file, folders.demo / TINY_DECODER)
        loaded = (load_vae(path, family=FAMILY.name, dtype=torch.float32, runner=runner) for path in paths)
        return cls(*map(on_device, loaded))


def device() -> torch.device:
    """Where VAEs run: the first CUDA device if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def on_device(vae: Vae) -> Vae:
    """The same VAE, moved to where VAEs run."""
    vae.module.to(device())
    return vae


def load_from(library: Library, entry: Entry, runner: Runner) -> Vae:
    """A file of the library, beside the live VAE."""
    weights = library.load(entry)
    return on_device(make_vae(weights, family=FAMILY.name, dtype=torch.float32, label=entry.name, runner=runner))


def as_vae(module: nn.Module, label: str, runner: Runner) -> Vae:
    """A live module as something that encodes and decodes the loaded model's latents."""
    halves = [half for half in ("encoder", "decoder") if hasattr(module, half)]
    part = "both" if len(halves) == 2 else halves[0]
    return Vae(module, FAMILY, part=part, label=label, runner=runner)  # type: ignore[arg-type]
