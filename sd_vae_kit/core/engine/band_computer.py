"""Rows of a graph's nodes, computed from the nodes that are stored."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from sd_vae_kit.core.engine.convolution import Convolver, Scaling
from sd_vae_kit.core.engine.device_tensors import empty
from sd_vae_kit.core.engine.edges import SourceRows
from sd_vae_kit.core.engine.group_norm import Moments, ScaleShift, scale_and_shift
from sd_vae_kit.core.engine.node_store import NodeStore
from sd_vae_kit.core.engine.overflow import RangeGuard
from sd_vae_kit.core.engine.ranges import SHIFT_STEP, Ranges, is_homogeneous
from sd_vae_kit.core.graph.nodes import AttentionStep, Conv, LayerGraph, Step
from sd_vae_kit.core.plan.plan import Plan
from sd_vae_kit.core.plan.schedule import Geometry, Handling, split_rows

Place = Literal["source", "inside", "result"]


class _NotFinite(Exception):  # noqa: N818 - not an error: it ends the search for it
    """A node that is not finite: read so, made so by the norm before the convolution, or by the rest of the step."""

    def __init__(self, node: int, place: Place) -> None:
        super().__init__(node, place)
        self.node, self.place = node, place


class BandComputer:
    """Computes rows of the nodes of one sample.

    Args:
        graph, plan: What runs and how.
        store: The nodes that exist whole.
        handling: How each convolution's edges behave.
        guard: Says which nodes are stored with an exponent or computed in fp32; None: none.

    Attributes:
        moments: Statistics of nodes that a norm reads.
        ranges: Exponents and fp32 steps.
    """

    def __init__(
        self, graph: LayerGraph, plan: Plan, store: NodeStore, handling: dict[nn.Module, Handling],
        guard: RangeGuard | None,
    ) -> None:  # fmt: skip
        self.graph, self.plan, self.store, self.handling, self.guard = graph, plan, store, handling, guard
        self.readers = graph.readers
        self.moments: dict[int, Moments] = {}
        self.ranges = Ranges(graph) if guard is None else guard.ranges
        self.convolver = Convolver(plan, handling)
        self._norms: dict[int, ScaleShift] = {}
        self._recent: dict[int, tuple[int, int, Tensor]] = {}  # rows of nodes that are not stored, for one band
        self._is_searching = False

    def compute(self, node: int, top: int, bottom: int, dtype: torch.dtype | None = None) -> Tensor:
        """Rows [top, bottom) of a node, stored with its exponent, newly computed; the caller may write into them.

        Args:
            dtype: What is computed in; None: the node's own, in pieces where that is not the run's.
        """
        wanted = self.ranges.compute_dtype(node, self.plan.dtype) if dtype is None else dtype
        if dtype is None and wanted != self.plan.dtype:
            return self._examined(self._in_pieces(node, top, bottom, wanted), node, "result")
        step = self.graph.steps[node - 1]
        assert isinstance(step, Step)
        scaling = Scaling(wanted, self.ranges.gain(node), self.ranges.exponent(node))
        if step.conv is None:
            y = self._conv_input(step, node, top, bottom, scaling)
        else:
            entering = Scaling(wanted, self.convolver.input_gain(step.conv, scaling))
            rows = lambda a, b: self._conv_input(step, node, a, b, entering)  # noqa: E731
            source = SourceRows(rows, self.store.shapes[step.source][1])
            y = self.convolver(step.conv, source, top, bottom, scaling)
        if step.residual is not None:
            self._add_residual(y, step.residual, step.shortcut, node, top)
            self._recent.pop(step.residual, None)  # the block that needed it twice is done with it
        if step.divisor != 1.0:
            y.div_(step.divisor)
        if step.post is not None:
            y = step.post(y)
        return self._examined(y, node, "result") if dtype is None else y

    def _in_pieces(self, node: int, top: int, bottom: int, dtype: torch.dtype) -> Tensor:
        """fp32 in the middle of a half-precision run, in no more memory than the other steps need."""
        channels, _, width = self.store.shapes[node]
        result = empty((1, channels, bottom - top, width), self.plan.dtype, self.plan.device)
        for first, last in split_rows(bottom - top, max(8, (bottom - top) // 8 * 2)):
            result[:, :, first:last] = self.compute(node, top + first, top + last, dtype)
        return result

    def rows(self, node: int, top: int, bottom: int) -> tuple[Tensor, bool]:
        """(rows [top, bottom) of a node, whether the caller may write into them)."""
        if node in self.store:
            return self.store.rows(node, top, bottom), False
        if node in self._recent:
            first, last, rows = self._recent[node]
            if first <= top and bottom <= last:
                return rows[:, :, top - first : bottom - first], False
        rows = self.compute(node, top, bottom)
        if len(self.readers[node]) < 2:
            return rows, True
        self._recent[node] = (top, bottom, rows)
        return rows, False

    def normed(self, step: AttentionStep, node: int, top: int, bottom: int) -> Tensor:
        """Rows of an attention's source, normalised, in the type that it computes in."""
        x = self.rows(step.source, top, bottom)[0].to(self.ranges.compute_dtype(node, self.plan.dtype))
        return x if step.norm is None else self._norm(step, node)(x)

    def needed_rows(self, node: int, top: int, bottom: int) -> dict[int, tuple[int, int]]:
        """Rows of the stored nodes that computing these rows reads."""
        geometry = Geometry(self.graph, self.store.indexes, self.store.shapes, self.handling)
        return geometry.rows_needed(node, top, bottom)

    def forget_recent(self) -> None:
        """A band is done: rows that were computed on the way to it are not read again."""
        self._recent.clear()

    def divide(self, node: int) -> None:
        """What exists of a node is stored with its new exponent from now on: its norms are computed again."""
        if node in self.moments:
            self.moments[node].divide(SHIFT_STEP)
        for reader in self.readers[node]:
            self._norms.pop(reader, None)

    def first_not_finite(self, node: int, top: int, bottom: int) -> tuple[int, Place]:
        """Which node is the first that is not finite on the way to these rows, and where in its step."""
        self._is_searching = True
        try:
            self.compute(node, top, bottom)
        except _NotFinite as found:
            return found.node, found.place
        finally:
            self._is_searching = False
            self._recent.clear()
        return node, "result"

    def _add_residual(self, y: Tensor, source: int, shortcut: Conv | None, node: int, top: int) -> None:
        """Add the residual's rows to y, with y's exponent."""
        bottom = top + y.shape[2]
        lift = self.ranges.exponent(source) - self.ranges.exponent(node)
        if shortcut is None:
            y.add_(self._examined(self.rows(source, top, bottom)[0], source, "source"), alpha=2.0**lift)
            return
        scaling = Scaling(y.dtype, lift, self.ranges.exponent(node))
        gain = self.convolver.input_gain(shortcut, scaling)

        def rows(a: int, b: int) -> Tensor:
            x = self.rows(source, a, b)[0].to(y.dtype)
            return x * 2.0**gain if gain else x

        height = self.store.shapes[source][1]
        y.add_(self.convolver(shortcut, SourceRows(rows, height), top, bottom, scaling))

    def _conv_input(self, step: Step, node: int, top: int, bottom: int, scaling: Scaling) -> Tensor:
        """Rows [top, bottom) of the step's source, normalised and activated, times 2**gain, in the scaling's type."""
        x, is_own = self.rows(step.source, top, bottom)
        self._examined(x, step.source, "source")
        if x.dtype != scaling.dtype:
            x, is_own = x.to(scaling.dtype), True
        exponent = self.ranges.exponent(step.source)
        if step.norm is not None:
            x, is_own = self._examined(self._norm(step, node)(x), node, "inside"), True
        elif exponent and not is_homogeneous(step):
            x, is_own = self._examined(x * 2.0**exponent, node, "inside"), True
        if step.act is not None:
            x, is_own = step.act(x if is_own else x.clone()), True
        elif step.conv is None and not is_own:
            x, is_own = x.clone(), True
        if scaling.gain == 0:
            return x
        return x.mul_(2.0**scaling.gain) if is_own else x * 2.0**scaling.gain

    def _norm(self, step: Step | AttentionStep, node: int) -> ScaleShift:
        if node not in self._norms:
            assert step.norm is not None
            self._norms[node] = scale_and_shift(
                step.norm, self.moments[step.source], self.plan.device, self.plan.dtype,
                self.ranges.exponent(step.source),
            )  # fmt: skip
        return self._norms[node]

    def _examined(self, x: Tensor, node: int, place: Place) -> Tensor:
        """x; while the first node that is not finite is looked for, only if it is finite."""
        if self._is_searching and self.guard is not None and not self.guard.is_in_range(x):
            raise _NotFinite(node, place)
        return x
