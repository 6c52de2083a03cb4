"""What will happen to a picture of some size, in one sentence: "... 3.1 GB whole, 5.2 GB free: will run whole"."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sd_vae_kit.settings.sections import TilingSettings
from sd_vae_kit.wording import Piece

if TYPE_CHECKING:  # pages are built without torch
    from sd_vae_kit.core.plan.planner import PlanReport


def sentence(size: tuple[int, int], report: PlanReport, tiling: TilingSettings) -> tuple[Piece, ...]:
    """What will happen when a picture of `size` (height, width) is decoded as planned."""
    height, width = size
    what_there_is = [Piece("free memory is not known:")]
    if tiling.memory_mb and _is_on(tiling):
        what_there_is = [Piece(amount(tiling.memory_mb), False), Piece("budget:")]
    elif report.free_mb is not None:
        what_there_is = [Piece(amount(report.free_mb), False), Piece("free:")]
    return (
        Piece(f"{width}x{height}", False),  # A1111 says width first
        Piece("with this VAE: about"),
        Piece(amount(report.whole_mb), False),
        Piece("whole,"),
        *what_there_is,
        *_verdict(report, tiling),
    )


def _verdict(report: PlanReport, tiling: TilingSettings) -> tuple[Piece, ...]:
    if not _is_on(tiling):
        fits = report.free_mb is None or report.whole_mb <= report.free_mb
        return (Piece("tiling is off, will run whole" if fits else "tiling is off, may run out of memory"),)
    if report.kind == "whole":
        return (Piece("will run whole"),)
    predicted = Piece(amount(report.predicted_mb), False, ",")
    if report.fits:
        return Piece("will stream, about"), predicted, Piece("same picture")
    return Piece("will stream in the least memory there is a way for, about"), predicted, Piece("and may run out of it")


def _is_on(tiling: TilingSettings) -> bool:
    return tiling.enabled and tiling.decoder


def stepped_aside(reason: str) -> tuple[Piece, ...]:
    """The sentence for a VAE that is not ours to run."""
    return Piece("This VAE runs without VAE Kit:"), Piece(reason, False)


def plain(pieces: tuple[Piece, ...]) -> str:
    """The sentence as text."""
    return " ".join(piece.text + piece.after for piece in pieces)


def amount(mb: int) -> str:
    """Memory for people: "820 MB", "3.1 GB"."""
    return f"{mb} MB" if mb < 1000 else f"{mb / 1024:.1f} GB"
