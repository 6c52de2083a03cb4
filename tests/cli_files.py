"""Small random VAEs and broken files for the command line's tests, and a way to call it."""

from __future__ import annotations

import json
import random
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from vae_files import kl_config, randomised, write

from sd_vae_kit.cli import main
from sd_vae_kit.core.networks.autoencoder import AutoencoderKL
from sd_vae_kit.core.networks.taesd import TinyAutoencoder, TinyConfig


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def data(self) -> dict[str, object]:
        """The one JSON object on stdout."""
        assert self.code == 0, self.err
        assert self.err == ""
        assert self.out.count("\n") == 1
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line on stderr of a user's error."""
        assert self.code == 2, (self.code, self.err)
        assert self.out == ""
        assert self.err.endswith("\n")
        assert self.err.count("\n") == 1, self.err
        assert self.err.startswith("error: ")
        return self.err.removeprefix("error: ").rstrip("\n")


class CommandLine:
    """Runs commands in this process, with the app's folder inside `folder`."""

    def __init__(self, folder: Path, capsys) -> None:
        self.data_dir = folder / "data"
        self.capsys = capsys

    def __call__(self, *words: object) -> Result:
        argv = [str(word) for word in words]
        if argv and argv[0] in ("inspect", "encode", "decode", "convert", "compare", "plan"):
            argv += ["--data-dir", str(self.data_dir)]
        self.capsys.readouterr()
        code = main(argv)
        printed = self.capsys.readouterr()
        return Result(code, printed.out, printed.err)


def kl_module(z_channels: int = 4, quant: bool = True, seed: int = 0) -> AutoencoderKL:
    """A random KL VAE of 8 pixels per cell.

    It has more than 32 channels at the bottom: a 1x1 picture has one cell, and a norm over one value no variance.
    """
    config = kl_config(z_channels, ch_mult=(1, 1, 2, 2), quant_conv=quant)
    return randomised(AutoencoderKL(config), seed).requires_grad_(False)


def write_kl(
    path: Path, z_channels: int = 4, *, quant: bool = True, seed: int = 0, family: str = "", dtype=torch.float32
) -> AutoencoderKL:
    """A file with such a VAE; returns the module with the weights as they lie in the file."""
    module = kl_module(z_channels, quant, seed).to(dtype)
    write(path, module.state_dict(), {"family": family} if family else None)
    return module.float()


def write_tiny(path: Path, part: str, z_channels: int = 4, family: str = "", seed: int = 0) -> TinyAutoencoder:
    """One half of a random TAESD in its published layout."""
    config = TinyConfig(z_channels=z_channels, width=16, encoder=part == "encoder", decoder=part == "decoder")
    module = randomised(TinyAutoencoder(config), seed).requires_grad_(False)
    state = {name.removeprefix(f"{part}."): tensor for name, tensor in module.state_dict().items()}
    write(path, state, {"family": family} if family else None)
    return module


def write_picture(path: Path, height: int = 40, width: int = 24, seed: int = 0) -> np.ndarray:
    """A smooth random picture: uint8 (H, W, 3)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    image.save(path)
    return np.array(image)


def header_only(tensors: dict[str, list[int]]) -> bytes:
    """A safetensors file of fp16 zeros with these names and shapes."""
    header, end = {}, 0
    for name, shape in tensors.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(end)


def bad_vae(kind: str, path: Path) -> None:
    """Write the named kind of unusable file."""
    module = kl_module()
    if kind == "truncated":
        write(path, module.state_dict())
        path.write_bytes(path.read_bytes()[:-1000])
    elif kind == "nan":
        state = module.state_dict()
        state["decoder.conv_in.weight"] = torch.full_like(state["decoder.conv_in.weight"], float("nan"))
        write(path, state)
    elif kind == "incomplete":
        state = module.state_dict()
        write(path, {name: tensor for name, tensor in state.items() if "up.0" not in name})
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_bytes(BAD_BYTES[kind])


BAD_BYTES = {
    "0 bytes": b"",
    "random bytes": random.Random(1).randbytes(5000),
    "random bytes that begin like a pickle": b"\x80\x02" + random.Random(2).randbytes(5000),
    "no tensors": header_only({}),
    "lora": header_only(
        {"lora_unet_down_blocks_0.lora_up.weight": [4, 4], "lora_unet_down_blocks_0.lora_down.weight": [4]}
    ),
    "text encoder": header_only({"text_model.encoder.layers.0.self_attn.q_proj.weight": [4, 4]}),
    "a web page": b"<!DOCTYPE html><html>not found</html>",
}
BAD_VAES = [*BAD_BYTES, "truncated", "nan", "incomplete", "folder"]
