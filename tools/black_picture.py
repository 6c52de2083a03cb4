"""Make docs/images/black_picture.jpg: one latent, one VAE that overflows half precision, decoded twice in fp16.

    python tools/black_picture.py [--out JPEG]

A photograph of the demo is encoded with the demo's natural VAE.  A copy of that VAE writes its decoder's residual
stream 2**EXPONENT times larger: the same function, but its numbers leave fp16's range, as those of SDXL's first VAE do.
Left is the network's ordinary forward, its NaN shown black as web UIs do; right is `vae-kit decode` of the same files.
Both run here; half precision is slow on a CPU, so this takes minutes.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from vae_files import amplify_stream  # noqa: E402

from sd_vae_kit import cli  # noqa: E402
from sd_vae_kit.core.files.latent_file import read_latent  # noqa: E402
from sd_vae_kit.core.files.safetensors_file import save  # noqa: E402
from sd_vae_kit.core.vae import build, read_vae  # noqa: E402

DEMO = ROOT / "sd_vae_kit" / "standalone" / "demo"
PHOTOGRAPH = DEMO / "photographs" / "cat.jpg"
EXPONENT, SIDE, LINE, GAP = 16, 256, 20, 8


def photograph(path: Path) -> None:
    """The middle of the photograph, as a square."""
    with Image.open(PHOTOGRAPH) as picture:
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        square = picture.convert("RGB").crop((left, top, left + side, top + side))
    square.resize((SIDE, SIDE), Image.Resampling.LANCZOS).save(path)


def amplified(path: Path) -> None:
    """The demo VAE's copy with a decoder that overflows."""
    weights = read_vae(DEMO / "demo_natural.safetensors")
    module = build(weights, dtype=torch.float32)
    amplify_stream(module, "decoder", EXPONENT)
    state = {name: tensor.half().contiguous() for name, tensor in module.state_dict().items()}
    save(path, state, {"family": "sd1"})


def command(*words: str | Path) -> dict[str, object]:
    """The JSON that a command of ours prints."""
    out = io.StringIO()
    with redirect_stdout(out):
        code = cli.main([*map(str, words), "--json"])
    if code:
        raise SystemExit(code)
    result: dict[str, object] = json.loads(out.getvalue())
    return result


@torch.no_grad()
def ordinary(vae: Path, latent: Path) -> tuple[np.ndarray, float]:
    """The network's own forward in fp16, and the share of its values that are not finite; those are shown as black."""
    weights = read_vae(vae)
    z = read_latent(latent).latent / 0.18215
    decoded = build(weights, dtype=torch.float16).decode(z.half())[0].float()
    bad = float((~decoded.isfinite()).float().mean())
    pixels = (decoded.nan_to_num(-1, -1, -1).clamp(-1, 1) + 1) * 127.5
    return pixels.round().byte().permute(1, 2, 0).numpy(), bad


def sheet(tiles: list[tuple[str, np.ndarray]]) -> Image.Image:
    """The pictures side by side with a line above each."""
    whole = Image.new("RGB", (len(tiles) * (SIDE + GAP) - GAP, SIDE + LINE), "white")
    draw, font = ImageDraw.Draw(whole), ImageFont.load_default(12)
    for index, (label, pixels) in enumerate(tiles):
        whole.paste(Image.fromarray(pixels), (index * (SIDE + GAP), LINE))
        draw.text((index * (SIDE + GAP), 2), label, "black", font)
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "black_picture.jpg")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        vae, latent, done = folder / "overflows.safetensors", folder / "latent.safetensors", folder / "done.png"
        data = ("--data-dir", folder / "data")
        photograph(folder / "photograph.png")
        amplified(vae)
        natural = DEMO / "demo_natural.safetensors"
        command("encode", folder / "photograph.png", "-o", latent, "--vae", natural, "--dtype", "fp32", *data)
        report = command("decode", latent, "-o", done, "--vae", vae, "--dtype", "fp16", *data)
        pixels, bad = ordinary(vae, latent)
        with Image.open(done) as picture:
            ours = np.asarray(picture.convert("RGB"))
    in_fp32 = f", {report['steps_fp32']} in fp32" if report["steps_fp32"] else ""
    said = f"VAE Kit, fp16: {report['steps_shifted']} of {report['steps']} steps shifted{in_fp32}"
    sheet([(f"the ordinary forward, fp16: {bad:.0%} NaN", pixels), (said, ours)]).save(options.out, quality=85)
    print(f"{options.out}: {bad:.1%} of the ordinary forward is not finite; {said}")


if __name__ == "__main__":
    main()
