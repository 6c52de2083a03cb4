"""What will happen when a picture is decoded, worked out without decoding it."""

from __future__ import annotations

from math import ceil

import torch
from torch import nn

from sd_vae_kit.core.run.planning import graph_of, planned
from sd_vae_kit.core.run.sentence import sentence, stepped_aside
from sd_vae_kit.errors import StepAsideError
from sd_vae_kit.settings.sections import TilingSettings
from sd_vae_kit.wording import Sentence


def forecast(
    network: nn.Module, size: tuple[int, int], dtype: torch.dtype, device: torch.device, tiling: TilingSettings
) -> Sentence:
    """What will happen when a picture of `size` (height, width) is decoded.

    Args:
        network: A VAE or its decoder.
        dtype, device: What it will compute in and where.
    """
    try:
        graph = graph_of(network, "decoder")
        cell = graph.shapes((16, 16))[-1][1] // 16
        cells = (1, graph.channels_in, max(1, ceil(size[0] / cell)), max(1, ceil(size[1] / cell)))
        choice = planned(graph, cells, dtype, device, tiling)
    except StepAsideError as error:
        return stepped_aside(str(error))
    return sentence(size, choice, tiling)
