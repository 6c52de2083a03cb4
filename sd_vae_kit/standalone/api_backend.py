"""What the HTTP API asks of the stand-alone app."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from sd_vae_kit.core.networks.latent_format import family_label
from sd_vae_kit.core.run.precision_fixes_file import PrecisionFixesFile
from sd_vae_kit.core.run.report import status_of
from sd_vae_kit.core.run.request import RunRequest
from sd_vae_kit.standalone.host import OWN_VAE, StandaloneHost, device
from sd_vae_kit.vaes.inspection import Inspector
from sd_vae_kit.vaes.library import Library
from sd_vae_kit.vaes.swap import Swapper


@dataclass(frozen=True)
class StandaloneApi:
    """Implements `api.ApiBackend`."""

    host: StandaloneHost
    library: Library
    swapper: Swapper
    inspector: Inspector

    @property
    def precision_fixes(self) -> PrecisionFixesFile:
        return self.host.runner.fixes

    def run_request(self) -> RunRequest:
        return self.host.run_request()

    def forget_precision(self) -> int:
        """Forget what VAEs needed in half precision; how many halves that were."""
        return self.host.runner.fixes.forget()

    def api_status(self) -> dict[str, object]:
        """Which VAE is live and why."""
        active = self.swapper.active
        live = active.decision.entry or self.library.entry_at(self.host.folders.demo / OWN_VAE)
        return {
            "host": self.host.name,
            "checkpoint": self.host.checkpoint.name,
            "vae": active.name,
            "family": family_label(live.family),
            "reason": active.decision.reason,
            "sha256": self.library.sha256(live),
            "precision": "fp32",  # `StandaloneHost` runs every VAE so
            "warnings": list(active.warnings),
            **status_of(self.host.runs.last),
        }

    @contextmanager
    def computing(self) -> Iterator[torch.device]:
        """Where the API computes; the files it names are read apart from the live VAE, so nothing waits for it."""
        yield device()
