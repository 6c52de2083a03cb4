"""Which VAE a set of weights is, whatever file, layout or precision it came in.

`fingerprint` is a hash: equal for the same weights in fp16, or in fp32 and the fp16 copy made from it.
`weight_sketch` is some of the weights themselves: it recognises copies in bf16 and fp8 too, which
change every weight a little.

How far two sketches may differ.  A copy in a coarser format holds, for each weight, the nearest number of that format:
at most half a step away.  Which format a value went through shows in the value itself, an fp8 number has three
significant bits and a weight that was never in fp8 practically never has so few.  So each pair of values may differ by
half a step of the coarsest formats the two values fit into, plus half a step of the 16-bit format the copy may have
been made from, and *every* pair must.  Rounding can therefore never exceed the tolerance, while another VAE fails it
unless hundreds of weights happen to round to the same numbers: a fine-tune that moves weights by 1 % fails for all
values in fp16, and for about one in ten against an fp8 copy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from math import frexp, ldexp

import torch
from torch import Tensor

FP16_MAX = 65504.0
BLANK_SIZE = 1024  # elements; small tensors may be zeros
SAMPLES = 2  # weights taken from each tensor
END_SAMPLES = 16  # from the first and last layers, which tools change alone (contrast, brightness, fp16 repair)
_ENDS = ("conv_in.", "conv_out.", "quant_conv.")


def non_finite(state: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinity."""
    return [name for name, tensor in state.items() if not _is_finite(_plain(tensor))]


def blank(state: Mapping[str, Tensor]) -> list[str]:
    """Names of the large weights that are all zeros, as in a file whose space was reserved before its data came."""
    return [
        name
        for name, tensor in state.items()
        if tensor.dim() > 1 and tensor.numel() >= BLANK_SIZE and not bool(_plain(tensor.reshape(-1)[0]))
        and not bool(_plain(tensor).any())
    ]  # fmt: skip


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """Hash of a VAE's weights as fp16, 64 hex digits.

    Args:
        state: By canonical names, as in `VaeWeights.state`; FLUX.2's `bn` statistics are not counted.
    """
    digest = hashlib.sha256()
    for name, tensor in _network(state):
        half = tensor.to(torch.float16)
        if not _is_finite(half):
            # Beyond fp16's range a cast gives infinity, so fp16 copies hold it: both become the largest number.
            half = torch.nan_to_num(_plain(tensor).float()).clamp_(-FP16_MAX, FP16_MAX).to(torch.float16)
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(half.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def weight_sketch(state: Mapping[str, Tensor]) -> tuple[float, ...]:
    """A few weights of every tensor, at places that depend on its name only; about 600 numbers for SD's VAE.

    Args:
        state: By canonical names, as in `VaeWeights.state`.
    """
    values: list[float] = []
    for name, tensor in _network(state):
        places = torch.tensor(_places(name, tensor.numel()), dtype=torch.int64)
        picked = _plain(tensor).reshape(-1)[places].float()
        values += torch.nan_to_num(picked, posinf=FP16_MAX, neginf=-FP16_MAX).tolist()
    return tuple(values)


def weight_sketches_match(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether two sketches are of one VAE, in whatever precision each was stored (tolerance: see the module)."""
    return len(a) == len(b) and all(abs(x - y) <= _tolerance(x) + _tolerance(y) for x, y in zip(a, b, strict=True))


def _plain(tensor: Tensor) -> Tensor:
    """fp8 as fp16, which holds every fp8 number; most operations do not exist in fp8."""
    return tensor.to(torch.float16) if tensor.element_size() == 1 else tensor


def _is_finite(tensor: Tensor) -> bool:
    """Whether all its numbers are finite.

    Their sum is NaN or infinite if one of them is, and reading each once is ten times faster than testing each; only a
    sum that may have overflowed by itself is looked into.
    """
    total = tensor.sum(dtype=torch.float32)
    return bool(torch.isfinite(total)) or bool(torch.isfinite(tensor).all())


def _network(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The network's tensors in a fixed order."""
    return ((name, state[name]) for name in sorted(state) if not name.startswith("bn."))


def _places(name: str, numel: int) -> list[int]:
    count = END_SAMPLES if any(end in name for end in _ENDS) else SAMPLES
    if numel <= count:
        return list(range(numel))
    digests = (hashlib.blake2b(f"{name} {i}".encode(), digest_size=8).digest() for i in range(count))
    return [int.from_bytes(digest, "little") % numel for digest in digests]


# (explicit mantissa bits, exponent of the smallest normal number), and the same of the 16-bit format a copy in the
# first may have been made from.
_FP16, _BF16 = (10, -14), (7, -126)
_GRIDS = (
    ((2, -14), _BF16),  # fp8_e5m2
    ((3, -6), _BF16),  # fp8_e4m3fn
    (_BF16, _FP16),
    (_FP16, None),
    ((23, -126), None),  # fp32
)


def _half_step(exponent: int, grid: tuple[int, int]) -> float:
    bits, lowest = grid
    return ldexp(0.5, max(exponent, lowest) - bits)


def _tolerance(value: float) -> float:
    """How far the number that was rounded to `value` may have been from it."""
    exponent = frexp(value)[1] - 1 if value else -1000
    widest = 0.0
    for grid, source in _GRIDS:
        half = _half_step(exponent, grid)
        if (value / (2 * half)).is_integer():
            widest = max(widest, half + (_half_step(exponent, source) if source else 0.0))
    return widest
