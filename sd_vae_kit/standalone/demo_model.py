"""The demo checkpoint: a diffusion model that needs no weights, because all it knows is a few photographs.

Its denoiser is the closed form in standalone/gaussian_mixture.py; here the photographs become latents of the size that
is asked for, with the checkpoint's own VAE, and are kept: encoding them takes seconds, a denoising step milliseconds.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from sd_vae_kit.core.files.safetensors_file import save
from sd_vae_kit.core.networks.latent_format import FORMATS
from sd_vae_kit.errors import VaeKitError
from sd_vae_kit.pictures import picture_file as pictures
from sd_vae_kit.standalone.gaussian_mixture import GaussianMixtureDenoiser, caption_prior, natural_spectrum
from sd_vae_kit.standalone.sampling import starting_noise

NAME = "Demo: photographs (SD 1 latents)"
FAMILY = FORMATS["sd1"]
ENCODED_SIDE = 512  # photographs are encoded up to this size; larger latents are made from these
SIZES_IN_RAM = 4
FIELD_STD = 0.2  # how much pictures of one photograph differ, in latents; 0.35 already tints them
KEPT_BELOW = 3.0  # sigma: about denoising strength 0.65 of the Karras schedule

Encode = Callable[[Tensor], Tensor]
"""Image (1, 3, H, W) in [-1, 1] -> latent (1, 4, H/8, W/8) as the sampler sees it."""
OnPhotograph = Callable[[int, int], None]
"""Called with (done, total) while photographs are encoded."""


@dataclass(frozen=True)
class Photograph:
    """One picture the demo model knows, and the words that choose it."""

    path: Path
    caption: str


def read_photographs(folder: Path) -> tuple[Photograph, ...]:
    """The photographs listed in `folder`/photographs.json."""
    listed = json.loads((folder / "photographs.json").read_text("utf-8"))
    return tuple(Photograph(folder / item["file"], f"{item['caption']} {item['keywords']}") for item in listed)


class DemoModel:
    """Photographs, their latents per size, and the denoiser over them.  Safe to use from several threads."""

    def __init__(self, photographs: Sequence[Photograph], encode: Encode, vae_id: str, cache: Path | None) -> None:
        """
        Args:
            photographs: What it knows.
            encode: The checkpoint's own VAE, whichever VAE is live.
            vae_id: Changes when `encode` does; part of the cache's file names.
            cache: Folder for encoded photographs, so that a second start need not encode them again; None for none.
        """
        self.photographs = tuple(photographs)
        self._encode = encode
        self._vae_id = vae_id
        self._cache = cache
        self._lock = threading.Lock()
        self._means: OrderedDict[tuple[int, int], Tensor] = OrderedDict()

    def prior(self, prompt: str, negative_prompt: str) -> Tensor:
        """(N,) log probability of each photograph given the prompt."""
        return caption_prior(prompt, negative_prompt, [photograph.caption for photograph in self.photographs])

    def denoiser(
        self, prior: Tensor, size: tuple[int, int], on_photograph: OnPhotograph, start: Tensor | None = None
    ) -> GaussianMixtureDenoiser:
        """The exact denoiser for pictures of `size` (height, width) in pixels.

        Args:
            prior: (N,) log probability of each photograph.
            size: Of the pictures.
            on_photograph: Told of photographs that must be encoded first.
            start: Latent (1, 4, h, w) of img2img's picture, which the model then knows too.  Without it, details of a
                picture that was never a photograph of ours would all be replaced by theirs.  Its prior is such that it
                wins below `KEPT_BELOW` and loses above.
        """
        means = self.means(size, on_photograph)
        spectrum = natural_spectrum(means.shape[-2], means.shape[-1], std=FIELD_STD)
        if start is not None:
            apart = torch.fft.fft2((means - start).double(), norm="ortho").abs().square()
            nats = 0.5 * (apart / (spectrum + KEPT_BELOW**2)).sum(dim=(1, 2, 3))
            prior = torch.cat([prior, (prior - nats).max()[None]])
            means = torch.cat([means, start])
        return GaussianMixtureDenoiser(means, log_prior=prior, spectrum=spectrum)

    def start(self, prior: Tensor, size: tuple[int, int], seeds: Sequence[int], sigma: float) -> Tensor:
        """Where sampling begins, (B, 4, h, w): a photograph drawn from the prior under noise of strength `sigma`.

        Noise alone would be a draw from this model only at an infinite sigma; at the schedule's first sigma it already
        prefers dark photographs to bright ones, whatever the seed.
        """
        means = self.means(size)
        noise = starting_noise(seeds, (means.shape[1], means.shape[2], means.shape[3]))
        drawn = [torch.multinomial(prior.exp(), 1, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return means[torch.cat(drawn)] + sigma * noise

    def means(self, size: tuple[int, int], on_photograph: OnPhotograph = lambda done, total: None) -> Tensor:
        """Latents (N, 4, h, w) of the photographs at `size` (height, width) in pixels."""
        with self._lock:
            if size not in self._means:
                self._means[size] = self._make_means(size, on_photograph)
            self._means.move_to_end(size)
            while len(self._means) > SIZES_IN_RAM:
                self._means.popitem(last=False)
            return self._means[size]

    def _make_means(self, size: tuple[int, int], on_photograph: OnPhotograph) -> Tensor:
        scale = min(1.0, ENCODED_SIDE / max(size))
        height, width = (max(8, round(side * scale / 8) * 8) for side in size)
        means = self._cached((height, width))
        if means is None:
            means = self._encode_all((height, width), on_photograph)
            self._keep((height, width), means)
        latent_size = (size[0] // 8, size[1] // 8)
        if tuple(means.shape[-2:]) == latent_size:
            return means
        return F.interpolate(means, size=latent_size, mode="bicubic", align_corners=False)

    def _encode_all(self, size: tuple[int, int], on_photograph: OnPhotograph) -> Tensor:
        latents = []
        for done, photograph in enumerate(self.photographs):
            on_photograph(done, len(self.photographs))
            pixels = fitted(pictures.open_picture(photograph.path).pixels, size)
            with torch.inference_mode():
                latents.append(self._encode(pictures.to_image(pixels)))
        on_photograph(len(self.photographs), len(self.photographs))
        return torch.cat(latents).float().clone()

    def _cache_file(self, size: tuple[int, int]) -> Path | None:
        if self._cache is None:
            return None
        known = "\n".join([self._vae_id, *(f"{p.path.name} {p.path.stat().st_size}" for p in self.photographs)])
        digest = hashlib.sha256(known.encode()).hexdigest()[:12]
        return self._cache / f"photographs_{digest}_{size[0]}x{size[1]}.safetensors"

    def _cached(self, size: tuple[int, int]) -> Tensor | None:
        file = self._cache_file(size)
        if file is None or not file.is_file():
            return None
        try:
            means = load_file(file)["means"].float()
        except Exception:  # a damaged cache is made again, whatever the reader stumbled over
            return None
        fits = means.shape == (len(self.photographs), FAMILY.z_channels, size[0] // 8, size[1] // 8)
        return means if fits and bool(means.isfinite().all()) else None

    def _keep(self, size: tuple[int, int], means: Tensor) -> None:
        file = self._cache_file(size)
        if file is None:
            return
        with suppress(OSError, VaeKitError):  # a full or read-only disk costs only the seconds of encoding again
            file.parent.mkdir(parents=True, exist_ok=True)
            save(file, {"means": means.half().contiguous()}, {})


def fitted(pixels: pictures.Pixels, size: tuple[int, int], *, stretch: bool = False) -> pictures.Pixels:
    """Pixels (H, W, 3) brought to `size` (height, width): cut to its shape about the middle, or stretched."""
    height, width = size
    if pixels.shape[:2] == size:
        return pixels
    picture = Image.fromarray(pixels)
    method = Image.Resampling.LANCZOS
    made = picture.resize((width, height), method) if stretch else ImageOps.fit(picture, (width, height), method)
    result: pictures.Pixels = np.asarray(made)
    return result
