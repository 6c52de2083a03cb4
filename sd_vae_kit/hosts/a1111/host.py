"""A1111's web UI and its close relatives: `modules.sd_vae` stays the place of choice, our loading is underneath.

Written against v1.10.1.  Functions of `modules.sd_vae` are replaced one by one and keep their signatures and their
module's globals (`vae_dict`, `base_vae`, `loaded_vae_file`, `checkpoint_info`), which `sd_models` itself reads and
writes while several checkpoints stay loaded (sd_models.py:706, :930).
"""

from __future__ import annotations

import functools
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from modules import (
    call_queue,
    devices,
    extra_networks,
    options,
    paths,
    processing,
    script_callbacks,
    sd_models,
    sd_vae,
    shared,
)
from torch import Tensor, nn

from sd_vae_kit.core.live_weights import LiveWeights
from sd_vae_kit.core.run import precision_policy as precision
from sd_vae_kit.core.run.precision_fixes_file import PrecisionFixesFile
from sd_vae_kit.core.run.runner import Runner
from sd_vae_kit.errors import VaeKitError
from sd_vae_kit.hosts.a1111.calls import A1111Calls
from sd_vae_kit.hosts.base import Storage, collected
from sd_vae_kit.hosts.model_facts import holds_no_vae, is_blank, latent_format_of
from sd_vae_kit.hosts.nan_repairs import NanRepairs
from sd_vae_kit.hosts.previews import HostPreviews
from sd_vae_kit.hosts.taesd import HostTaesd
from sd_vae_kit.vaes import history
from sd_vae_kit.vaes.catalogue import KnownVae, with_own_entries
from sd_vae_kit.vaes.choice import Decision
from sd_vae_kit.vaes.entry import Entry
from sd_vae_kit.vaes.family_finder import FamilyFinder
from sd_vae_kit.vaes.guard import FamilyGuard
from sd_vae_kit.vaes.history import History
from sd_vae_kit.vaes.host_protocol import Checkpoint
from sd_vae_kit.vaes.library import Library
from sd_vae_kit.vaes.model_folders import Folder, FolderKind
from sd_vae_kit.vaes.rules import FILE_NAME, RulesFile
from sd_vae_kit.vaes.swap import Active, Key, Swapper, key_of
from sd_vae_kit.wording import Sentence, pieces_of

REMIND_SECONDS = 5.0
NO_VAE_IS_NEAR = Sentence.of("Automatic: no VAE is near.")
VAE_CALLS = ("decode_first_stage", "encode_first_stage")
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


def folders() -> list[Folder]:
    """Where the host looks for VAEs, and beside its checkpoints."""
    found = [Folder(Path(sd_vae.vae_path), "vae"), Folder(Path(sd_models.model_path), "checkpoint")]
    flags: tuple[tuple[str, FolderKind], ...] = (("vae_dir", "vae"), ("ckpt_dir", "checkpoint"))
    for flag, kind in flags:
        named = getattr(shared.cmd_opts, flag, None)
        if named and os.path.isdir(named):  # noqa: PTH112 - a string of the host's
            found.append(Folder(Path(named), kind))
    return found


def data_folder() -> Path:
    """Where this extension keeps what it remembers."""
    return Path(shared.cmd_opts.vae_kit_dir or Path(paths.data_path) / "vae-kit")


def folder_for(known: KnownVae) -> Path:
    """Where a file belongs: tiny autoencoders where the host looks for them, others where the user keeps VAEs."""
    if known.kind == "tiny":
        return Path(paths.models_path) / "VAE-taesd"
    named = getattr(shared.cmd_opts, "vae_dir", None)
    return Path(named) if named and Path(named).is_dir() else Path(sd_vae.vae_path)


class A1111Host(A1111Calls):
    """A1111 1.10 and programs that keep its `modules.sd_vae`."""

    name = "A1111"
    core_options = CORE_OPTIONS

    def __init__(self, library: Library) -> None:
        super().__init__(library)
        try:
            self.known = with_own_entries(data_folder() / "catalogue.json")
        except VaeKitError as error:
            self.known_problem = str(error)
        self.guard = FamilyGuard(FamilyFinder(library, data_folder() / "families.json", self.known))
        self.calls.runner = Runner(PrecisionFixesFile(data_folder() / precision.FILE_NAME))
        self.rules = RulesFile(data_folder() / FILE_NAME)
        self.history = History(data_folder() / history.FILE_NAME)
        self.taesd: HostTaesd | None = None
        self.previews: HostPreviews | None = None
        if find_spec("modules.sd_vae_taesd") is not None:
            folder = Path(paths.models_path) / "VAE-taesd"
            self.taesd = HostTaesd(self, folder, data_folder() / "taesd.json")
            self.previews = HostPreviews(self, self.taesd)
        self._decided = Decision(None, "own", Sentence.of("The checkpoint's own VAE."))
        self._refused: dict[int, Key] = {}  # id of a model -> the VAE that could not be used when it was loaded
        self._fresh = False  # a checkpoint's weights were just put into the model, its own VAE is live
        self._blank: weakref.WeakSet[Any] = weakref.WeakSet()  # models whose checkpoint held no VAE
        self._left_to_host: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._own_states: weakref.WeakKeyDictionary[nn.Module, tuple[Mapping[str, Tensor], dict[str, Tensor]]]
        self._own_states = weakref.WeakKeyDictionary()
        self._errors = threading.local()
        self._reverted: tuple[str, object, str] | None = None  # option, its value and what was said, just now
        self._reverted_until = 0.0

    # -- patches ---------------------------------------------------------------------------------------------------

    def install(self) -> None:
        for name, method in {
            "refresh_vae_list": self._refresh_vae_list,
            "find_vae_near_checkpoint": self._find_vae_near_checkpoint,
            "resolve_vae": self._resolve_vae,
            "load_vae": self._load_vae,
            "load_vae_dict": self._load_vae_dict,
            "reload_vae_weights": self._reload_vae_weights,
            "clear_loaded_vae": self._clear_loaded_vae,
            "get_loaded_vae_name": self._get_loaded_vae_name,
            "get_loaded_vae_hash": self._get_loaded_vae_hash,
        }.items():
            self._replace(sd_vae, name, method)
        NanRepairs(self).install(self._replace)
        if self.previews is not None and self.taesd is not None:
            self.taesd.install(self._replace)
            self.previews.install(self._replace)
        self._replace(options.Options, "set", self._set_option)
        self._replace(processing, "process_images_inner", self._process_images_inner)
        for model in self.models():
            self.guard_calls(model, VAE_CALLS)
        self.install_calls()
        self.forget_unloaded()

    def _replace(self, owner: object, name: str, method: Any) -> None:
        """`method` takes the original first."""
        if not self.patches.is_applied(owner, name):
            self.patches.replace(owner, name, lambda original: functools.partial(method, original))

    # -- what the program says about itself ------------------------------------------------------------------------

    def storage(self) -> Storage:
        return Storage(data_folder(), tuple(f.path for f in folders() if f.kind == "checkpoint"), folder_for)

    def tiny_library(self) -> Library | None:
        return self.taesd.library if self.taesd is not None else None

    @property
    def saved_options(self) -> tuple[dict[str, object], dict[str, Any]]:
        return shared.opts.data, shared.opts.data_labels

    def option(self, key: str, default: object = None) -> object:
        if key == "vae_kit_download_offline" and getattr(shared.cmd_opts, "vae_kit_offline", False):
            return True
        return getattr(shared.opts, key, default)

    @property
    def model(self) -> nn.Module | None:
        model: nn.Module | None = sd_models.model_data.sd_model
        return model

    def models(self) -> list[nn.Module]:
        loaded = list(sd_models.model_data.loaded_sd_models)
        return loaded if self.model is None or self.model in loaded else [*loaded, self.model]

    def first_stage_of(self, model: nn.Module) -> nn.Module | None:
        return getattr(model, "first_stage_model", None)

    def checkpoint_of(self, model: nn.Module | None, file: str | None = None) -> Checkpoint | None:
        info = getattr(model, "sd_checkpoint_info", None)
        path = file or getattr(info, "filename", None)
        if path is None:
            return None
        flags = {flag: bool(getattr(model, flag, False)) for flag in ("is_sd3", "is_sdxl")}
        return Checkpoint(
            name=getattr(info, "name_for_extra", None) or Path(path).stem,
            path=Path(path),
            latent_format=latent_format_of(flags),
            preferred_vae=self.preferred(extra_networks.get_user_metadata(path).get("vae")),
        )

    @property
    def forced_vae(self) -> Path | None:
        named = getattr(shared.cmd_opts, "vae_path", None)
        return Path(named) if named else None

    @property
    def may_hash(self) -> bool:
        return not getattr(shared.cmd_opts, "no_hashing", False)

    def refresh(self) -> None:
        sd_vae.refresh_vae_list()

    def apply(self) -> None:
        model: Any = self.model
        if model is None:
            return
        decision = self.decide(model.sd_checkpoint_info.filename)
        swapper = self._our_swapper(model, None)
        if swapper is None:
            sd_vae.reload_vae_weights(model, str(decision.entry.path) if decision.entry else None)
        else:
            self._switch(model, swapper, decision)

    # -- lists and rules -------------------------------------------------------------------------------------------

    def _refresh_vae_list(self, original: Callable[[], None]) -> None:
        self.library.refresh()
        if not self.repairs.names:
            return original()
        listed = {entry.name: str(entry.path) for entry in self.library.entries}
        sd_vae.vae_dict.clear()
        sd_vae.vae_dict.update(listed)
        return None

    def _find_vae_near_checkpoint(self, original: Callable[[str], str | None], checkpoint_file: str) -> str | None:
        if not self.repairs.exact_stem:
            return original(checkpoint_file)
        stem = Path(checkpoint_file).stem
        same = (file for file in sd_vae.vae_dict.values() if Path(file).stem.removesuffix(".vae") == stem)
        return next(same, None)

    def decide(self, checkpoint_file: str) -> Decision:
        """By our rules; a checkpoint that holds no VAE has its family's standard one in place of its own."""
        decision = self._by_rules(checkpoint_file)
        blank = (model for model in self._blank if model.sd_checkpoint_info.filename == checkpoint_file)
        model = next(blank, None) if decision.rule == "own" else None
        return self._standard_for(model) or decision if model is not None else decision

    def _standard_for(self, model: Any) -> Decision | None:
        """The family's standard VAE, if it is installed."""
        checkpoint = self.checkpoint_of(model)
        entry = self.guard.standard(checkpoint.latent_format.name) if self.guard and checkpoint else None
        if checkpoint is None or entry is None:
            return None
        words = "Automatic: {} holds no VAE of its own, so {} is used, the standard VAE of {}."
        reason = Sentence.of(words, checkpoint.name, entry.name, checkpoint.latent_format.label)
        return Decision(entry, "standard", reason)

    def _by_rules(self, checkpoint_file: str) -> Decision:
        """The rules; where a VAE beside the checkpoint is looked for in the host's way, by its prefix."""
        decision = super().decide(checkpoint_file)
        overrides = self.settings.vae.overrides_per_model
        undecided = decision.rule in ("own", "beside") or (decision.rule == "setting" and not overrides)
        if self.repairs.exact_stem or not undecided:
            return decision
        near = sd_vae.find_vae_near_checkpoint(checkpoint_file)
        if near is None:
            return decision if decision.rule == "setting" else Decision(None, "own", NO_VAE_IS_NEAR)
        entry = self.library.entry_at(Path(near))
        reason = Sentence.of("Automatic: the name of {} begins like the checkpoint's.", entry.name)
        return Decision(entry, "beside", reason)

    def _resolve_vae(self, original: Callable[[str], object], checkpoint_file: str) -> object:
        """Never raises: a checkpoint must load even if the VAE that was chosen for it is gone."""
        if not self.repairs.loading:
            return original(checkpoint_file)
        try:
            self._decided = self.decide(checkpoint_file)
        except VaeKitError as error:
            self._decided = self._own_instead(error)
        entry = self._decided.entry
        return sd_vae.VaeResolution(str(entry.path) if entry else None, self._decided.reason, entry is not None)

    # -- loading ---------------------------------------------------------------------------------------------------

    def _clear_loaded_vae(self, original: Callable[[], None]) -> None:
        """The host calls this between loading a checkpoint's weights and choosing its VAE (sd_models.py:536)."""
        original()
        self._fresh = True

    def _load_vae(
        self, original: Callable[..., None], model: Any, vae_file: str | None = None, vae_source: str = "by the web UI"
    ) -> None:
        """Never raises for a VAE's sake: called while a checkpoint loads, which must not fail for it."""
        fresh, self._fresh = self._fresh, False
        if fresh:
            self.model_changed(model)
            self._left_to_host.discard(model)
            self._look_for_vae(model)
        swapper = self._our_swapper(model, None)
        if swapper is None:
            return original(model, vae_file, vae_source)
        self._refused.pop(id(model), None)
        decision = self._decision(vae_file, vae_source)
        if fresh and model in self._blank and decision.rule == "own":
            decision = self._standard_for(model) or decision
        try:
            active = swapper.activate(decision)
        except VaeKitError as error:
            self._refused[id(model)] = key_of(decision.entry)
            active = swapper.activate(self._own_instead(error))
        self._record(model, swapper, active)
        self._say_if_blank(model, active)
        return None

    def _look_for_vae(self, model: Any) -> None:
        """Note whether the checkpoint that was just put into the model came without a VAE."""
        path = Path(model.sd_checkpoint_info.filename)
        without = is_blank(model.first_stage_model) or holds_no_vae(path)
        (self._blank.add if without else self._blank.discard)(model)

    def has_no_vae(self, model: nn.Module) -> bool:
        return model in self._blank or super().has_no_vae(model)

    def _say_if_blank(self, model: Any, active: Active) -> None:
        checkpoint = self.checkpoint_of(model)
        for warning in self._without_weights(checkpoint, active, model) if checkpoint else ():
            self.notify(warning, "warning")

    def _our_swapper(self, model: Any, reload: Callable[..., object] | None) -> Swapper | None:
        """The model's swapper; None where loading is left to the host.

        When it is taken back from the host, the host first restores the checkpoint's own VAE: nobody else has it.
        """
        if not self.repairs.loading:
            self._left_to_host.add(model)
            return None
        if model in self._left_to_host and reload is not None:
            reload(model, None)
            self._left_to_host.discard(model)
            self._swappers.pop(model, None)
        return self.swapper(model)

    def _own_instead(self, error: VaeKitError) -> Decision:
        said = f"{str(error).rstrip('.')}."
        reason = Sentence.of("{} The checkpoint's own VAE is used instead.", Sentence(pieces_of(said)))
        self.notify(reason, "warning")
        return Decision(None, "own", reason)

    def _reload_vae_weights(
        self, original: Callable[..., object], sd_model: Any = None, vae_file: Any = sd_vae.unspecified
    ) -> object:
        """Make the VAE live that the rules choose or the caller names; the model stays where it is.

        Raises:
            VaeKitError: As `self.refusal` shapes it; nothing has changed.  Inside `_set_option` it is put aside.
        """
        model = sd_model or shared.sd_model
        swapper = self._our_swapper(model, original) if model is not None else None
        if swapper is None:
            return original(sd_model, vae_file)
        aside: list[VaeKitError] | None = getattr(self._errors, "errors", None)
        if aside is not None:
            self._refused.pop(id(model), None)  # the user decides anew
        try:
            file = model.sd_checkpoint_info.filename
            by_rules = vae_file is sd_vae.unspecified
            decision = self.decide(file) if by_rules else self._decision(vae_file, "named by the caller")
            changed = self._switch(model, swapper, decision)
        except VaeKitError as error:
            if aside is None:
                raise self.refusal(error) from error
            aside.append(error)
            return None
        return model if changed else None

    def _switch(self, model: Any, swapper: Swapper, decision: Decision) -> bool:
        """Make the decision's VAE live and tell everybody; whether anything changed."""
        active = self._activate(model, swapper, decision)
        self._record(model, swapper, active)
        if active.seconds:
            script_callbacks.model_loaded_callback(model)
        return bool(active.seconds)

    def _activate(self, model: nn.Module, swapper: Swapper, decision: Decision) -> Active:
        """As the swapper, but a VAE that was refused when the checkpoint was loaded means the one used instead."""
        if decision.entry is not None and self._refused.get(id(model)) == key_of(decision.entry):
            words = "{} could not be used when the checkpoint was loaded; its own VAE is used."
            return swapper.activate(Decision(None, "own", Sentence.of(words, decision.name)))
        return swapper.activate(decision)

    def _decision(self, vae_file: str | None, why: str) -> Decision:
        """The decision that led to a file, if it was the last one made here."""
        decided = self._decided.entry
        if vae_file == (str(decided.path) if decided else None):
            return self._decided
        if vae_file is None:
            return Decision(None, "own", Sentence.of("The checkpoint's own VAE was asked for."))
        entry = self.library.entry_at(Path(vae_file))
        return Decision(entry, "path", Sentence.of("{} was {}.", entry.name, Sentence(pieces_of(why))))

    def _record(self, model: Any, swapper: Swapper, active: Active) -> None:
        """Tell the host what is live, in its own words, so that its functions stay right if ours are taken away."""
        entry = active.decision.entry
        sd_vae.loaded_vae_file = str(entry.path) if entry else None
        sd_vae.base_vae = self._own_state(model, swapper) if entry else None
        sd_vae.checkpoint_info = model.sd_checkpoint_info if entry else None
        model.base_vae, model.loaded_vae_file = sd_vae.base_vae, sd_vae.loaded_vae_file
        self.guard_calls(model, VAE_CALLS)
        self.calls.install()

    def _own_state(self, model: Any, swapper: Swapper) -> dict[str, Tensor]:
        """The checkpoint's own VAE under the live module's names, sharing memory with what the swapper remembers."""
        own = swapper.own_weights()
        known, state = self._own_states.get(model, (None, {}))
        if known is not own:
            live = LiveWeights(model.first_stage_model)
            named = {live.detection.names[name]: own[name] for name in live.tensors}
            state = {**model.first_stage_model.state_dict(), **named}
            self._own_states[model] = (own, state)
        return state

    def _load_vae_dict(self, original: Callable[..., Any], filename: str, map_location: Any) -> Any:
        """Weights in ldm names, from any layout: the checkpoint merger writes them under first_stage_model."""
        if not self.repairs.loading:
            return original(filename, map_location)
        try:
            state = self.library.load(self.library.entry_at(Path(filename))).state
        except VaeKitError as error:
            raise self.refusal(error) from error
        return {name: tensor.to(map_location) for name, tensor in state.items()}

    # -- what is written into pictures -----------------------------------------------------------------------------

    def _loaded(self) -> Entry | None:
        active = self.active()
        entry = active.decision.entry if active else None
        return entry if entry and str(entry.path) == sd_vae.loaded_vae_file else None

    def _get_loaded_vae_name(self, original: Callable[[], str | None]) -> str | None:
        entry = self._loaded() if self.repairs.names else None
        return entry.name if entry else original()

    def _get_loaded_vae_hash(self, original: Callable[[], str | None]) -> str | None:
        if not self.repairs.hashes:
            return original()
        if sd_vae.loaded_vae_file is None or not self.may_hash:
            return None
        try:
            return self.hash_of(self._loaded() or self.library.entry_at(Path(sd_vae.loaded_vae_file)))[:10]
        except VaeKitError:
            return None

    # -- options and jobs ------------------------------------------------------------------------------------------

    def _set_option(
        self, original: Callable[..., bool], opts: Any, key: str, value: object, *args: Any, **kwargs: Any
    ) -> bool:
        """An option whose VAE cannot be used goes back to what it was; an API request is told, a page gets one line.

        The host would print a traceback, revert the option and answer 200 (options.py:150).
        """
        before = opts.data.get(key, opts.get_default(key))
        with collected(self._errors) as errors:
            changed = original(opts, key, value, *args, **kwargs)
        if not errors:
            self._remind(key, value, changed)
            return changed
        opts.data[key] = before
        message = f"{str(errors[0]).rstrip('.')}. The option stays at {before}."
        self.notify(message, "error")
        self._reverted, self._reverted_until = (key, before, message), time.monotonic() + REMIND_SECONDS
        if kwargs.get("is_api", bool(args and args[0])):
            raise self.refusal(type(errors[0])(message)) from errors[0]
        return False

    def _remind(self, key: str, value: object, changed: bool) -> None:
        """The page puts a refused option back, which sends it again and clears the line that said why."""
        if changed or time.monotonic() > self._reverted_until:
            self._reverted = None
        elif self._reverted and self._reverted[:2] == (key, value):
            self.page_notice(self._reverted[2])

    def _process_images_inner(self, original: Callable[..., object], p: Any, *args: Any, **kwargs: Any) -> object:
        """The job's own VAE ends with the job, also with one that fails; a job inside a job gives back the outer's."""
        with self.job(), self.calls.job(p):
            return original(p, *args, **kwargs)

    def begin_types(self, p: Any) -> None:
        if self.taesd is not None:
            self.taesd.begin(p)

    def settle_types(self, p: Any) -> None:
        if self.taesd is not None:
            self.taesd.settle(p)

    def names_in_infotext(self) -> tuple[str | None, str | None]:
        return sd_vae.get_loaded_vae_name(), sd_vae.get_loaded_vae_hash()

    @contextmanager
    def computing(self) -> Iterator[torch.device]:
        with call_queue.queue_lock:
            yield devices.cpu if self._is_low_on_memory() else devices.device

    def _is_low_on_memory(self) -> bool:
        """`--medvram` or `--lowvram`; Forge and its relatives have no such thing, some not even the module."""
        if find_spec("modules.lowvram") is None:
            return False
        from modules import lowvram

        return hasattr(lowvram, "is_enabled") and bool(lowvram.is_enabled(self.model))


def create() -> A1111Host:
    """The adapter for this process."""
    return A1111Host(Library(folders(), data_folder() / "library.json"))
