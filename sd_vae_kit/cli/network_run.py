"""Running a VAE's network for a command: by a plan that fits into memory, with progress and a report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from sd_vae_kit.cli.measurement import Measured, measure
from sd_vae_kit.cli.vae_choice import Chosen
from sd_vae_kit.core.dtypes import dtype_word
from sd_vae_kit.core.halves import Half
from sd_vae_kit.core.plan.plan import OnStep
from sd_vae_kit.core.run.oom_retry import is_out_of_memory
from sd_vae_kit.core.run.precision_fixes_file import PrecisionFixesFile
from sd_vae_kit.core.run.precision_policy import Precision
from sd_vae_kit.core.run.runner import RunReport, VaeRunner
from sd_vae_kit.core.vae import Vae
from sd_vae_kit.errors import NanError, NoMemoryError, OptionError, StepAsideError
from sd_vae_kit.settings.sections import BUDGET_MAX_MB, TILING_MODES, TilingSettings

SECONDS_WITHOUT_PROGRESS = 1.0


@dataclass(frozen=True)
class Report:
    """What was run, the `--json` object of `encode` and `decode`.

    Attributes:
        plan: "whole", or one that works in bands: "stream", "stream-lean", "stream-host".
        bands: Bands of the layer that was cut into most of them, 1 for a whole picture.
        predicted_mb: Activations as planned, MiB; `None` where the network is not one that can be planned.
        peak_mb: As measured, MiB; `None` where it cannot be (see measurement.py).
        dtype: What was computed in.
        steps: Layers of the network, a convolution or an attention each; `None` as for `predicted_mb`.
        steps_shifted, steps_fp32: Layers that were run with a range shift, or again in fp32.
        seconds: Of the network alone, without reading and writing files.
        vae_sha256: Of the VAE file.
        warnings: Sentences for the user.
    """

    plan: str
    bands: int
    predicted_mb: float | None
    peak_mb: float | None
    dtype: str
    steps: int | None
    steps_shifted: int
    steps_fp32: int
    seconds: float
    vae_sha256: str
    warnings: list[str]


def tiling_of(options: argparse.Namespace) -> TilingSettings:
    """What `--tiling` and `--memory-mb` ask for.

    Raises:
        OptionError: A budget that means nothing.
    """
    budget = options.memory_mb
    if budget is not None and not 1 <= budget <= BUDGET_MAX_MB:
        raise OptionError(f"--memory-mb is {budget:g}; it is a number of MiB from 1 to {BUDGET_MAX_MB}.")
    if budget is not None and options.tiling == "off":
        raise OptionError("--memory-mb means nothing with --tiling off, which runs every picture whole; leave one out.")
    mode = TILING_MODES[options.tiling == "exact"]
    return TilingSettings(enabled=options.tiling != "off", mode=mode, memory_mb=int(budget or 0))


def run_network(
    work: Callable[[], Tensor],
    vae: Vae,
    chosen: Chosen,
    tiling: TilingSettings,
    needs: PrecisionFixesFile | None = None,
    *,
    quiet: bool = False,
) -> tuple[Tensor, Report]:
    """Do `work`, which encodes or decodes once with `vae`.

    Args:
        tiling: How.
        needs: What VAEs needed to stay finite in half precision, and where that is kept.
        quiet: Show no progress.

    Raises:
        OptionError: The device cannot compute in the dtype.
        NanError: The result is not finite.
        NoMemoryError: There is not enough memory.
    """
    parameter = next(vae.module.parameters())
    runner, warnings = VaeRunner(needs), list(vae.warnings)
    try:
        with _progress(quiet) as on_step:
            vae.network = _network(vae, runner, tiling, on_step)
            try:
                result, cost = measure(work, parameter.device)
            except StepAsideError as error:
                warnings.append(f"run whole by its own forward: {error}")
                vae.network = None
                result, cost = measure(work, parameter.device)
    except RuntimeError as error:
        raise _explained(error, dtype_word(parameter.dtype)) from error
    finally:
        vae.network = None
    done, dtype = runner.mine, dtype_word(parameter.dtype)
    if not bool(torch.isfinite(result).all()):
        remedy = "use --dtype fp32" if dtype != "fp32" else "the VAE cannot process this input, or is damaged"
        raise NanError(f"{vae.label} in {dtype} gave values that are not finite; nothing was written: {remedy}.")
    told = [*warnings, *(_warnings_of(done) if done else ())]
    return result, _report(done, dtype, cost, chosen.sha256, told)


def _report(done: RunReport | None, dtype: str, cost: Measured, vae_sha256: str, warnings: list[str]) -> Report:
    """Of a run by a plan, or by the network's own forward."""
    return Report(
        plan=done.plan if done else "whole",
        bands=done.bands if done else 1,
        predicted_mb=done.predicted_mb if done else None,
        peak_mb=cost.peak_mb,
        dtype=done.dtype if done else dtype,
        steps=done.steps if done else None,
        steps_shifted=done.steps_shifted if done else 0,
        steps_fp32=done.steps_fp32 if done else 0,
        seconds=cost.seconds,
        vae_sha256=vae_sha256,
        warnings=warnings,
    )


def _network(vae: Vae, runner: VaeRunner, tiling: TilingSettings, on_step: OnStep) -> Callable[[Half, Tensor], Tensor]:
    def network(half: Half, x: Tensor) -> Tensor:
        return runner.run(
            vae.module, half, x, dtype=x.dtype, device=x.device, tiling=tiling, on_step=on_step,
            precision=Precision(label=vae.label),
        )  # fmt: skip

    return network


def _warnings_of(done: RunReport) -> Iterator[str]:
    if done.precision:
        yield f"{done.precision}."
    if not done.fits and done.budget_mb is not None:
        yield (
            f"nothing fits into {done.budget_mb} MiB: the smallest plan was run ({done.plan}, about "
            f"{done.predicted_mb} MiB)"
        )
    if done.rescue:
        yield done.rescue


@contextmanager
def _progress(quiet: bool) -> Iterator[OnStep]:
    """A bar on stderr for work that takes more than a second, where somebody can see it."""
    from tqdm import tqdm

    bar = tqdm(unit="band", leave=False, delay=SECONDS_WITHOUT_PROGRESS, disable=quiet or not sys.stderr.isatty())

    def on_step(done: int, total: int) -> bool:
        if bar.total != total or done < bar.n:  # the first band, or the first one of a smaller plan
            bar.reset(total)
        bar.update(done - bar.n)
        return True

    with bar:
        yield on_step


def _explained(error: RuntimeError, dtype: str) -> Exception:
    if is_out_of_memory(error):
        return NoMemoryError(
            "There is not enough memory to run a picture of this size whole; leave out --tiling off or make it smaller."
        )
    if "not implemented for" in str(error):
        return OptionError(f"This torch cannot compute in {dtype} on this device; use --dtype fp32.")
    return error
