"""A1111's web UI and its close relatives: `modules.sd_vae` stays the place of choice, our loading is underneath."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec

import torch
from modules import devices, options

from sd_vae_kit.core.run.precision_fixes_file import PrecisionFixesFile
from sd_vae_kit.core.run.precision_policy import FILE_NAME as PRECISION_FILE
from sd_vae_kit.hosts.a1111.calls import VAE_CALLS, A1111Calls, PreviewMarks
from sd_vae_kit.hosts.a1111.decider import A1111Decider, CheckpointsWithoutVae
from sd_vae_kit.hosts.a1111.environment import A1111Environment
from sd_vae_kit.hosts.a1111.folders import data_folder, open_files, open_library, open_tiny_library
from sd_vae_kit.hosts.a1111.listing import VaeListing
from sd_vae_kit.hosts.a1111.loading import A1111Loader, MergerWeights
from sd_vae_kit.hosts.a1111.models import A1111Models
from sd_vae_kit.hosts.a1111.names import A1111_NAMES
from sd_vae_kit.hosts.a1111.options import A1111Options
from sd_vae_kit.hosts.a1111.records import LiveVaeRecords
from sd_vae_kit.hosts.a1111.refused_options import RefusedOptions
from sd_vae_kit.hosts.a1111.sketch import PreviewSketch
from sd_vae_kit.hosts.api import HostApi
from sd_vae_kit.hosts.base import HostBase
from sd_vae_kit.hosts.choice import PassChoice, RuleDecider, VaeNames
from sd_vae_kit.hosts.guarded_calls import GuardedCalls
from sd_vae_kit.hosts.host_names import HostName
from sd_vae_kit.hosts.jobs import HostJobs
from sd_vae_kit.hosts.messages import DeferredErrors, HostMessages, Outlet
from sd_vae_kit.hosts.models import ModelRegistry
from sd_vae_kit.hosts.nan_repairs import NanRepairs
from sd_vae_kit.hosts.parts import InstalledPart, LoadedModels
from sd_vae_kit.hosts.previews import HostPreviews
from sd_vae_kit.hosts.protocol import HostPage, PlainPage, WebuiHost
from sd_vae_kit.hosts.status import StatusReport
from sd_vae_kit.hosts.taesd import HostTaesd
from sd_vae_kit.hosts.wiring import CallParts, JobHook, QueuedComputing, call_parts, open_base

# Core options the VAE depends on; a request's override of one that was never saved stays for ever (processing.py:823).
CORE_OPTIONS: tuple[str, ...] = (
    "sd_vae",
    "sd_vae_overrides_per_model_preferences",
    "sd_vae_encode_method",
    "sd_vae_decode_method",
    "auto_vae_precision",
    "auto_vae_precision_bfloat16",
    "show_progress_type",
)
MakePage = Callable[[HostBase, DeferredErrors], HostPage]


class A1111Installer:
    """Puts A1111's patches in place.

    Args:
        base: What the host's parts share.
        registry: The models.
        guarded: Replaces calls of models.
        calls: The parts that run encoders and decoders.
        refused: Stands for `Options.set`.
        parts: Further installations, in order.
    """

    def __init__(
        self,
        base: HostBase,
        registry: ModelRegistry,
        guarded: GuardedCalls,
        calls: CallParts,
        refused: RefusedOptions,
        parts: Sequence[InstalledPart],
    ) -> None:
        self._base = base
        self._registry = registry
        self._guarded = guarded
        self._calls = calls
        self._refused = refused
        self._parts = parts

    def install(self) -> None:
        for part in self._parts:
            part.install()
        if self._base.options.features.has("refusals"):
            self._base.patches.wrap(options.Options, "set", self._refused.set_option)
        for model in self._registry.loaded.all():
            self._guarded.guard(model, VAE_CALLS)
        self._calls.interceptor.install()
        PreviewMarks(self._base.patches, self._calls.context).install()
        self._registry.forget_unloaded()

    def model_loaded(self, model: object) -> None:
        self.install()


def computing_device(loaded: LoadedModels) -> torch.device:
    """Where the API computes: with --medvram or --lowvram on the CPU."""
    if find_spec("modules.lowvram") is not None:  # some relatives have no such module
        from modules import lowvram

        if hasattr(lowvram, "is_enabled") and lowvram.is_enabled(loaded.current):
            return torch.device("cpu")
    device: torch.device = devices.device
    return device


def build(outlet: Outlet, name: str, table: Sequence[HostName], make_page: MakePage) -> WebuiHost:
    """A host with A1111's `modules.sd_vae`.

    Args:
        outlet: Where lines go.
        name: Shown to users.
        table: Every name that is used of the web UI.
        make_page: Its page.
    """
    base = open_base(name, HostMessages(outlet), table, open_library(), A1111Options())
    files, deferred = open_files(base.library), DeferredErrors(base.messages)
    loaded = A1111Models(base.library, base.messages)
    registry = ModelRegistry(base, loaded, files)
    environment = A1111Environment(base.options, loaded)
    calls = call_parts(base, registry, environment, PrecisionFixesFile(data_folder() / PRECISION_FILE))
    around = A1111Calls(environment, calls.interceptor, PreviewSketch(base, loaded))
    guarded = GuardedCalls(base.patches, base.gate, around)

    chosen, without_vae = PassChoice(), CheckpointsWithoutVae(loaded, files.guard)
    decider = A1111Decider(base, RuleDecider(base, loaded, files.rules, chosen), without_vae)
    report = StatusReport(base, registry, without_vae)
    records = LiveVaeRecords(guarded, calls.interceptor)
    loader = A1111Loader(base, registry, decider, records, deferred, report)
    listing = VaeListing(base, registry, report)
    jobs = HostJobs(chosen, files.rules, loader, calls.settings, base.messages)
    taesd = HostTaesd(base, loaded, calls, files.guard.finder, open_tiny_library())
    previews = HostPreviews(base, calls.context, taesd)

    hook = JobHook(base, jobs, calls.context)
    parts: list[InstalledPart] = [listing, loader, MergerWeights(base), NanRepairs(base), taesd, previews, hook]
    refused = RefusedOptions(base.messages, deferred)
    installer = A1111Installer(base, registry, guarded, calls, refused, parts)
    return WebuiHost(
        base=base,
        registry=registry,
        names=VaeNames(base.library),
        switch=loader,
        jobs=jobs,
        interceptor=calls.interceptor,
        forecasts=calls.forecasts,
        report=report,
        api=HostApi(base, report, calls, files.guard.finder, QueuedComputing(lambda: computing_device(loaded))),
        infotext=listing,
        installer=installer,
        page=make_page(base, deferred),
        refresh=listing.refresh,
        files=files,
        taesd=taesd,
        previews=previews,
    )


def create(outlet: Outlet) -> WebuiHost:
    """The host of this process."""
    return build(outlet, "A1111", A1111_NAMES, lambda base, deferred: PlainPage(CORE_OPTIONS))
