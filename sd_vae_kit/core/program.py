"""A VAE of any layout as a flat list of steps, found by attributes; no host is ever imported.

Known layouts: ldm and its copies (A1111's ldm and sgm, SD3's VAE, Forge, Neo, this package), diffusers' AutoencoderKL
and AutoencoderTiny, the TAESD family's `nn.Sequential`.  The modules in a step are the VAE's own and stay unchanged.
A program holds no weights of its own and costs about a millisecond: build it for each call, because a host changes
padding modes, hooks and weights between calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sd_vae_kit.errors import UnsupportedVaeError

Pointwise = Callable[[Tensor], Tensor]
"""A function of each value alone; it may write into its argument."""

IGNORED = ("temb_proj", "time_emb_proj")  # ldm and diffusers build them for diffusion models; a VAE never calls them
DIFFUSERS_PROCESSORS = ("AttnProcessor", "XFormersAttnProcessor")  # prefixes; all compute plain softmax attention


@dataclass(frozen=True)
class Conv:
    """A convolution module and what is done to the rows that enter it.

    Attributes:
        module: The VAE's own module.
        name: Its place in the VAE, as in its state dict.
        resize: "up": both sides doubled by repetition first; "down": one row of zeros below and one column to the
            right, as ldm pads before its stride of 2.
        kernel, stride, padding, dilation: (height, width) of each, from the module's attributes.
    """

    module: nn.Module
    name: str
    resize: Literal["none", "up", "down"] = "none"
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    channels_in: int = 0
    channels_out: int = 0

    @property
    def reach(self) -> tuple[int, int]:
        """Rows and columns that one output value sees."""
        return self.dilation[0] * (self.kernel[0] - 1) + 1, self.dilation[1] * (self.kernel[1] - 1) + 1

    def input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) that the module sees when the stored activation is `size`."""
        height, width = size
        if self.resize == "up":
            return 2 * height, 2 * width
        return (height + 1, width + 1) if self.resize == "down" else size

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        sides = zip(self.input_size(size), self.padding, self.reach, self.stride, strict=True)
        height, width = ((side + 2 * pad - reach) // stride + 1 for side, pad, reach, stride in sides)
        return height, width


@dataclass(frozen=True)
class Step:
    """value = post(conv(act(norm(value[source]))) + shortcut(value[residual])) / divisor; absent parts are left out.

    Attributes:
        name: Place in the VAE, such as "decoder.up.0.block.1.conv2".
        source: Index of the value it reads: 0 is the program's input, i + 1 the output of step i.
        norm: A GroupNorm over the whole source.
        residual: Index of the value that is added.
        shortcut: Convolution on the way of that value, where the channels change.
        divisor: diffusers' `output_scale_factor`.
    """

    name: str
    source: int
    norm: nn.Module | None = None
    act: Pointwise | None = None
    conv: Conv | None = None
    residual: int | None = None
    shortcut: Conv | None = None
    divisor: float = 1.0
    post: Pointwise | None = None

    @property
    def reads(self) -> tuple[int, ...]:
        return (self.source,) if self.residual is None else (self.source, self.residual)


@dataclass(frozen=True)
class AttentionStep:
    """value = (value[source] + out(attention(query, key, value of norm(value[source])))) / divisor.

    Attributes:
        query, key, value, out: Modules without reach: 1x1 convolutions, or linear layers if `linear`.
        heads: The channels are split into this many.
        residual: Whether the source is added.
    """

    name: str
    source: int
    norm: nn.Module | None
    query: nn.Module
    key: nn.Module
    value: nn.Module
    out: nn.Module
    heads: int = 1
    linear: bool = False
    residual: bool = True
    divisor: float = 1.0

    @property
    def reads(self) -> tuple[int, ...]:
        return (self.source,)


AnyStep: TypeAlias = "Step | AttentionStep"


@dataclass(frozen=True)
class Program:
    """The steps of one encoder or decoder.

    Attributes:
        steps: Step i makes value i + 1; the last value is the result.
        channels_in: Channels of the input.
        name: "encoder" or "decoder", for messages.
    """

    steps: tuple[AnyStep, ...]
    channels_in: int
    name: str = "decoder"
    root: nn.Module | None = field(default=None, repr=False, compare=False)

    @property
    def dtype(self) -> torch.dtype:
        """Of the first weight; fp32 if that is stored in a format that needs casting (fp8, quantised)."""
        dtype = next((p.dtype for p in self._parameters()), torch.float32)
        return dtype if dtype in (torch.float16, torch.bfloat16, torch.float64) else torch.float32

    @property
    def device(self) -> torch.device:
        """Of the first weight, the CPU if there is none."""
        return next((p.device for p in self._parameters()), torch.device("cpu"))

    @property
    def readers(self) -> list[list[int]]:
        """For each value, the steps (as value indexes) that read it."""
        result: list[list[int]] = [[] for _ in range(len(self.steps) + 1)]
        for i, step in enumerate(self.steps):
            for source in step.reads:
                result[source].append(i + 1)
        return result

    def shapes(self, size: tuple[int, int]) -> list[tuple[int, int, int]]:
        """(channels, height, width) of every value, the input of (height, width) first.

        Raises:
            UnsupportedVaeError: The picture is too small for this network.
        """
        result = [(self.channels_in, *size)]
        for step in self.steps:
            channels, height, width = result[step.source]
            if isinstance(step, Step) and step.conv is not None:
                channels = step.conv.channels_out
                height, width = step.conv.output_size((height, width))
            if height < 1 or width < 1:
                raise UnsupportedVaeError(
                    f"A {self.name} input of {size[0]}x{size[1]} is too small: {step.name} would have no output."
                )
            result.append((channels, height, width))
        return result

    def _parameters(self) -> Iterator[Tensor]:
        for step in self.steps:
            if isinstance(step, AttentionStep):
                yield from step.query.parameters()
            elif step.conv is not None:
                yield from step.conv.module.parameters()


def decoder_program(vae: nn.Module) -> Program:
    """Steps from z to the picture: post_quant_conv, if the VAE has one, and the decoder.

    Args:
        vae: A whole VAE, or a decoder alone.  KL: z -> image in about [-1, 1]; tiny: the module's own ranges.

    Raises:
        UnsupportedVaeError: A part is not understood; the message names it.
    """
    return _program(vae, "decoder")


def encoder_program(vae: nn.Module) -> Program:
    """Steps from the picture to moments (KL) or latent (tiny): the encoder and, if the VAE has one, quant_conv.

    Args:
        vae: A whole VAE, or an encoder alone.  KL: image in [-1, 1]; tiny: the module's own ranges.

    Raises:
        UnsupportedVaeError: A part is not understood; the message names it.
    """
    return _program(vae, "encoder")


def silu_(x: Tensor) -> Tensor:
    return F.silu(x, inplace=True)


def relu_(x: Tensor) -> Tensor:
    return F.relu_(x)


def _program(vae: nn.Module, part: Literal["encoder", "decoder"]) -> Program:
    network = getattr(vae, part, None)
    owner: nn.Module | None = vae
    if not isinstance(network, nn.Module):
        network, owner = vae, None
    builder = _Builder()
    names = {module: name for name, module in (owner or network).named_modules()}
    builder.names = names
    if part == "decoder":
        builder.optional_conv(getattr(owner, "post_quant_conv", None))
    _network(builder, network, part)
    if part == "encoder":
        builder.optional_conv(getattr(owner, "quant_conv", None))
    builder.refuse_leftovers(network)
    return Program(tuple(builder.steps), builder.channels_in, part, vae)


def _network(builder: _Builder, network: nn.Module, part: str) -> None:
    """Recognise the layout of one encoder or decoder and add its steps."""
    layers = network if isinstance(network, nn.Sequential) else getattr(network, "layers", None)
    if isinstance(layers, nn.Sequential):
        # diffusers' tiny networks convert between [-1, 1] and [0, 1] and limit the latent in their own forward
        _tiny(builder, layers, part if layers is not network else None)
    elif _has(network, "conv_in", "mid", "up" if part == "decoder" else "down", "norm_out", "conv_out"):
        _ldm(builder, network, part)
    elif _has(network, "conv_in", "mid_block", f"{_word(part)}_blocks", "conv_norm_out", "conv_out"):
        _diffusers(builder, network, part)
    else:
        children = ", ".join(name for name, _ in network.named_children()) or "nothing"
        raise UnsupportedVaeError(
            f"The {part} ({type(network).__name__}) has none of the known structures (ldm, diffusers, TAESD); "
            f"it contains {children}."
        )


def _word(part: str) -> str:
    return "up" if part == "decoder" else "down"


def _has(module: nn.Module, *names: str) -> bool:
    return all(hasattr(module, name) for name in names)


class _Builder:
    """Collects steps; knows the name of every module and which ones were used."""

    def __init__(self) -> None:
        self.steps: list[AnyStep] = []
        self.names: dict[nn.Module, str] = {}
        self.used: set[nn.Module] = set()
        self.channels_in = 0

    @property
    def last(self) -> int:
        """Index of the newest value."""
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
        if not isinstance(module, nn.Module) or not _has(module, *wanted) or any(len(p or ()) != 2 for p in pairs):
            raise UnsupportedVaeError(f"{self.name(module)} is not a two-dimensional convolution.")
        if getattr(module, "transposed", False):
            raise UnsupportedVaeError(f"{self.name(module)} is a transposed convolution.")
        facts: Any = self.use(module)
        kernel, stride, dilation = tuple(facts.kernel_size), tuple(facts.stride), tuple(facts.dilation)
        padding = facts.padding
        if isinstance(padding, str):
            sides = [d * (k - 1) // 2 if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
            if padding == "same" and any(k % 2 == 0 for k in kernel):
                raise UnsupportedVaeError(f"{self.name(module)} has an even kernel with padding 'same'.")
            padding = sides
        return Conv(
            module, self.name(module), resize, kernel, stride, (padding[0], padding[1]), dilation,
            int(facts.in_channels), int(facts.out_channels),
        )  # fmt: skip

    def optional_conv(self, module: object) -> None:
        """A convolution between the network and the latent space, if there is one."""
        if isinstance(module, nn.Module) and not isinstance(module, nn.Identity):
            conv = self.conv(module)
            self.add(Step(conv.name, self.last, conv=conv))

    def norm(self, module: object) -> nn.Module:
        if not isinstance(module, nn.Module) or not _has(module, "num_groups", "num_channels", "eps"):
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


# ldm and its copies


def _ldm(builder: _Builder, network: nn.Module, part: str) -> None:
    parts: Any = network
    if getattr(network, "give_pre_end", False):
        raise UnsupportedVaeError(f"The {part} stops before its last layers (give_pre_end).")
    conv_in = builder.conv(parts.conv_in)
    builder.add(Step(conv_in.name, builder.last, conv=conv_in))
    if part == "decoder":
        _ldm_middle(builder, parts.mid)
    levels = list(parts.up)[::-1] if part == "decoder" else list(parts.down)
    for level in levels:
        _ldm_level(builder, level)
    if part == "encoder":
        _ldm_middle(builder, parts.mid)
    conv_out = builder.conv(parts.conv_out)
    tanh = torch.tanh_ if getattr(network, "tanh_out", False) else None
    norm = builder.norm(parts.norm_out)
    builder.add(Step(conv_out.name, builder.last, norm, silu_, conv_out, post=tanh))


def _ldm_middle(builder: _Builder, mid: Any) -> None:
    builder.untouched(mid)
    _resnet(builder, mid.block_1)
    attention = getattr(mid, "attn_1", None)
    if attention is not None:
        _ldm_attention(builder, attention)
    _resnet(builder, mid.block_2)


def _ldm_level(builder: _Builder, level: Any) -> None:
    builder.untouched(level)
    attention = list(getattr(level, "attn", ()))
    for i, block in enumerate(level.block):
        _resnet(builder, block)
        if i < len(attention):
            _ldm_attention(builder, attention[i])
    for name, resize in (("downsample", "down"), ("upsample", "up")):
        sampler = getattr(level, name, None)
        if isinstance(sampler, nn.Module) and not isinstance(sampler, nn.Identity):
            _resample(builder, sampler, "up" if resize == "up" else "down")


def _resample(builder: _Builder, sampler: nn.Module, resize: Literal["up", "down"]) -> None:
    builder.untouched(sampler)
    conv = builder.conv(getattr(sampler, "conv", None), resize)
    if resize == "down" and conv.padding != (0, 0):
        conv = replace(conv, resize="none")  # diffusers with downsample_padding=1
    if conv.stride != ((2, 2) if resize == "down" else (1, 1)):
        raise UnsupportedVaeError(f"{conv.name} has stride {conv.stride}.")
    builder.add(Step(conv.name, builder.last, conv=conv))


def _ldm_attention(builder: _Builder, block: Any) -> None:
    if isinstance(block, nn.Identity):
        return
    builder.untouched(block)
    if not _has(block, "norm", "q", "k", "v", "proj_out"):
        raise UnsupportedVaeError(f"{builder.name(block)} ({type(block).__name__}) is an unknown kind of attention.")
    for module in (block.q, block.k, block.v, block.proj_out):
        _without_reach(builder, module)
    norm = builder.norm(block.norm)
    builder.add(AttentionStep(builder.name(block), builder.last, norm, block.q, block.k, block.v, block.proj_out))


def _without_reach(builder: _Builder, module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        builder.use(module)
        return
    conv = builder.conv(module)
    if conv.kernel != (1, 1) or conv.stride != (1, 1) or conv.padding != (0, 0):
        raise UnsupportedVaeError(f"{conv.name} is a {conv.kernel[0]}x{conv.kernel[1]} convolution inside attention.")


def _resnet(builder: _Builder, block: Any) -> None:
    """Two steps for the residual block of ldm or diffusers."""
    builder.untouched(block)
    if not _has(block, "norm1", "conv1", "norm2", "conv2"):
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


# diffusers' AutoencoderKL


def _diffusers(builder: _Builder, network: nn.Module, part: str) -> None:
    parts: Any = network
    conv_in = builder.conv(parts.conv_in)
    builder.add(Step(conv_in.name, builder.last, conv=conv_in))
    if part == "decoder":
        _diffusers_middle(builder, parts.mid_block)
    for block in parts.up_blocks if part == "decoder" else parts.down_blocks:
        builder.untouched(block)
        if not _has(block, "resnets"):
            raise UnsupportedVaeError(f"{builder.name(block)} ({type(block).__name__}) is an unknown block.")
        _diffusers_blocks(builder, block.resnets, getattr(block, "attentions", None) or ())
        for sampler in getattr(block, f"{_word(part)}samplers", None) or ():
            _diffusers_resample(builder, sampler, "up" if part == "decoder" else "down")
    if part == "encoder":
        _diffusers_middle(builder, parts.mid_block)
    act = builder.activation(getattr(parts, "conv_act", None))
    conv_out = builder.conv(parts.conv_out)
    builder.add(Step(conv_out.name, builder.last, builder.norm(parts.conv_norm_out), act, conv_out))


def _diffusers_middle(builder: _Builder, mid: Any) -> None:
    builder.untouched(mid)
    resnets, attentions = list(mid.resnets), list(mid.attentions)
    _resnet(builder, resnets[0])
    for attention, resnet in zip(attentions, resnets[1:], strict=True):
        if attention is not None:
            _diffusers_attention(builder, attention)
        _resnet(builder, resnet)


def _diffusers_blocks(builder: _Builder, resnets: Iterable[Any], attentions: Iterable[Any]) -> None:
    after = dict(enumerate(attentions))
    for i, resnet in enumerate(resnets):
        _resnet(builder, resnet)
        if after.get(i) is not None:
            _diffusers_attention(builder, after[i])


def _diffusers_resample(builder: _Builder, sampler: Any, resize: Literal["up", "down"]) -> None:
    if getattr(sampler, "norm", None) is not None or getattr(sampler, "use_conv_transpose", False):
        raise UnsupportedVaeError(f"{builder.name(sampler)} normalises or is transposed.")
    if not getattr(sampler, "interpolate", True):
        raise UnsupportedVaeError(f"{builder.name(sampler)} does not interpolate.")
    _resample(builder, sampler, resize)


def _diffusers_attention(builder: _Builder, block: Any) -> None:
    builder.untouched(block)
    name = builder.name(block)
    if not _has(block, "to_q", "to_k", "to_v", "to_out", "heads", "group_norm"):
        raise UnsupportedVaeError(f"{name} ({type(block).__name__}) is an unknown kind of attention.")
    if any(getattr(block, extra, None) is not None for extra in ("spatial_norm", "norm_q", "norm_k")):
        raise UnsupportedVaeError(f"{name} has norms of its own on queries, keys or values.")
    processor = type(getattr(block, "processor", None)).__name__
    if not processor.startswith(DIFFUSERS_PROCESSORS):
        raise UnsupportedVaeError(f"{name} runs with {processor}, which may not be plain attention.")
    out = block.to_out[0]
    for dropout in block.to_out[1:]:
        builder.dropout(dropout)
    for module in (block.to_q, block.to_k, block.to_v, out):
        _without_reach(builder, module)
    norm = None if block.group_norm is None else builder.norm(block.group_norm)
    parts = (block.to_q, block.to_k, block.to_v, out)
    residual = bool(getattr(block, "residual_connection", True))
    divisor = float(getattr(block, "rescale_output_factor", 1.0))
    builder.add(AttentionStep(name, builder.last, norm, *parts, int(block.heads), True, residual, divisor))


# the TAESD family


def _limit_latent(x: Tensor) -> Tensor:
    return torch.tanh(x / 3) * 3


def _from_unit(x: Tensor) -> Tensor:
    """[0, 1] -> [-1, 1], as diffusers' DecoderTiny ends."""
    return x.mul(2).sub(1)


def _to_unit(x: Tensor) -> Tensor:
    """[-1, 1] -> [0, 1], as diffusers' EncoderTiny begins."""
    return x.add(1).div(2)


def _tiny(builder: _Builder, layers: nn.Sequential, diffusers_part: str | None) -> None:
    """Convolutions, residual blocks, ReLU, nearest upsampling and parameterless functions, in order."""
    act: Pointwise | None = {"decoder": _limit_latent, "encoder": _to_unit}.get(diffusers_part or "")
    resize: Literal["none", "up"] = "none"
    for layer in layers:
        if isinstance(layer, nn.Upsample):
            if layer.mode != "nearest" or layer.scale_factor not in (2, 2.0, (2, 2), (2.0, 2.0)):
                raise UnsupportedVaeError(f"{builder.name(layer)} does not repeat each pixel twice.")
            resize = "up"
        elif _has(layer, "conv") and isinstance(layer.conv, nn.Sequential):
            if resize != "none" or act is not None:
                raise UnsupportedVaeError(f"{builder.name(layer)} follows a layer it cannot be joined to.")
            _tiny_block(builder, layer)
        elif _has(layer, "kernel_size", "out_channels"):
            conv = builder.conv(layer, resize)
            builder.add(Step(conv.name, builder.last, act=act, conv=conv))
            act, resize = None, "none"
        elif isinstance(layer, nn.Identity):
            continue
        else:
            function = builder.activation(layer)
            if act is not None or resize != "none":
                raise UnsupportedVaeError(f"{builder.name(layer)} follows a layer it cannot be joined to.")
            if builder.steps and isinstance(builder.steps[-1], Step) and builder.steps[-1].post is None:
                builder.steps[-1] = replace(builder.steps[-1], post=function)
            else:
                act = function
    if act is not None or resize != "none":
        raise UnsupportedVaeError(f"{builder.name(layers)} ends in a layer without a convolution.")
    last = builder.steps[-1]
    if diffusers_part == "decoder" and isinstance(last, Step):
        builder.steps[-1] = replace(last, post=_from_unit)


def _tiny_block(builder: _Builder, block: Any) -> None:
    """Convolutions and activations, plus the input, then an activation; TAEF2's block adds a pool first."""
    builder.untouched(block)
    pool = getattr(block, "pool", None)
    if isinstance(pool, nn.Sequential) and len(pool) > 0:
        _tiny_chain(builder, pool, builder.last, None, None)
    elif pool is not None:
        raise UnsupportedVaeError(f"{builder.name(pool)} ({type(pool).__name__}) is an unknown part of a tiny block.")
    skip = getattr(block, "skip", None)
    shortcut = None
    if isinstance(skip, nn.Module) and not isinstance(skip, nn.Identity):
        shortcut = builder.conv(skip)
    fuse = getattr(block, "fuse", None)
    post = relu_ if fuse is None else builder.activation(fuse)
    _tiny_chain(builder, block.conv, builder.last, shortcut, post)


def _tiny_chain(
    builder: _Builder, chain: nn.Sequential, source: int, shortcut: Conv | None, post: Pointwise | None
) -> None:
    """Add source + chain(source), where a chain is [norm] [activation] convolution, repeated."""
    norm: nn.Module | None = None
    act: Pointwise | None = None
    first = builder.last
    for layer in chain:
        if _has(layer, "num_groups"):
            norm = builder.norm(layer)
        elif _has(layer, "kernel_size"):
            conv = builder.conv(layer)
            builder.add(Step(conv.name, builder.last, norm, act, conv))
            norm = act = None
        elif norm is None and builder.last > first and isinstance(last := builder.steps[-1], Step):
            builder.steps[-1] = replace(last, post=builder.activation(layer))
        else:
            act = builder.activation(layer)
    last = builder.steps[-1]
    if norm is not None or act is not None or not isinstance(last, Step):
        raise UnsupportedVaeError(f"{builder.name(chain)} does not end in a convolution.")
    builder.steps[-1] = replace(last, residual=source, shortcut=shortcut, post=post)
