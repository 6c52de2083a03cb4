"""What one job may choose for itself, as data: panels, API arguments, plot axes and infotext are made from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from sd_vae_kit.errors import SettingError
from sd_vae_kit.settings.sections import (
    AUTO,
    AUTOMATIC,
    BUDGET_MAX_MB,
    OFF,
    STREAM,
    TILING_MODES,
    TilingSettings,
)
from sd_vae_kit.settings.spec import Choice, Spec, setting, specs_of

AS_SET: Final = "as_set"  # the choice is left to the settings
AS_IN_SETTINGS = Choice(AS_SET, "As in Settings")
JobTilingMode = Literal["as_set", "auto", "stream", "off"]
TiledParts = Literal["as_set", "both", "encode", "decode"]
PARTS = {"both": (True, True), "encode": (True, False), "decode": (False, True)}  # encoder, decoder


@dataclass(frozen=True)
class JobVaes:
    """VAEs of one job; "Automatic" leaves the choice to the SD VAE setting, "None" is the checkpoint's own."""

    vae: str = setting(
        AUTOMATIC,
        Spec(
            "VAE for this job",
            "Used for this job only; the SD VAE setting stays as it is. Automatic follows that setting.",
            "vae",
            infotext="Job VAE",
        ),
    )
    hires_vae: str = setting(
        AUTOMATIC,
        Spec(
            "VAE for the hires pass",
            "Decodes the result of hires fix. Automatic takes the same VAE as the rest of the job.",
            "vae",
            infotext="Hires VAE",
        ),
    )

    @property
    def for_hires(self) -> str:
        """The VAE of the hires pass."""
        return self.vae if self.hires_vae == AUTOMATIC else self.hires_vae

    def with_names(self, full_name: Callable[[str], str]) -> JobVaes:
        """The same with every VAE's full name, as pictures and pages show it."""
        return JobVaes(full_name(self.vae), full_name(self.hires_vae))


@dataclass(frozen=True)
class JobTiling:
    """Tiling of one job; every default leaves it to the settings."""

    tiling: JobTilingMode = setting(
        AS_SET,
        Spec(
            "Tiled VAE for this job",
            "Auto works in bands only where the picture would not fit into memory whole; the picture is the same.",
            "choice",
            choices=(AS_IN_SETTINGS, *TILING_MODES, Choice(OFF, "Off")),
            formerly={"As in Settings": AS_SET, "Auto": AUTO, "Always stream": STREAM, "Off": OFF},
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
    tiling_parts: TiledParts = setting(
        AS_SET,
        Spec(
            "Advanced: what is tiled",
            "Encoding turns a picture into a latent (img2img), decoding a latent into a picture.",
            "choice",
            choices=(
                AS_IN_SETTINGS,
                Choice("both", "Encode and decode"),
                Choice("encode", "Encode only"),
                Choice("decode", "Decode only"),
            ),
            formerly={
                "As in Settings": AS_SET,
                "Encode and decode": "both",
                "Encode only": "encode",
                "Decode only": "decode",
            },
            infotext="VAE tiling parts",
        ),
    )

    def infotext(self) -> dict[str, str]:
        """What differs from the defaults, under its infotext key."""
        return _differences(self, TILING_SPECS)

    def over(self, tiling: TilingSettings) -> TilingSettings:
        """The settings with this job's choices in their place."""
        if self.tiling != AS_SET:
            tiling = dataclasses.replace(tiling, enabled=self.tiling != OFF)
        if self.tiling in (AUTO, STREAM):
            tiling = dataclasses.replace(tiling, mode=STREAM if self.tiling == STREAM else AUTO)
        if self.tiling_memory_mb:
            tiling = dataclasses.replace(tiling, memory_mb=self.tiling_memory_mb)
        if self.tiling_parts in PARTS:
            encoder, decoder = PARTS[self.tiling_parts]
            tiling = dataclasses.replace(tiling, encoder=encoder, decoder=decoder)
        return tiling


# In the order of panels and of the API's `args`, the VAEs first: arguments of older requests keep their places.
VAE_SPECS = specs_of(JobVaes, "job", "vae_kit_")
TILING_SPECS = specs_of(JobTiling, "job", "vae_kit_")
JOB_SPECS = (*VAE_SPECS, *TILING_SPECS)


@dataclass(frozen=True)
class JobChoices:
    """Everything a job can choose."""

    vaes: JobVaes = field(default_factory=JobVaes)
    tiling: JobTiling = field(default_factory=JobTiling)

    def with_names(self, full_name: Callable[[str], str]) -> JobChoices:
        """The same with every VAE's full name, as pictures and pages show it."""
        return dataclasses.replace(self, vaes=self.vaes.with_names(full_name))

    def infotext(self) -> dict[str, str]:
        """What differs from the defaults, under its infotext key."""
        return _differences(self.vaes, VAE_SPECS) | self.tiling.infotext()


def job_from(values: Sequence[object], overrides: Mapping[str, object] | None = None) -> JobChoices:
    """A job's choice from the panel or the API.

    Args:
        values: In the order of `JOB_SPECS`, fewer allowed; or one mapping with their names.
        overrides: By name, from an XYZ axis; they win.

    Raises:
        SettingError: An unknown name, or a value that does not fit.
    """
    names = [spec.name for spec in JOB_SPECS]
    named = values[0] if values and isinstance(values[0], Mapping) else dict(zip(names, values, strict=False))
    given = {**named, **(overrides or {})}
    unknown = [name for name in given if name not in names]
    if unknown:
        raise SettingError(f"VAE Kit has no argument {unknown[0]!r}; the arguments are {', '.join(names)}.")
    return JobChoices(
        JobVaes(**_chosen(VAE_SPECS, given)),  # type: ignore[arg-type]
        JobTiling(**_chosen(TILING_SPECS, given)),  # type: ignore[arg-type]
    )


def _chosen(specs: Sequence[Spec], given: Mapping[str, object]) -> dict[str, object]:
    return {spec.name: spec.check_text(given[spec.name]) for spec in specs if given.get(spec.name)}


def _differences(choices: object, specs: Sequence[Spec]) -> dict[str, str]:
    values = ((spec, getattr(choices, spec.name)) for spec in specs)
    return {spec.infotext: str(value) for spec, value in values if value != spec.default}
