"""Forge: the engine's VAE is exchanged in place, so that choosing one takes milliseconds, not a checkpoint's reload.

Written against f2.0.1 (dfdcbab6).  There `modules.sd_vae` is a stub, the option `sd_vae` a placeholder, and the web
UI's own way is `forge_additional_modules`, which loads the whole checkpoint again.  Both ways stay usable: a VAE
chosen there is the model's own, one named by SD VAE is put over it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from backend import memory_management
from backend.patcher.vae import VAE
from modules import devices, sd_vae

from sd_vae_kit.core.run.precision_fixes_file import PrecisionFixesFile
from sd_vae_kit.core.run.precision_policy import FILE_NAME as PRECISION_FILE
from sd_vae_kit.hosts.a1111.calls import PreviewMarks
from sd_vae_kit.hosts.a1111.folders import data_folder, open_files, open_library, open_tiny_library
from sd_vae_kit.hosts.a1111.listing import VaeListing
from sd_vae_kit.hosts.a1111.loading import MergerWeights
from sd_vae_kit.hosts.a1111.refused_options import RefusedOptions
from sd_vae_kit.hosts.a1111.sketch import PreviewSketch
from sd_vae_kit.hosts.api import HostApi
from sd_vae_kit.hosts.base import HostBase
from sd_vae_kit.hosts.choice import PassChoice, RuleDecider, VaeNames
from sd_vae_kit.hosts.forge.calls import VAE_CALLS, ForgeCalls
from sd_vae_kit.hosts.forge.environment import ForgeEnvironment
from sd_vae_kit.hosts.forge.infotext import ForgeInfotext
from sd_vae_kit.hosts.forge.models import ForgeModels
from sd_vae_kit.hosts.forge.names import FORGE_NAMES
from sd_vae_kit.hosts.forge.options import ForgeOptions, VaeInForce
from sd_vae_kit.hosts.forge.page import Dropdown, ForgePage, SdVaeOption
from sd_vae_kit.hosts.forge.requests import ForgeJobHook, OptionCalls, PageTasks
from sd_vae_kit.hosts.forge.switch import ForgeDecider, ForgeSwitch, StubbedLoading
from sd_vae_kit.hosts.guarded_calls import GuardedCalls
from sd_vae_kit.hosts.host_names import HostName
from sd_vae_kit.hosts.jobs import HostJobs
from sd_vae_kit.hosts.messages import DeferredErrors, HostMessages, Outlet
from sd_vae_kit.hosts.models import ModelRegistry
from sd_vae_kit.hosts.parts import InstalledPart
from sd_vae_kit.hosts.previews import HostPreviews
from sd_vae_kit.hosts.protocol import WebuiHost
from sd_vae_kit.hosts.status import StatusReport
from sd_vae_kit.hosts.taesd import HostTaesd
from sd_vae_kit.hosts.wiring import QueuedComputing, call_parts, open_base
from sd_vae_kit.vaes.library import Library


@dataclass(frozen=True)
class ForgeKind:
    """What differs between Forge and Forge Neo.

    Attributes:
        name: Shown to users.
        table: Every name that is used of the web UI.
        library: Its VAE files.
        loading: Makes the part that stands for the functions of `modules.sd_vae`.
    """

    name: str
    table: Sequence[HostName]
    library: Library
    loading: Callable[[HostBase, ForgeSwitch, VaeInForce], InstalledPart]


class ForgeInstaller:
    """Puts Forge's patches in place.

    Args:
        registry: The models.
        guarded: Replaces calls of the class of VAEs.
        decider: Notes with which modules a model was loaded.
        switch: Makes VAEs live.
        in_force: Says whether a job runs.
        parts: Further installations, in order.
    """

    def __init__(
        self,
        registry: ModelRegistry,
        guarded: GuardedCalls,
        decider: ForgeDecider,
        switch: ForgeSwitch,
        in_force: VaeInForce,
        parts: Sequence[InstalledPart],
    ) -> None:
        self._registry = registry
        self._guarded = guarded
        self._decider = decider
        self._switch = switch
        self._in_force = in_force
        self._parts = parts

    def install(self) -> None:
        for part in self._parts:
            part.install()
        self._guarded.guard(VAE, VAE_CALLS)  # the class, so that clones are covered and no dropped model is kept
        self._registry.forget_unloaded()

    def model_loaded(self, model: object) -> None:
        """A new engine: its VAE is its own; between a job's passes the job's choice must hold for it, too."""
        self._decider.note_modules()
        self.install()
        if self._in_force.job is not None:
            self._switch.apply_or_say()


def build(outlet: Outlet, kind: ForgeKind) -> WebuiHost:
    """A host with Forge's `backend`.

    Args:
        outlet: Where lines go.
        kind: Which of them.
    """
    in_force = VaeInForce()
    base = open_base(kind.name, HostMessages(outlet), kind.table, kind.library, ForgeOptions(in_force))
    files, deferred = open_files(base.library), DeferredErrors(base.messages)
    loaded = ForgeModels(base.library, base.messages)
    registry = ModelRegistry(base, loaded, files)
    environment = ForgeEnvironment(base.options, loaded, base.messages)
    calls = call_parts(base, registry, environment, PrecisionFixesFile(data_folder() / PRECISION_FILE))
    around = ForgeCalls(calls.interceptor, PreviewSketch(base, loaded), base.messages)
    guarded = GuardedCalls(base.patches, base.gate, around)

    chosen, report = PassChoice(), StatusReport(base, registry)
    decider = ForgeDecider(base, RuleDecider(base, loaded, files.rules, chosen))
    switch, listing = ForgeSwitch(base, registry, decider), VaeListing(base, registry, report)
    jobs = HostJobs(chosen, files.rules, switch, calls.settings, base.messages, engine_may_change=True)
    taesd = HostTaesd(base, loaded, calls, files.guard.finder, open_tiny_library())
    previews = HostPreviews(base, calls.context, taesd)

    names, option = VaeNames(base.library), SdVaeOption()
    infotext = ForgeInfotext(base, option, listing)
    option_calls = OptionCalls(base, switch, RefusedOptions(base.messages, deferred), deferred)
    parts: list[InstalledPart] = [
        listing, kind.loading(base, switch, in_force), MergerFile(base, MergerWeights(base)), taesd, previews,
        option_calls, ForgeJobHook(base, jobs, calls.context, in_force, switch, infotext), PageTasks(base), infotext,
        calls.interceptor, PreviewMarks(base.patches, calls.context),
    ]  # fmt: skip
    return WebuiHost(
        base=base,
        registry=registry,
        names=names,
        switch=switch,
        jobs=jobs,
        interceptor=calls.interceptor,
        forecasts=calls.forecasts,
        report=report,
        api=HostApi(base, report, calls, files.guard.finder, QueuedComputing(computing_device)),
        infotext=infotext,
        installer=ForgeInstaller(registry, guarded, decider, switch, in_force, parts),
        page=ForgePage(base, option, Dropdown(names.choices, listing.refresh, option_calls.on_sd_vae_changed)),
        refresh=listing.refresh,
        files=files,
        taesd=taesd,
        previews=previews,
    )


class MergerFile:
    """`modules.sd_vae.load_torch_file`, by which Forge's checkpoint merger reads a VAE.

    Args:
        base: What the host's parts share.
        weights: Reads it.
    """

    def __init__(self, base: HostBase, weights: MergerWeights) -> None:
        self._base = base
        self._weights = weights

    def install(self) -> None:
        """Put the patch in place."""
        if self._base.options.features.has("merger"):
            self._base.patches.wrap(sd_vae, "load_torch_file", self._load_torch_file)

    def _load_torch_file(self, original: Callable[..., Any], file: str, *args: Any, **kwargs: Any) -> Any:
        if not self._base.options.repairs.loading:
            return original(file, *args, **kwargs)
        return self._weights.weights(file, "cpu")


def computing_device() -> torch.device:
    """Where the API computes."""
    device: torch.device = getattr(memory_management, "vae_device", lambda: devices.device)()
    return device


def create(outlet: Outlet) -> WebuiHost:
    """The host of this process."""
    kind = ForgeKind("Forge", FORGE_NAMES, open_library(), lambda base, switch, _: StubbedLoading(base, switch))
    return build(outlet, kind)
