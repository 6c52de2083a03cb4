"""What is measured: the same full-size VAE with random weights, run in different ways."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sd_vae_kit.core.engine.stream import Plan, run_streamed
from sd_vae_kit.core.graph.from_module import AttentionStep, LayerGraph, decoder_graph, encoder_graph
from sd_vae_kit.core.networks.autoencoder import AutoencoderKL, KlConfig, NetConfig
from sd_vae_kit.core.plan.candidates import LeanLimits, PlanSearch, whole_plan
from sd_vae_kit.core.plan.cost import predict

CPU = torch.device("cpu")
ORDINARY = "ordinary, NCHW"
FLOOR = "floor (convolutions + attention alone)"
STREAMED = ("whole", "stream", "stream-lean")
VARIANTS = (ORDINARY, "ordinary, channels_last", *STREAMED, "diffusers tiling", FLOOR)
DEFAULT_VARIANTS = tuple(name for name in VARIANTS if name != "whole")  # the same plan as the ordinary forward


@dataclass
class Subject:
    """One direction of the VAE and an input for it."""

    vae: AutoencoderKL
    part: str
    x: Tensor

    @property
    def graph(self) -> LayerGraph:
        return decoder_graph(self.vae) if self.part == "decode" else encoder_graph(self.vae)

    def ordinary(self) -> Tensor:
        return self.vae.decode(self.x) if self.part == "decode" else self.vae.encode(self.x)


def subject(part: str, pixels: int, dtype: torch.dtype, seed: int = 0) -> Subject:
    """The 83.7 M-parameter VAE of SD 1/2 and SDXL with random weights; only the half that is measured is built."""
    torch.manual_seed(seed)
    full = NetConfig()
    config = KlConfig(encoder=None if part == "decode" else full, decoder=full if part == "decode" else None)
    vae = AutoencoderKL(config).eval()
    for module in vae.modules():
        if isinstance(module, nn.GroupNorm):  # trained norms are not the identity
            nn.init.normal_(module.weight, 1.0, 0.3)
            nn.init.normal_(module.bias, 0.0, 0.3)
    side = pixels // 8 if part == "decode" else pixels
    x = torch.randn(1, 4, side, side) if part == "decode" else torch.rand(1, 3, side, side) * 2 - 1
    return Subject(vae.to(dtype), part, x.to(dtype))


def runner(name: str, it: Subject) -> Callable[[], Tensor]:
    """A function that runs a variant once; for the floor see `floor_times`."""
    if name == ORDINARY:
        return it.ordinary
    if name == "ordinary, channels_last":
        turned = AutoencoderKL(it.vae.config).to(it.x.dtype).eval()
        turned.load_state_dict(it.vae.state_dict())
        other = Subject(
            turned.to(memory_format=torch.channels_last), it.part, it.x.to(memory_format=torch.channels_last)
        )
        return other.ordinary
    if name in STREAMED:
        plan = plan_for(name, it.graph, it.x.shape, it.x.dtype)
        return lambda: run_streamed(it.graph, it.x, plan)
    if name == "diffusers tiling":
        return _diffusers_tiling(it)
    raise ValueError(name)


def plan_for(kind: str, graph: LayerGraph, shape: Sequence[int], dtype: torch.dtype) -> Plan:
    """The plan of this name as it is chosen for a user's picture."""
    if kind == "stream-lean":
        return PlanSearch(graph, shape, dtype, CPU).lean(LeanLimits())
    return next(plan for plan in PlanSearch(graph, shape, dtype, CPU).candidates(0) if plan.kind == kind)


def arithmetic(part: str, pixels: int) -> float:
    """Multiplications of the ordinary forward."""
    with torch.device("meta"):
        vae = AutoencoderKL(KlConfig())
    graph, shape = decoder_graph(vae), (1, 4, pixels // 8, pixels // 8)
    if part == "encode":
        graph, shape = encoder_graph(vae), (1, 3, pixels, pixels)
    return predict(graph, whole_plan(CPU, torch.float32), shape).macs


def _diffusers_tiling(it: Subject) -> Callable[[], Tensor]:
    """The AutoencoderKL of diffusers, of the same size, with `enable_tiling()`, its default tiles."""
    import diffusers

    torch.manual_seed(0)
    names = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    other: Any = diffusers.AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=512, **names
    )
    other = other.to(it.x.dtype).eval()
    other.enable_tiling()
    if it.part == "decode":
        del other.encoder
        return lambda: other.decode(it.x).sample
    del other.decoder
    return lambda: other.encode(it.x).latent_dist.mode()


def clocks() -> tuple[float, float]:
    """(wall seconds, processor seconds) now."""
    return time.perf_counter(), time.process_time()


def floor_times(it: Subject) -> tuple[float, float]:
    """Wall and processor seconds of the convolutions and the attention alone, each on a ready channels_last input."""
    graph, dtype = it.graph, it.x.dtype
    shapes = graph.shapes((it.x.shape[2], it.x.shape[3]))
    wall = processor = 0.0
    for i, step in enumerate(graph.steps):
        if isinstance(step, AttentionStep):
            start = _attention_input(shapes[i + 1], dtype)
            before = clocks()
            _attend(step, start)
            after = clocks()
            wall, processor = wall + after[0] - before[0], processor + after[1] - before[1]
            continue
        for conv, source in ((step.conv, step.source), (step.shortcut, step.residual)):
            if conv is None or source is None:
                continue
            module: Any = conv.module
            height, width = conv.input_size(shapes[source][1:])
            x = torch.randn(1, conv.channels_in, height, width, dtype=dtype).to(memory_format=torch.channels_last)
            weight = module.weight.detach().to(memory_format=torch.channels_last)
            before = clocks()
            F.conv2d(x, weight, module.bias, conv.stride, conv.padding)
            after = clocks()
            wall, processor = wall + after[0] - before[0], processor + after[1] - before[1]
    return wall, processor


def _attention_input(shape: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    return torch.randn(1, *shape, dtype=dtype).to(memory_format=torch.channels_last)


def _attend(step: AttentionStep, x: Tensor) -> None:
    _, channels, height, width = x.shape
    parts = (module(x) for module in (step.query, step.key, step.value))
    q, k, v = (part.permute(0, 2, 3, 1).reshape(1, 1, height * width, channels) for part in parts)
    answer = F.scaled_dot_product_attention(q, k, v)
    step.out(answer.reshape(1, height, width, channels).permute(0, 3, 1, 2))
