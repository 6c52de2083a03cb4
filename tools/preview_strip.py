"""Make docs/images/previews.png: what the stand-alone app shows while a picture is sampled.

    python tools/preview_strip.py [--weights DIR] [--out PNG]

One job per row, TAESD and linear, the previews of some steps and the finished picture at the end.  DIR holds
taesd_decoder.safetensors; without it the demo's own tiny decoder is used, as in the app.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sd_vae_kit.pictures.picture_file import Pixels
from sd_vae_kit.standalone.backend import StandaloneBackend, build_backend
from sd_vae_kit.standalone.folders import Folders
from sd_vae_kit.standalone.generation import JobProgress
from sd_vae_kit.standalone.job import Txt2Img

STEPS, SHOWN = 20, (1, 4, 8, 14, 20)
SIDE, TILE, LINE = 384, 138, 18
PATIENCE = 20.0  # seconds that a step lasts at most, until its preview is there


def previews_of(backend: StandaloneBackend, method: str) -> tuple[dict[int, Pixels], Pixels]:
    """The preview of every step, and the picture."""
    previews: dict[int, Pixels] = {}

    def note(progress: JobProgress) -> None:
        if progress.preview is not None:
            previews[progress.step] = progress.preview
            return
        end = time.monotonic() + PATIENCE
        while progress.phase == "sampling" and progress.step not in previews and time.monotonic() < end:
            time.sleep(0.005)

    job = Txt2Img("cat", steps=STEPS, seed=5, width=SIDE, height=SIDE, preview=method)
    made = backend.maker.txt2img(job, note)
    return previews, made.pictures[0].pixels


def row_of(title: str, previews: dict[int, Pixels], picture: Pixels) -> Image.Image:
    """One line of tiles with their steps above."""
    tiles = [(f"{title}, step {step}" if step == SHOWN[0] else f"step {step}", previews[step]) for step in SHOWN]
    tiles.append(("picture", picture))
    row = Image.new("RGB", (len(tiles) * (TILE + 4) - 4, TILE + LINE), "white")
    draw, font = ImageDraw.Draw(row), ImageFont.load_default(12)
    for i, (label, pixels) in enumerate(tiles):
        row.paste(
            Image.fromarray(np.asarray(pixels)).resize((TILE, TILE), Image.Resampling.LANCZOS), (i * (TILE + 4), LINE)
        )
        draw.text((i * (TILE + 4), 1), label, "black", font)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "docs" / "images" / "previews.png")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folders = Folders(Path(folder) / "data")
        folders.make()
        if options.weights:
            shutil.copy(options.weights / "taesd_decoder.safetensors", folders.own_tiny_vaes)
        backend = build_backend(folders, Path(folder) / "shown")
        backend.settings.change({"vae_kit_preview_share": 100})
        rows = [row_of(method, *previews_of(backend, method)) for method in ("taesd", "linear")]
        backend.close()
    sheet = Image.new("RGB", (rows[0].width, sum(row.height for row in rows) + 6), "white")
    for i, row in enumerate(rows):
        sheet.paste(row, (0, i * (row.height + 6)))
    sheet.save(options.out, optimize=True)
    print(f"{options.out}: {sheet.width} x {sheet.height}, {options.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
