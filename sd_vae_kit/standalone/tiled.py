"""The stand-alone app's VAEs, run by plans that fit into memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from sd_vae_kit.core.halves import Half
from sd_vae_kit.core.run.precision import Policy
from sd_vae_kit.core.run.precision_policy import INFOTEXT_KEYS as PRECISION_KEYS
from sd_vae_kit.core.run.precision_policy import Precision
from sd_vae_kit.core.run.runner import INFOTEXT_KEYS, RunReport, VaeRunner
from sd_vae_kit.core.vae import Vae
from sd_vae_kit.errors import StepAsideError
from sd_vae_kit.settings.job import JobTiling
from sd_vae_kit.settings.sections import TilingSettings
from sd_vae_kit.vaes.host_protocol import Level

OnBand = Callable[[float], bool]


class Notify(Protocol):
    """Shows one line to the user."""

    def __call__(self, message: str, level: Level = "info") -> None: ...


def tiled(
    vae: Vae, runner: VaeRunner, tiling: TilingSettings, policy: Policy, reports: dict[Half, RunReport],
    on_band: OnBand, notify: Notify,
) -> Vae:  # fmt: skip
    """A copy of `vae` whose halves are run by `runner`.

    Args:
        policy: What is allowed where half precision overflows.
        reports: Filled with what was done.
        on_band: Called with the share that is done, when it has grown by a hundredth; False stops the work.
        notify: Told what went wrong on the way.
    """
    done_before = [-1]

    def on_step(done: int, total: int) -> bool:
        percent = 100 * done // max(1, total)
        if percent == done_before[0]:
            return True
        done_before[0] = percent
        return on_band(done / max(1, total))

    def network(half: Half, x: Tensor) -> Tensor:
        module = vae.module
        try:
            result = runner.run(
                module, half, x, dtype=x.dtype, device=x.device, tiling=tiling, on_step=on_step,
                precision=Precision(policy, vae.label),
            )  # fmt: skip
        except StepAsideError as error:
            notify(f"{vae.label} is run whole by its own forward: {error}", "warning")
            return module.encode(x) if half == "encoder" else module.decode(x)
        report = runner.mine
        if report is not None:
            reports[half] = report
            if report.rescue:
                notify(report.rescue, "warning")
            if report.precision:
                notify(f"{vae.label}: {report.precision}.")
        return result

    run = copy.copy(vae)
    run.network = network
    return run


def tiling_fields(job: JobTiling, reports: dict[Half, RunReport]) -> dict[str, str]:
    """What a job chose, and how its picture was made where that was in bands."""
    done = {INFOTEXT_KEYS[part]: report.infotext for part, report in reports.items() if report.is_streamed}
    rescued = {PRECISION_KEYS[part]: report.precision_infotext for part, report in reports.items() if report.precision}
    return {**job.infotext(), **done, **rescued}
