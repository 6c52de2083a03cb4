"""Requests written for the "Tiled VAE" of multidiffusion-upscaler: its tile sizes, as a budget of memory.

Its arguments are `[enabled, encoder_tile, decoder_tile, to_gpu, fast_decoder, fast_encoder, color_fix]`.  Pictures
up to one tile ran whole there, larger ones in tiles of that size; so a picture may take here what one tile took there.
The other four have nothing left to do: the picture is exact, and there is no slower way to make it so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from sd_vae_kit.core.halves import Half
from sd_vae_kit.core.plan.candidates import whole_plan
from sd_vae_kit.core.plan.cost import predict
from sd_vae_kit.core.run.planning import graph_of
from sd_vae_kit.errors import OptionError, UnsupportedVaeError
from sd_vae_kit.settings.sections import TilingSettings
from sd_vae_kit.units import MIB

NAMES = ("enabled", "encoder_tile", "decoder_tile", "to_gpu", "fast_decoder", "fast_encoder", "color_fix")
DEFAULTS: tuple[object, ...] = (False, 960, 64, True, True, True, False)
PADDING = {"encoder": 32, "decoder": 11}  # on each side of a tile, in pixels and latent cells
SMALLEST = {"encoder": 256, "decoder": 48}


@dataclass(frozen=True)
class TileSizes:
    """Side of a tile: pixels for the encoder, latent cells for the decoder."""

    encoder: int
    decoder: int

    def budget(
        self, tiling: TilingSettings, network: nn.Module, part: Half, dtype: torch.dtype, device: torch.device
    ) -> TilingSettings:
        """`tiling`, switched on, with the memory that one tile takes as its budget."""
        graph = graph_of(network, part)
        side = getattr(self, part) + 2 * PADDING[part]
        try:
            needed = predict(graph, whole_plan(device, dtype), (1, graph.channels_in, side, side)).peak_bytes
        except UnsupportedVaeError:  # a tile smaller than this network's smallest picture
            return tiling
        return dataclasses.replace(
            tiling, enabled=True, encoder=True, decoder=True, memory_mb=max(1, -(-needed // MIB))
        )


def tile_sizes(arguments: Sequence[object]) -> TileSizes | None:
    """What a request asks for; None if it is not switched on.

    Raises:
        OptionError: A tile size is not a number.
    """
    given = dict(zip(NAMES, DEFAULTS, strict=True))
    given.update(dict(zip(NAMES, arguments, strict=False)))
    if not given["enabled"]:
        return None
    sides = {}
    for part in ("encoder", "decoder"):
        side = given[f"{part}_tile"]
        if isinstance(side, bool) or not isinstance(side, int | float) or not side == side:
            raise OptionError(f"Tiled VAE's {part} tile size is {side!r}; it is a number.")
        sides[part] = max(SMALLEST[part], int(side))
    return TileSizes(**sides)
