"""What the thread that calls a VAE is doing: a job, a preview, or something that is left to the web UI."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sd_vae_kit.core.halves import Half
from sd_vae_kit.core.run.report import RunReport
from sd_vae_kit.errors import VaeKitError


@dataclass
class RunningJob:
    """A job of this thread.

    Attributes:
        p: The web UI's object; its infotext says what was done.
        is_cut: The user stopped a decode of this job, and has not begun another since.
        reports: What the last encode and decode did.
        failure: Why the last encode or decode failed; None if it did not.
    """

    p: object
    is_cut: bool = False
    reports: dict[Half, RunReport] = field(default_factory=dict)
    failure: VaeKitError | None = None


class CallContext:
    """What each thread is doing; a thread that said nothing is doing none of these."""

    def __init__(self) -> None:
        self._thread = threading.local()

    @contextmanager
    def job(self, p: object) -> Iterator[RunningJob]:
        """Run a job in this thread; one inside another has its own."""
        outer, job = self.running_job, RunningJob(p)
        self._thread.job = job
        try:
            yield job
        finally:
            self._thread.job = outer

    @contextmanager
    def preview(self) -> Iterator[None]:
        """Decode what is shown while a job runs: without progress, Interrupt and infotext.

        Nor is room made for it: the models that would be moved away are those that the job is computing with.
        """
        outer = self.running_job, self.is_preview
        self._thread.job, self._thread.is_preview = None, True
        try:
            yield
        finally:
            self._thread.job, self._thread.is_preview = outer

    @contextmanager
    def left_to_host(self) -> Iterator[None]:
        """Leave this thread's calls to the web UI while the block runs."""
        outer, self._thread.is_left_to_host = self.is_left_to_host, True
        try:
            yield
        finally:
            self._thread.is_left_to_host = outer

    @property
    def running_job(self) -> RunningJob | None:
        """The job that this thread runs."""
        return getattr(self._thread, "job", None)

    @property
    def is_preview(self) -> bool:
        """Whether what this thread decodes now is a preview."""
        return bool(getattr(self._thread, "is_preview", False))

    @property
    def is_left_to_host(self) -> bool:
        """Whether this thread's calls are left to the web UI."""
        return bool(getattr(self._thread, "is_left_to_host", False))
