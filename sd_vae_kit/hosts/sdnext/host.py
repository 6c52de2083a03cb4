"""SD.Next: models are diffusers pipelines; `modules.sd_vae` decides there, the weights of `pipe.vae` change in place.

Written from its source (058a7f0c).  It makes a new AutoencoderKL for every file and moves the old one to the CPU.
Which VAE is chosen stays its own affair (`resolve_vae`), except for a job's own; what nobody here knows (other classes,
folders, quantised or streamed weights) is left to it.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from modules import call_queue, devices, modeldata, options_handler, paths, processing, sd_vae, shared
from torch import nn

from sd_vae_kit.core.networks.latent_format import FORMATS, LatentFormat
from sd_vae_kit.errors import VaeKitError
from sd_vae_kit.hosts.base import WebuiHost, collected
from sd_vae_kit.settings.sections import NONE
from sd_vae_kit.vaes.choice import Decision
from sd_vae_kit.vaes.entry import Entry
from sd_vae_kit.vaes.host_protocol import Checkpoint
from sd_vae_kit.vaes.library import Library
from sd_vae_kit.vaes.model_folders import Folder
from sd_vae_kit.vaes.swap import Active
from sd_vae_kit.wording import Sentence

VAE_CALLS = ("decode", "encode")
OWN_NAMES = {"Default": NONE, "TAESD": NONE, "REPA-E": NONE}  # its names for what is no file
WHY = {
    "forced": "{} was given with --vae.",
    "near-checkpoint": "{} lies beside the checkpoint.",
    "automatic": "{} has the checkpoint's name.",
    "settings": "{} was chosen in the VAE dropdown.",
}
TOLERANCE = 1e-4  # of scale and shift factors


class SdNextHost(WebuiHost):
    """SD.Next."""

    name = "SD.Next"
    core_options = ("sd_vae",)
    sees_passes = False  # its scripts have no hook before sampling
    faultless = frozenset(
        {"hashes", "names", "exact_stem", "override_leak", "taesd", "previews", "nan_check", "sticky_fp32"}
    )

    def __init__(self, library: Library) -> None:
        super().__init__(library)
        self._loading: str | None = None  # a VAE that `load_vae` put off until its checkpoint is there
        self._errors = threading.local()

    # -- patches ---------------------------------------------------------------------------------------------------

    def install(self) -> None:
        self._replace(sd_vae, "refresh_vae_list", self._refresh_vae_list)
        self._replace(sd_vae, "reload_vae_weights", self._reload_vae_weights)
        self._replace(sd_vae, "load_vae", self._load_vae)
        self._replace(options_handler.Options, "set", self._set_option)
        self._replace(processing, "process_images_inner", self._process_images_inner)
        module = self.first_stage_of(self.model)
        if module is not None and not self.patches.is_applied(type(module), VAE_CALLS[0]):
            self.guard_calls(type(module), VAE_CALLS)  # type: ignore[arg-type]  # a class, so that no model is kept
        self.calls.install()
        self.forget_unloaded()

    def _replace(self, owner: object, name: str, method: Callable[..., Any]) -> None:
        """`method` takes the original first."""
        if not self.patches.is_applied(owner, name):
            self.patches.replace(owner, name, lambda original: functools.partial(method, original))

    def model_loaded(self, model: object) -> None:
        """Its VAE is its own; the one chosen for it goes over it now."""
        self.install()
        if self._loading is not None:
            self._loading = None
            self._reload_or_say()

    # -- what the program says about itself ------------------------------------------------------------------------

    @property
    def saved_options(self) -> tuple[dict[str, object], dict[str, Any]]:
        return shared.opts.data, shared.opts.data_labels

    def option(self, key: str, default: object = None) -> object:
        value = getattr(shared.opts, key, default)
        return OWN_NAMES.get(str(value), value) if key == "sd_vae" else value

    @property
    def model(self) -> Any:
        return modeldata.model_data.sd_model

    def models(self) -> list[Any]:
        return [] if self.model is None else [self.model]

    def first_stage_of(self, model: Any) -> nn.Module | None:
        """The pipeline's VAE; none where its weights are streamed in and are not there between calls."""
        module = getattr(model, "vae", None)
        if not isinstance(module, nn.Module) or any(parameter.is_meta for parameter in module.parameters()):
            return None
        return module

    def checkpoint_of(self, model: Any, file: str | None = None) -> Checkpoint | None:
        info, module = getattr(model, "sd_checkpoint_info", None), self.first_stage_of(model)
        if info is None or module is None:
            return None
        return Checkpoint(
            Path(info.filename).stem, Path(info.filename), latent_format_of(getattr(module, "config", None))
        )

    @property
    def forced_vae(self) -> Path | None:
        named = getattr(shared.cmd_opts, "vae", None)
        return Path(named) if named else None

    def names_in_infotext(self) -> tuple[str | None, str | None]:
        active = self.active()
        entry = active.decision.entry if active else None
        return (entry.name, self.hash_of(entry)[:10]) if entry else (None, None)

    def refresh(self) -> None:
        sd_vae.refresh_vae_list()

    @contextmanager
    def computing(self) -> Iterator[torch.device]:
        with call_queue.queue_lock:
            yield devices.device

    # -- the choice ------------------------------------------------------------------------------------------------

    def apply(self) -> None:
        """As the program's rules or the job say now.

        Raises:
            VaeKitError: It cannot be used; nothing has changed.
        """
        swapper = self.swapper(self.model) if self.model is not None and self.repairs.loading else None
        if swapper is not None:
            self._keep_books(swapper.activate(self.decide(self.model.sd_checkpoint_info.filename)))

    def decide(self, checkpoint_file: str) -> Decision:
        if self.job_vae is not None:
            return super().decide(checkpoint_file)
        path, source = sd_vae.resolve_vae(checkpoint_file)
        if path is None:
            return Decision(None, "own", Sentence.of("No VAE is chosen, so the checkpoint's own is used."))
        entry = self._entry_at(path)
        reason = Sentence.of(WHY.get(str(source), "{} was chosen."), entry.name)
        return Decision(entry, str(source), reason)

    def _entry_at(self, path: str) -> Entry:
        same = (entry for entry in self.library.entries if str(entry.path) == path)
        return next(same, None) or self.library.entry_at(path)

    def _is_for_us(self, vae_file: str | None) -> bool:
        """Whether a choice is a file, or none, for a VAE that we know; a folder of diffusers is the program's."""
        known = self.model is not None and self.repairs.loading and self.swapper(self.model) is not None
        return known and (vae_file is None or Path(vae_file).is_file())

    def _keep_books(self, active: Active) -> None:
        """The program names the VAE in infotexts and messages from this."""
        entry = active.decision.entry
        sd_vae.loaded_vae_file = str(entry.path) if entry else None

    # -- functions of modules.sd_vae -------------------------------------------------------------------------------

    def _refresh_vae_list(self, original: Callable[[], object]) -> object:
        listed = original()
        self.library.refresh()
        return listed

    def _load_vae(self, original: Callable[..., object], model_file: str, vae_file: Any = None, *source: Any) -> object:
        """While a checkpoint loads: its own VAE is loaded with it, so that it can be given back later."""
        if vae_file is None or not self.repairs.loading or not Path(vae_file).is_file():
            return original(model_file, vae_file, *source)
        self._loading = vae_file
        return None

    def _reload_vae_weights(
        self, original: Callable[..., object], sd_model: Any = None, vae_file: Any = sd_vae.unspecified
    ) -> object:
        """Make the VAE live that is chosen now.

        Raises:
            VaeKitError: As `self.refusal` shapes it; nothing has changed.  Inside `_set_option` it is put aside.
        """
        if self.model is None or vae_file is not sd_vae.unspecified:
            return original(sd_model, vae_file)
        path, _ = sd_vae.resolve_vae(self.model.sd_checkpoint_info.filename)
        if not self._is_for_us(path):
            return original(sd_model, vae_file)
        try:
            self.apply()
        except VaeKitError as error:
            aside: list[VaeKitError] | None = getattr(self._errors, "errors", None)
            if aside is None:
                raise self.refusal(error) from error
            aside.append(error)
        return self.model

    def _reload_or_say(self) -> None:
        with collected(self._errors) as errors:
            sd_vae.reload_vae_weights()
        for error in errors:
            self.notify(f"{str(error).rstrip('.')}. The checkpoint's own VAE is used instead.", "warning")

    # -- options and jobs ------------------------------------------------------------------------------------------

    def _set_option(
        self, original: Callable[..., bool], opts: Any, key: str, value: object, *args: Any, **kwargs: Any
    ) -> bool:
        """A VAE that cannot be used leaves the option where it was, and one line says so."""
        before = opts.data.get(key, opts.get_default(key))
        with collected(self._errors) as errors:
            changed = original(opts, key, value, *args, **kwargs)
        if not errors:
            return changed
        opts.data[key] = before
        self.notify(f"{str(errors[0]).rstrip('.')}. The option stays at {before}.", "error")
        return False

    def _process_images_inner(self, original: Callable[..., object], p: Any, *args: Any, **kwargs: Any) -> object:
        """The job's own VAE ends with the job, also with one that fails."""
        with self.job(), self.calls.job(p):
            return original(p, *args, **kwargs)


def latent_format_of(config: Any) -> LatentFormat:
    """The family whose numbers the pipeline scales this VAE's latents with."""
    channels = int(getattr(config, "latent_channels", 0) or 0)
    scale = float(getattr(config, "scaling_factor", None) or 1.0)
    shift = float(getattr(config, "shift_factor", None) or 0.0)
    for known in FORMATS.values():
        difference = abs(known.scale_factor - scale) + abs(known.shift_factor - shift)
        if known.z_channels == channels and difference < TOLERANCE:
            return known
    return LatentFormat("unknown", "an unknown family", channels, scale, shift)


def create() -> SdNextHost:
    """The adapter for this process."""
    folders = [Folder(Path(shared.opts.vae_dir), "vae"), Folder(Path(shared.opts.ckpt_dir), "checkpoint")]
    named = getattr(shared.cmd_opts, "vae_kit_dir", None)
    return SdNextHost(Library(folders, Path(named or Path(paths.data_path) / "vae-kit") / "library.json"))
