"""VAE files that fit an installation's own checkpoint: its VAE, changed so that every one gives another picture."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from sd_vae_kit.core.convert import convert
from sd_vae_kit.core.vae import read_vae

LAST = "decoder.conv_out.weight"


def smallest_checkpoint(folder: Path) -> Path:
    """The checkpoint that loads fastest."""
    found = sorted((folder / "models" / "Stable-diffusion").glob("*.safetensors"), key=lambda path: path.stat().st_size)
    assert found, "the installation has no checkpoint in models/Stable-diffusion"
    return found[0]


def changed(state: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Other colours: the last convolution's outputs mixed."""
    mixing = torch.eye(3) + 0.5 * torch.randn(3, 3, generator=torch.Generator().manual_seed(seed))
    out = {name: tensor.float().contiguous() for name, tensor in state.items()}
    out[LAST] = torch.einsum("ij,jchw->ichw", mixing, out[LAST]).contiguous()
    return out


def write_variants(folder: Path, checkpoint: Path) -> None:
    """Good files of several layouts, two of one name, and files that must be refused."""
    state = dict(read_vae(checkpoint).state)
    plain = changed(state, 1)
    files = {
        "plain.safetensors": plain,
        "other.safetensors": changed(state, 2),
        "one/same.safetensors": changed(state, 3),
        "two/same.safetensors": changed(state, 4),
        f"{checkpoint.stem}2.vae.safetensors": changed(state, 5),
        "prefixed.safetensors": {f"first_stage_model.{name}": tensor for name, tensor in plain.items()},
        "half.safetensors": {name: tensor.half() for name, tensor in plain.items()},
        # the last tensor only, so that a loader that copies as it goes has copied all others
        "wrong.safetensors": {**changed(state, 6), LAST: torch.zeros(3, plain[LAST].shape[1], 5, 5)},
        "incomplete.safetensors": {k: v for k, v in changed(state, 7).items() if k != "decoder.conv_out.bias"},
        "poisoned.safetensors": {**changed(state, 8), "decoder.conv_out.bias": torch.full((3,), float("nan"))},
        "lora.safetensors": {"lora_unet_down_blocks_0.alpha": torch.ones(1)},
    }
    for name, tensors in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / name)
    save_file(convert(read_vae(folder / "plain.safetensors"), "diffusers")[0], folder / "diffusers.safetensors")
    torch.save({"state_dict": files["prefixed.safetensors"], "epoch": 3}, folder / "wrapped.ckpt")
    (folder / "cut.safetensors").write_bytes((folder / "plain.safetensors").read_bytes()[:-1000])
    (folder / "empty.safetensors").touch()


def forge_vaes(folder: Path, installation: Path) -> Path:
    """Full-size files, since Forge builds a VAE by the model's family, not by the checkpoint's shapes; the folder."""
    return write_some(folder, smallest_checkpoint(installation))


def write_some(folder: Path, weights: Path) -> Path:
    """A few good files, one of another layout, and three that must be refused; the folder.

    Args:
        weights: The file that holds the checkpoint's own VAE.
    """
    state = dict(read_vae(weights).state)
    a = changed(state, 1)
    files = {
        "a.safetensors": a,
        "b.safetensors": changed(state, 2),
        "sub/b.safetensors": changed(state, 3),
        # the last tensor only, so that a loader that copies as it goes has copied all others
        "wrong.safetensors": {**changed(state, 6), LAST: torch.zeros(3, a[LAST].shape[1], 5, 5)},
        "poisoned.safetensors": {**changed(state, 8), "decoder.conv_out.bias": torch.full((3,), float("nan"))},
    }
    for name, tensors in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save_file({key: tensor.half() for key, tensor in tensors.items()}, folder / name)
    save_file(convert(read_vae(folder / "a.safetensors"), "diffusers")[0], folder / "diffusers.safetensors")
    (folder / "cut.safetensors").write_bytes((folder / "a.safetensors").read_bytes()[:-1000])
    return folder


def write_diffusers_folder(folder: Path, config: Path, file: Path) -> None:
    """One VAE file as a folder of diffusers: its weights and the configuration of the checkpoint's own VAE."""
    folder.mkdir()
    (folder / "config.json").write_bytes(config.read_bytes())
    save_file(convert(read_vae(file), "diffusers")[0], folder / "diffusion_pytorch_model.safetensors")
