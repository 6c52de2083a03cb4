"""A small picture of what a latent will become, cheap enough to make at every sampling step.

Two ways: a tiny decoder, or a linear map from latent channels to colours.  Neither writes to the latent, and a
`Previewer` never raises: a preview that fails must not cost the picture.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from sd_vae_kit.core.latent_format import LatentFormat

log = logging.getLogger(__name__)

FEWEST_CELLS = 16  # smaller previews show nothing

Decode = Callable[[Tensor], Tensor]
"""Latent (B, z_channels, h, w) -> RGB (B, 3, 8h, 8w) in about [0, 1]."""

# Rows: the latent's channels, then a constant; columns: red, green, blue in [0, 1].  Fitted by least squares between
# TAESD latents and 8x8 means of the demo photographs: tools/fit_linear_preview.py prints this table.
LINEAR_RGB: dict[str, tuple[tuple[float, float, float], ...]] = {
    "sd1": (
        (0.1686, 0.1198, 0.1199),
        (0.0734, 0.1100, 0.0613),
        (-0.1145, 0.0661, 0.1086),
        (-0.0902, -0.1351, -0.2093),
        (0.4783, 0.3977, 0.3516),
    ),
}


def fit_linear(latents: Tensor, rgb: Tensor) -> Tensor:
    """The best linear map from latents to colours, and a constant.

    Args:
        latents: (N, z_channels) cells of many latents.
        rgb: (N, 3) mean colour of each cell's pixels, in [0, 1].

    Returns:
        (z_channels + 1, 3), the constant in the last row.
    """
    padded = torch.cat([latents, torch.ones(len(latents), 1)], dim=1).double()
    solution: Tensor = torch.linalg.lstsq(padded, rgb.double()).solution
    return solution.float()


def linear_rgb(latent: Tensor, table: Tensor) -> Tensor:
    """Latent (B, z_channels, h, w) -> RGB (B, 3, h, w) in [0, 1], one pixel per cell."""
    table = table.to(latent)
    rgb = torch.einsum("bchw,cr->brhw", latent, table[:-1]) + table[-1][None, :, None, None]
    return rgb.clamp(0.0, 1.0)


def shrink(latent: Tensor, max_cells: int) -> Tensor:
    """A new latent with no side longer than `max_cells`; means of cells, the shape kept."""
    longest = max(latent.shape[-2:])
    if longest <= max_cells:
        return latent.clone()
    scale = max_cells / longest
    size = [max(1, round(side * scale)) for side in latent.shape[-2:]]
    return F.interpolate(latent, size=size, mode="area")


def to_pixels(rgb: Tensor) -> Tensor:
    """RGB (3, H, W) in about [0, 1] -> uint8 (H, W, 3) on the CPU; not-a-number becomes black."""
    finite = torch.nan_to_num(rgb.float()).clamp(0.0, 1.0)
    return (finite * 255).round().to(torch.uint8).permute(1, 2, 0).cpu()


@dataclass
class Previewer:
    """Makes previews of one latent space.

    Attributes:
        latent_format: Whose latents.
        method: "tiny", "linear" or "off", as in the settings.
        max_side: Longest side of a preview in pixels.
        decode_tiny: The tiny decoder; without one, "tiny" falls back to "linear".
        slow: Seconds that one preview may take; the next ones are half as large until they are quicker.
        failure: Why the last preview failed, empty if it did not.
    """

    latent_format: LatentFormat
    method: str = "tiny"
    max_side: int = 512
    decode_tiny: Decode | None = None
    slow: float = 1.0
    failure: str = field(default="", init=False)
    _cells: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._cells = max(1, self.max_side // self.latent_format.downscale)

    def __call__(self, latent: Tensor) -> Tensor | None:
        """The first latent of a batch as uint8 (H, W, 3); None if previews are off or this one failed."""
        if self.method == "off":
            return None
        started = time.perf_counter()
        try:
            with torch.inference_mode():
                pixels = to_pixels(self._rgb(latent.detach()[:1].float())[0])
        except Exception as error:  # whatever it is, sampling must go on
            if not self.failure:
                log.warning("No preview: %s", error)
            self.failure = str(error) or type(error).__name__
            return None
        self.failure = ""
        if time.perf_counter() - started > self.slow:
            self._cells = max(FEWEST_CELLS, min(self._cells, max(latent.shape[-2:])) // 2)
        return pixels

    def _rgb(self, latent: Tensor) -> Tensor:
        """(1, z_channels, h, w) -> (1, 3, H, W), no side longer than `max_side`."""
        downscale = self.latent_format.downscale
        small = shrink(latent, self._cells)
        if self.method == "tiny" and self.decode_tiny is not None:
            return self.decode_tiny(small)
        table = torch.tensor(LINEAR_RGB[self.latent_format.name])
        # as large as a decoder would make it, so that the page does not jump between methods
        return F.interpolate(linear_rgb(small, table), scale_factor=downscale, mode="bilinear", align_corners=False)
