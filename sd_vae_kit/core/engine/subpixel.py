"""Upsampling by repetition and the 3x3 convolution after it as one convolution of the small picture."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from sd_vae_kit.core.engine.device_tensors import dense, empty
from sd_vae_kit.core.engine.edges import SourceRows
from sd_vae_kit.core.engine.padding import zero_padded


def subpixel_weight(weight: Tensor) -> Tensor:
    """(C_out, C_in, 3, 3) -> (4 * C_out, C_in, 2, 2), one part for each place in a 2x2 block of output pixels.

    A part holds the sums of the taps that fall on the same pixel of the small picture.
    """
    channels_out, channels_in = weight.shape[:2]
    # (3, 3, C_out, C_in): sums then run over contiguous rows, and the result is channels_last as it stands
    taps = weight.permute(2, 3, 0, 1).to(weight.dtype if weight.dtype == torch.float64 else torch.float32).contiguous()
    phases = torch.empty(4, channels_out, 2, 2, channels_in, dtype=weight.dtype, device=weight.device)
    parts = (((0,), (1, 2)), ((0, 1), (2,)))  # of the first and the second place: taps on either small pixel
    for down, across in product((0, 1), repeat=2):
        for i, j in product((0, 1), repeat=2):
            seen = [taps[a, b] for a, b in product(parts[down][i], parts[across][j])]
            phases[2 * down + across, :, i, j] = sum(seen[1:], seen[0])
    return phases.flatten(0, 1).permute(0, 3, 1, 2)


def upsampled(weight: Tensor, bias: Tensor | None, source: SourceRows, top: int, bottom: int) -> Tensor:
    """Rows [top, bottom) of a 3x3 convolution of the picture with every pixel repeated 2x2, zeros outside.

    Three neighbouring rows of the large picture are two rows of the small one, so each of the four places in a 2x2
    block sees 2x2 small pixels: 4 products instead of 9.  Window m covers small rows m-1 and m; even output rows r use
    window r/2, odd ones (r+1)/2; columns likewise.
    """
    first, last = (top + 1) // 2, bottom // 2  # windows, inclusive
    a, b = max(first - 1, 0), min(last + 1, source.height)
    x = source.rows(a, b)
    above, below = a - (first - 1), last + 1 - b
    if above != below:
        x, above = zero_padded(x, above=above, below=below), 0
    y = F.conv2d(dense(x), weight, bias, padding=(above, 1))
    del x
    channels, width = weight.shape[0] // 4, y.shape[3] - 1
    out = empty((1, channels, bottom - top, 2 * width), y.dtype, y.device)
    for parity in (0, 1):
        row = top + (top + parity) % 2  # first row of this parity
        count = (bottom - row + 1) // 2
        window = (row + 1) // 2 - first
        for side in (0, 1):
            phase = (2 * parity + side) * channels
            part = y[:, phase : phase + channels, window : window + count, side : side + width]
            out[:, :, row - top :: 2, side::2] = part
    return out
