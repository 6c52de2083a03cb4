"""SD.Next: models are diffusers pipelines; `modules.sd_vae` decides there, the weights of `pipe.vae` change in place.

Written from its source (058a7f0c).  It makes a new AutoencoderKL for every file and moves the old one to the CPU.
Which VAE is chosen stays its own affair (`resolve_vae`), except for a job's own; what nobody here knows (other classes,
folders, quantised or streamed weights) is left to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from modules import devices, paths, shared

from sd_vae_kit.core.run.precision_fixes_file import PrecisionFixesFile
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
from sd_vae_kit.hosts.sdnext.loading import SdNextLoader
from sd_vae_kit.hosts.sdnext.names import SDNEXT_NAMES
from sd_vae_kit.hosts.sdnext.option_calls import SetOption
from sd_vae_kit.hosts.sdnext.parts import SdNextDecider, SdNextInfotext, SdNextModels, SdNextOptions
from sd_vae_kit.hosts.sdnext.surroundings import ControlTab, TiledByHost
from sd_vae_kit.hosts.status import StatusReport
from sd_vae_kit.hosts.wiring import JobHook, QueuedComputing, call_parts, open_base
from sd_vae_kit.vaes.family_finder import FamilyFinder
from sd_vae_kit.vaes.library import Library
from sd_vae_kit.vaes.model_folders import Folder

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


def open_library() -> Library:
    """SD.Next's VAE files."""
    folders = [Folder(Path(shared.opts.vae_dir), "vae"), Folder(Path(shared.opts.ckpt_dir), "checkpoint")]
    named = getattr(shared.cmd_opts, "vae_kit_dir", None)
    return Library(folders, Path(named or Path(paths.data_path) / "vae-kit") / "library.json")


def create(outlet: Outlet) -> WebuiHost:
    """The host of this process."""
    base = open_base("SD.Next", HostMessages(outlet), SDNEXT_NAMES, open_library(), SdNextOptions())
    deferred, loaded, chosen = DeferredErrors(base.messages), SdNextModels(), PassChoice()
    registry = ModelRegistry(base, loaded, None)
    calls = call_parts(base, registry, PlainEnvironment(base.options), PrecisionFixesFile(None))
    report, finder = StatusReport(base, registry), FamilyFinder(base.library, None)
    decider = SdNextDecider(base, RuleDecider(base, loaded, None, chosen), chosen)
    loader = SdNextLoader(base, registry, decider, deferred)
    jobs = HostJobs(chosen, None, loader, calls.settings, base.messages)
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
        api=HostApi(base, report, calls, finder, QueuedComputing(lambda: devices.device)),
        infotext=SdNextInfotext(registry, report),
        installer=SdNextInstaller(registry, guarded, calls.interceptor, loader, parts),
        page=PlainPage(("sd_vae",), sees_passes=False),  # its scripts have no hook before sampling
        refresh=loader.refresh,
    )
