"""SD.Next: models are diffusers pipelines; `modules.sd_vae` decides there, the weights of `pipe.vae` change in place.

Written from its source (058a7f0c).  It makes a new AutoencoderKL for every file and moves the old one to the CPU.
Which VAE is chosen stays its own affair (`resolve_vae`), except for a job's own; what nobody here knows (other classes,
folders, quantised or streamed weights) is left to it.
"""

from __future__ import annotations

from collections.abc import Sequence

from modules import devices

from sd_vae_kit.core.run.precision_fixes_file import PrecisionFixesFile
from sd_vae_kit.core.run.precision_policy import FILE_NAME as PRECISION_FILE
from sd_vae_kit.hosts.api import HostApi
from sd_vae_kit.hosts.call_environment import PlainEnvironment
from sd_vae_kit.hosts.choice import PassChoice, RuleDecider, VaeNames
from sd_vae_kit.hosts.guarded_calls import GuardedCalls
from sd_vae_kit.hosts.interceptor import VaeInterceptor
from sd_vae_kit.hosts.jobs import HostJobs
from sd_vae_kit.hosts.messages import DeferredErrors, HostMessages, Outlet
from sd_vae_kit.hosts.models import ModelRegistry
from sd_vae_kit.hosts.parts import InstalledPart, live_vae
from sd_vae_kit.hosts.protocol import PlainPage, WebuiHost
from sd_vae_kit.hosts.sdnext.folders import data_folder, open_files, open_library
from sd_vae_kit.hosts.sdnext.loading import SdNextLoader
from sd_vae_kit.hosts.sdnext.names import SDNEXT_NAMES
from sd_vae_kit.hosts.sdnext.option_calls import SetOption
from sd_vae_kit.hosts.sdnext.parts import SdNextDecider, SdNextInfotext, SdNextModels, SdNextOptions
from sd_vae_kit.hosts.sdnext.surroundings import ControlTab, TiledByHost
from sd_vae_kit.hosts.status import StatusReport
from sd_vae_kit.hosts.wiring import JobHook, QueuedComputing, call_parts, open_base

VAE_CALLS = ("decode", "encode")


class SdNextInstaller:
    """Puts SD.Next's patches in place.

    Args:
        registry: The models.
        guarded: Replaces calls of the class of the pipeline's VAE.
        interceptor: Replaces the forwards.
        loader: Loads VAEs.
        parts: Further installations, in order.
    """

    def __init__(
        self,
        registry: ModelRegistry,
        guarded: GuardedCalls,
        interceptor: VaeInterceptor,
        loader: SdNextLoader,
        parts: Sequence[InstalledPart],
    ) -> None:
        self._registry = registry
        self._guarded = guarded
        self._interceptor = interceptor
        self._loader = loader
        self._parts = parts

    def install(self) -> None:
        self._loader.install()
        for part in self._parts:
            part.install()
        vae = live_vae(self._registry.loaded)
        if vae is not None:
            self._guarded.guard(type(vae), VAE_CALLS)  # a class, so that no model is kept
        self._interceptor.install()
        self._registry.forget_unloaded()

    def model_loaded(self, model: object) -> None:
        self.install()
        self._loader.model_loaded()


def create(outlet: Outlet) -> WebuiHost:
    """The host of this process."""
    base = open_base("SD.Next", HostMessages(outlet), SDNEXT_NAMES, open_library(), SdNextOptions())
    deferred, loaded, chosen = DeferredErrors(base.messages), SdNextModels(), PassChoice()
    files = open_files(base.library)
    registry = ModelRegistry(base, loaded, files)
    fixes = PrecisionFixesFile(data_folder() / PRECISION_FILE)
    calls = call_parts(base, registry, PlainEnvironment(base.options), fixes)
    report = StatusReport(base, registry)
    decider = SdNextDecider(base, RuleDecider(base, loaded, files.rules, chosen), chosen)
    loader = SdNextLoader(base, registry, decider, deferred)
    jobs = HostJobs(chosen, files.rules, loader, calls.settings, base.messages)
    parts = (SetOption(base, deferred), JobHook(base, jobs, calls.context, reports_failure=True), ControlTab(base))
    guarded = GuardedCalls(base.patches, base.gate, TiledByHost(base.messages))
    return WebuiHost(
        base=base,
        registry=registry,
        names=VaeNames(base.library),
        switch=loader,
        jobs=jobs,
        interceptor=calls.interceptor,
        forecasts=calls.forecasts,
        report=report,
        api=HostApi(base, report, calls, files.guard.finder, QueuedComputing(lambda: devices.device)),
        infotext=SdNextInfotext(registry, report),
        installer=SdNextInstaller(registry, guarded, calls.interceptor, loader, parts),
        page=PlainPage(("sd_vae",), sees_passes=False),  # its scripts have no hook before sampling
        refresh=loader.refresh,
        files=files,
    )
