"""How the stand-alone app's jobs run VAEs: by the settings and the job's choice, with reports for the infotext."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from sd_vae_kit.core.halves import Half
from sd_vae_kit.core.plan.plan import OnStep
from sd_vae_kit.core.run.precision_policy import policy_of
from sd_vae_kit.core.run.report import RunReport
from sd_vae_kit.core.run.request import RunRequest
from sd_vae_kit.core.vae import Vae
from sd_vae_kit.settings.job import JobTiling
from sd_vae_kit.settings.sections import Settings
from sd_vae_kit.vaes.host_protocol import Level

OnBand = Callable[[float], bool]


class Notify(Protocol):
    """Shows one line to the user."""

    def __call__(self, message: str, level: Level = "info") -> None: ...


class VaeRuns:
    """Encodes and decodes of the running job, and what they did.

    Args:
        settings: The values as they are now.
        notify: Told what went wrong on the way.

    Attributes:
        last: What the last encode and decode of any job did.
    """

    def __init__(self, settings: Callable[[], Settings], notify: Notify) -> None:
        self._settings = settings
        self._notify = notify
        self._reports: dict[Half, RunReport] = {}
        self.last: dict[Half, RunReport] = {}

    def begin(self) -> None:
        """A new job has done nothing yet."""
        self._reports.clear()

    def request(self, job: JobTiling | None = None, on_step: OnStep | None = None) -> RunRequest:
        """How a VAE is run now: by the settings, with the job's choices in their place."""
        settings = self._settings()
        tiling = settings.tiling if job is None else job.over(settings.tiling)
        return RunRequest(tiling, policy_of(settings.precision), on_step=on_step)

    def encode(self, vae: Vae, image: Tensor, job: JobTiling, on_band: OnBand) -> Tensor:
        """As `Vae.encode`; `on_band` is called with the share that is done, and False stops the work."""
        latent = vae.encode(image, request=self.request(job, in_hundredths(on_band)))
        self._note(vae, "encoder")
        return latent

    def decode(self, vae: Vae, latent: Tensor, job: JobTiling, on_band: OnBand) -> Tensor:
        """As `Vae.decode`, with `on_band` as for `encode`."""
        image = vae.decode(latent, request=self.request(job, in_hundredths(on_band)))
        self._note(vae, "decoder")
        return image

    def infotext(self, job: JobTiling) -> dict[str, str]:
        """What a job chose, and how its picture was made where that was out of the ordinary."""
        done = {key: value for report in self._reports.values() for key, value in report.infotext().items()}
        return {**job.infotext(), **done}

    def _note(self, vae: Vae, half: Half) -> None:
        report = self._reports[half] = self.last[half] = vae.reports[half]
        if report.stepped_aside:
            self._notify(f"{vae.label} is run whole by its own forward: {report.stepped_aside}", "warning")
        if report.rescue:
            self._notify(report.rescue, "warning")
        if report.precision:
            self._notify(f"{vae.label}: {report.precision}.")


def in_hundredths(on_band: OnBand) -> OnStep:
    """`on_band` for each hundredth of the work."""
    last = [-1]

    def on_step(done: int, total: int) -> bool:
        percent = 100 * done // max(1, total)
        if percent == last[0]:
            return True
        last[0] = percent
        return on_band(done / max(1, total))

    return on_step
