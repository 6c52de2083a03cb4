"""A VAE's weights changed so that any software can run it in half precision: powers of two folded into the layers.

What a layer writes 2**k times smaller, the GroupNorm that reads it cancels; where no norm follows, the next
convolution's weights are made larger instead.  Multiplying a weight by a power of two changes no digit of it, so the
picture is the same; only a norm's epsilon, which no file holds, weighs a little more (1e-6 of a variance near 1).
Sample pictures say which values are too large, and prove afterwards that none is any more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil, log2
from typing import Any

import torch
from torch import Tensor, nn

from sd_vae_kit.core.engine.overflow import largest
from sd_vae_kit.core.graph.from_module import decoder_graph, encoder_graph
from sd_vae_kit.core.graph.nodes import AttentionStep, Conv, LayerGraph, Step
from sd_vae_kit.core.networks.autoencoder import AttnBlock, AutoencoderKL, ResnetBlock, split_moments
from sd_vae_kit.core.vae import VaeWeights, build
from sd_vae_kit.errors import NanError, VaeMismatchError

HALF_MAX = torch.finfo(torch.float16).max
HEADROOM = 8.0  # other pictures may have larger values than the samples
PROVEN = 4.0  # what has to be left of it in the end
MOST_ERROR = 0.01  # RMS against the original in fp32, pictures in [-1, 1]: about one step of 8 bits
TRIED = 2  # samples that are run in half precision itself, which CPUs are slow in; all are looked through in fp32

Largest = dict[str, float]


@dataclass(frozen=True)
class Safe:
    """What `make_fp16_safe` did.

    Attributes:
        weights: In fp16.
        folded: Layer -> k: what it writes is 2**k times smaller than before; negative: larger.
        largest_before, largest_after: Largest number inside the network, on the sample pictures.
        error: RMS of the new file's pictures in half precision against the original's in fp32, in [-1, 1].
    """

    weights: VaeWeights
    folded: dict[str, int]
    largest_before: float
    largest_after: float
    error: float


def make_fp16_safe(weights: VaeWeights, images: Sequence[Tensor], *, label: str = "this VAE") -> Safe:
    """The same VAE with weights that half precision can hold and run.

    Args:
        weights: From `read_vae`; only read.
        images: Sample pictures (1, 3, H, W) in [-1, 1], sides multiples of 8.
        label: What messages call the file.

    Raises:
        VaeMismatchError: It has no norms to cancel a factor (TAESD).
        NanError: Values beyond half precision remain; the message says where.
    """
    if weights.detection.kind != "kl":
        raise VaeMismatchError(f"{label} is a TAESD, which has no norms; it is small enough to be used in fp32")
    module = _module(weights)
    before, expected = _observed(module, images)
    graphs = [graph for graph in (_graph(module, part) for part in ("encoder", "decoder")) if graph]
    folded = {name: k for graph in graphs for name, k in _exponents(graph, before).items() if k}
    state = {name: tensor.float() for name, tensor in weights.state.items()}
    for graph in graphs:
        _fold(state, graph, folded)
    safe = replace(weights, state=_halved(state, label))
    after, found = _observed(_module(safe), images)
    _refuse_large(after, label)
    error = _error(found, expected)
    if HAS_HALF:
        half: nn.Module = build(safe, dtype=torch.float16)
        half.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        tried = _outputs(half, images[:TRIED], expected)
        error = max(error, _error(tried, expected[: len(tried)]))
    if not error <= MOST_ERROR:
        raise NanError(
            f"{label} cannot be made safe for fp16: on sample pictures the result is off by {error:.3f} (RMS in "
            f"[-1, 1]), more than {MOST_ERROR}; nothing was written. Use it in fp32 or bf16."
        )
    return Safe(safe, folded, max(before.values()), max(after.values()), error)


def _module(weights: VaeWeights) -> AutoencoderKL:
    module = build(weights, dtype=torch.float32)
    assert isinstance(module, AutoencoderKL)
    return module


def _graph(module: AutoencoderKL, part: str) -> LayerGraph | None:
    if getattr(module, part, None) is None:
        return None
    return encoder_graph(module) if part == "encoder" else decoder_graph(module)


# what the samples say


@torch.no_grad()
def _observed(module: AutoencoderKL, images: Sequence[Tensor]) -> tuple[Largest, list[Tensor]]:
    """(largest number that each layer and block writes, outputs), in fp32 with the module's weights."""
    seen: Largest = {}
    with _watched(module, seen):
        outputs = _outputs(module, images, None)
    return seen, outputs


@torch.no_grad()
def _outputs(module: nn.Module, images: Sequence[Tensor], given: list[Tensor] | None) -> list[Tensor]:
    """Moments and pictures, in fp32; the latents that are decoded are the encoder's means, or noise without one.

    Args:
        given: Outputs of the original: its latents are decoded, so that errors of both halves stay apart.
    """
    net: Any = module
    dtype, layout = next(module.parameters()).dtype, torch.channels_last  # of which CPUs compute fp16 much faster
    outputs: list[Tensor] = []
    generator = torch.Generator().manual_seed(0)
    for i, image in enumerate(images):
        z: Tensor | None = None
        if hasattr(net, "encoder"):
            outputs.append(net.encode(image.to(dtype, memory_format=layout)).float())
            source = outputs[-1] if given is None else given[len(outputs) - 1]
            z = split_moments(source)[0]
        if hasattr(net, "decoder"):
            if z is None:
                cell = net.config.decoder.downscale
                shape = (1, net.config.decoder.z_channels, image.shape[2] // cell, image.shape[3] // cell)
                z = torch.randn(shape, generator=generator) * (1 + 4 * (i % 2))
            outputs.append(net.decode(z.to(dtype, memory_format=layout)).float())
    return outputs


@contextmanager
def _watched(module: nn.Module, seen: Largest) -> Iterator[None]:
    """Note what each layer and block of our own module writes, while the block runs."""

    def watch(name: str) -> Any:
        def hook(layer: nn.Module, args: object, y: Tensor) -> None:
            seen[name] = max(seen.get(name, 0.0), largest(y))

        return hook

    kinds = (nn.Conv2d, nn.GroupNorm, ResnetBlock, AttnBlock)
    handles = [
        layer.register_forward_hook(watch(name)) for name, layer in module.named_modules() if isinstance(layer, kinds)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _bits(number: float) -> int:
    """k: the number is to be made 2**k times smaller; 0 if there is room enough already."""
    return max(0, ceil(log2(number * HEADROOM / HALF_MAX))) if 0.0 < number < float("inf") else 0


def _exponents(graph: LayerGraph, seen: Largest) -> dict[str, int]:
    """Step name -> exponent of its value, and attention's ".query" and ".value": see `ranges.Needs.shifts`."""
    steps = graph.steps
    stream = list(range(len(steps) + 1))  # values that are added to each other share an exponent: the first one's

    def root(value: int) -> int:
        while stream[value] != value:
            value = stream[value]
        return value

    for value, step in enumerate(steps, 1):
        added = step.source if isinstance(step, AttentionStep) else None if step.shortcut else step.residual
        if added is not None:
            stream[value] = root(added)
    needed: dict[int, int] = {}
    for value, step in enumerate(steps, 1):
        needed[root(value)] = max(needed.get(root(value), 0), _bits(_written(step, seen)))
    needed[root(0)] = needed[root(len(steps))] = 0  # what enters and leaves is what it is
    result = {step.name: needed[root(value)] for value, step in enumerate(steps, 1)}
    for step in steps:
        if isinstance(step, AttentionStep):
            query, key = _bits(seen[f"{step.name}.q"]), _bits(seen[f"{step.name}.k"])
            result[f"{step.name}.query"] = query if query >= key else -key
            result[f"{step.name}.value"] = _bits(seen[f"{step.name}.v"])
    return result


def _written(step: Step | AttentionStep, seen: Largest) -> float:
    """The largest number that making this value writes: by its convolutions, and by the sum with its residual."""
    if isinstance(step, AttentionStep):
        return max(seen[step.name], seen[f"{step.name}.proj_out"])
    convs = [conv.name for conv in (step.conv, step.shortcut) if conv is not None]
    block = step.name.rpartition(".")[0] if step.residual is not None else ""
    return max(seen[name] for name in [*convs, *([block] if block else [])])


# folding


def _fold(state: dict[str, Tensor], graph: LayerGraph, folded: Mapping[str, int]) -> None:
    """Multiply weights and biases, in place of the dictionary's tensors."""
    names = [step.name for step in graph.steps]

    def exponent(value: int) -> int:
        return folded.get(names[value - 1], 0) if value else 0

    def scale(layer: str, weight: int, bias: int) -> None:
        for kind, bits in (("weight", weight), ("bias", bias)):
            if bits and f"{layer}.{kind}" in state:
                state[f"{layer}.{kind}"] = state[f"{layer}.{kind}"] * 2.0**bits

    def scale_conv(conv: Conv | None, entering: int, leaving: int) -> None:
        if conv is not None:
            scale(conv.name, entering - leaving, -leaving)

    for value, step in enumerate(graph.steps, 1):
        leaving = exponent(value)
        if isinstance(step, AttentionStep):
            balance, inner = folded.get(f"{step.name}.query", 0), folded.get(f"{step.name}.value", 0)
            scale(f"{step.name}.q", -balance, -balance)
            scale(f"{step.name}.k", balance, balance)
            scale(f"{step.name}.v", -inner, -inner)
            scale(f"{step.name}.proj_out", inner - leaving, -leaving)
            continue
        scale_conv(step.conv, 0 if step.norm is not None else exponent(step.source), leaving)
        if step.residual is not None:
            scale_conv(step.shortcut, exponent(step.residual), leaving)


def _halved(state: Mapping[str, Tensor], label: str) -> dict[str, Tensor]:
    half = {name: tensor.to(torch.float16) for name, tensor in state.items()}
    lost = next((name for name, tensor in half.items() if not bool(torch.isfinite(tensor).all())), None)
    if lost is not None:
        raise NanError(f"{label} cannot be made safe for fp16: {lost} does not fit into it; use bf16 or fp32.")
    return half


# proof


def _refuse_large(seen: Largest, label: str) -> None:
    """Refuse values that no exponent made small enough: a norm's own result, or a layer before the picture.

    Raises:
        NanError: It names the largest.
    """
    name = max(seen, key=lambda key: seen[key])
    if not seen[name] * PROVEN <= HALF_MAX:
        raise NanError(
            f"{label} cannot be made safe for fp16: {name} gives values up to {seen[name]:.0f} that no factor can "
            "take away (fp16 ends at 65504); nothing was written. Use it in fp32 or bf16."
        )


def _error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """RMS of the differences; moments are compared by their means and deviations, as pictures are made from them."""
    errors = []
    for a, b in zip(found, expected, strict=True):
        pairs = (
            [(a, b)] if a.shape[1] == 3 else [(x, y) for x, y in zip(split_moments(a), split_moments(b), strict=True)]
        )
        errors += [float((x - y).square().mean().sqrt()) / max(1.0, float(y.square().mean().sqrt())) for x, y in pairs]
    return float(torch.tensor(errors).max())  # NaN if one is


def _has_half() -> bool:
    try:
        torch.conv2d(torch.zeros(1, 1, 1, 1, dtype=torch.float16), torch.zeros(1, 1, 1, 1, dtype=torch.float16))
    except RuntimeError:  # torch before 2.2 has no fp16 convolution on the CPU
        return False
    return True


HAS_HALF = _has_half()
