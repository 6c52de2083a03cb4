"""What one job may choose about tiling for itself, as data: panels, API arguments, plot axes and infotext use it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, fields

from sd_vae_kit.settings.sections import AS_SET as AS_SET
from sd_vae_kit.settings.sections import BUDGET_MAX_MB, TILING_MODES, Spec, TilingSettings, setting

OFF = "Off"
PARTS = {"Encode and decode": (True, True), "Encode only": (True, False), "Decode only": (False, True)}


@dataclass(frozen=True)
class JobTiling:
    """Tiling of one job; every default leaves it to the settings."""

    tiling: str = setting(
        AS_SET,
        Spec(
            "Tiled VAE for this job",
            "Auto works in bands only where the picture would not fit into memory whole; the picture is the same.",
            "choice",
            choices=(AS_SET, *TILING_MODES, OFF),
            infotext="VAE tiling",
        ),
    )
    tiling_memory_mb: int = setting(
        0,
        Spec(
            "Memory budget for this job",
            "What the VAE's work may take; 0 is as in Settings, which take what is free unless you changed that.",
            "number",
            minimum=0,
            maximum=BUDGET_MAX_MB,
            unit="MB",
            infotext="VAE memory budget",
        ),
    )
    tiling_parts: str = setting(
        AS_SET,
        Spec(
            "Advanced: what is tiled",
            "Encoding turns a picture into a latent (img2img), decoding a latent into a picture.",
            "choice",
            choices=(AS_SET, *PARTS),
            infotext="VAE tiling parts",
        ),
    )

    def infotext(self) -> dict[str, str]:
        """What differs from the defaults, under its infotext key."""
        values = ((spec, getattr(self, spec.name)) for spec in tiling_specs())
        return {spec.infotext: str(value) for spec, value in values if value != spec.default}

    def over(self, tiling: TilingSettings) -> TilingSettings:
        """The settings with this job's choices in their place."""
        if self.tiling != AS_SET:
            tiling = dataclasses.replace(tiling, enabled=self.tiling != OFF)
        if self.tiling in TILING_MODES:
            tiling = dataclasses.replace(tiling, mode=self.tiling)
        if self.tiling_memory_mb:
            tiling = dataclasses.replace(tiling, memory_mb=self.tiling_memory_mb)
        if self.tiling_parts in PARTS:
            encoder, decoder = PARTS[self.tiling_parts]
            tiling = dataclasses.replace(tiling, encoder=encoder, decoder=decoder)
        return tiling


def tiling_specs() -> Iterator[Spec]:
    """The fields in the order of panels and of the API's `args`."""
    for item in fields(JobTiling):
        spec: Spec = item.metadata["spec"]
        yield dataclasses.replace(
            spec, key=f"vae_kit_{item.name}", section="job", name=item.name, default=getattr(JobTiling, item.name)
        )
