"""Which of two latent spaces of equal shape a VAE belongs to, by what it does.

SD 1/2 and SDXL have the same tensors, and so do SD 3 and FLUX.1.  family_probe.safetensors holds one small picture and
its latents in each of those four spaces, made with the TAESD encoders (tools/make_family_probe.py).  A decoder gets
the latents of both families: with its own it gives the picture back, with the other's a picture in wrong colours.  An
encoder's latent of the picture is compared with both.  So no TAESD file is needed when a VAE is tried.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from sd_vae_kit.core.files.checkpoint import read_tensors
from sd_vae_kit.core.halves import Half
from sd_vae_kit.core.networks.autoencoder import AutoencoderKL, split_moments
from sd_vae_kit.core.networks.latent_format import FORMATS
from sd_vae_kit.core.networks.taesd import TinyAutoencoder
from sd_vae_kit.core.vae import VaeWeights, build

PROBE = Path(__file__).with_name("family_probe.safetensors")
TWINS = (("sd1", "sdxl"), ("sd3", "flux"))

# Measured (docs/family-guard.md): real VAEs are 10.8 dB apart and more, random weights 2 dB at most.
MARGIN = 4.0  # dB between the best family and the next
# Best score a decision needs: a decoder's PSNR against the picture (real ones 17 dB and more even with strong contrast,
# random ones 11 at most), an encoder's signal-to-noise ratio (own family 10, foreign and random below 1).
FLOORS = {"decoder": 13.0, "encoder": 2.5}
CEILING = 60.0  # dB; better is the same
# What a decoder is tried on: (top, bottom, left, right) in latent cells, the middle half of the picture.  Decoding is
# most of the work; margins lose under 3 dB and stay above 10.
DECODED = (1, 7, 2, 10)


@dataclass(frozen=True)
class Behaviour:
    """What came of the test.

    Attributes:
        family: "" where it is undecided.
        scores: dB for each family tried; empty if none has the VAE's shape or only one has.
        half: Which half was tested.
    """

    family: str
    scores: dict[str, float]
    half: Half | Literal[""]

    @property
    def margin(self) -> float:
        """How far the best family is ahead, dB."""
        ordered = sorted(self.scores.values(), reverse=True)
        return ordered[0] - ordered[1] if len(ordered) > 1 else 0.0


@dataclass(frozen=True)
class Probe:
    """The built-in picture (1, 3, 64, 96) in [-1, 1], and its latents as the sampler sees them, by family."""

    image: Tensor
    latents: dict[str, Tensor]


@functools.cache
def probe() -> Probe:
    """The test picture, in fp32 on the CPU."""
    families = [name for pair in TWINS for name in pair]
    tensors = read_tensors(PROBE, ["pixels", *families])
    image = tensors["pixels"].float() / 127.5 - 1
    return Probe(image, {family: tensors[family].float() for family in families})


def twins_of(weights: VaeWeights) -> tuple[str, ...]:
    """Families that have a VAE of this shape and that the test can tell apart; () if there is nothing to tell."""
    detection = weights.detection
    if detection.downscale != 8:
        return ()
    return next((pair for pair in TWINS if FORMATS[pair[0]].z_channels == detection.z_channels), ())


def tell_family(weights: VaeWeights) -> Behaviour:
    """Try a VAE on the built-in picture.

    A decoder is tried first, since it makes the picture; the encoder only where there is no decoder or it says nothing.

    Args:
        weights: Of either kind, any precision, with one half or both; computed in fp32 on the CPU.
    """
    families = twins_of(weights)
    if not families:
        return Behaviour("", {}, "")
    module = build(weights, dtype=torch.float32)
    result = Behaviour("", {}, "")
    with torch.inference_mode():
        if weights.detection.part != "encoder":
            result = _judge("decoder", {family: _try_decoder(module, family) for family in families})
        if not result.family and weights.detection.part != "decoder":
            encoded = _judge("encoder", _try_encoder(module, families))
            result = encoded if encoded.family or not result.scores else result
    return result


def _judge(half: Half, scores: dict[str, float]) -> Behaviour:
    best = max(scores, key=lambda family: scores[family])
    found = Behaviour(best, scores, half)
    certain = scores[best] >= FLOORS[half] and found.margin >= MARGIN
    return found if certain else Behaviour("", scores, half)


def _try_decoder(module: AutoencoderKL | TinyAutoencoder, family: str) -> float:
    """PSNR in dB between the picture and what is decoded from the family's latent of it."""
    top, bottom, left, right = DECODED
    latent = probe().latents[family][:, :, top:bottom, left:right]
    expected = probe().image[:, :, 8 * top : 8 * bottom, 8 * left : 8 * right]
    if isinstance(module, TinyAutoencoder):
        image = module.decode(latent) * 2 - 1
    else:
        image = module.decode(FORMATS[family].to_z(latent))
    error = (image.clamp(-1.0, 1.0) - expected).square().mean()
    return _decibels(4.0, error)


def _try_encoder(module: AutoencoderKL | TinyAutoencoder, families: tuple[str, ...]) -> dict[str, float]:
    """For each family, the signal-to-noise ratio in dB between the encoder's latent and the family's."""
    image = probe().image
    z = (
        module.encode(image * 0.5 + 0.5)
        if isinstance(module, TinyAutoencoder)
        else split_moments(module.encode(image))[0]
    )
    scores = {}
    for family in families:
        expected = probe().latents[family]
        latent = z if isinstance(module, TinyAutoencoder) else FORMATS[family].to_latent(z)
        scores[family] = _decibels(float(expected.square().mean()), (latent - expected).square().mean())
    return scores


def _decibels(signal: float, error: Tensor) -> float:
    value = float(error)
    if not math.isfinite(value):
        return -CEILING
    return min(CEILING, 10 * math.log10(signal / max(value, 1e-12)))
