"""How a pass computes its bands, and how a band that is not finite is computed in another way."""

from __future__ import annotations

from functools import partial
from typing import Protocol

from torch import Tensor

from sd_vae_kit.core.engine.attention import AttentionPass
from sd_vae_kit.core.engine.band_computer import BandComputer
from sd_vae_kit.core.engine.band_guard import BandGuard, OutOfRange
from sd_vae_kit.core.engine.edges import Rows
from sd_vae_kit.core.engine.group_norm import band_moments
from sd_vae_kit.core.engine.overflow import HalfIsNotEnough
from sd_vae_kit.core.engine.ranges import SHIFT_STEP
from sd_vae_kit.core.engine.target import Target
from sd_vae_kit.core.graph.nodes import AttentionStep
from sd_vae_kit.core.plan.schedule import Sweep


class BandMaker(Protocol):
    """One pass's way to its bands."""

    @property
    def sweep(self) -> Sweep: ...

    @property
    def make(self) -> Rows:
        """Gives rows [top, bottom), newly computed; raises OutOfRange where a number on the way is too large."""

    def repair(self, top: int, bottom: int) -> None:
        """Change how these rows are computed, so that another try has a chance.

        Raises:
            NanError: No precision helps.
            HalfIsNotEnough: Nothing else is left.
        """


class ConvolvedBands:
    """Bands of a node that convolutions, norms and sums make."""

    def __init__(self, computer: BandComputer, sweep: Sweep, target: Target) -> None:
        self.computer, self.sweep, self.target = computer, sweep, target
        self.make: Rows = partial(computer.compute, sweep.node)

    def repair(self, top: int, bottom: int) -> None:
        """Change how the first node on the way to this band that is not finite is computed."""
        computer, guard = self.computer, self.computer.guard
        assert guard is not None
        node, place = computer.first_not_finite(self.sweep.node, top, bottom)
        step = computer.graph.steps[node - 1]
        guard.examine(step)
        computer.convolver.forget()
        if place == "result" and computer.ranges.shift(node):
            computer.divide(node)
            if node == self.sweep.node:
                self.target.divide(SHIFT_STEP)
        elif place == "source" or not guard.widen(node):
            raise HalfIsNotEnough(step.name)


class AttendedBands:
    """Bands of a node that attention over the whole picture makes: keys and values resident, queries in bands."""

    def __init__(self, computer: BandComputer, attention: AttentionPass, sweep: Sweep, target: Target) -> None:
        self.computer, self.attention, self.sweep, self.target = computer, attention, sweep, target

    @property
    def step(self) -> AttentionStep:
        return self.attention.site.step

    def take_keys(self) -> None:
        """Keys and values of the whole picture; once more from the start where they turn out too large."""
        _, height, width = self.computer.store.shapes[self.step.source]
        while True:
            try:
                for top, bottom in self.sweep.bands:
                    normed = self.computer.normed(self.step, self.sweep.node, top, bottom)
                    self.attention.take(normed, top * width)
                return
            except OutOfRange:
                assert self.computer.guard is not None
                self.computer.guard.note(self.step, top, bottom / height)
                self.attention.restart()

    def make(self, top: int, bottom: int, *, is_careful: bool = False) -> Tensor:
        computer, step, node = self.computer, self.step, self.sweep.node
        if self.attention.is_stale and top == 0:  # nothing has been written over the source yet
            self.attention.restart()
            self.take_keys()
        band = self.attention.answer(computer.normed(step, node, top, bottom), is_careful=is_careful)
        if step.residual:
            lift = computer.ranges.exponent(step.source) - computer.ranges.exponent(node)
            band.add_(computer.rows(step.source, top, bottom)[0], alpha=2.0**lift)
        if step.divisor != 1.0:
            band.div_(step.divisor)
        return band.to(computer.plan.dtype)

    def repair(self, top: int, bottom: int) -> None:
        """For a band whose queries, keys and values are finite."""
        computer, guard = self.computer, self.computer.guard
        assert guard is not None
        guard.examine(self.step)
        try:
            self.make(top, bottom, is_careful=True)
        except OutOfRange:  # it was the scores, and they are repaired
            return
        if computer.ranges.shift(self.sweep.node):
            computer.divide(self.sweep.node)
            self.target.divide(SHIFT_STEP)
        else:
            self.attention.widen()


def finite_band(computer: BandComputer, bands: BandMaker, top: int, bottom: int, guard: BandGuard | None) -> Tensor:
    """The band once the guard accepts it; until then it is computed again in other ways.

    Its statistics are taken while it is in cache, before it is written anywhere.
    """
    node = bands.sweep.node
    step = computer.graph.steps[node - 1]
    while True:
        try:
            return _accepted(computer, bands.sweep, bands.make(top, bottom), top, guard)
        except OutOfRange as found:
            is_repaired = found.is_repaired
        assert computer.guard is not None, "only a RangeGuard calls a band out of range"
        computer.forget_recent()
        computer.guard.note(step, top, (bottom - top) / computer.store.shapes[node][1])
        if not is_repaired:
            bands.repair(top, bottom)


def _accepted(computer: BandComputer, sweep: Sweep, band: Tensor, top: int, guard: BandGuard | None) -> Tensor:
    computer.forget_recent()
    moments = band_moments(band) if sweep.needs_moments else None
    if guard is not None:
        step = computer.graph.steps[sweep.node - 1]
        accepted = guard.accept(step, (top, top + band.shape[2]), band, moments)
        if accepted is not band and moments is not None:
            moments = band_moments(accepted)
        band = accepted
    if moments is not None:
        computer.moments[sweep.node].add(moments)
    return band
