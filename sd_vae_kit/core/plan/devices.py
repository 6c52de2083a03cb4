"""What kinds of device differ in for the engine, as data: the layout of bands, kernels that exist, autocast, copies.

Only the CPU and CUDA have been run.  The rest follows what their backends document and what is known to be wrong:
MPS convolves some views of channels_last tensors wrongly (pytorch#180984), has no float64 and no `aminmax`; DirectML
(`privateuseone`) has no autocast at all, and asking for it fails an assertion.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Traits:
    """One kind of device.

    Attributes:
        name: For messages.
        memory_format: Of activations and packed weights.
        has_moments_kernel: Whether `batch_norm_update_stats` exists: mean and variance in one sweep.
        has_affine_kernel: Whether inference batch norm applies fp32 scale and shift to half-precision data.
        has_streams: Whether copies to and from pinned memory run beside the computation.
        keeps_heap: Whether freed memory stays with the process until it is returned.
        has_aminmax: Whether smallest and largest number can be taken in one sweep.
    """

    name: str
    memory_format: torch.memory_format = torch.contiguous_format
    has_moments_kernel: bool = False
    has_affine_kernel: bool = False
    has_streams: bool = False
    keeps_heap: bool = False
    has_aminmax: bool = False


TRAITS = {
    "cpu": Traits(
        "CPU", torch.channels_last, has_moments_kernel=True, has_affine_kernel=True, keeps_heap=True, has_aminmax=True
    ),
    # ROCm calls itself cuda too
    "cuda": Traits(
        "CUDA", torch.channels_last, has_moments_kernel=True, has_affine_kernel=True, has_streams=True, has_aminmax=True
    ),
    "xpu": Traits("XPU", torch.channels_last, has_aminmax=True),
    "mps": Traits("MPS"),
    "privateuseone": Traits("DirectML"),
}


def traits(device: torch.device) -> Traits:
    """What is known of this kind of device; of an unknown one, nothing is assumed."""
    return TRAITS.get(device.type, Traits(device.type))
