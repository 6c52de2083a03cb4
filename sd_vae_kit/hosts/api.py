"""What the HTTP API asks of a web UI."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from sd_vae_kit.core.run.precision_fixes_file import PrecisionFixesFile
from sd_vae_kit.core.run.request import RunRequest
from sd_vae_kit.hosts.base import HostBase
from sd_vae_kit.hosts.status import StatusReport
from sd_vae_kit.hosts.wiring import CallParts
from sd_vae_kit.vaes.family_finder import FamilyFinder
from sd_vae_kit.vaes.inspection import Inspector
from sd_vae_kit.vaes.library import Library


class HostApi:
    """What the HTTP API asks of a web UI.

    Args:
        base: What the host's parts share.
        report: What is live.
        calls: The parts that run encoders and decoders.
        finder: Tells families of files.
        computing: Held while the API computes; gives the device.
    """

    def __init__(
        self,
        base: HostBase,
        report: StatusReport,
        calls: CallParts,
        finder: FamilyFinder,
        computing: Callable[[], AbstractContextManager[torch.device]],
    ) -> None:
        self.inspector = Inspector(finder, lambda: base.options.settings.guard)
        self._base = base
        self._report = report
        self._calls = calls
        self._computing = computing

    @property
    def library(self) -> Library:
        """The files that can be named."""
        return self._base.library

    @property
    def precision_fixes(self) -> PrecisionFixesFile:
        """What VAEs needed to stay finite in half precision."""
        return self._calls.runner.fixes

    def run_request(self) -> RunRequest:
        """How VAEs are run, as the settings and the web UI's own options are now."""
        return self._calls.settings.request_now()

    def api_status(self) -> dict[str, object]:
        """What is live and what the last runs did, in the API's words."""
        status = self._report.status()
        return {
            "host": self._base.name,
            "checkpoint": status.checkpoint,
            "vae": status.name,
            "family": status.family,
            "reason": status.reason,
            "sha256": status.sha256,
            "precision": status.precision,
            "warnings": list(status.warnings),
            **self._calls.runner.status(),
        }

    def forget_precision(self) -> int:
        """Forget what VAEs needed in half precision; how many halves that were."""
        return self.precision_fixes.forget()

    def computing(self) -> AbstractContextManager[torch.device]:
        """Hold while the API computes; gives the device."""
        return self._computing()
