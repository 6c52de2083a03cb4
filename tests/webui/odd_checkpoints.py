"""Checkpoints made of an installation's smallest: without a VAE, with the demo's; and a VAE of another family."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from conftest import ROOT
from safetensors.torch import load_file, save_file
from torch import Tensor

from sd_vae_kit.core.family import probe
from sd_vae_kit.core.networks.latent_format import FORMATS
from sd_vae_kit.core.vae import VaeWeights, read_vae

VAE = "first_stage_model."
DEMO = ROOT / "sd_vae_kit" / "standalone" / "demo" / "demo_natural.safetensors"


def write_bare(folder: Path, checkpoint: Path) -> Path:
    """The checkpoint as some are published: the diffusion model without its VAE."""
    state = {name: tensor for name, tensor in load_file(checkpoint).items() if not name.startswith(VAE)}
    return _write(folder / "bare.safetensors", state, checkpoint.with_suffix(".yaml").read_text("utf-8"))


def write_with_demo_vae(folder: Path, checkpoint: Path) -> Path:
    """The checkpoint with the demo's VAE in place of its own, whose family can be told by what it does."""
    state = {name: tensor for name, tensor in load_file(checkpoint).items() if not name.startswith(VAE)}
    state |= {VAE + name: tensor.float().contiguous() for name, tensor in read_vae(DEMO).state.items()}
    lines = checkpoint.with_suffix(".yaml").read_text("utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if "ddconfig:" in line)
    end = next(i for i, line in enumerate(lines) if "embed_dim" in line)
    net = [
        "          attn_resolutions: []",
        "          ch: 64",
        "          ch_mult: [1, 1, 1, 1]",
        "          double_z: true",
        "          dropout: 0.0",
        "          in_channels: 3",
        "          num_res_blocks: 1",
        "          out_ch: 3",
        "          resolution: 256",
        "          z_channels: 4",
    ]
    config = "\n".join([*lines[: start + 1], *net, *lines[end:]])
    return _write(folder / "withdemo.safetensors", state, config)


def write_with_strange_vae(folder: Path, checkpoint: Path) -> Path:
    """The checkpoint with a VAE that has attention where no known one has it; without weights it changes nothing."""
    config = checkpoint.with_suffix(".yaml").read_text("utf-8")
    places = config.index("ddconfig:")
    config = config[:places] + config[places:].replace("attn_resolutions: []", "attn_resolutions: [64]", 1)
    assert "attn_resolutions: [64]" in config
    return _write(folder / "strange.safetensors", load_file(checkpoint), config)


def _write(path: Path, state: dict[str, Tensor], config: str) -> Path:
    save_file(state, path)
    path.with_suffix(".yaml").write_text(config, "utf-8")
    return path


def demo_without_a_word() -> VaeWeights:
    """The demo VAE, retouched and without metadata: neither hash, weights nor the file itself tell its family."""
    weights = read_vae(DEMO)
    state = {name: tensor.float() for name, tensor in weights.state.items()}
    state["decoder.conv_out.bias"] = state["decoder.conv_out.bias"] + torch.tensor([0.05, 0.0, -0.05])
    return replace(weights, state=state, metadata={})


def sdxl_vae() -> VaeWeights:
    """A VAE of the demo's shape in SDXL's latent space: the demo's decoder behind the best linear map between the two.

    Fitted to the latents of the guard's own picture; a crude VAE, but one for SDXL's latents and not SD 1's.
    """
    weights = demo_without_a_word()
    z = {name: FORMATS[name].to_z(probe().latents[name])[0].flatten(1).T for name in ("sd1", "sdxl")}  # (cells, 4)
    ones = torch.ones(len(z["sdxl"]), 1)
    solution = torch.linalg.lstsq(torch.cat([z["sdxl"], ones], 1), z["sd1"]).solution  # (5, 4)
    mixing, offset = solution[:4].T, solution[4]
    after, bias = (weights.state[f"post_quant_conv.{part}"].float() for part in ("weight", "bias"))
    state = dict(weights.state)
    state["post_quant_conv.weight"] = (after[:, :, 0, 0] @ mixing)[:, :, None, None].contiguous()
    state["post_quant_conv.bias"] = after[:, :, 0, 0] @ offset + bias
    return replace(weights, state=state)
