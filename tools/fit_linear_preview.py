"""Fit the table of core/preview.py: which colour a cell of a latent has, as a linear function of its channels.

    python tools/fit_linear_preview.py --encoder TAESD_ENCODER [--pictures FOLDER] [--family sd1]

Every picture is encoded; each cell of the latent and the mean colour of its 8x8 pixels are one equation of a
least-squares problem.  Prints the table and how well it does (PSNR over all cells' mean colours).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from sd_vae_kit.core.preview import fit_linear, linear_rgb
from sd_vae_kit.core.vae import Vae, load_vae
from sd_vae_kit.pictures import picture_file as pictures

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
PHOTOGRAPHS = Path(__file__).parent.parent / "sd_vae_kit" / "standalone" / "demo" / "photographs"


def cells_of(vae: Vae, path: Path) -> tuple[Tensor, Tensor]:
    """Latent (1, C, h, w) of a picture and its cells' mean colours (1, 3, h, w) in [0, 1]."""
    image = pictures.to_image(pictures.open_picture(path))
    unit = vae.latent_format.downscale
    image = image[..., : image.shape[-2] // unit * unit, : image.shape[-1] // unit * unit]
    with torch.inference_mode():
        return vae.encode(image), F.avg_pool2d(image * 0.5 + 0.5, unit)


def as_rows(grid: Tensor) -> Tensor:
    """(1, C, h, w) -> (h * w, C)."""
    return grid[0].flatten(1).T


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", type=Path, required=True)
    parser.add_argument("--pictures", type=Path, default=PHOTOGRAPHS)
    parser.add_argument("--family", default="sd1")
    options = parser.parse_args()

    vae = load_vae(options.encoder, family=options.family, dtype=torch.float32)
    paths = sorted(path for path in options.pictures.rglob("*") if path.suffix.lower() in SUFFIXES)
    cells = [cells_of(vae, path) for path in paths]
    table = fit_linear(torch.cat([as_rows(z) for z, _ in cells]), torch.cat([as_rows(rgb) for _, rgb in cells]))

    error = torch.cat([as_rows(linear_rgb(z, table) - rgb) for z, rgb in cells]).square().mean()
    print(f'    "{options.family}": (')
    for row in table.tolist():
        print(f"        ({', '.join(f'{value:.4f}' for value in row)}),")
    print("    ),")
    print(f"# {len(paths)} pictures, {sum(z[0, 0].numel() for z, _ in cells)} cells, {-10 * error.log10():.1f} dB")


if __name__ == "__main__":
    main()
