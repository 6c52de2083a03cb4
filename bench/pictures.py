"""The error of the picture: demo VAEs on photographs, each way of running them beside the ordinary forward."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from bench.variants import CPU, plan_for
from sd_vae_kit.core.engine.stream import RunStats, run_streamed
from sd_vae_kit.core.files.key_names import to_diffusers
from sd_vae_kit.core.graph.from_module import LayerGraph, decoder_graph, encoder_graph
from sd_vae_kit.core.networks.autoencoder import AutoencoderKL, split_moments
from sd_vae_kit.core.vae import build, read_vae

DEMO = Path(__file__).parent.parent / "sd_vae_kit" / "standalone" / "demo"
VAES = ("demo_natural", "demo_vivid")
PHOTOGRAPHS = ("astronaut", "coffee")


@dataclass(frozen=True)
class PictureError:
    """How far one way of running a VAE is from its ordinary forward, encode and decode together.

    Attributes:
        largest, mean: |difference| in 8-bit levels, 0 to 255, the worst photograph.
        psnr: Against the ordinary forward's picture, in dB, the worst photograph; infinite if equal.
        bands: Of the last run; 0 where nothing of ours ran.
    """

    vae: str
    way: str
    pixels: int
    largest: float
    mean: float
    psnr: float
    bands: int


@torch.no_grad()
def picture_errors(pixels: int = 640) -> list[PictureError]:
    """Every demo VAE on photographs enlarged to `pixels` squared: larger than the tiles of diffusers, 512."""
    errors = []
    for name in VAES:
        vae = build(read_vae(DEMO / f"{name}.safetensors"), dtype=torch.float32)
        assert isinstance(vae, AutoencoderKL)
        images = [photograph(photo, pixels) for photo in PHOTOGRAPHS]
        expected = [vae.decode(split_moments(vae.encode(image))[0]) for image in images]
        for way, run in ways(vae, name).items():
            results = [run(image) for image in images]
            errors.append(_worst(name, way, pixels, [result for result, _ in results], expected, results[-1][1]))
    return errors


def ways(vae: AutoencoderKL, name: str) -> dict[str, Callable[[Tensor], tuple[Tensor, int]]]:
    """Each way of running the VAE there and back: image -> (picture, bands)."""
    found: dict[str, Callable[[Tensor], tuple[Tensor, int]]] = {
        kind: lambda image, kind=kind: _streamed(vae, image, kind) for kind in ("stream", "stream-lean")
    }
    found["diffusers tiling"] = _diffusers_tiling(name)
    return found


def _streamed(vae: AutoencoderKL, image: Tensor, kind: str) -> tuple[Tensor, int]:
    stats = RunStats()

    def run(graph: LayerGraph, x: Tensor) -> Tensor:
        return run_streamed(graph, x, plan_for(kind, graph, x.shape, x.dtype), stats=stats)

    moments = run(encoder_graph(vae), image)
    return run(decoder_graph(vae), split_moments(moments)[0]), stats.bands


def _diffusers_tiling(name: str) -> Callable[[Tensor], tuple[Tensor, int]]:
    import diffusers

    state = {key: value.float() for key, value in load_file(DEMO / f"{name}.safetensors").items()}
    names: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    }  # fmt: skip
    other: Any = diffusers.AutoencoderKL(
        block_out_channels=(64, 64, 64, 64), layers_per_block=1, sample_size=512, **names
    )
    other.load_state_dict(to_diffusers(state, "kl", 4))
    other.eval().enable_tiling()
    return lambda image: (other.decode(other.encode(image).latent_dist.mode()).sample, 0)


def photograph(name: str, pixels: int) -> Tensor:
    """The centre square of a demo photograph, (1, 3, pixels, pixels) in [-1, 1]."""
    with Image.open(DEMO / "photographs" / f"{name}.jpg") as picture:
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        square = picture.convert("RGB").crop((left, top, left + side, top + side))
        square = square.resize((pixels, pixels), Image.Resampling.BICUBIC)
    values = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8).view(pixels, pixels, 3)
    return values.permute(2, 0, 1)[None].to(CPU, torch.float32) / 127.5 - 1


def _worst(vae: str, way: str, pixels: int, results: list[Tensor], expected: list[Tensor], bands: int) -> PictureError:
    """Levels of 8 bits are 1/127.5 of a picture in [-1, 1], which is what people see."""
    differences = [
        (result.clamp(-1, 1) - other.clamp(-1, 1)).abs() * 127.5
        for result, other in zip(results, expected, strict=True)
    ]
    squares = max(float(difference.square().mean()) for difference in differences)
    psnr = math.inf if squares == 0 else 10 * math.log10(255**2 / squares)
    largest, mean = (max(float(f(d)) for d in differences) for f in (torch.max, torch.mean))
    return PictureError(vae, way, pixels, largest, mean, psnr, bands)
