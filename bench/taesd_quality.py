"""What a TAESD costs in quality: `python -m bench.taesd_quality --weights DIR`.

Photographs, cut to 512 x 320, through the encoder and back through the decoder of each family whose files lie in DIR
(taesd_encoder.safetensors and so on), in fp32.  Prints a table of PSNR in dB over all pixels and
colours, for docs/taesd.md.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor

from sd_vae_kit.core.vae import load_vae
from sd_vae_kit.pictures import picture_file as pictures

NAMES = ("taesd", "taesdxl", "taesd3", "taef1")
PHOTOGRAPHS = Path(__file__).parent.parent / "sd_vae_kit" / "standalone" / "demo" / "photographs"
SIZE = (512, 320)  # width, height


def image_of(path: Path) -> Tensor:
    """(1, 3, 320, 512) in [-1, 1]: the middle of the photograph."""
    import numpy as np

    cut = ImageOps.fit(Image.open(path).convert("RGB"), SIZE, Image.Resampling.LANCZOS)
    return pictures.to_image(np.asarray(cut))


def psnr(one: Tensor, other: Tensor) -> float:
    """Decibels between two images in [-1, 1]."""
    return 10 * math.log10(4.0 / float((one - other).square().mean()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--pictures", type=Path, default=PHOTOGRAPHS)
    options = parser.parse_args()
    paths = sorted(path for path in options.pictures.iterdir() if path.suffix == ".jpg")
    names = [name for name in NAMES if (options.weights / f"{name}_encoder.safetensors").is_file()]
    columns = {name: [] for name in names}
    for name in names:
        halves = ("encoder", "decoder")
        encoder, decoder = (load_vae(options.weights / f"{name}_{h}.safetensors", dtype=torch.float32) for h in halves)
        for path in paths:
            image = image_of(path)
            columns[name].append(psnr(decoder.decode(encoder.encode(image)).clamp(-1, 1), image))
    print(f"| photograph | {' | '.join(names)} |")
    print(f"|---|{'---:|' * len(names)}")
    for i, path in enumerate(paths):
        print(f"| {path.stem} | {' | '.join(f'{columns[name][i]:.1f}' for name in names)} |")
    print(f"| mean | {' | '.join(f'{sum(columns[name]) / len(paths):.1f}' for name in names)} |")


if __name__ == "__main__":
    main()
