"""Collects the steps of a network and describes its modules: what every reader of a layout has in common."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sd_vae_kit.core.graph.nodes import AnyStep, Conv, Pointwise, Step
from sd_vae_kit.errors import UnsupportedVaeError

IGNORED = ("temb_proj", "time_emb_proj")  # ldm and diffusers build them for diffusion models; a VAE never calls them


def silu_(x: Tensor) -> Tensor:
    return F.silu(x, inplace=True)


def relu_(x: Tensor) -> Tensor:
    return F.relu_(x)


def has(module: nn.Module, *names: str) -> bool:
    return all(hasattr(module, name) for name in names)


class Builder:
    """Collects steps; knows the name of every module and which ones were used."""

    def __init__(self) -> None:
        self.steps: list[AnyStep] = []
        self.names: dict[nn.Module, str] = {}
        self.used: set[nn.Module] = set()
        self.channels_in = 0

    @property
    def last(self) -> int:
        """Index of the newest node."""
        return len(self.steps)

    def add(self, step: AnyStep) -> int:
        if not self.steps:
            self.channels_in = step.conv.channels_in if isinstance(step, Step) and step.conv is not None else 0
        self.steps.append(step)
        return self.last

    def name(self, module: object) -> str:
        return self.names.get(module, type(module).__name__) if isinstance(module, nn.Module) else str(module)

    def use(self, module: nn.Module) -> nn.Module:
        self.used.add(module)
        return module

    def conv(self, module: object, resize: Literal["none", "up", "down"] = "none") -> Conv:
        """Describe a two-dimensional convolution; anything else is refused."""
        wanted = ("kernel_size", "stride", "padding", "dilation", "in_channels", "out_channels")
        pairs = [getattr(module, name, None) for name in wanted[:2]]
        if not isinstance(module, nn.Module) or not has(module, *wanted) or any(len(p or ()) != 2 for p in pairs):
            raise UnsupportedVaeError(f"{self.name(module)} is not a two-dimensional convolution.")
        if getattr(module, "transposed", False):
            raise UnsupportedVaeError(f"{self.name(module)} is a transposed convolution.")
        facts: Any = self.use(module)
        return Conv(
            module, self.name(module), resize, tuple(facts.kernel_size), tuple(facts.stride), self._padding(facts),
            tuple(facts.dilation), int(facts.in_channels), int(facts.out_channels), int(getattr(facts, "groups", 0)),
        )  # fmt: skip

    def _padding(self, module: Any) -> tuple[int, int]:
        """(height, width) of a convolution's padding, which torch also takes as a word."""
        if not isinstance(module.padding, str):
            return module.padding[0], module.padding[1]
        if module.padding != "same":
            return 0, 0
        if any(kernel % 2 == 0 for kernel in module.kernel_size):
            raise UnsupportedVaeError(f"{self.name(module)} has an even kernel with padding 'same'.")
        height, width = (d * (k - 1) // 2 for d, k in zip(module.dilation, module.kernel_size, strict=True))
        return height, width

    def optional_conv(self, module: object) -> None:
        """A convolution between the network and the latent space, if there is one."""
        if isinstance(module, nn.Module) and not isinstance(module, nn.Identity):
            conv = self.conv(module)
            self.add(Step(conv.name, self.last, conv=conv))

    def norm(self, module: object) -> nn.Module:
        if not isinstance(module, nn.Module) or not has(module, "num_groups", "num_channels", "eps"):
            raise UnsupportedVaeError(f"{self.name(module)} ({type(module).__name__}) is not a GroupNorm.")
        return self.use(module)

    def untouched(self, module: nn.Module) -> None:
        """Refuse a block whose forward somebody replaced: its parts may no longer say what it does."""
        if "forward" in vars(module) or getattr(module, "_forward_hooks", None):
            raise UnsupportedVaeError(
                f"{self.name(module)} was changed by another extension (its forward is replaced)."
            )

    def dropout(self, module: object) -> None:
        if isinstance(module, nn.Module) and module.training and getattr(module, "p", 0.0) > 0.0:
            raise UnsupportedVaeError(f"{self.name(module)} is active: call eval() on the VAE first.")

    def activation(self, module: object) -> Pointwise:
        """In-place SiLU or ReLU, or the module itself; ldm keeps its SiLU in a function, hence None is SiLU."""
        if module is None or isinstance(module, nn.SiLU):
            return silu_
        if isinstance(module, nn.ReLU):
            return relu_
        if isinstance(module, nn.Module) and is_pointwise(module):
            return module
        raise UnsupportedVaeError(f"{self.name(module)} ({type(module).__name__}) is not a known activation.")

    def refuse_leftovers(self, network: nn.Module) -> None:
        """Every module with weights must be in some step: a part that was not understood must not be skipped."""
        understood = {inner for used in self.used for inner in used.modules()}
        for name, module in network.named_modules():
            own = any(True for _ in module.parameters(recurse=False))
            if own and module not in understood and not any(part in IGNORED for part in name.split(".")):
                raise UnsupportedVaeError(
                    f"{self.name(module)} ({type(module).__name__}) is not a part of any known VAE."
                )


def is_pointwise(module: nn.Module) -> bool:
    """Whether a module without weights treats every value alone; tried on two small pictures."""
    if any(True for _ in module.parameters()):
        return False
    x = torch.linspace(-8.0, 8.0, 96).reshape(1, 4, 6, 4)
    try:
        whole, rows, channel = (module(part.clone()) for part in (x, x[:, :, 2:4], x[:, :1]))
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False
    if not isinstance(whole, Tensor) or whole.shape != x.shape:
        return False
    return torch.equal(whole[:, :, 2:4], rows) and torch.equal(whole[:, :1], channel)


def resample(builder: Builder, sampler: nn.Module, resize: Literal["up", "down"]) -> None:
    builder.untouched(sampler)
    conv = builder.conv(getattr(sampler, "conv", None), resize)
    if resize == "down" and conv.padding != (0, 0):
        conv = replace(conv, resize="none")  # diffusers with downsample_padding=1
    if conv.stride != ((2, 2) if resize == "down" else (1, 1)):
        raise UnsupportedVaeError(f"{conv.name} has stride {conv.stride}.")
    builder.add(Step(conv.name, builder.last, conv=conv))


def without_reach(builder: Builder, module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        builder.use(module)
        return
    conv = builder.conv(module)
    if conv.kernel != (1, 1) or conv.stride != (1, 1) or conv.padding != (0, 0):
        raise UnsupportedVaeError(f"{conv.name} is a {conv.kernel[0]}x{conv.kernel[1]} convolution inside attention.")


def residual_block(builder: Builder, block: Any) -> None:
    """Two steps for the residual block of ldm or diffusers."""
    builder.untouched(block)
    if not has(block, "norm1", "conv1", "norm2", "conv2"):
        raise UnsupportedVaeError(f"{builder.name(block)} ({type(block).__name__}) is not a residual block.")
    if getattr(block, "time_embedding_norm", "default") in ("scale_shift", "spatial", "ada_group") or any(
        getattr(block, name, None) is not None for name in ("upsample", "downsample")
    ):
        raise UnsupportedVaeError(f"{builder.name(block)} resamples or takes a time embedding.")
    builder.dropout(getattr(block, "dropout", None))
    act = builder.activation(getattr(block, "nonlinearity", None))
    source = builder.last
    conv1, conv2 = builder.conv(block.conv1), builder.conv(block.conv2)
    shortcut = None
    for name in ("nin_shortcut", "conv_shortcut"):
        module = getattr(block, name, None)
        if isinstance(module, nn.Module) and not isinstance(module, nn.Identity):
            shortcut = builder.conv(module)
    builder.add(Step(conv1.name, source, builder.norm(block.norm1), act, conv1))
    divisor = float(getattr(block, "output_scale_factor", 1.0))
    norm2 = builder.norm(block.norm2)
    builder.add(Step(conv2.name, builder.last, norm2, act, conv2, source, shortcut, divisor))
