"""Runs in a web UI's own Python: its VAE classes, made small, streamed by the engine beside their own forward.

    <host's python> host_networks.py <host's folder> <name of a network>

Prints one line of JSON for each direction: steps, bands, largest difference, largest value.
"""

import importlib
import json
import os
import sys
import types
from pathlib import Path

import torch
from torch import nn

EXTENSION = Path(__file__).parents[2]
SIZES = {"ch": 32, "ch_mult": (1, 2, 2), "num_res_blocks": 1}


def sd3(host: Path):
    """A1111's VAE of Stable Diffusion 3: no quant_conv, attention of its own."""
    # the diffusion transformer in the same file wants the whole program; its VAE wants nothing of it
    sys.modules["modules.models.sd3.mmdit"] = types.SimpleNamespace(MMDiT=None)
    module = importlib.import_module("modules.models.sd3.sd3_impls")
    vae = module.SDVAE()
    vae.encoder, vae.decoder = module.VAEEncoder(**SIZES), module.VAEDecoder(**SIZES)
    return vae, 16


def ldm_style(repository: str, package: str):
    def make(host: Path):
        sys.path.insert(0, str(host / "repositories" / repository))
        module = importlib.import_module(f"{package}.modules.diffusionmodules.model")
        parts = {**SIZES, "out_ch": 3, "attn_resolutions": [], "in_channels": 3, "resolution": 64, "z_channels": 4}
        vae = nn.Module()
        vae.encoder, vae.decoder = module.Encoder(**parts, double_z=True), module.Decoder(**parts)
        vae.quant_conv, vae.post_quant_conv = nn.Conv2d(8, 8, 1), nn.Conv2d(4, 4, 1)
        return vae, 4

    return make


def forge(host: Path):
    sys.path.insert(0, str(host / "packages_3rdparty"))
    module = importlib.import_module("backend.nn.vae")
    vae = module.IntegratedAutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 64), layers_per_block=1, latent_channels=4,
    )  # fmt: skip
    return vae, 4


NETWORKS = {
    "sd3": sd3,
    "ldm": ldm_style("stable-diffusion-stability-ai", "ldm"),
    "sgm": ldm_style("generative-models", "sgm"),
    "forge": forge,
}


def enliven(vae: nn.Module) -> None:
    """Weights of every parameter: hosts leave some uninitialised."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
            else:
                parameter.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.3)
    vae.eval()


def through(module: object, x: torch.Tensor) -> torch.Tensor:
    return x if module is None else module(x)


@torch.no_grad()
def main(host: Path, name: str) -> None:
    os.chdir(host)
    sys.path[:0] = [str(host), str(EXTENSION)]
    sys.argv = [sys.argv[0], "--always-cpu"]
    vae, z_channels = NETWORKS[name](host)
    enliven(vae)
    from sd_vae_kit.core.engine.stream import Plan, RunStats, run_streamed
    from sd_vae_kit.core.graph.from_module import decoder_graph, encoder_graph

    z, image = torch.randn(1, z_channels, 11, 7), torch.randn(1, 3, 44, 36)
    decoded = vae.decoder(through(getattr(vae, "post_quant_conv", None), z.clone()))
    moments = through(getattr(vae, "quant_conv", None), vae.encoder(image.clone()))
    runs = ((decoder_graph(vae), z, decoded), (encoder_graph(vae), image, moments))
    for program, x, expected in runs:
        stats = RunStats()
        result = run_streamed(program, x, Plan("stream", x.device, x.dtype, None, 12_000), stats=stats)
        answer = {"steps": len(program.steps), "bands": stats.bands}
        answer |= {"difference": float((result - expected).abs().max()), "size": float(expected.abs().max())}
        sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
