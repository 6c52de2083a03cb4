"""VAEs that overflow half precision, made from sound twins by exact powers of two, each at one place.

A twin and its overflowing copy are the same function: what one layer writes larger, the next layer reads smaller.  All
weights are half-precision numbers in both, so that a difference in error comes from the values, not from the weights.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from math import floor, log2

import torch
from torch import Tensor, nn
from vae_files import amplify_stream, scale
from vae_zoo import picture, small_vae

from sd_vae_kit.core.engine.stream import Plan, run_streamed
from sd_vae_kit.core.graph.from_module import decoder_graph, encoder_graph
from sd_vae_kit.core.networks.autoencoder import NetConfig
from sd_vae_kit.core.run.precision import run_guarded
from sd_vae_kit.core.run.request import RunRequest

CPU = torch.device("cpu")
HALF_MAX = 65504.0
HALF, FULL = torch.float16, torch.float32
CONFIG = NetConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1)
SIZE = {"decoder": (4, 24, 10), "encoder": (3, 40, 18)}
SPIKE = 40.0
WHERE = ("first", "middle", "last")
PLACES = ("stream", "inner", "query", "last norm")


@dataclass
class Case:
    """A VAE that overflows, its sound twin, an input, and what is known about the place.

    Attributes:
        step: Name of the step whose value, or whose inside, is the first to overflow.
        rows: (top, bottom) of that step's rows in which it does.
    """

    part: str
    overflowing: nn.Module
    twin: nn.Module
    x: Tensor
    step: str
    rows: tuple[int, int]

    def graph(self, which: str = "overflowing", dtype: torch.dtype = torch.float16):
        vae = copy.deepcopy(getattr(self, which)).to(dtype)
        return decoder_graph(vae) if self.part == "decoder" else encoder_graph(vae)

    @torch.no_grad()
    def forward(self, which: str, dtype: torch.dtype) -> Tensor:
        """The module's own ordinary forward."""
        vae = copy.deepcopy(getattr(self, which)).to(dtype)
        x = self.x.to(dtype)
        return vae.decode(x) if self.part == "decoder" else vae.encode(x)


def spiked(part: str, where: str, seed: int = 0) -> Tensor:
    """A random input with one pixel far from all others, near the top, the middle or the bottom."""
    channels, height, width = SIZE[part]
    x = picture(channels, height, width, seed=seed)
    row = {"first": 0, "middle": height // 2, "last": height - 1}[where]
    x[:, :, row, width // 2] = SPIKE * torch.tensor([1.0, -1.0, 1.0, -1.0])[:channels]
    return x.half().float()


def base_vae(seed: int = 0, config: NetConfig = CONFIG) -> nn.Module:
    """A sound VAE whose weights are half-precision numbers."""
    vae = small_vae(config, seed=seed)
    return vae.half().float()


class Rows:
    """A guard that notes the largest number in each row of each step's value."""

    def __init__(self) -> None:
        self.seen: dict[str, dict[int, float]] = {}

    def accept(self, step, rows, band, moments):
        largest = band.abs().amax((0, 1, 3))
        self.seen.setdefault(step.name, {}).update(
            {rows[0] + i: float(value) for i, value in enumerate(largest)}
        )  # fmt: skip
        return band


def levels(vae: nn.Module, part: str, x: Tensor) -> dict[str, Tensor]:
    """Step name -> the largest number in each row of its value, in fp32."""
    graph = decoder_graph(vae) if part == "decoder" else encoder_graph(vae)
    guard = Rows()
    run_streamed(graph, x, Plan("stream", CPU, torch.float32), guard=guard)
    return {name: torch.tensor([rows[i] for i in sorted(rows)]) for name, rows in guard.seen.items()}


def room(largest: float) -> int:
    """The largest power of two that keeps a number inside half precision's range."""
    return floor(log2(HALF_MAX / largest))


def rows_above(rows: Tensor, exponent: int) -> tuple[int, int]:
    above = (rows * 2.0**exponent > HALF_MAX).nonzero().flatten()
    assert len(above), "the place does not overflow: the case shows nothing"
    return int(above[0]), int(above[-1]) + 1


def stream_case(part: str, where: str, seed: int = 0) -> Case:
    """The second convolution of one block, which is written over its input, is the first to leave the range."""
    twin, x = base_vae(seed), spiked(part, where, seed)
    block = getattr(twin, part).mid.block_1
    scale(block.conv2, 5)
    found = levels(twin, part, x)
    name = f"{part}.mid.block_1.conv2"
    order = list(found)
    before = max(float(found[step].max()) for step in order[: order.index(name)])
    exponent = room(max(before, float(found[name].max()) / 4))
    overflowing = copy.deepcopy(twin)
    amplify_stream(overflowing, part, exponent)
    return Case(part, overflowing, twin, x, name, rows_above(found[name], exponent))


def inner_case(part: str, where: str, seed: int = 0) -> Case:
    """What the first convolution of a block writes and only its second norm reads."""
    twin, x = base_vae(seed), spiked(part, where, seed)
    name = f"{part}.mid.block_2.conv1"
    rows = levels(twin, part, x)[name]
    exponent = room(float(rows.max()) / 4)
    overflowing = copy.deepcopy(twin)
    block = getattr(overflowing, part).mid.block_2
    scale(block.conv1, exponent)
    block.norm2.eps *= 4.0**exponent
    return Case(part, overflowing, twin, x, name, rows_above(rows, exponent))


def query_case(part: str, where: str, seed: int = 0) -> Case:
    """Queries larger, keys smaller by about as much: only the spike's query leaves the range."""
    overflowing, x = base_vae(seed), spiked(part, where, seed)
    attention = getattr(overflowing, part).mid.attn_1
    seen: list[Tensor] = []
    hook = attention.q.register_forward_hook(lambda module, args, q: seen.append(q.abs().amax((0, 1, 3))))
    levels(overflowing, part, x)
    hook.remove()
    rows = torch.cat(seen)
    exponent = room(float(rows.max()) / 4)
    scale(attention.q, exponent)
    scale(attention.k, 2 - exponent)
    twin = copy.deepcopy(overflowing)
    scale(getattr(twin, part).mid.attn_1.q, -8)
    scale(getattr(twin, part).mid.attn_1.k, 8)
    return Case(part, overflowing, twin, x, f"{part}.mid.attn_1", rows_above(rows, exponent))


def last_norm_case(part: str, where: str, seed: int = 0) -> Case:
    """The last norm's result; SiLU is the identity or zero for numbers of that size, so a power of two passes it."""
    overflowing, x = base_vae(seed), spiked(part, where, seed)
    network = getattr(overflowing, part)
    scale(network.norm_out, 14)
    scale(network.conv_out, -14)
    with torch.no_grad():
        network.conv_out.bias.mul_(2.0**14)
    twin = copy.deepcopy(overflowing)
    scale(getattr(twin, part).norm_out, -6)
    with torch.no_grad():
        getattr(twin, part).conv_out.weight.mul_(2.0**6)
    return Case(part, overflowing, twin, x, f"{part}.conv_out", (0, 0))


CASES = {"stream": stream_case, "inner": inner_case, "query": query_case, "last norm": last_norm_case}


def rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def narrow_plan(dtype=HALF, *, band_bytes=6000, stored=None):
    return Plan("stream", CPU, dtype, stored, band_bytes)


@cache
def case(place: str, part: str, where: str, seed: int = 0) -> Case:
    return CASES[place](part, where, seed)


def rescued(found: Case, fixes=None, plan=None, **options):
    """The overflowing VAE under the guard, in narrow bands, and how many bands were computed in the end."""
    bands, on_step = [0], options.pop("on_step", lambda done, total: True)

    def count(done, total):
        bands[0] = done
        return on_step(done, total)

    request = RunRequest(on_step=count, **options)
    done = run_guarded(found.graph(), found.x.half(), plan or narrow_plan(), request, fixes)
    return done, bands[0]


def check(found: Case, done, factor=1.3) -> None:
    """Finite, and about as exact as the twin's half precision through the same engine."""
    reference = found.forward("twin", FULL)
    assert bool(torch.isfinite(done.tensor).all())
    plain = rms(found.forward("twin", HALF).float() - reference)
    assert rms(done.tensor.float() - reference) <= factor * plain
