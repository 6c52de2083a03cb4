"""Running a VAE's network for a command: what the options ask for, progress, and the `--json` object."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from sd_vae_kit.core.dtypes import dtype_word
from sd_vae_kit.core.halves import Half
from sd_vae_kit.core.plan.plan import OnStep
from sd_vae_kit.core.run.oom_retry import is_out_of_memory
from sd_vae_kit.core.run.precision_policy import PrecisionPolicy
from sd_vae_kit.core.run.report import RunReport
from sd_vae_kit.core.run.request import RunRequest
from sd_vae_kit.core.vae import Vae
from sd_vae_kit.errors import NanError, NoMemoryError, OptionError
from sd_vae_kit.settings.sections import AUTO, BUDGET_MAX_MB, STREAM, TilingMode, TilingSettings

SECONDS_WITHOUT_PROGRESS = 1.0


def request_of(options: argparse.Namespace) -> RunRequest:
    """What `--tiling`, `--memory-mb`, `--precision` and `--prefer-bf16` ask for.

    Raises:
        OptionError: A budget that means nothing, or options that contradict each other.
    """
    return RunRequest(tiling_of(options), policy_of(options))


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
    mode: TilingMode = STREAM if options.tiling == "exact" else AUTO
    return TilingSettings(enabled=options.tiling != "off", mode=mode, memory_mb=int(budget or 0))


def policy_of(options: argparse.Namespace) -> PrecisionPolicy:
    """What `--precision` and `--prefer-bf16` ask for.

    Raises:
        OptionError: They contradict each other.
    """
    if options.prefer_bf16 and options.precision != "auto":
        raise OptionError(
            f"--prefer-bf16 means nothing with --precision {options.precision}, which repairs nothing; leave one out."
        )
    return PrecisionPolicy(options.precision, options.prefer_bf16)


def run_network(
    work: Callable[[RunRequest], Tensor], vae: Vae, half: Half, request: RunRequest, *, quiet: bool = False
) -> tuple[Tensor, RunReport]:
    """Do `work`, which encodes or decodes once with `vae`.

    Args:
        half: The one that the work runs.
        request: How; progress and a measurement of the memory are added.
        quiet: Show no progress.

    Raises:
        OptionError: The device cannot compute in the dtype.
        NanError: The result is not finite.
        NoMemoryError: There is not enough memory.
    """
    dtype = dtype_word(next(vae.module.parameters()).dtype)
    try:
        with _progress(quiet) as on_step:
            result = work(replace(request, on_step=on_step, measures_peak=True))
    except RuntimeError as error:
        raise _explained(error, dtype) from error
    if request.policy.mode != "never" and not bool(torch.isfinite(result).all()):
        remedy = "use --dtype fp32" if dtype != "fp32" else "the VAE cannot process this input, or is damaged"
        raise NanError(f"{vae.label} in {dtype} gave values that are not finite; nothing was written: {remedy}.")
    return result, vae.reports[half]


def json_of(report: RunReport, vae_sha256: str, warnings: list[str]) -> dict[str, object]:
    """The `--json` object of `encode` and `decode`; its keys are an interface."""
    return {
        "plan": report.plan,
        "bands": report.bands,
        "predicted_mb": report.predicted_mb,
        "peak_mb": report.peak_mb,
        "dtype": report.dtype,
        "steps": report.steps,
        "steps_shifted": report.steps_shifted,
        "steps_fp32": report.steps_fp32,
        "seconds": report.seconds,
        "vae_sha256": vae_sha256,
        "warnings": warnings,
    }


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
