"""Small random VAEs, and files that hold them; every test that needs a VAE on disk makes it here."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from sd_vae_kit.core.networks.autoencoder import AutoencoderKL, KlConfig, NetConfig, ResnetBlock
from sd_vae_kit.core.networks.taesd import TinyAutoencoder, TinyConfig


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every weight its own value, also norms (which start as all ones), so that a swapped name cannot go unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.copy_((1.0 if name.endswith("weight") else 0.0) + 0.1 * noise)
            else:
                fan_in = parameter[0].numel()
                parameter.copy_(noise * fan_in**-0.5)
    return module.eval()


def kl_config(
    z_channels: int = 4,
    *,
    ch: int = 32,
    ch_mult: tuple[int, ...] = (1, 2),
    num_res_blocks: int = 1,
    quant_conv: bool = True,
    encoder: bool = True,
    decoder: bool = True,
    mid_attention: bool = True,
) -> KlConfig:
    net = NetConfig(ch, ch_mult, num_res_blocks, 3, z_channels, mid_attention)
    return KlConfig(
        net if encoder else None, net if decoder else None, quant_conv and encoder, quant_conv and decoder, z_channels
    )


def kl_state(config: KlConfig | None = None, seed: int = 0) -> dict[str, Tensor]:
    """Weights in canonical (ldm) names."""
    return dict(randomised(AutoencoderKL(config or kl_config()), seed).state_dict())


def tiny_state(config: TinyConfig | None = None, seed: int = 0) -> dict[str, Tensor]:
    """TAESD weights in canonical names."""
    return dict(randomised(TinyAutoencoder(config or TinyConfig(width=8)), seed).state_dict())


def write(path: Path, state: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    """A safetensors file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path, metadata=metadata)
    return path


def picture(height: int = 32, width: int = 48, seed: int = 0) -> Tensor:
    """(1, 3, height, width) in [-1, 1]."""
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def scale(module: nn.Module, exponent: int, *, weight: bool = True) -> None:
    """Multiply a layer's bias, and its weight, by 2**exponent, in half-precision numbers."""
    with torch.no_grad():
        for parameter in [module.bias, *([module.weight] if weight else [])]:
            parameter.copy_((parameter * 2.0**exponent).half().float())


def blocks(network: nn.Module) -> list[ResnetBlock]:
    return [module for module in network.modules() if isinstance(module, ResnetBlock)]


def amplify_stream(vae: nn.Module, part: str, exponent: int) -> None:
    """Write the residual stream 2**exponent times larger; every norm that reads it cancels that."""
    network = getattr(vae, part)
    scale(network.conv_in, exponent)
    for block in blocks(network):
        scale(block.conv2, exponent)
        block.norm1.eps *= 4.0**exponent
        if hasattr(block, "nin_shortcut"):
            scale(block.nin_shortcut, exponent, weight=False)
    scale(network.mid.attn_1.proj_out, exponent)
    network.mid.attn_1.norm.eps *= 4.0**exponent
    for name, module in network.named_modules():
        if name.endswith(("upsample.conv", "downsample.conv")):
            scale(module, exponent, weight=False)
    network.norm_out.eps *= 4.0**exponent


def has_half_convolutions() -> bool:
    try:
        torch.conv2d(torch.zeros(1, 1, 2, 2, dtype=torch.float16), torch.zeros(1, 1, 1, 1, dtype=torch.float16))
    except RuntimeError:
        return False
    return True


needs_half = pytest.mark.skipif(not has_half_convolutions(), reason="this torch has no fp16 convolution on the CPU")


def has_half_reflection() -> bool:
    """Torch 2.3 convolves in half precision on the CPU, but cannot pad by reflection."""
    try:
        F.pad(torch.zeros(1, 1, 3, 3, dtype=torch.float16), (1, 1, 1, 1), mode="reflect")
    except RuntimeError:
        return False
    return has_half_convolutions()


def attention_sums_in_half() -> bool:
    """Whether the CPU's kernel sums values before it divides, in half precision, as in torch 2.3."""
    zeros, values = torch.zeros(1, 1, 64, 64, dtype=torch.float16), torch.full((1, 1, 64, 64), 4000.0)
    return not bool(torch.isfinite(F.scaled_dot_product_attention(zeros, zeros, values.half())).all())


needs_half_reflection = pytest.mark.skipif(
    not has_half_reflection(), reason="this torch has no fp16 reflection on the CPU: the host's own forward fails, too"
)
