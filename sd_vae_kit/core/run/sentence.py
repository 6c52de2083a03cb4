"""What will happen to a picture of some size, in one sentence: "... 3.1 GB whole, 5.2 GB free: will run whole"."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sd_vae_kit.settings.sections import TilingSettings
from sd_vae_kit.wording import Sentence

if TYPE_CHECKING:  # pages are built without torch
    from sd_vae_kit.core.plan.planner import PlanReport


def sentence(size: tuple[int, int], report: PlanReport, tiling: TilingSettings) -> Sentence:
    """What will happen when a picture of `size` (height, width) is decoded as planned."""
    height, width = size
    memory = Sentence.of("free memory is not known:")
    if tiling.memory_mb and _is_on(tiling):
        memory = Sentence.of("{} budget:", amount(tiling.memory_mb))
    elif report.free_mb is not None:
        memory = Sentence.of("{} free:", amount(report.free_mb))
    whole = amount(report.whole_mb)
    # A1111 says width first
    return Sentence.of(
        "{} with this VAE: about {} whole, {} {}", f"{width}x{height}", whole, memory, _verdict(report, tiling)
    )


def _verdict(report: PlanReport, tiling: TilingSettings) -> Sentence:
    if not _is_on(tiling):
        fits = report.free_mb is None or report.whole_mb <= report.free_mb
        return Sentence.of("tiling is off, will run whole" if fits else "tiling is off, may run out of memory")
    if report.kind == "whole":
        return Sentence.of("will run whole")
    predicted = amount(report.predicted_mb)
    if report.fits:
        return Sentence.of("will stream, about {}, same picture", predicted)
    return Sentence.of("will stream in the least memory there is a way for, about {}, and may run out of it", predicted)


def _is_on(tiling: TilingSettings) -> bool:
    return tiling.enabled and tiling.decoder


def stepped_aside(reason: str) -> Sentence:
    """The sentence for a VAE that the host runs by itself."""
    return Sentence.of("This VAE runs without VAE Kit: {}", reason)


def amount(mb: int) -> str:
    """Memory for people: "820 MB", "3.1 GB"."""
    return f"{mb} MB" if mb < 1000 else f"{mb / 1024:.1f} GB"
