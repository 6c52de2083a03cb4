"""Latent spaces: how many channels, how a sampler's latent relates to the first stage's `z`, pixels per cell.

`latent = (z - shift_factor) * scale_factor`; `z = latent / scale_factor + shift_factor`.
Numbers are those of the families' published configurations (field survey, section 4).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

PACK = 2  # FLUX.2's sampler sees squares of so many cells as one cell with more channels


@dataclass(frozen=True)
class LatentFormat:
    """One family's latent space.

    Attributes:
        name: Key used in JSON and latent files ("sd1" covers SD 1.x and 2.x).
        label: What a user calls the family.
        z_channels: Channels of `z` and of the latent.
        scale_factor: Multiplier from `z` (minus shift) to the sampler's latent.
        shift_factor: Subtracted from `z` before scaling.
        downscale: Pixels per latent cell along each side.
        is_packed: Whether the sampler's latent is (B, 4 * z_channels, h/2, w/2), see `unpack`.
    """

    name: str
    label: str
    z_channels: int
    scale_factor: float
    shift_factor: float = 0.0
    downscale: int = 8
    is_packed: bool = False

    def to_latent(self, z: Tensor) -> Tensor:
        """(B, z_channels, h, w) in the first stage's space -> the same shape as the sampler sees it."""
        return (z - self.shift_factor) * self.scale_factor

    def to_z(self, latent: Tensor) -> Tensor:
        """Inverse of `to_latent`."""
        return latent / self.scale_factor + self.shift_factor

    def unpacked(self, latent: Tensor) -> Tensor:
        """The latent with `z_channels` channels: itself, or a packed one unpacked."""
        return unpack(latent) if self.is_packed and latent.shape[1] == PACK**2 * self.z_channels else latent


FORMATS: dict[str, LatentFormat] = {
    f.name: f
    for f in (
        LatentFormat("sd1", "SD 1.x / 2.x", 4, 0.18215),
        LatentFormat("sdxl", "SDXL", 4, 0.13025),
        LatentFormat("sd3", "SD 3 / 3.5", 16, 1.5305, 0.0609),
        LatentFormat("flux", "FLUX.1", 16, 0.3611, 0.1159),
        LatentFormat("flux2", "FLUX.2", 32, 1.0, is_packed=True),
        LatentFormat("sana", "SANA", 32, 0.41407, downscale=32),
    )
}


def unpack(latent: Tensor) -> Tensor:
    """FLUX.2's packed latent (B, 4C, h, w) -> (B, C, 2h, 2w).

    Four channels in a row are one channel's square of cells, row by row: channel 4c + 2i + j of cell (y, x) is channel
    c of cell (2y + i, 2x + j).  A plain reshape would mix channels with places.
    """
    return F.pixel_shuffle(latent, PACK)


def pack(latent: Tensor) -> Tensor:
    """The reverse of `unpack`: (B, C, 2h, 2w) -> (B, 4C, h, w)."""
    return F.pixel_unshuffle(latent, PACK)


def split_family(family: str) -> tuple[str, ...]:
    """Names in a family string: "sdxl" -> ("sdxl",); undecided "sd1|sdxl" -> ("sd1", "sdxl")."""
    return tuple(name for name in family.split("|") if name)


def family_label(family: str) -> str:
    """What to show a user: "SD 1.x / 2.x or SDXL" for "sd1|sdxl", "unknown" for ""."""
    return " or ".join(FORMATS[name].label for name in split_family(family)) or "unknown"
