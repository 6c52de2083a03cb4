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
from sd_vae_kit.standalone.demo_vaes import device
from sd_vae_kit.standalone.host import StandaloneHost
from sd_vae_kit.standalone.vae_runs import VaeRuns
from sd_vae_kit.standalone.vae_selection import VaeSelection
from sd_vae_kit.vaes.inspection import Inspector
from sd_vae_kit.vaes.library import Library


@dataclass(frozen=True)
class StandaloneApi:
    """Implements `ApiBackend`."""

    host: StandaloneHost
    library: Library
    selection: VaeSelection
    inspector: Inspector
    runs: VaeRuns
    precision_fixes: PrecisionFixesFile

    def run_request(self) -> RunRequest:
        return self.runs.request()

    def forget_precision(self) -> int:
        return self.precision_fixes.forget()

    def api_status(self) -> dict[str, object]:
        """Which VAE is live and why."""
        active, live = self.selection.active, self.selection.live_entry
        return {
            "host": self.host.name,
            "checkpoint": self.host.checkpoint.name,
            "vae": active.name,
            "family": family_label(live.family),
            "reason": active.decision.reason,
            "sha256": self.library.sha256(live),
            "precision": "fp32",  # the app runs every VAE so
            "warnings": list(active.warnings),
            **status_of(self.runs.last),
        }

    @contextmanager
    def computing(self) -> Iterator[torch.device]:
        """Where the API computes; the files it names are read apart from the live VAE, so nothing waits for it."""
        yield device()
