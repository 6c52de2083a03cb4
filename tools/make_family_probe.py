"""Make core/family_probe.safetensors and vaes/family_marks.json from the real TAESD weights.

    python tools/make_family_probe.py FOLDER_WITH_TAESD_SAFETENSORS

The picture is synthetic: noise with an amplitude that falls with the square of the frequency, coloured, squashed into
[-1, 1].  At 64x96 pixels it tells the families apart better than photographs of that size: the smallest margin over the
TAESD pairs and a demo VAE is 12 dB, with photographs (astronaut, coffee, chelsea) 7 to 12 dB.
"""

import base64
import json
import struct
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from sd_vae_kit.core.family import PROBE
from sd_vae_kit.core.files.identity import fingerprint, weight_sketch
from sd_vae_kit.core.vae import load_vae, read_vae

FILES = {"sd1": "taesd", "sdxl": "taesdxl", "sd3": "taesd3", "flux": "taef1"}
MARKS = PROBE.parent.parent / "vaes" / "family_marks.json"
HEIGHT, WIDTH, SEED = 64, 96, 3


def synthetic_picture() -> torch.Tensor:
    """(1, 3, 64, 96) in [-1, 1]."""
    generator = torch.Generator().manual_seed(SEED)
    y = torch.fft.fftfreq(HEIGHT)[:, None] * HEIGHT
    x = torch.fft.fftfreq(WIDTH)[None] * WIDTH
    amplitude = 1 / (y.square() + x.square()).sqrt().clamp(min=1.0).square()
    grey = torch.randn(1, HEIGHT, WIDTH, generator=generator)
    colour = torch.randn(3, HEIGHT, WIDTH, generator=generator)
    picture = torch.fft.ifft2(torch.fft.fft2(grey + colour) * amplitude).real
    picture = picture - picture.mean((-1, -2), keepdim=True)
    return torch.tanh(picture / picture.std() * 0.8)[None]


def main(folder: Path) -> None:
    pixels = ((synthetic_picture() + 1) * 127.5).round().to(torch.uint8)
    image = pixels.float() / 127.5 - 1
    tensors = {"pixels": pixels}
    marks = []
    for family, stem in FILES.items():
        encoder = load_vae(folder / f"{stem}_encoder.safetensors", family=family, dtype=torch.float32)
        tensors[family] = encoder.encode(image).to(torch.float16)
        for half in ("encoder", "decoder"):
            state = read_vae(folder / f"{stem}_{half}.safetensors").state
            values = weight_sketch(state)
            packed = base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
            mark = {"name": f"{stem} {half}", "family": family, "fingerprint": fingerprint(state), "sketch": packed}
            marks.append(mark)
    save_file(tensors, PROBE, metadata={"source": "synthetic picture; latents by the TAESD encoders (MIT)"})
    MARKS.write_text(json.dumps({"schema": 1, "marks": marks}, indent=1) + "\n", "utf-8")
    print(PROBE, PROBE.stat().st_size, MARKS, MARKS.stat().st_size)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
