"""Forge: the engine's VAE is exchanged in place, so that choosing one takes milliseconds, not a checkpoint's reload.

Written against f2.0.1 (dfdcbab6).  There `modules.sd_vae` is a stub, the option `sd_vae` a placeholder, and the
program's own way is `forge_additional_modules`, which loads the whole checkpoint again.  Both ways stay usable: a VAE
chosen there is the model's own, one named by SD VAE is put over it.
"""

from __future__ import annotations

import copy
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from backend import memory_management
from backend.patcher.vae import VAE
from modules import (
    call_queue,
    extra_networks,
    infotext_utils,
    options,
    processing,
    sd_models,
    sd_vae,
    shared,
    sysinfo,
    ui_settings,
)
from modules_forge import main_thread
from torch import nn

from sd_vae_kit.core.networks.latent_format import FORMATS, LatentFormat
from sd_vae_kit.errors import VaeKitError
from sd_vae_kit.hosts.a1111.host import A1111Host, data_folder, folders
from sd_vae_kit.hosts.forge.calls import ForgeCalls
from sd_vae_kit.pictures.infotext import parse_fields
from sd_vae_kit.settings.sections import AUTOMATIC, NONE
from sd_vae_kit.vaes.choice import Decision
from sd_vae_kit.vaes.host_protocol import Checkpoint
from sd_vae_kit.vaes.library import Library
from sd_vae_kit.vaes.swap import Active
from sd_vae_kit.wording import Sentence

VAE_CALLS = ("decode", "encode", "decode_tiled", "encode_tiled")
CORE_OPTIONS = ("sd_vae", "sd_vae_encode_method", "sd_vae_decode_method", "show_progress_type")
LOADED_BY_THE_WEB_UI = Sentence.of("Loading is left to the web UI.")
TOLERANCE = 1e-4  # of scale and shift factors
VAE_FIELD = re.compile(r'(?:^|(?<=,))\s*(?:SD )?VAE:\s*(?:"(?:\\.|[^\\"])*"|[^,]*),?')
OWN_KEY = "SD VAE"  # infotext key where the program keeps "VAE" for its modules


class ForgeHost(ForgeCalls, A1111Host):
    """Forge f2 and programs with its `backend`."""

    name = "Forge"
    core_options = CORE_OPTIONS
    # it looks for no VAE beside a checkpoint (we do, by the exact name) and does not look for NaN at all
    faultless = frozenset({"exact_stem", "nan_check", "sticky_fp32"})

    def __init__(self, library: Library) -> None:
        super().__init__(library)
        self.declared: Any = None  # the program's own declaration of the option sd_vae, while ours takes its place
        self._modules: tuple[str, ...] = ()  # of the model in use: files merged into it by the program's own way
        self._job_choice: str | None = None  # SD VAE when the running job began; a change waits for its end
        self._here = threading.local()  # what this thread is in the middle of

    # -- patches ---------------------------------------------------------------------------------------------------

    def install(self) -> None:
        for name, method in {
            "refresh_vae_list": self._refresh_vae_list,
            "reload_vae_weights": self._reload_vae_weights,
            "get_loaded_vae_name": self._get_loaded_vae_name,
            "get_loaded_vae_hash": self._get_loaded_vae_hash,
            "load_torch_file": self._load_torch_file,
        }.items():
            if hasattr(sd_vae, name):
                self._replace(sd_vae, name, method)
        if self.previews is not None and self.taesd is not None:
            self.taesd.install(self._replace)
            self.previews.install(self._replace)
        self._replace(options.Options, "set", self._set_option)
        self._replace(sysinfo, "set_config", self._set_config_by_api)
        self._replace(processing, "set_config", self._set_config)
        self._replace(processing, "process_images_inner", self._process_images_inner)
        self._replace(main_thread.Task, "work", self._work)
        self._replace(infotext_utils, "parse_generation_parameters", self._parse_generation_parameters)
        # of the class, so that clones are covered and no dropped model is kept in memory
        for name in VAE_CALLS:
            if not self.patches.is_applied(VAE, name):
                self.guard_calls(VAE, [name])
        self.install_calls()
        self.forget_unloaded()

    def install_page(self) -> None:
        """What the page needs; the program makes this class anew on Reload UI."""
        self._replace(ui_settings.UiSettings, "run_settings", self._run_settings)
        names = ("quick_setting_list", "quicksettings_list")
        self.quicksettings_key = next(name for name in names if name in shared.opts.data_labels)

    def declare_sd_vae(self, dropdown: type) -> None:
        declared = shared.opts.data_labels["sd_vae"]
        if self.declared is None:
            self.declared = declared
        ours = copy.copy(self.declared)
        ours.label, ours.default, ours.infotext = "SD VAE", AUTOMATIC, self.infotext_key
        ours.component, ours.component_args = dropdown, lambda: {"choices": self.choices()}
        ours.refresh, ours.onchange = self.refresh, self.on_sd_vae_changed
        shared.opts.add_option("sd_vae", ours)

    def own_routes(self) -> dict[str, Callable[[], object]]:
        return {"/sdapi/v1/sd-vae": lambda: [{"model_name": k, "filename": v} for k, v in sd_vae.vae_dict.items()]}

    def remove(self) -> None:
        super().remove()
        if self.declared is not None:
            shared.opts.data_labels["sd_vae"], self.declared = self.declared, None

    # -- what the program says about itself ------------------------------------------------------------------------

    def option(self, key: str, default: object = None) -> object:
        if key == "sd_vae" and self._job_choice is not None:
            return self._job_choice
        return super().option(key, default)

    @property
    def infotext_key(self) -> str:
        """The key for the name of the VAE: "VAE" where the program declares it for sd_vae."""
        declared = self.declared or shared.opts.data_labels["sd_vae"]
        return declared.infotext or OWN_KEY

    @property
    def model(self) -> Any:
        """The engine; until the first job the program holds a stand-in without weights."""
        engine = sd_models.model_data.sd_model
        return engine if getattr(engine, "forge_objects", None) is not None else None

    def models(self) -> list[Any]:
        return [] if self.model is None else [self.model]

    def first_stage_of(self, model: Any) -> nn.Module | None:
        vae = getattr(getattr(model, "forge_objects", None), "vae", None)
        return getattr(vae, "first_stage_model", None)

    def checkpoint_of(self, model: Any, file: str | None = None) -> Checkpoint | None:
        model = self.model if model is None else model  # only one is ever loaded
        info = getattr(model, "sd_checkpoint_info", None)
        module = self.first_stage_of(model)
        if info is None or module is None:
            return None
        return Checkpoint(
            name=info.name_for_extra,
            path=Path(info.filename),
            latent_format=latent_format_of(module),
            preferred_vae=self._card_of(info.filename),
        )

    def _card_of(self, filename: str) -> str | None:
        """The VAE on a checkpoint's card; the program keeps a list there, text encoders among it."""
        card = extra_networks.get_user_metadata(filename)
        named = [Path(str(name)).name for name in card.get("vae_te") or ()] or [card.get("vae")]
        listed = {Path(entry.name).name for entry in self.library.entries if entry.state == "ok"}
        known = [name for name in named if name in listed or len(named) == 1]
        return self.preferred(known[0]) if known else None

    # -- models ----------------------------------------------------------------------------------------------------

    def model_loaded(self, model: object) -> None:
        """A new engine: its VAE is its own; between a job's passes the job's choice must hold for it, too."""
        self._modules = tuple(sd_models.model_data.forge_loading_parameters.get("additional_modules") or ())
        self._refused.clear()
        self.install()
        if self._job_choice is not None:
            self._settle()

    def apply(self) -> None:
        """As the rules say now.

        Raises:
            VaeKitError: It cannot be used; nothing has changed.
        """
        model = self.model
        swapper = self.swapper(model) if model is not None else None
        if swapper is None:
            return
        decision = self.decide("") if self.repairs.loading else Decision(None, "own", LOADED_BY_THE_WEB_UI)
        # models are loaded, and this is called, in inference mode: what the swapper remembers must outlive it
        with torch.inference_mode(False):
            active = swapper.activate(decision)
        self._keep_books(active)

    def _keep_books(self, active: Active) -> None:
        """Tell the program what is live: names of files are made from it."""
        entry = active.decision.entry
        sd_vae.loaded_vae_file = str(entry.path) if entry else None

    def decide(self, checkpoint_file: str) -> Decision:
        """Which VAE the rules choose for the model in use; one from VAE / Text Encoder counts as its own.

        It was chosen by hand, so with SD VAE on Automatic it goes before card and neighbouring file.
        """
        decision = super().decide(checkpoint_file)
        module = self._vae_module()
        if module is None:
            return decision
        if self.settings.vae.sd_vae == AUTOMATIC and decision.rule in ("card", "beside", "own"):
            words = "Automatic: {} is chosen under VAE / Text Encoder, which makes it the checkpoint's own VAE."
            return Decision(None, "module", Sentence.of(words, module))
        if decision.entry is None:
            reason = Sentence.of("{} That is {} from VAE / Text Encoder.", decision.reason, module)
            return Decision(None, decision.rule, reason)
        return decision

    def _vae_module(self) -> str | None:
        """Name of the VAE among the model's modules."""
        listed = {entry.path.resolve(): entry.name for entry in self.library.entries if entry.kind == "kl"}
        names = (listed.get(Path(module).resolve()) for module in self._modules)
        return next((name for name in names if name), None)

    def _settle(self) -> None:
        """`apply` where nobody waits for an error: one line says it, the live VAE stays."""
        try:
            self.apply()
        except VaeKitError as error:
            self._say_it_stays(error)

    def _say_it_stays(self, error: VaeKitError) -> None:
        self.notify(f"{str(error).rstrip('.')}. The VAE stays as it is.", "warning")

    # -- functions of modules.sd_vae -------------------------------------------------------------------------------

    def _reload_vae_weights(self, original: Callable[..., object], *args: Any, **kwargs: Any) -> object:
        """The stub, called when a related option changed and at the end of an X/Y/Z plot."""
        self._settle()
        return None

    def _load_torch_file(self, original: Callable[..., Any], file: str, *args: Any, **kwargs: Any) -> Any:
        """The checkpoint merger's VAE, from any layout."""
        if not self.repairs.loading:
            return original(file, *args, **kwargs)
        return self._load_vae_dict(original, file, "cpu")

    # -- options and jobs ------------------------------------------------------------------------------------------

    def on_sd_vae_changed(self) -> None:
        """The dropdown or the API named another VAE; a running job keeps what it began with.

        Raises:
            VaeKitError: As `self.refusal` shapes it; nothing has changed.  Inside `_set_option` it is put aside.
        """
        if getattr(self._here, "setting_a_request", False):
            return
        try:
            self.apply()
        except VaeKitError as error:
            aside: list[VaeKitError] | None = getattr(self._errors, "errors", None)
            if aside is None:
                raise self.refusal(error) from error
            aside.append(error)

    def _set_config_by_api(self, original: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        """POST /options, which does not say that it is the API (api.py:688)."""
        self._here.answering = True
        try:
            original(*args, **kwargs)
        finally:
            self._here.answering = False

    def _set_option(
        self, original: Callable[..., bool], opts: Any, key: str, value: object, *args: Any, **kwargs: Any
    ) -> bool:
        if key == "sd_vae" and getattr(self._here, "answering", False):
            kwargs["is_api"] = True
        return super()._set_option(original, opts, key, value, *args, **kwargs)

    def _set_config(self, original: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        """A request's options on their way in and out; going out must not fail for the sake of a VAE gone meanwhile."""
        self._here.setting_a_request = True
        try:
            original(*args, **kwargs)
        finally:
            self._here.setting_a_request = False
            if kwargs.get("run_callbacks", True):
                self._settle()

    def _process_images_inner(self, original: Callable[..., object], p: Any, *args: Any, **kwargs: Any) -> object:
        """A job: options are set and the model is loaded; what it changed ends with it, also when it fails."""
        with self._job_setting(), self.job(), self.calls.job(p):
            self._begin(p)
            return original(p, *args, **kwargs)

    @contextmanager
    def _job_setting(self) -> Iterator[None]:
        """SD VAE as it is now, held while the block runs; changed meanwhile, it is applied at the outermost end."""
        outer, self._job_choice = self._job_choice, str(shared.opts.sd_vae)
        try:
            yield
        finally:
            self._job_choice = outer

    def _begin(self, p: Any) -> None:
        """Make the job's VAE live.

        Raises:
            VaeKitError: As `self.refusal` shapes it, if the request itself named the VAE; else the job goes on with
                the live one, and a line says so.
        """
        try:
            self.apply()
        except VaeKitError as error:
            if self._is_asked_for_by(p):
                raise self.refusal(error) from error
            self._say_it_stays(error)
        self.name_vae_in(p)

    def _is_asked_for_by(self, p: Any) -> bool:
        """Whether the request itself names a VAE."""
        return "sd_vae" in (p.override_settings or {})

    def use_for_job(self, name: str | None) -> None:
        """As in the base class, but the engine may be another one than at the last call."""
        before = self._job_vae
        super().use_for_job(name)
        if self._job_vae is not None and before == self._job_vae:
            self.apply()

    def _work(self, original: Callable[[Any], None], task: Any) -> None:
        """A job from the page; one that is refused is a line there, without the traceback the program prints."""
        function, refusals = task.func, []

        def quietly(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            except Exception as error:
                if not (isinstance(self.refusal, type) and isinstance(error, self.refusal)):
                    raise
                refusals.append(error)

        task.func = quietly
        original(task)
        for error in refusals:  # the program shows what it finds there; Neo keeps the text only
            in_words = f"{type(error).__name__}: {error}"
            main_thread.last_exception = error if hasattr(task, "exception") else in_words

    def _run_settings(self, original: Callable[..., Any], page: Any, *values: Any) -> Any:
        """Apply on the settings page: the program passes over sd_vae there (ui_settings.py:88)."""
        for key, value, component in zip(shared.opts.data_labels, values, page.components, strict=False):
            if key == "sd_vae" and component != page.dummy_component:
                shared.opts.set(key, value)
        return original(page, *values)

    # -- infotext --------------------------------------------------------------------------------------------------

    def name_vae_in(self, p: Any) -> None:
        """The program has both lines in its infotext commented out (processing.py:756)."""
        super().name_vae_in(p)
        name, key, opts = p.sd_vae_name, self.infotext_key, shared.opts
        p.extra_generation_params[f"{key} hash"] = (
            p.sd_vae_hash if getattr(opts, "add_vae_hash_to_info", True) else None
        )
        p.extra_generation_params[key] = name if getattr(opts, "add_vae_name_to_info", True) else None

    def _parse_generation_parameters(
        self, original: Callable[..., dict[str, Any]], text: str, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """The program takes "VAE" for a module and would load the checkpoint again; a VAE we know is SD VAE's."""
        name = self._vae_in(text)
        if name is None:
            return original(text, *args, **kwargs)
        parameters = original(without_vae(text), *args, **kwargs)
        skipped = args[0] if args else kwargs.get("skip_fields")
        if self.infotext_key not in (shared.opts.infotext_skip_pasting if skipped is None else skipped):
            parameters[self.infotext_key] = name
        return parameters

    def _vae_in(self, text: str) -> str | None:
        """Our name of the VAE a text speaks of, by its name or else by its hash."""
        fields = parse_fields(text.strip().split("\n")[-1])
        named = fields.get(self.infotext_key) or fields.get("VAE")
        if named is None or named in (AUTOMATIC, NONE):
            return named
        try:
            return self.library.get(named).name
        except VaeKitError:
            found = self.library.find_by_hash(fields.get(f"{self.infotext_key} hash") or fields.get("VAE hash", ""))
            return found.name if found else None

    @contextmanager
    def computing(self) -> Iterator[torch.device]:
        with call_queue.queue_lock:
            yield memory_management.vae_device()


def latent_format_of(module: Any) -> LatentFormat:
    """The family by what the program does to a latent before it decodes it, which is affine for all that are known."""
    first = getattr(getattr(module, "decoder", None), "conv_in", None)
    channels = int(getattr(first, "in_channels", 0))
    try:
        zero, one = (module.process_out(torch.full((1, channels, 1, 1), value)) for value in (0.0, 1.0))
        shift, scale = float(zero.mean()), 1 / float((one - zero).mean())
    except (AttributeError, TypeError, ValueError, RuntimeError, ZeroDivisionError):
        shift, scale = 0.0, 1.0
    for known in FORMATS.values():
        difference = abs(known.scale_factor - scale) + abs(known.shift_factor - shift)
        if known.z_channels == channels and difference < TOLERANCE:
            return known
    return LatentFormat("unknown", "an unknown family", channels, scale, shift)


def without_vae(text: str) -> str:
    """The text without the name of its VAE, hash and all else left in place."""
    *lines, last = text.strip().split("\n")
    return "\n".join([*lines, VAE_FIELD.sub("", last)])


def create() -> ForgeHost:
    """The adapter for this process."""
    return ForgeHost(Library(folders(), data_folder() / "library.json"))
