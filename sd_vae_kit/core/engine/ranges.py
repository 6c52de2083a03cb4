"""How each step of a graph is computed so that its values stay inside half precision's range.

A node is stored divided by a power of two, its exponent: GroupNorm cancels the factor, convolutions and sums carry it
along, so the picture is the same.  Where that is impossible (a norm whose own result is too large) the step is computed
in fp32.  What a graph needed is a small record by step names, which can be kept for the next picture.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from sd_vae_kit.core.graph.builder import relu_
from sd_vae_kit.core.graph.nodes import AttentionStep, LayerGraph, Step

SHIFT_STEP = 4  # bits at a time: a stream may then grow another 16 times before it is shifted again
MAX_SHIFT = 24


@dataclass
class PrecisionFixes:
    """What one graph needed to stay finite in half precision.

    Attributes:
        shifts: Step name -> exponent of its node.  Attention has two more, by its name and ".query" (queries divided,
            keys multiplied; negative the other way round) or ".value".
        fp32: Names of the steps that were computed in fp32.
        whole: "fp32" or "bf16" if the whole call had to be run in it, else "".
    """

    shifts: dict[str, int] = field(default_factory=dict)
    fp32: set[str] = field(default_factory=set)
    whole: str = ""

    def __bool__(self) -> bool:
        return bool(self.shifts or self.fp32 or self.whole)

    def copy(self) -> PrecisionFixes:
        return PrecisionFixes(dict(self.shifts), set(self.fp32), self.whole)


class Ranges:
    """The exponents and the fp32 steps of one call, all samples together; changed where a node turns out too large.

    Args:
        graph: What runs.
        fixes: What is known from earlier calls; names that this graph does not have are ignored.
    """

    def __init__(self, graph: LayerGraph, fixes: PrecisionFixes | None = None) -> None:
        self.graph = graph
        self.fixes = PrecisionFixes() if fixes is None else fixes.copy()
        self.exponents: dict[int, int] = {0: 0}

    def exponent(self, node: int) -> int:
        """k: the node is stored divided by 2**k.  It is decided when the node is first asked for."""
        if node not in self.exponents:
            step = self.graph.steps[node - 1]
            known = self.fixes.shifts.get(step.name, 0)
            self.exponents[node] = max(known, self._inherited(step)) if self.can_shift(node) else 0
        return self.exponents[node]

    def _inherited(self, step: Step | AttentionStep) -> int:
        """A sum keeps the exponent of the stream it adds to, a convolution of a bare stream that of the stream."""
        if isinstance(step, AttentionStep):
            return self.exponent(step.source) if step.residual else 0
        if step.residual is not None:
            return self.exponent(step.residual)
        return self.exponent(step.source) if step.norm is None and is_homogeneous(step) else 0

    def can_shift(self, node: int) -> bool:
        """Whether readers of this node can take an exponent into account; the result has none."""
        step = self.graph.steps[node - 1]
        if node == len(self.graph.steps):
            return False
        return isinstance(step, AttentionStep) or step.post in (None, relu_)

    def gain(self, node: int) -> int:
        """g: the convolution's answer has to be multiplied by 2**g to be stored with the node's exponent."""
        step = self.graph.steps[node - 1]
        if step.norm is None and isinstance(step, Step) and is_homogeneous(step):
            return self.exponent(step.source) - self.exponent(node)
        return -self.exponent(node)

    def is_wide(self, node: int) -> bool:
        """Whether the step is computed in fp32."""
        return self.graph.steps[node - 1].name in self.fixes.fp32

    def shift(self, node: int) -> bool:
        """Store the node smaller; False if it cannot be."""
        known = self.exponent(node)
        if not self.can_shift(node) or known >= MAX_SHIFT:
            return False
        self.exponents[node] = self.fixes.shifts[self.graph.steps[node - 1].name] = known + SHIFT_STEP
        return True

    def widen(self, node: int) -> bool:
        """Compute the step in fp32; False if it already is."""
        if self.is_wide(node):
            return False
        self.fixes.fp32.add(self.graph.steps[node - 1].name)
        return True

    def compute_dtype(self, node: int, usual: torch.dtype) -> torch.dtype:
        return torch.float32 if self.is_wide(node) and usual.itemsize < 4 else usual

    @property
    def steps_shifted(self) -> int:
        """How many steps have a node, or queries, keys or values of attention, that is stored with an exponent."""
        names = {self.graph.steps[node - 1].name for node, exponent in self.exponents.items() if exponent}
        known = {step.name for step in self.graph.steps}
        inner = {name.rpartition(".")[0] for name, exponent in self.fixes.shifts.items() if exponent}
        return len(names | (inner & known))

    @property
    def steps_fp32(self) -> int:
        return sum(step.name in self.fixes.fp32 for step in self.graph.steps)


def is_homogeneous(step: Step) -> bool:
    """Whether what enters the step's convolution doubles when its source does, no norm being there."""
    return step.act in (None, relu_)
