"""Which VAE a set of weights is, whatever file, layout or precision it came in.

`fingerprint` is a hash: equal for the same weights in fp16, or in fp32 and the fp16 copy made from it.  `sketch` is
some of the weights themselves: it recognises copies in bf16 and fp8 too, which change every weight a little.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def non_finite(state: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinity."""
    return [name for name, tensor in state.items() if not bool(torch.isfinite(_plain(tensor)).all())]


def _plain(tensor: Tensor) -> Tensor:
    """fp8 as fp16, which holds every fp8 number; most operations do not exist in fp8."""
    return tensor.to(torch.float16) if tensor.element_size() == 1 else tensor
