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

from sd_vae_kit.core.networks.latent_format import LatentFormat
from sd_vae_kit.errors import VaeKitError

log = logging.getLogger(__name__)

FEWEST_CELLS = 32  # a tiny decoder makes only blurs of latents that were averaged further
FIRST_CELLS = 64  # before it is known how long one takes
QUICK = 6  # a preview that takes this many times less than it may gives room for one with four times the area

Decode = Callable[[Tensor], Tensor]
"""Latent (B, z_channels, h, w) -> RGB (B, 3, 8h, 8w) in about [0, 1]."""

# Rows: the latent's channels, then a constant; columns: red, green, blue in [0, 1].  Fitted by least squares between
# TAESD latents and 8x8 means of the demo photographs: tools/fit_linear_preview.py prints this table.  Over those
# pictures the cells' colours are met to 21 dB (sd1, sdxl), 29 dB (sd3) and 27 dB (flux).
LINEAR_RGB: dict[str, tuple[tuple[float, float, float], ...]] = {
    "sd1": (
        (0.1686, 0.1198, 0.1199),
        (0.0734, 0.1100, 0.0613),
        (-0.1145, 0.0661, 0.1086),
        (-0.0902, -0.1351, -0.2093),
        (0.4783, 0.3977, 0.3516),
    ),
    "sdxl": (
        (0.1896, 0.1835, 0.1803),
        (-0.1297, -0.0003, 0.0431),
        (0.0593, 0.0453, -0.0006),
        (-0.1734, -0.1128, -0.0975),
        (0.5744, 0.4568, 0.4109),
    ),
    "sd3": (
        (-0.0276, 0.0165, 0.0470),
        (-0.0213, -0.0046, 0.0141),
        (0.0646, 0.0175, -0.0041),
        (0.0617, 0.0180, 0.0298),
        (0.0325, 0.0043, -0.0235),
        (0.0178, 0.0801, 0.0329),
        (0.0647, 0.0150, 0.0210),
        (-0.0236, 0.0493, 0.0627),
        (-0.0522, -0.0341, -0.0079),
        (-0.0383, 0.0013, -0.0041),
        (0.0270, 0.0285, 0.0269),
        (-0.0115, 0.0352, -0.0097),
        (0.0069, 0.0129, 0.0318),
        (-0.0232, -0.0196, -0.0539),
        (-0.0331, -0.0326, -0.0234),
        (-0.0312, -0.0429, -0.0467),
        (0.5561, 0.5664, 0.5314),
    ),
    "flux": (
        (-0.0137, 0.0210, 0.0348),
        (0.0137, 0.0303, 0.0477),
        (0.0251, -0.0306, -0.0257),
        (-0.0104, 0.0069, 0.0241),
        (0.0437, 0.0316, 0.0196),
        (0.0069, 0.0248, 0.0175),
        (0.0144, 0.0432, 0.0459),
        (-0.0111, -0.0155, -0.0158),
        (-0.0176, 0.0116, 0.0515),
        (0.0612, 0.0467, -0.0001),
        (-0.0133, 0.0285, 0.0173),
        (0.0499, 0.0209, 0.0215),
        (0.0229, 0.0160, 0.0137),
        (-0.0673, -0.0104, -0.0329),
        (-0.0036, -0.0450, -0.0302),
        (-0.0484, -0.0278, -0.0144),
        (0.4936, 0.4752, 0.4495),
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
        method: "taesd", "linear" or "off", as in the settings.
        max_side: Longest side of a preview in pixels.
        decode_tiny: The tiny decoder; without one, "taesd" falls back to "linear".
        slow: Seconds that one preview may take; the next ones are half as large until they are quicker, and grow again
            where they take far less.
        cells: Longest side of the next one, in cells of the latent.
        failure: Why the last preview failed, empty if it did not.
    """

    latent_format: LatentFormat
    method: str = "taesd"
    max_side: int = 512
    decode_tiny: Decode | None = None
    slow: float = 1.0
    failure: str = field(default="", init=False)
    cells: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.cells = self.most_cells

    @property
    def most_cells(self) -> int:
        """What `max_side` allows."""
        return max(1, self.max_side // self.latent_format.downscale)

    def begin_with(self, cells: int) -> None:
        """Let the next preview have that many cells, as far as `max_side` allows."""
        self.cells = min(cells, self.most_cells)

    def __call__(self, latent: Tensor) -> Tensor | None:
        """The first latent of a batch as uint8 (H, W, 3); None if previews are off or this one failed.

        FLUX.2's latents may be packed, as its sampler sees them.
        """
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
        self._adapt(time.perf_counter() - started, max(latent.shape[-2:]))
        return pixels

    def _adapt(self, seconds: float, longest: int) -> None:
        if seconds > self.slow:
            self.cells = max(FEWEST_CELLS, min(self.cells, longest) // 2)
        elif seconds * QUICK < self.slow and self.cells < longest:
            self.begin_with(self.cells * 2)

    def _rgb(self, latent: Tensor) -> Tensor:
        """(1, z_channels, h, w) -> (1, 3, H, W), no side longer than `max_side`."""
        downscale = self.latent_format.downscale
        small = shrink(self.latent_format.unpacked(latent), self.cells)
        if self.method == "taesd" and self.decode_tiny is not None:
            return self.decode_tiny(small)
        if self.latent_format.name not in LINEAR_RGB:
            raise VaeKitError(f"no colours are known for latents of {self.latent_format.label}; install its TAESD")
        table = torch.tensor(LINEAR_RGB[self.latent_format.name])
        # as large as a decoder would make it, so that the page does not jump between methods
        return F.interpolate(linear_rgb(small, table), scale_factor=downscale, mode="bilinear", align_corners=False)
