"""What will happen to a picture of some size, in one sentence: "... 3.1 GB whole, 5.2 GB free: will run whole"."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sd_vae_kit.settings.sections import TilingSettings
from sd_vae_kit.wording import Sentence

if TYPE_CHECKING:  # pages are built without torch
    from sd_vae_kit.core.plan.planner import PlanChoice


def sentence(size: tuple[int, int], choice: PlanChoice, tiling: TilingSettings) -> Sentence:
    """What will happen when a picture of `size` (height, width) is decoded as planned."""
    height, width = size
    memory = Sentence.of("free memory is not known:")
    if tiling.memory_mb and _is_on(tiling):
        memory = Sentence.of("{} budget:", amount(tiling.memory_mb))
    elif choice.free_mb is not None:
        memory = Sentence.of("{} free:", amount(choice.free_mb))
    whole = amount(choice.whole_mb)
    # A1111 says width first
    return Sentence.of(
        "{} with this VAE: about {} whole, {} {}", f"{width}x{height}", whole, memory, _verdict(choice, tiling)
    )


def _verdict(choice: PlanChoice, tiling: TilingSettings) -> Sentence:
    if not _is_on(tiling):
        fits = choice.free_mb is None or choice.whole_mb <= choice.free_mb
        return Sentence.of("tiling is off, will run whole" if fits else "tiling is off, may run out of memory")
    if choice.kind == "whole":
        return Sentence.of("will run whole")
    predicted = amount(choice.predicted_mb)
    if choice.fits:
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
