"""The stand-alone app as a host: a data folder, the demo checkpoint, one live VAE, one job at a time."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from sd_vae_kit.core.halves import Half
from sd_vae_kit.core.preview import FIRST_CELLS, Previewer
from sd_vae_kit.core.preview_worker import Previews
from sd_vae_kit.core.run import precision_policy as precision
from sd_vae_kit.core.run.forecast import forecast
from sd_vae_kit.core.run.precision_fixes_file import PrecisionFixesFile
from sd_vae_kit.core.run.request import RunRequest
from sd_vae_kit.core.run.runner import Runner
from sd_vae_kit.core.vae import Vae, load_vae, make_vae
from sd_vae_kit.errors import OptionError, VaeKitError, VaeNotFoundError
from sd_vae_kit.pictures.picture_file import Pixels
from sd_vae_kit.settings.job import JobTiling
from sd_vae_kit.settings.sections import FULL, OFF, TAESD, PreviewSettings, Settings
from sd_vae_kit.settings.store import SettingsStore
from sd_vae_kit.standalone import demo as demo_files
from sd_vae_kit.standalone import jobs as standalone_jobs
from sd_vae_kit.standalone.demo_model import FAMILY, NAME, DemoModel, fitted, read_photographs
from sd_vae_kit.standalone.job import AS_SET, Img2Img, Txt2Img
from sd_vae_kit.standalone.jobs import JobResult, OnProgress, VaeInUse
from sd_vae_kit.standalone.vae_runs import VaeRuns
from sd_vae_kit.vaes.call_gate import CallGate
from sd_vae_kit.vaes.entry import Entry
from sd_vae_kit.vaes.host_protocol import Checkpoint, Level
from sd_vae_kit.vaes.library import Library
from sd_vae_kit.vaes.rules import Run
from sd_vae_kit.vaes.tiny import TinyVaes
from sd_vae_kit.wording import Sentence

OWN_VAE, TINY_DECODER = "demo_natural.safetensors", "demo_tiny_decoder.safetensors"


@dataclass(frozen=True)
class Folders:
    """Where the app's files are.

    Attributes:
        data: Settings, caches, models and pictures.
        vaes: Folders searched for VAEs besides models/VAE.
        checkpoints: Folders searched for VAEs beside checkpoints, besides models/Stable-diffusion.
        demo: The demo model's VAEs and photographs.
    """

    data: Path
    vaes: tuple[Path, ...] = ()
    checkpoints: tuple[Path, ...] = ()
    demo: Path = demo_files.FOLDER

    @property
    def own_vaes(self) -> Path:
        return self.data / "models" / "VAE"

    @property
    def own_tiny_vaes(self) -> Path:
        return self.data / "models" / "VAE-taesd"

    @property
    def own_checkpoints(self) -> Path:
        return self.data / "models" / "Stable-diffusion"

    def make(self) -> None:
        """Create the data folder; one that was named on the command line must exist already.

        Raises:
            OptionError: A folder is missing or cannot be made.
        """
        for named in (*self.vaes, *self.checkpoints):
            if not named.is_dir():
                raise OptionError(f"The folder {named} does not exist; correct --vae-dir or --ckpt-dir.")
        try:
            for folder in (self.own_vaes, self.own_tiny_vaes, self.own_checkpoints):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OptionError(
                f"The data folder {self.data} cannot be used: {error.strerror or error}. Choose another --data-dir."
            ) from error


@dataclass(frozen=True)
class Notice:
    """One line for the user."""

    text: str
    level: Level


@dataclass
class StandaloneHost:
    """Implements `host.Host`; makes pictures with `txt2img` and `img2img`.

    Attributes:
        folders: Where files are.
        store: The settings.
        forced_vae: `--vae-path`.
        describe_live: Name of the live VAE and a function for its sha256; set by the app, which knows the live file.
        tiny: Installed TAESDs; set by the app, which knows the files.
        other_half: The encoder beside a live TAESD decoder, or the reverse; set by the app.
        choose_for: Makes the VAE live that the rules choose for a pass; set by the app.
        preview_vae: The VAE that a rule names for previews, None without such a rule; set by the app.
    """

    folders: Folders
    store: SettingsStore
    forced_vae: Path | None = None
    describe_live: Callable[[], tuple[str, Callable[[], str]]] = field(init=False)
    tiny: TinyVaes | None = field(default=None, init=False)
    other_half: Callable[[], Vae | None] = field(init=False)
    choose_for: Callable[[Run], object] = field(init=False)
    preview_vae: Callable[[], Vae | None] = field(init=False)

    def __post_init__(self) -> None:
        self.runner = Runner(PrecisionFixesFile(self.folders.data / "cache" / precision.FILE_NAME))
        own = self.folders.demo / OWN_VAE
        # a copy of its own for the model's photographs: the live VAE may be another one at any time
        self._model_vae = _on_device(load_vae(own, family=FAMILY.name, dtype=torch.float32, runner=self.runner))
        self._first_stage: nn.Module = copy.deepcopy(self._model_vae.module)
        self._tiny = _on_device(
            load_vae(self.folders.demo / TINY_DECODER, family=FAMILY.name, dtype=torch.float32, runner=self.runner)
        )
        stat = own.stat()
        self.model = DemoModel(
            read_photographs(self.folders.demo / "photographs"),
            self._model_vae.encode,
            f"{own.name} {stat.st_size} {stat.st_mtime_ns}",
            self.folders.data / "cache",
        )
        self.describe_live = lambda: (own.name, lambda: "")
        self.other_half = self.preview_vae = lambda: None
        self.choose_for = lambda run: None
        self._gate = CallGate()
        self._choosing = threading.RLock()
        self._working = threading.Lock()
        self._interrupt = threading.Event()
        self._notices: list[Notice] = []
        self.runs = VaeRuns(lambda: self.settings, self.notify)
        self._preview_seconds = 0.0  # what the last preview of the last job took
        self._preview_cells = FIRST_CELLS

    # -- what VAE handling may ask ------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return "VAE Kit"

    @property
    def settings(self) -> Settings:
        return self.store.settings

    @property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint(NAME, None, FAMILY)

    @property
    def first_stage(self) -> nn.Module:
        return self._first_stage

    @property
    def can_replace_first_stage(self) -> bool:
        return True

    def replace_first_stage(self, module: nn.Module) -> None:
        self._first_stage = module.to(device(), torch.float32)

    def vae_writing(self) -> AbstractContextManager[None]:
        return self._gate.writing()

    def on_vae_changed(self) -> None:
        """Nothing is remembered about live weights here."""

    def notify(self, message: str, level: Level = "info") -> None:
        self._notices.append(Notice(message, level))

    # -- what the app and jobs ask -------------------------------------------------------------------------------------

    @property
    def preview_settings(self) -> PreviewSettings:
        return self.settings.preview

    def take_notices(self) -> list[Notice]:
        """Lines for the user since the last call."""
        taken, self._notices = self._notices, []
        return taken

    def choosing(self) -> AbstractContextManager[bool]:
        """Hold while the VAE is chosen, so that a job never takes one VAE's weights with another's name."""
        return self._choosing

    @contextmanager
    def live_vae(self, half: Half, wanted: str = AS_SET, run: Run | None = None) -> Iterator[VaeInUse]:
        """What serves `half` of the live VAE, kept from being exchanged.

        Args:
            half: What it is needed for.
            wanted: The job's choice among `VAE_TYPES`; TAESD takes the installed one of the family.
            run: The pass that begins, for which the rules may choose another VAE; None leaves the live one.

        Raises:
            VaeNotFoundError: No TAESD is installed that could, or a rule names a file that is not there.
            VaeKitError: The VAE that a rule names cannot be used.
        """
        settings = self.settings.vae
        chosen = {"encoder": settings.encode_method, "decoder": settings.decode_method}[half]
        method = chosen if wanted == AS_SET else wanted
        with ExitStack() as held:
            with self._choosing:
                if run is not None:
                    self.choose_for(run)
                held.enter_context(self._gate.calling())
                name, sha256 = self.describe_live()
                vae = as_vae(self._first_stage, name, self.runner)
                if method == TAESD:
                    vae = self.tiny_vae(half)
                elif vae.part not in ("both", half):
                    vae = self.other_half() or vae
            yield VaeInUse(vae, name, sha256, method)

    def tiny_vae(self, half: Half) -> Vae:
        """The TAESD of the loaded model's family: an installed one, for decoding else the demo's.

        Raises:
            VaeNotFoundError: There is none.
        """
        if self.tiny is not None and (half == "encoder" or self.tiny.find(FAMILY.name, half)):
            return self.tiny.load(FAMILY.name, half, device(), torch.float32)
        if half == "decoder":
            return self._tiny
        raise VaeNotFoundError(f"There is no TAESD encoder for {FAMILY.label} here; choose {FULL}.")

    @contextmanager
    def previews(self, wanted: str, show: Callable[[Pixels], object]) -> Iterator[Previews[Pixels]]:
        """What a job offers its latents to; with the job everything of them goes.

        Args:
            wanted: The job's choice among `PREVIEWS`.
            show: Called with each picture, in another thread.
        """
        settings = self.preview_settings
        method = settings.method if wanted == AS_SET else wanted
        previewer = self.previewer(method)
        previewer.begin_with(self._preview_cells)

        def render(latent: Tensor) -> Pixels | None:
            previewer.slow = previews.goal
            pixels = previewer(latent)
            return None if pixels is None else pixels.numpy()

        def sketch(latent: Tensor) -> Pixels | None:
            pixels = linear(latent)
            return None if pixels is None else pixels.numpy()

        linear = self.previewer("linear")
        cheaper, share = (sketch if method == "taesd" else None), settings.share / 100
        previews = Previews(render, show, share=share, sketch=cheaper, expected=self._preview_seconds)
        with previews:
            if method == OFF:
                previews.close()
            yield previews
        self._preview_seconds, self._preview_cells = previews.budget.expected, previewer.cells

    def previewer(self, method: str) -> Previewer:
        """Shows latents of the loaded model.

        Args:
            method: "taesd", "linear" or "off".
        """
        side = self.preview_settings.max_side
        if method != "taesd":
            return Previewer(FAMILY, method, side)
        vae, request = self.preview_vae() or self.tiny_vae("decoder"), self.run_request().unguarded()
        return Previewer(FAMILY, method, side, lambda latent: vae.decode(latent, request=request) * 0.5 + 0.5)

    # -- how the VAE is run --------------------------------------------------------------------------------------------

    def run_request(self) -> RunRequest:
        """How VAEs are run where no job chooses."""
        return self.runs.request()

    def sketch(self, latent: Tensor, size: tuple[int, int]) -> Pixels:
        """What an interrupted decode gives: the preview of that latent, in the picture's size."""
        pixels = self.previewer("taesd")(latent)
        if pixels is None:  # that one failed, and has said why
            pixels = self.previewer("linear")(latent)
        assert pixels is not None
        return fitted(pixels.numpy(), size, stretch=True)

    def forecast(self, size: tuple[int, int], tiling: JobTiling) -> Sentence:
        """What will happen when a picture of (height, width) is decoded."""
        module = self._first_stage
        if not hasattr(module, "decoder"):
            other = self.other_half()
            module = other.module if other is not None else module
        return forecast(module, size, torch.float32, device(), tiling.over(self.settings.tiling))

    def txt2img(self, job: Txt2Img, on_progress: OnProgress = lambda progress: None) -> JobResult:
        """Make pictures from a prompt; one job at a time, the next waits."""
        with self._working:
            self._interrupt.clear()
            self.runs.begin()
            try:
                return standalone_jobs.run(job, self, on_progress)
            finally:
                self._end_passes()
                if self.tiny is not None:
                    self.tiny.release()

    def _end_passes(self) -> None:
        """An interrupted job may have ended in a pass with a VAE of its own."""
        try:
            with self._choosing:
                self.choose_for("picture")
        except VaeKitError as error:
            self.notify(str(error), "warning")

    def img2img(self, job: Img2Img, on_progress: OnProgress = lambda progress: None) -> JobResult:
        """Make pictures from a picture; denoising 0 only sends it through the VAE and back."""
        return self.txt2img(job, on_progress)

    def interrupt(self) -> None:
        """End the running job after its current step."""
        self._interrupt.set()

    def is_interrupted(self) -> bool:
        return self._interrupt.is_set()


def device() -> torch.device:
    """Where the VAE runs: the first CUDA device if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _on_device(vae: Vae) -> Vae:
    vae.module.to(device())
    return vae


def load_half(library: Library, entry: Entry, runner: Runner) -> Vae:
    """A file of the library, to serve a half that the live VAE lacks."""
    weights = library.load(entry)
    return _on_device(make_vae(weights, family=FAMILY.name, dtype=torch.float32, label=entry.name, runner=runner))


def as_vae(module: nn.Module, label: str, runner: Runner) -> Vae:
    """The live module as something that encodes and decodes the loaded model's latents."""
    halves = [half for half in ("encoder", "decoder") if hasattr(module, half)]
    part = "both" if len(halves) == 2 else halves[0]
    return Vae(module, FAMILY, part=part, label=label, runner=runner)  # type: ignore[arg-type]
