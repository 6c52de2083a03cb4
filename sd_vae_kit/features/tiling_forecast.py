"""What will happen when a picture is decoded, worked out without decoding it."""

from __future__ import annotations

from math import ceil

import torch
from torch import nn

from sd_vae_kit.errors import StepAsideError
from sd_vae_kit.features.tiling import planned, program_of
from sd_vae_kit.features.tiling_sentence import Piece, sentence, stepped_aside
from sd_vae_kit.settings import TilingSettings


def forecast(
    network: nn.Module, size: tuple[int, int], dtype: torch.dtype, device: torch.device, tiling: TilingSettings
) -> tuple[Piece, ...]:
    """What will happen when a picture of `size` (height, width) is decoded.

    Args:
        network: A VAE or its decoder.
        dtype, device: What it will compute in and where.
    """
    try:
        program = program_of(network, "decoder")
        cell = program.shapes((16, 16))[-1][1] // 16
        cells = (1, program.channels_in, max(1, ceil(size[0] / cell)), max(1, ceil(size[1] / cell)))
        _, report = planned(program, cells, dtype, device, tiling)
    except StepAsideError as error:
        return stepped_aside(str(error))
    return sentence(size, report, tiling)
