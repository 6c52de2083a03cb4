"""What all A1111-style web UIs have in common: one library, a swapper per loaded model, the job's own VAE, status.

A subclass per program says where its files, options and models are and which of its functions are replaced.
"""

from __future__ import annotations

import functools
import threading
import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sd_vae_kit.core.live_weights import LiveWeights
from sd_vae_kit.core.networks.latent_format import family_label
from sd_vae_kit.core.run.precision_fixes_file import PrecisionFixesFile
from sd_vae_kit.core.run.request import RunRequest
from sd_vae_kit.errors import SettingError, VaeKitError
from sd_vae_kit.hosts.interceptor import InterceptedHost, VaeInterceptor
from sd_vae_kit.hosts.model_facts import is_blank, precision_of
from sd_vae_kit.hosts.patch import Patches
from sd_vae_kit.settings.repairs import REPAIR_SPECS, Repairs
from sd_vae_kit.settings.sections import AUTOMATIC, NONE, SPECS, Settings, settings_from
from sd_vae_kit.settings.spec import Spec
from sd_vae_kit.vaes.call_gate import CallGate
from sd_vae_kit.vaes.catalogue import KnownVae, catalogue
from sd_vae_kit.vaes.choice import Decision, resolve
from sd_vae_kit.vaes.entry import Entry
from sd_vae_kit.vaes.guard import FamilyGuard
from sd_vae_kit.vaes.history import History
from sd_vae_kit.vaes.host_protocol import Checkpoint, Level
from sd_vae_kit.vaes.inspection import Inspector
from sd_vae_kit.vaes.library import Library
from sd_vae_kit.vaes.rules import Rule, RulesFile, Run
from sd_vae_kit.vaes.swap import Active, Swapper
from sd_vae_kit.wording import Sentence

Listener = Callable[[str, Level], None]
NO_CHECKPOINT = Sentence.of("No checkpoint is loaded yet.")


@dataclass(frozen=True)
class VaeStatus:
    """Facts of the active VAE for panel and API.

    Attributes:
        name: File, or "None" for the checkpoint's own.
        checkpoint: The loaded model; empty while there is none.
        family: "SD 1.x / 2.x"; empty while there is no model.
        reason: One sentence: why this VAE.
        sha256: Of the file; empty for the checkpoint's own or where hashing is off.
        precision: "fp32", "fp16", "bf16"; empty while there is no model.
        warnings: Sentences.
    """

    name: str = NONE
    checkpoint: str = ""
    family: str = ""
    reason: Sentence = NO_CHECKPOINT
    sha256: str = ""
    precision: str = ""
    warnings: tuple[Sentence, ...] = ()


@dataclass(frozen=True)
class Storage:
    """Where files go in this web UI.

    Attributes:
        data: What the extension remembers, the user's rules and own catalogue.
        checkpoints: Folders of checkpoints and their cards.
        folder_for: Where a file of the catalogue belongs.
    """

    data: Path
    checkpoints: tuple[Path, ...]
    folder_for: Callable[[KnownVae], Path]


class ModelView:
    """One model of the web UI as VAE handling sees it (the `Host` protocol); holds it weakly."""

    can_replace_first_stage = False

    def __init__(self, webui: WebuiHost, model: nn.Module | None, checkpoint_file: str | None = None) -> None:
        self._webui = webui
        self._model = weakref.ref(model) if model is not None else lambda: None
        self._checkpoint_file = checkpoint_file

    @property
    def name(self) -> str:
        return self._webui.name

    @property
    def settings(self) -> Settings:
        return self._webui.settings

    @property
    def checkpoint(self) -> Checkpoint | None:
        return self._webui.checkpoint_of(self._model(), self._checkpoint_file)

    @property
    def forced_vae(self) -> Path | None:
        return self._webui.forced_vae

    @property
    def first_stage(self) -> nn.Module | None:
        model = self._model()
        return self._webui.first_stage_of(model) if model is not None else None

    def replace_first_stage(self, module: nn.Module) -> None:
        raise NotImplementedError(f"{self.name} keeps its VAE module")

    def vae_writing(self) -> AbstractContextManager[None]:
        return self._webui.gate.writing()

    def on_vae_changed(self) -> None:
        self._webui.on_vae_changed()

    def notify(self, message: str, level: Level = "info") -> None:
        self._webui.notify(message, level)


class WebuiHost(InterceptedHost):
    """One running web UI."""

    name: str
    core_options: tuple[str, ...] = ()  # of the program's own options, those a VAE depends on
    sees_passes = True  # whether the program says when a pass of a job begins
    faultless: frozenset[str] = frozenset()  # names of `Repairs` for faults this program does not have
    quicksettings_key = "quicksettings_list"  # the option that lists what the top bar holds

    def __init__(self, library: Library) -> None:
        self.library = library
        self.patches = Patches()
        self.gate = CallGate()
        self.calls = VaeInterceptor(self)
        self.listeners: list[Listener] = []
        self.vae_listeners: list[Callable[[], None]] = []
        self.page_notice: Callable[[str], None] = lambda message: None  # one line on the page that is being served
        self.refusal: Callable[[VaeKitError], Exception] = lambda error: error
        self._swappers: weakref.WeakKeyDictionary[nn.Module, Swapper] = weakref.WeakKeyDictionary()
        self._known: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()  # VAE modules
        self.guard: FamilyGuard | None = None
        self.rules: RulesFile | None = None
        self.history: History | None = None
        self.known, self.known_problem = catalogue(), ""  # the catalogue, and why the user's own entries are not in it
        self.catalogue: Any = None  # the service behind the tab "VAE Kit", which the pages make
        self._rules_in_force: tuple[Rule, ...] = ()
        self._job_vae: str | None = None
        self._run: Run = "picture"  # the pass of the job that is running
        self._said: set[str] = set()
        self._lock = threading.RLock()

    # -- what a program must say about itself ---------------------------------------------------------------------

    @abstractmethod
    def install(self) -> None:
        """Put the patches in place; called again after Reload UI and whenever a model was loaded."""

    def install_page(self) -> None:
        """Patches of what the program makes anew with its page; called while the settings page is built."""

    def declare_sd_vae(self, dropdown: type) -> None:
        """Give the program the option sd_vae, shown by `dropdown`; called while the settings page is built."""

    def storage(self) -> Storage | None:
        """Where files go; None where the program looks after its files itself."""
        return None

    def tiny_library(self) -> Library | None:
        """Files of the TAESD family, where the program keeps them apart from VAEs."""
        return None

    def own_routes(self) -> dict[str, Callable[[], object]]:
        """GET routes of A1111's API that this program lacks, by path."""
        return {}

    def begin_types(self, p: Any) -> None:
        """Before a job: see to the program's options "VAE type for encode" and "VAE type for decode".

        Raises:
            VaeKitError: An option's value means nothing.
        """

    def settle_types(self, p: Any) -> None:
        """After a batch was decoded, before its infotext is written."""

    def model_loaded(self, model: object) -> None:
        """The program has loaded a checkpoint or changed a model: new objects need the patches, too."""
        self.install()

    @abstractmethod
    def option(self, key: str, default: object = None) -> object:
        """A value from the program's options."""

    @property
    @abstractmethod
    def saved_options(self) -> tuple[dict[str, object], Mapping[str, Any]]:
        """The program's saved options by key, to be changed in place, and what it knows of each option."""

    @abstractmethod
    def names_in_infotext(self) -> tuple[str | None, str | None]:
        """Name and short hash of the live VAE as they are written into a picture."""

    def name_vae_in(self, p: Any) -> None:
        """Let a job's infotext name the live VAE; the program looked before the job's own was made live."""
        p.sd_vae_name, p.sd_vae_hash = self.names_in_infotext()

    @abstractmethod
    def computing(self) -> AbstractContextManager[torch.device]:
        """Hold while the API computes; gives the device."""

    @property
    @abstractmethod
    def model(self) -> nn.Module | None:
        """The model in use; None while there is none, and nothing is loaded by asking."""

    @abstractmethod
    def models(self) -> list[nn.Module]:
        """Every model in memory."""

    @abstractmethod
    def first_stage_of(self, model: nn.Module) -> nn.Module | None:
        """A model's live VAE module."""

    def live_vae(self) -> nn.Module | None:
        return self.first_stage_of(self.model) if self.model is not None else None

    @abstractmethod
    def checkpoint_of(self, model: nn.Module | None, file: str | None = None) -> Checkpoint | None:
        """What is loaded into `model`; `file` where the program only names the file."""

    @property
    @abstractmethod
    def forced_vae(self) -> Path | None:
        """`--vae-path`."""

    @abstractmethod
    def refresh(self) -> None:
        """Look for new and changed files."""

    @abstractmethod
    def apply(self) -> None:
        """Make the VAE live that the rules choose now for the model in use.

        Raises:
            VaeKitError: It cannot be used; nothing has changed.
        """

    # -- settings --------------------------------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        """The values now; one that does not fit is taken as its default."""
        values = {spec.key: self.option(spec.key, spec.default) for spec in SPECS}
        if values["sd_vae"] in ("auto", ""):
            values["sd_vae"] = AUTOMATIC

        def complain(spec: Spec, error: SettingError) -> None:
            self.notify_once(f"{error} The default, {spec.default!r}, is used.", "warning")

        return settings_from(values, complain)

    @property
    def inspector(self) -> Inspector:
        """What says what files are."""
        assert self.guard is not None
        return Inspector(self.guard.finder, lambda: self.settings.guard)

    @property
    def precision_fixes(self) -> PrecisionFixesFile:
        """What VAEs needed to stay finite in half precision."""
        return self.calls.runner.fixes

    def run_request(self) -> RunRequest:
        """How VAEs are run, as the settings and the web UI's options are now."""
        return RunRequest(self.settings.tiling, self.policy())

    @property
    def repairs(self) -> Repairs:
        return Repairs(**{spec.name: bool(self.option(spec.key, spec.default)) for spec in REPAIR_SPECS})

    def keep_leaks(self, keys: Iterable[str]) -> None:
        """Give options their place among the saved ones; the program restores only those after a request."""
        saved, known = self.saved_options
        if self.repairs.override_leak:
            for key in keys:
                info = known.get(key)
                if info is not None and not getattr(info, "do_not_save", False):
                    saved.setdefault(key, info.default)

    def on_repair_changed(self) -> None:
        """A switch was flipped: what it changes is made again."""
        self.refresh()
        if self.model is not None:
            self.apply()

    # -- messages --------------------------------------------------------------------------------------------------

    def notify(self, message: str, level: Level = "info") -> None:
        """Show one line to the user."""
        for listener in self.listeners:
            listener(message, level)

    def notify_once(self, message: str, level: Level = "info") -> None:
        """The same sentence is said once per start."""
        if message not in self._said:
            self._said.add(message)
            self.notify(message, level)

    def on_vae_changed(self) -> None:
        for listener in self.vae_listeners:
            listener()

    # -- models ----------------------------------------------------------------------------------------------------

    def swapper(self, model: nn.Module) -> Swapper | None:
        """The swapper of one model; None for a VAE nobody here knows, where the program does as without us."""
        module = self.first_stage_of(model)
        with self._lock:
            if module is None or not self._knows(module):
                return None
            swapper = self._swappers.get(model)
            if swapper is None:
                view = ModelView(self, model)
                swapper = Swapper(view, self.library, guard=self.guard, rules=self.rules, history=self.history)
                self._swappers[model] = swapper
            return swapper

    def _knows(self, module: nn.Module) -> bool:
        if module not in self._known:
            try:
                LiveWeights(module)
                self._known[module] = True
            except VaeKitError as error:
                self._known[module] = False
                self.notify_once(f"VAE Kit leaves the VAE of this model to the web UI: {error}", "warning")
        return self._known[module]

    def model_changed(self, model: nn.Module) -> None:
        """The program has put other weights into `model`: what was known of its VAE is void."""
        module = self.first_stage_of(model)
        with self._lock:
            if module is not None:
                self._known.pop(module, None)
            swapper = self._swappers.get(model)
            if swapper is not None:
                swapper.checkpoint_changed()

    def forget_unloaded(self) -> None:
        """Let go of models that the program has dropped."""
        kept = {id(model) for model in self.models()}
        with self._lock:
            for model in list(self._swappers):
                if id(model) not in kept:
                    self.patches.undo(model)
                    del self._swappers[model]

    def guard_calls(self, model: nn.Module, names: Iterable[str]) -> None:
        """Let a swap wait for the model's running encodes and decodes."""
        for name in names:
            if hasattr(model, name) and not self.patches.is_applied(model, name):
                self.patches.replace(model, name, functools.partial(self._guarded, name))

    def _guarded(self, name: str, original: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            with self.gate.calling():
                return self.around_call(name, original, *args, **kwargs)

        return call

    def remove(self) -> None:
        """Undo every patch; the live VAE stays, and the program's own bookkeeping describes it."""
        self.patches.undo()

    # -- the choice ------------------------------------------------------------------------------------------------

    @property
    def job_vae(self) -> str | None:
        """The running job's own choice, None if it has none."""
        return self._job_vae

    def use_for_job(self, name: str | None) -> None:
        """Make the job's choice live; None or "Automatic" is the global setting's.

        Raises:
            VaeKitError: It cannot be used; the VAE and the choice are what they were.
        """
        before, self._job_vae = self._job_vae, None if name in (None, "", AUTOMATIC) else name
        if before == self._job_vae:
            return
        try:
            self.apply()
        except BaseException:
            self._job_vae = before
            raise

    def begin_pass(self, name: str | None, run: Run) -> None:
        """Make the VAE live that the job has chosen for a pass, or the user's rules for a pass of that kind.

        Raises:
            VaeKitError: As `use_for_job`.
        """
        rules = self.rules.rules if self.rules else ()
        chosen, passed, before = self._job_vae, self._run, self._rules_in_force
        self._run = run
        self.use_for_job(name)
        if chosen == self._job_vae and (passed != run or rules != before):
            self.apply()
        self._rules_in_force = rules

    @contextmanager
    def job(self) -> Iterator[None]:
        """One job: what it chose for itself ends with it; a job inside a job gives back the outer's choice."""
        outer = self._job_vae
        try:
            with self.calls.choices_kept():
                yield
        finally:
            self._back_to(outer)

    def end_job(self) -> None:
        """Forget a choice that a job left behind."""
        self.calls.end_job()
        self._back_to(None)

    def _back_to(self, name: str | None) -> None:
        try:
            self.begin_pass(name, "picture")
        except VaeKitError as error:
            self._job_vae = name
            self.notify(str(error), "error")

    def decide(self, checkpoint_file: str) -> Decision:
        """Which VAE the rules choose for a checkpoint."""
        view = ModelView(self, None, checkpoint_file)
        return resolve(view, self.library, self._job_vae, self.rules.rules if self.rules else (), self._run)

    def preferred(self, wanted: object) -> str | None:
        """The VAE named on a checkpoint's card, if there is such a file; cards are often written elsewhere."""
        if not isinstance(wanted, str) or not wanted or wanted == AUTOMATIC:
            return None
        if wanted == NONE:
            return NONE
        try:
            return self.library.get(wanted).name
        except VaeKitError as error:
            self.notify_once(f"A checkpoint's card asks for {wanted}: {error}", "warning")
            return None

    # -- what is shown ---------------------------------------------------------------------------------------------

    def choices(self) -> list[str]:
        """Names for a dropdown of VAEs."""
        return [AUTOMATIC, NONE, *(entry.name for entry in self.library.entries)]

    def full_name(self, typed: str) -> str:
        """The library's name for what somebody typed, "Automatic" or "None".

        Raises:
            VaeNotFoundError: No such VAE, or several.
        """
        for special in (AUTOMATIC, NONE):
            if typed.strip().lower() == special.lower():
                return special
        return self.library.get(typed.strip()).name

    def active(self) -> Active | None:
        """What is live in the model in use."""
        swapper = self._swappers.get(self.model) if self.model is not None else None
        return swapper.active if swapper is not None else None

    def hash_of(self, entry: Entry | None) -> str:
        """sha256 of a file, empty where there is none or hashing is off."""
        return self.library.sha256(entry) if entry is not None and self.may_hash else ""

    @property
    def may_hash(self) -> bool:
        """Whether files may be read to hash them (`--no-hashing`)."""
        return True

    def status(self) -> VaeStatus:
        """Facts of the active VAE."""
        model = self.model
        checkpoint = self.checkpoint_of(model) if model is not None else None
        if model is None or checkpoint is None:
            return VaeStatus()
        active, module = self.active(), self.first_stage_of(model)
        if active is None or module is None:
            reason = Sentence.of("The web UI looks after this model's VAE itself.")
            return VaeStatus(checkpoint=checkpoint.name, reason=reason)
        entry = active.decision.entry
        return VaeStatus(
            name=active.name,
            checkpoint=checkpoint.name,
            family=self._family(entry) or checkpoint.latent_format.label,
            reason=active.decision.reason,
            sha256=self.hash_of(entry),
            precision=precision_of(module),
            warnings=(*active.warnings, *self._without_weights(checkpoint, active, model)),
        )

    def _without_weights(self, checkpoint: Checkpoint, active: Active, model: nn.Module) -> tuple[Sentence, ...]:
        """A checkpoint saved without its VAE must not pass for one with a bad VAE."""
        if active.decision.entry is not None or not self.has_no_vae(model):
            return ()
        needed = checkpoint.latent_format
        fitting = [e.name for e in self.library.entries if e.state == "ok" and e.z_channels == needed.z_channels]
        offer = Sentence.of("; install a VAE for {}", needed.label)
        if fitting:
            offer = Sentence.of("; choose {}", Sentence.joined(" or ", fitting[:3]))
        words = "{} holds no VAE of its own, so pictures would be spoiled{}."
        return (Sentence.of(words, checkpoint.name, offer),)

    def has_no_vae(self, model: nn.Module) -> bool:
        """Whether the checkpoint in a model, whose own VAE is live, came without one."""
        module = self.first_stage_of(model)
        return module is not None and is_blank(module)

    def forget_precision(self) -> int:
        """Forget what VAEs needed in half precision; how many halves that were."""
        return self.precision_fixes.forget()

    def label_of(self, vae: nn.Module) -> str:
        active = self.active()
        entry = active.decision.entry if active is not None else None
        return entry.name if entry is not None else "the checkpoint's own VAE"

    def api_status(self) -> dict[str, object]:
        """`status` in the HTTP API's words."""
        status = self.status()
        return {
            "host": self.name,
            "checkpoint": status.checkpoint,
            "vae": status.name,
            "family": status.family,
            "reason": status.reason,
            "sha256": status.sha256,
            "precision": status.precision,
            "warnings": list(status.warnings),
            **self.calls.runner.status(),
        }

    def _family(self, entry: Entry | None) -> str:
        return family_label(entry.family) if entry is not None and entry.family else ""


@contextmanager
def collected(store: threading.local) -> Iterator[list[VaeKitError]]:
    """Errors of this thread's swaps, put aside instead of raised while the block runs."""
    previous, store.errors = getattr(store, "errors", None), []
    try:
        yield store.errors
    finally:
        store.errors = previous
