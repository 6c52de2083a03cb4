"""What an interrupted decode gives in A1111 and its relatives: the picture as the live preview shows it."""

from __future__ import annotations

import torch
from modules import shared
from torch import Tensor
from torch.nn import functional as F

from sd_vae_kit.core.run.planning import graph_of
from sd_vae_kit.errors import StepAsideError
from sd_vae_kit.hosts.base import HostBase
from sd_vae_kit.hosts.parts import LoadedModels, live_vae
from sd_vae_kit.hosts.previews import linear_method


class PreviewSketch:
    """Pictures by the web UI's own preview methods.

    Args:
        base: What the host's parts share.
        loaded: The models.
    """

    def __init__(self, base: HostBase, loaded: LoadedModels) -> None:
        self._features = base.options.features
        self._messages = base.messages
        self._loaded = loaded

    def picture(self, latent: Tensor) -> Tensor:
        """The preview of a latent, in the picture's size.

        Args:
            latent: (B, C, h, w) as the sampler sees it.

        Returns:
            (B, 3, 8h, 8w) in about [-1, 1].
        """
        cell = self._pixels_per_cell()
        size = (latent.shape[2] * cell, latent.shape[3] * cell)
        rgb = self._approximated(latent).to(latent.device, torch.float32)
        return F.interpolate(rgb, size=size, mode="bilinear", align_corners=False).clamp(-1.0, 1.0).to(latent)

    def _approximated(self, latent: Tensor) -> Tensor:
        """The preview by the user's method, or else by one that needs no download; grey where there is none."""
        if self._features.has("sketch"):
            from modules import sd_samplers_common

            indexes = sd_samplers_common.approximation_indexes
            for name in (shared.opts.show_progress_type, "Approx NN", linear_method()):
                if not indexes.get(name):  # Full is what was just stopped
                    continue
                try:
                    with torch.no_grad():
                        rgb: Tensor = sd_samplers_common.samples_to_images_tensor(latent, indexes[name])
                    return rgb
                except Exception as error:
                    self._messages.notify_once(f"No preview by {name}: {error}", "warning")
        return latent.new_zeros(latent.shape[0], 3, *latent.shape[2:])

    def _pixels_per_cell(self) -> int:
        module = live_vae(self._loaded)
        try:
            shapes = graph_of(module, "decoder").shapes((16, 16)) if module is not None else []
        except StepAsideError:
            shapes = []
        return shapes[-1][1] // 16 if shapes else 8
