"""A VAE of any layout as a flat list of steps, found by attributes; no host is ever imported.

Known layouts: ldm and its copies (A1111's ldm and sgm, SD3's VAE, Forge, Neo, this package), diffusers' AutoencoderKL
and AutoencoderTiny, the TAESD family's `nn.Sequential`.  The modules in a step are the VAE's own and stay unchanged.
A graph holds no weights of its own and costs about a millisecond: build it for each call, because a host changes
padding modes, hooks and weights between calls.
"""

from __future__ import annotations

from torch import nn

from sd_vae_kit.core.graph.builder import Builder, has
from sd_vae_kit.core.graph.from_diffusers import graph_from_diffusers
from sd_vae_kit.core.graph.from_ldm import graph_from_ldm
from sd_vae_kit.core.graph.from_tiny import graph_from_tiny
from sd_vae_kit.core.graph.nodes import AttentionStep, Conv, LayerGraph, Step
from sd_vae_kit.core.halves import Half
from sd_vae_kit.errors import UnsupportedVaeError

__all__ = ["AttentionStep", "Conv", "LayerGraph", "Step", "decoder_graph", "encoder_graph"]


def decoder_graph(vae: nn.Module) -> LayerGraph:
    """Steps from z to the picture: post_quant_conv, if the VAE has one, and the decoder.

    Args:
        vae: A whole VAE, or a decoder alone.  KL: z -> image in about [-1, 1]; tiny: the module's own ranges.

    Raises:
        UnsupportedVaeError: A part is not understood; the message names it.
    """
    return _graph(vae, "decoder")


def encoder_graph(vae: nn.Module) -> LayerGraph:
    """Steps from the picture to moments (KL) or latent (tiny): the encoder and, if the VAE has one, quant_conv.

    Args:
        vae: A whole VAE, or an encoder alone.  KL: image in [-1, 1]; tiny: the module's own ranges.

    Raises:
        UnsupportedVaeError: A part is not understood; the message names it.
    """
    return _graph(vae, "encoder")


def _graph(vae: nn.Module, part: Half) -> LayerGraph:
    network = getattr(vae, part, None)
    owner: nn.Module | None = vae
    if not isinstance(network, nn.Module):
        network, owner = vae, None
    builder = Builder()
    before = "" if owner is not None else f"{part}."  # a half alone has its names as in the whole VAE
    names = {module: f"{before}{name}" for name, module in (owner or network).named_modules()}
    builder.names = names
    if part == "decoder":
        builder.optional_conv(getattr(owner, "post_quant_conv", None))
    _network(builder, network, part)
    if part == "encoder":
        builder.optional_conv(getattr(owner, "quant_conv", None))
    builder.refuse_leftovers(network)
    return LayerGraph(tuple(builder.steps), builder.channels_in, part, vae)


def _network(builder: Builder, network: nn.Module, part: str) -> None:
    """Recognise the layout of one encoder or decoder and add its steps."""
    layers = network if isinstance(network, nn.Sequential) else getattr(network, "layers", None)
    if isinstance(layers, nn.Sequential):
        # diffusers' tiny networks convert between [-1, 1] and [0, 1] and limit the latent in their own forward
        graph_from_tiny(builder, layers, part if layers is not network else None)
    elif has(network, "conv_in", "mid", "up" if part == "decoder" else "down", "norm_out", "conv_out"):
        graph_from_ldm(builder, network, part)
    elif has(
        network,
        "conv_in",
        "mid_block",
        "up_blocks" if part == "decoder" else "down_blocks",
        "conv_norm_out",
        "conv_out",
    ):
        graph_from_diffusers(builder, network, part)
    else:
        children = ", ".join(name for name, _ in network.named_children()) or "nothing"
        raise UnsupportedVaeError(
            f"The {part} ({type(network).__name__}) has none of the known structures (ldm, diffusers, TAESD); "
            f"it contains {children}."
        )
