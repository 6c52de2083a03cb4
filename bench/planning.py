"""What it costs to choose a plan: `python -m bench.planning`.

A full-size decoder (no weights are needed) and budgets that only `stream-lean` fits into.  The first picture's plan
of a size is searched for; the next ones find that search again.  Processor time, so that shared cores do not matter.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch

from sd_vae_kit.core.networks.autoencoder import AutoencoderKL, KlConfig
from sd_vae_kit.core.plan.search_cache import SEARCHES
from sd_vae_kit.core.run.planning import graph_of, planned
from sd_vae_kit.settings.sections import TilingSettings

REPEATS = 9
BUDGETS_MB = {1024: 1000, 2048: 4000}  # of a picture with that side


def milliseconds(vae: AutoencoderKL, pixels: int, budget_mb: int) -> float:
    """Processor time from the network to its plan."""
    began = time.process_time()
    graph, shape = graph_of(vae, "decoder"), (1, 4, pixels // 8, pixels // 8)
    choice = planned(graph, shape, torch.float32, torch.device("cpu"), TilingSettings(memory_mb=budget_mb))
    seconds = time.process_time() - began
    assert choice.kind == "stream-lean", choice.kind
    return 1000 * seconds


def main() -> None:
    with torch.device("meta"):
        vae = AutoencoderKL(KlConfig())
    print(f"torch {torch.__version__}, Python {sys.version.split()[0]}, {REPEATS} repeats")
    print("| px | first picture of a size, ms | next ones, ms |")
    print("|---|---|---|")
    for pixels, budget_mb in BUDGETS_MB.items():
        first, following = [], []
        for _ in range(REPEATS):
            SEARCHES.forget()
            first.append(milliseconds(vae, pixels, budget_mb))
            following.append(milliseconds(vae, pixels, budget_mb))
        print(f"| {pixels} | {statistics.median(first):.0f} | {statistics.median(following):.1f} |")


if __name__ == "__main__":
    main()
