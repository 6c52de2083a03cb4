"""What a file of weights was found to be, from the names and shapes of its tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sd_vae_kit.core.halves import Part
from sd_vae_kit.core.networks.autoencoder import KlConfig, NetConfig
from sd_vae_kit.core.networks.taesd import TinyConfig

Kind = Literal["kl", "tiny"]
LayoutName = Literal["ldm", "diffusers", "taesd", "taesd-diffusers"]
Shape = tuple[int, ...]

FamilyKnownBy = Literal["hash", "weights", "metadata", "checkpoint", "behaviour", "channels", "undecided"]
"""What told whose VAE a file is.

"hash": the catalogue has the file's hash.  "weights": they are those of a known VAE.  "metadata": the file says so.
"checkpoint": the other tensors of the checkpoint it lies in say so.  "behaviour": it was tried on a small picture.
"channels": only one family has its shape.  "undecided": several or none have, and nothing told which.
"""


@dataclass(frozen=True)
class Detection:
    """What a file is.

    Attributes:
        kind: "kl" for AutoencoderKL, "tiny" for TAESD.
        part: Which halves it has.
        layout: How its names are spelled.
        config: Hyper-parameters, enough to build the module.
        names: Canonical name -> name in the file, of every tensor that belongs to the VAE.
        families: Latent spaces it may belong to, the likeliest first; empty if no known one has its channels.
        family_known_by: How: "metadata", "checkpoint", "channels" or "undecided"; the rest is not in a header.
        warnings: Sentences for the user about what is unusual.
    """

    kind: Kind
    part: Part
    layout: LayoutName
    config: KlConfig | TinyConfig
    names: dict[str, str]
    families: tuple[str, ...]
    family_known_by: FamilyKnownBy
    warnings: tuple[str, ...] = ()

    @property
    def z_channels(self) -> int:
        """Latent channels."""
        return half_of(self.config).z_channels

    @property
    def downscale(self) -> int:
        """Pixels per latent cell along each side."""
        return half_of(self.config).downscale

    @property
    def family(self) -> str:
        """The families in one string, "sd1|sdxl"."""
        return "|".join(self.families)


def half_of(config: KlConfig | TinyConfig) -> NetConfig | TinyConfig:
    """The half that tells the latent's shape; a KL autoencoder's halves agree on it."""
    if isinstance(config, TinyConfig):
        return config
    net = config.encoder or config.decoder
    assert net is not None  # `kl_config` reads at least one
    return net
