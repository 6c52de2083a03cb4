"""What the layers above may ask of a web UI: one `WebuiHost`, complete when it is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from sd_vae_kit.hosts.api import HostApi
from sd_vae_kit.hosts.base import HostBase
from sd_vae_kit.hosts.choice import VaeNames
from sd_vae_kit.hosts.forecasts import Forecasts
from sd_vae_kit.hosts.interceptor import VaeInterceptor
from sd_vae_kit.hosts.jobs import HostJobs
from sd_vae_kit.hosts.models import ModelRegistry
from sd_vae_kit.hosts.parts import HostFiles, InfotextNames, PatchInstaller, VaeSwitch
from sd_vae_kit.hosts.previews import HostPreviews
from sd_vae_kit.hosts.status import StatusReport
from sd_vae_kit.hosts.taesd import HostTaesd
from sd_vae_kit.settings.sections import Settings
from sd_vae_kit.vaes.library import Library


class HostPage(Protocol):
    """A web UI's page: what is shown of options, and what is replaced there."""

    @property
    def core_options(self) -> tuple[str, ...]:
        """Of the web UI's own options, those a VAE depends on."""

    @property
    def sees_passes(self) -> bool:
        """Whether the web UI says when a pass of a job begins."""

    @property
    def quicksettings_key(self) -> str:
        """The option that lists what the top bar holds."""

    def install(self) -> None:
        """Patch what the web UI makes anew with its page; called while the settings page is built."""

    def declare_sd_vae(self, dropdown: type) -> None:
        """Give the web UI the option sd_vae, shown by `dropdown`; called while the settings page is built."""

    def own_routes(self) -> dict[str, Callable[[], object]]:
        """GET routes of A1111's API that this web UI lacks, by path."""

    def remove(self) -> None:
        """Take back what was declared."""


@dataclass(frozen=True)
class PlainPage:
    """A `HostPage` on which nothing is to be replaced."""

    core_options: tuple[str, ...]
    sees_passes: bool = True
    quicksettings_key: str = "quicksettings_list"

    def install(self) -> None:
        """Nothing is replaced."""

    def declare_sd_vae(self, dropdown: type) -> None:
        """The web UI has the option."""

    def own_routes(self) -> dict[str, Callable[[], object]]:
        return {}

    def remove(self) -> None:
        """Nothing was declared."""


@dataclass(frozen=True)
class WebuiHost:
    """One running web UI.

    Attributes:
        base: Name, library, messages, options, patches.
        registry: Its models and what is live in them.
        names: Names of VAEs as users see and type them.
        switch: Makes the chosen VAE live.
        jobs: What the running job chose.
        interceptor: Runs its encoders and decoders.
        forecasts: What would happen to a picture.
        report: What is live, for pages.
        api: What the HTTP API asks.
        infotext: Names the live VAE in pictures.
        installer: Puts patches in place.
        page: Its page.
        refresh: Looks for new and changed files.
        files: What the extension keeps; None where the web UI looks after its files itself.
        taesd: Its TAESD files; None where it has no such thing.
        previews: Its previews; None where it has none that are ours.
    """

    base: HostBase
    registry: ModelRegistry
    names: VaeNames
    switch: VaeSwitch
    jobs: HostJobs
    interceptor: VaeInterceptor
    forecasts: Forecasts
    report: StatusReport
    api: HostApi
    infotext: InfotextNames
    installer: PatchInstaller
    page: HostPage
    refresh: Callable[[], None]
    files: HostFiles | None = None
    taesd: HostTaesd | None = None
    previews: HostPreviews | None = None

    @property
    def name(self) -> str:
        """Shown to users: "Forge"."""
        return self.base.name

    @property
    def library(self) -> Library:
        """Its VAE files."""
        return self.base.library

    @property
    def settings(self) -> Settings:
        """The values now."""
        return self.base.options.settings

    def install(self) -> None:
        """Put every patch in place; what is in place stays."""
        self.installer.install()

    def model_loaded(self, model: object) -> None:
        """The web UI has loaded a checkpoint or changed a model."""
        self.installer.model_loaded(model)

    def remove(self) -> None:
        """Undo every patch; the live VAE stays, and the web UI's own notes describe it."""
        self.base.patches.undo()
        self.page.remove()

    def on_repair_changed(self) -> None:
        """Make anew what a switch changes that was flipped."""
        self.refresh()
        if self.registry.loaded.current is not None:
            self.switch.apply()
