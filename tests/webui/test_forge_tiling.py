"""Tiling in Forge: streamed pictures are the host's own within one level; its own inexact tiling is the last resort.

Needs VAE_KIT_FORGE_DIR; see installation.py.
"""

import pytest
from programs import FORGE
from tiling_rows import ALWAYS, TilingRows, img2img, mask

pytestmark = pytest.mark.webui

HIRES = {
    "enable_hr": True,
    "denoising_strength": 0.6,
    "hr_scale": 2,
    "hr_additional_modules": ["Use same choices"],
    "width": 96,
    "height": 64,
}
NEVER_OOM = "Never OOM Integrated"


class TestTilingInForge(TilingRows):
    program = FORGE
    size = {"width": 192, "height": 128, "steps": 1}
    large = 640
    starved = {"width": 320}
    old_size = (704, 576)
    cases = {
        "txt2img": ("txt2img", {}),
        "img2img": img2img(192, 0.9),
        "hires, latent": ("txt2img", {**HIRES, "hr_upscaler": "Latent"}),
        "hires, pixels": ("txt2img", {**HIRES, "hr_upscaler": "Lanczos"}),
        "batch": ("txt2img", {"batch_size": 2}),
        "inpaint": img2img(192, 0.9, mask=mask(192, 128, (40, 30, 150, 100)), inpainting_fill=1),
        "seamless": ("txt2img", {"tiling": True}),
    }

    def test_the_hosts_own_tiling_is_stepped_aside_for(self, webui):
        """Never OOM tiles in three averaged passes; ours says so once and leaves the calls to it."""
        own = self.own_of(webui, "txt2img")
        ours = ALWAYS["alwayson_scripts"]
        args = [False, True]  # UNet always offloaded, VAE always tiled
        both = {"alwayson_scripts": {**ours, NEVER_OOM: {"args": args}}}
        for _ in range(2):
            assert self.made(webui, width=640, **both).parameter("VAE Kit tiling") is None
        assert webui.log[webui.checked :].count("Never OOM tiles the VAE") == 1
        off = {"alwayson_scripts": {**ours, NEVER_OOM: {"args": [False, False]}}}
        streamed = self.all_of(webui, "txt2img", **off)
        assert webui.status()["last_decode"]["bands"] > 1
        assert abs(streamed - own).max() <= 1
