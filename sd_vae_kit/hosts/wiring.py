"""What every host is wired of in the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from modules import call_queue, processing

from sd_vae_kit.core.run.precision_fixes_file import PrecisionFixesFile
from sd_vae_kit.core.run.runner import Runner
from sd_vae_kit.hosts.base import HostBase
from sd_vae_kit.hosts.call_context import CallContext
from sd_vae_kit.hosts.forecasts import Forecasts
from sd_vae_kit.hosts.host_names import HostFeatures, HostName
from sd_vae_kit.hosts.interceptor import VaeInterceptor
from sd_vae_kit.hosts.jobs import HostJobs
from sd_vae_kit.hosts.messages import HostMessages
from sd_vae_kit.hosts.models import ModelRegistry
from sd_vae_kit.hosts.options import HostOptions
from sd_vae_kit.hosts.parts import CallEnvironment, OptionSource
from sd_vae_kit.hosts.patch import Patches
from sd_vae_kit.hosts.run_settings import LoadedNetworks, RunSettings
from sd_vae_kit.vaes.call_gate import CallGate
from sd_vae_kit.vaes.library import Library


def open_base(
    name: str, messages: HostMessages, table: Sequence[HostName], library: Library, source: OptionSource
) -> HostBase:
    """What the parts of one host share; one line for each feature says what the web UI lacks for it."""
    features = HostFeatures(table)
    for line in features.lines():
        messages.notify(line, "warning")
    return HostBase(name, library, Patches(), CallGate(), messages, HostOptions(source, features, messages))


@dataclass(frozen=True)
class CallParts:
    """The parts that run encoders and decoders.

    Attributes:
        runner: Runs them.
        context: What each thread is doing.
        settings: What holds for one run.
        interceptor: Replaces the forwards.
        forecasts: What would happen to a picture.
    """

    runner: Runner
    context: CallContext
    settings: RunSettings
    interceptor: VaeInterceptor
    forecasts: Forecasts


def call_parts(
    base: HostBase, registry: ModelRegistry, environment: CallEnvironment, fixes: PrecisionFixesFile
) -> CallParts:
    """The parts that run encoders and decoders of a web UI's models, wired.

    Args:
        base: What the host's parts share.
        registry: The models.
        environment: Where calls run.
        fixes: What VAEs needed in half precision.
    """
    runner, context = Runner(fixes), CallContext()
    networks = LoadedNetworks(registry.loaded)
    settings = RunSettings(base.options, networks, environment.policy, registry.label_of)
    interceptor = VaeInterceptor(base, environment, context, networks, settings, runner)
    return CallParts(runner, context, settings, interceptor, Forecasts(registry.loaded, environment, base.options))


class JobHook:
    """Ends what a job chose for itself with the job, also with one that fails.

    Args:
        base: What the host's parts share.
        jobs: What the running job chose.
        context: Told of the thread's job.
        reports_failure: The web UI swallows what is raised while it decodes, and answers without a picture; the job
            fails with the reason.
    """

    def __init__(self, base: HostBase, jobs: HostJobs, context: CallContext, *, reports_failure: bool = False) -> None:
        self._base = base
        self._jobs = jobs
        self._context = context
        self._reports_failure = reports_failure

    def install(self) -> None:
        """Put the patch in place."""
        if self._base.options.features.has("jobs"):
            self._base.patches.wrap(processing, "process_images_inner", self._process_images_inner)

    def _process_images_inner(self, original: Callable[..., object], p: Any, *args: Any, **kwargs: Any) -> object:
        """A job inside a job gives back the outer's choice."""
        with self._jobs.job(), self._context.job(p) as job:
            made = original(p, *args, **kwargs)
        if self._reports_failure and job.failure is not None:
            raise self._base.messages.refused(job.failure) from job.failure
        return made


class QueuedComputing:
    """Holds the web UI's queue while the API computes.

    Args:
        device: Where the web UI computes now.
    """

    def __init__(self, device: Callable[[], torch.device]) -> None:
        self._device = device

    @contextmanager
    def __call__(self) -> Iterator[torch.device]:
        with call_queue.queue_lock:
            yield self._device()
