"""Searches for plans that are kept, so that the next picture of the same size has its plan at once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from sd_vae_kit.core.graph.nodes import LayerGraph
from sd_vae_kit.core.plan.candidates import PlanSearch
from sd_vae_kit.core.plan.devices import traits

MOST = 32  # searches kept; each takes some hundred kilobytes at most


class SearchCache:
    """Searches by the structure of the graph, shape, type and device; the one used longest ago is forgotten first.

    They hold no modules, so a dropped model's weights are not kept in memory.  Safe to use from several threads: one
    search is open in one thread at a time.
    """

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._searches: OrderedDict[object, tuple[threading.Lock, PlanSearch]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._searches)

    @contextmanager
    def opened(
        self, graph: LayerGraph, shape: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> Iterator[PlanSearch]:
        """The search for this graph and input, with all that it has found already."""
        outline = graph.outline()
        key = (outline, tuple(shape), dtype, device, traits(device))
        with self._lock:
            if key not in self._searches:
                self._searches[key] = threading.Lock(), PlanSearch(outline, shape, dtype, device)
            self._searches.move_to_end(key)
            while len(self._searches) > self._most:
                self._searches.popitem(last=False)
            lock, search = self._searches[key]
        with lock:
            yield search

    def forget(self) -> None:
        """Let go of everything."""
        with self._lock:
            self._searches.clear()


SEARCHES = SearchCache()
