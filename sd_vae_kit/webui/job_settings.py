"""What a job can choose for itself, as data: panel, API arguments, XYZ axes and infotext are made from it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

from sd_vae_kit.errors import SettingError
from sd_vae_kit.settings.job import JobTiling
from sd_vae_kit.settings.sections import AUTOMATIC, Spec, Value, setting


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


@dataclass(frozen=True)
class JobChoices(JobTiling, JobVaes):
    """Everything a job can choose, the VAEs first: arguments of older requests keep their places."""

    def with_names(self, full_name: Callable[[str], str]) -> JobChoices:
        """The same with every VAE's full name, as pictures and pages show it."""
        vaes = [spec.name for spec in job_specs() if spec.control == "vae"]
        named = {name: full_name(getattr(self, name)) for name in vaes}
        return dataclasses.replace(self, **named)  # type: ignore[arg-type]

    def infotext(self) -> dict[str, str]:
        """What differs from the defaults, under its infotext key."""
        values = ((spec, getattr(self, spec.name)) for spec in job_specs())
        return {spec.infotext: str(value) for spec, value in values if value != spec.default}


def job_specs() -> Iterator[Spec]:
    """The fields in the order of the panel and of the API's `args`."""
    for item in fields(JobChoices):
        spec: Spec = item.metadata["spec"]
        yield dataclasses.replace(
            spec, key=f"vae_kit_{item.name}", section="job", name=item.name, default=getattr(JobChoices, item.name)
        )


def job_from(values: Sequence[object], overrides: Mapping[str, object] | None = None) -> JobChoices:
    """A job's choice from the panel or the API.

    Args:
        values: In the order of the fields, fewer allowed; or one mapping with their names.
        overrides: By name, from an XYZ axis; they win.

    Raises:
        SettingError: An unknown name, or a value that does not fit.
    """
    named = values[0] if values and isinstance(values[0], Mapping) else dict(zip(_names(), values, strict=False))
    given = {**named, **(overrides or {})}
    unknown = [name for name in given if name not in _names()]
    if unknown:
        raise SettingError(f"VAE Kit has no argument {unknown[0]!r}; the arguments are {', '.join(_names())}.")
    chosen = {spec.name: checked(spec, given[spec.name]) for spec in job_specs() if given.get(spec.name)}
    return JobChoices(**chosen)  # type: ignore[arg-type]


def checked(spec: Spec, value: object) -> Value:
    """A value in the field's own type; a number may come as text, as infotext and XYZ axes have it.

    Raises:
        SettingError: It does not fit.
    """
    if isinstance(spec.default, int) and isinstance(value, str):
        with contextlib.suppress(ValueError):  # `check` says what is wrong
            value = float(value)
    return spec.check(value)


def _names() -> list[str]:
    return [item.name for item in fields(JobChoices)]
