"""Which latent spaces a file may belong to, by its header alone, and how that is known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sd_vae_kit.core.files.detection import FamilyKnownBy, Shape, half_of
from sd_vae_kit.core.files.header import TensorInfo
from sd_vae_kit.core.files.layouts import KeyCondition
from sd_vae_kit.core.networks.autoencoder import KlConfig
from sd_vae_kit.core.networks.latent_format import FORMATS, split_family
from sd_vae_kit.core.networks.taesd import TinyConfig

# The names of a whole checkpoint tell the family of the VAE baked into it; the first condition that is met decides.
CHECKPOINTS = (
    ("sdxl", KeyCondition((r"conditioner\.embedders\.",))),
    ("sd1", KeyCondition((r"cond_stage_model\.",))),
    ("sd3", KeyCondition((r"(?:model\.diffusion_model\.)?joint_blocks\.",))),
    ("flux", KeyCondition((r"(?:model\.diffusion_model\.)?double_blocks\.",))),
    ("sdxl", KeyCondition((r"model\.diffusion_model\.label_emb\.",))),
    ("sd1", KeyCondition((r"model\.diffusion_model\.input_blocks\.",))),
)


def fitting_families(z_channels: int, downscale: int = 8) -> tuple[str, ...]:
    """Families whose latents have that many channels and cells of that many pixels.

    Any number but 32 is taken as 8: every family with smaller cells has those, and a VAE with fewer levels can be tried
    on their latents.
    """
    cell = 32 if downscale == 32 else 8
    return tuple(f.name for f in FORMATS.values() if f.z_channels == z_channels and f.downscale == cell)


def families_of_header(
    config: KlConfig | TinyConfig, tensors: Mapping[str, TensorInfo], stated: str
) -> tuple[tuple[str, ...], FamilyKnownBy, list[str]]:
    """Latent spaces that fit, how that is known, and what is wrong with what the file says.

    Args:
        config: Hyper-parameters.
        tensors: All of the file, those outside of the VAE too.
        stated: `family` of the file's metadata, "" if there is none.
    """
    net = half_of(config)
    fitting = fitting_families(net.z_channels, net.downscale)
    named = split_family(stated)
    fits = set(named) <= set(fitting)
    warnings = [] if fits else [f"its metadata say family {stated!r}, which does not fit; ignored"]
    if len(fitting) == 1:
        return fitting, "channels", warnings
    if named and fits:
        return named, "metadata" if len(named) == 1 else "undecided", warnings
    baked = next((family for family, condition in CHECKPOINTS if family in fitting and condition.match(tensors)), None)
    if baked:
        return (baked,), "checkpoint", warnings
    return fitting, "undecided", warnings


def unusual_traits(config: KlConfig | TinyConfig, shapes: Mapping[str, Shape]) -> Iterator[str]:
    """Sentences about what VAEs of the fitting families do not have, or lack."""
    net = half_of(config)
    fitting = fitting_families(net.z_channels, net.downscale)
    if not fitting:
        yield f"no known model family has {net.z_channels} latent channels; latents are left unscaled"
    if net.downscale not in {8, *(FORMATS[name].downscale for name in fitting)}:
        yield f"a latent cell covers {net.downscale} x {net.downscale} pixels; Stable Diffusion's cover 8 x 8"
    if isinstance(config, KlConfig):
        yield from _unusual_layers(config, shapes, fitting)


def _unusual_layers(config: KlConfig, shapes: Mapping[str, Shape], fitting: tuple[str, ...]) -> Iterator[str]:
    if "sd3" in fitting and (config.quant_conv or config.post_quant_conv):
        yield "SD 3's and FLUX.1's VAEs have no quant_conv, this one has; its family is a guess"
    lacks = (config.encoder and not config.quant_conv) or (config.decoder and not config.post_quant_conv)
    if "sd1" in fitting and lacks:
        yield "quant_conv or post_quant_conv of SD's and SDXL's VAEs is missing; its family is a guess"
    if "flux2" in fitting and not any(name.startswith("bn.") for name in shapes):
        yield "FLUX.2's latent statistics (bn) are missing; its family is a guess"
