"""The backend of the stand-alone app: its parts, built once."""

from __future__ import annotations

import copy
import threading
from dataclasses import dataclass
from pathlib import Path

from sd_vae_kit.core.run import precision_policy as precision
from sd_vae_kit.core.run.precision_fixes_file import PrecisionFixesFile
from sd_vae_kit.core.run.runner import Runner
from sd_vae_kit.errors import OptionError
from sd_vae_kit.settings.store import SettingsStore
from sd_vae_kit.standalone.api_backend import StandaloneApi
from sd_vae_kit.standalone.catalogue_host import StandaloneCatalogueHost
from sd_vae_kit.standalone.demo_model import DemoModel, read_photographs
from sd_vae_kit.standalone.demo_vaes import DemoVaes
from sd_vae_kit.standalone.folders import Folders
from sd_vae_kit.standalone.generation import Engine
from sd_vae_kit.standalone.host import StandaloneHost
from sd_vae_kit.standalone.job_previews import JobPreviews
from sd_vae_kit.standalone.job_runner import JobRunner
from sd_vae_kit.standalone.page_pasting import PagePasting
from sd_vae_kit.standalone.page_settings import PageSettings
from sd_vae_kit.standalone.page_vaes import PageVaes
from sd_vae_kit.standalone.pass_vaes import PassVaes
from sd_vae_kit.standalone.picture_maker import PictureMaker
from sd_vae_kit.standalone.vae_runs import VaeRuns
from sd_vae_kit.standalone.vae_selection import VaeSelection
from sd_vae_kit.vaes import history
from sd_vae_kit.vaes.catalogue import Catalogue, catalogue, with_own_entries
from sd_vae_kit.vaes.family_finder import FamilyFinder
from sd_vae_kit.vaes.guard import FamilyGuard
from sd_vae_kit.vaes.history import History
from sd_vae_kit.vaes.inspection import Inspector
from sd_vae_kit.vaes.library import Library
from sd_vae_kit.vaes.model_folders import Folder
from sd_vae_kit.vaes.rules import FILE_NAME, RulesFile
from sd_vae_kit.vaes.swap import Swapper
from sd_vae_kit.vaes.tiny import TinyVaes
from sd_vae_kit.web.catalogue_host import KnownFiles
from sd_vae_kit.web.catalogue_service import CatalogueService
from sd_vae_kit.web.message import Message


@dataclass(frozen=True)
class StandaloneBackend:
    """Implements `PageBackend`.

    Attributes:
        folders: Where the app's files are.
        host: The app as VAE handling sees it.
        selection: Which VAE is live.
        maker: Makes pictures.
        vaes, jobs, settings, pasting: What the pages ask, by part of the page.
        catalogue: What the catalogue's part of the VAE tab asks.
        api: What the HTTP API asks.
    """

    folders: Folders
    host: StandaloneHost
    selection: VaeSelection
    maker: PictureMaker
    vaes: PageVaes
    jobs: JobRunner
    settings: PageSettings
    pasting: PagePasting
    catalogue: CatalogueService
    api: StandaloneApi

    def take_messages(self) -> list[Message]:
        return [Message(notice.text, notice.level) for notice in self.host.take_notices()]

    def close(self) -> None:
        """End background work."""
        self.catalogue.close()
        self.selection.close()


def build_backend(folders: Folders, shown: Path, forced_vae: Path | None = None) -> StandaloneBackend:
    """Build every part; the chosen VAE is live when this returns.

    Args:
        folders: Where the app's files are; they exist.
        shown: Folder from which pages may show pictures.
        forced_vae: `--vae-path`.

    Raises:
        OptionError: `forced_vae` is not a file.
    """
    if forced_vae is not None and not forced_vae.is_file():
        raise OptionError(f"--vae-path names {forced_vae}, which is not a file; correct the path.")
    store = SettingsStore(folders.data / "settings.json")
    runner = Runner(PrecisionFixesFile(folders.data / "cache" / precision.FILE_NAME))
    demo = DemoVaes.load(folders, runner)
    # a copy of its own for the model's photographs: the live VAE may be another one at any time
    host = StandaloneHost(store, copy.deepcopy(demo.own.module), forced_vae)
    library = _library(folders)
    known = _known_vaes(folders, host)
    finder = FamilyFinder(library, folders.data / "cache" / "families.json", known)
    rules, used = RulesFile(folders.data / FILE_NAME), History(folders.data / history.FILE_NAME)
    swapper = Swapper(host, library, guard=FamilyGuard(finder), rules=rules, history=used)
    selection = VaeSelection(host, library, swapper, runner, folders.own_vae_file)
    inspector = Inspector(finder, lambda: store.settings.guard)
    tiny = TinyVaes([library], finder, lambda: store.settings.guard, runner=runner)
    passes = PassVaes(host, selection, tiny, demo.tiny_decoder)
    runs = VaeRuns(lambda: host.settings, host.notify)
    engine = Engine(_model(folders, demo), passes, JobPreviews(host, passes, runs), runs, threading.Event())
    maker = PictureMaker(host, engine)
    catalogue_host = StandaloneCatalogueHost(host, folders, library, selection, runner.fixes)
    service = CatalogueService(catalogue_host, KnownFiles(inspector, used), rules)
    settings = PageSettings(store, selection)
    vaes = PageVaes(host, library, inspector, selection, settings)
    jobs = JobRunner(host, maker, shown, folders.data)
    pasting = PagePasting(vaes, service.gallery)
    api = StandaloneApi(host, library, selection, inspector, runs, runner.fixes)
    for warning in store.warnings:
        host.notify(warning, "warning")
    selection.begin()
    return StandaloneBackend(folders, host, selection, maker, vaes, jobs, settings, pasting, service, api)


def _library(folders: Folders) -> Library:
    vaes = (folders.own_vaes, folders.own_tiny_vaes, *folders.vaes, folders.demo)
    checkpoints = (folders.own_checkpoints, *folders.checkpoints)
    return Library(
        [*(Folder(path) for path in vaes), *(Folder(path, "checkpoint") for path in checkpoints)],
        folders.data / "cache" / "library.json",
    )


def _known_vaes(folders: Folders, host: StandaloneHost) -> Catalogue:
    """The catalogue with the user's own entries; without them, and a line about it, if their file is not right."""
    try:
        return with_own_entries(folders.data / "catalogue.json")
    except OptionError as error:
        host.notify(str(error), "warning")
        return catalogue()


def _model(folders: Folders, demo: DemoVaes) -> DemoModel:
    own = folders.own_vae_file
    stat = own.stat()
    return DemoModel(
        read_photographs(folders.demo / "photographs"),
        demo.own.encode,
        f"{own.name} {stat.st_size} {stat.st_mtime_ns}",
        folders.data / "cache",
    )
