"""A web UI like A1111 1.10.1 as far as a VAE is concerned: plain modules and attributes, nothing that accepts all.

What the host does wrong is done wrong here, too: `load_vae` copies tensor by tensor, `process_images` restores only
options that were saved, `Options.set` swallows errors, hooks' exceptions are printed.
"""

from __future__ import annotations

import contextlib
import copy
import sys
import threading
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from vae_files import kl_config, kl_state, randomised, write

from sd_vae_kit.core.networks.autoencoder import AutoencoderKL

WRONG_HASH = "0123456789"  # what the program says of every VAE
CALLBACKS = ("script_unloaded", "before_ui", "ui_settings", "ui_tabs", "model_loaded", "infotext_pasted", "app_started")


class OptionInfo:
    def __init__(self, default=None, label="", component=None, component_args=None, onchange=None, section=None,
                 infotext=None):  # fmt: skip
        self.default, self.label, self.component, self.component_args = default, label, component, component_args
        self.onchange, self.section, self.infotext, self.do_not_save = onchange, section, infotext, False
        self.comment_after = ""

    def info(self, info):
        self.comment_after += info
        return self


class Options:
    def __init__(self, labels):
        self.__dict__["data_labels"] = labels
        self.__dict__["data"] = {}  # as after a first start: config.json is empty

    def __getattr__(self, key):
        if key in self.data:
            return self.data[key]
        if key in self.data_labels:
            return self.data_labels[key].default
        raise AttributeError(key)

    def __setattr__(self, key, value):
        self.data[key] = value

    def get_default(self, key):
        return self.data_labels[key].default if key in self.data_labels else None

    def set(self, key, value, is_api=False, run_callbacks=True):
        old = self.data.get(key)
        if old == value:
            return False
        option = self.data_labels[key]
        setattr(self, key, value)
        if run_callbacks and option.onchange is not None:
            try:
                option.onchange()
            except Exception as error:
                self.__dict__["last_error"] = error
                setattr(self, key, old)
                return False
        return True

    def add_option(self, key, info):
        self.data_labels[key] = info
        self.data.setdefault(key, info.default)


def state_class(program: FakeA1111) -> type:
    class State:
        """What the page asks while a job runs."""

        def __init__(self):
            self.interrupted = self.skipped = False
            self.current_latent = None

        @property
        def textinfo(self):
            return program.said[-1] if program.said else None

        @textinfo.setter
        def textinfo(self, text):
            program.said.append(text)

        def do_set_current_image(self):
            """The page's thread makes a preview."""
            common = program.sd_samplers_common
            program.previews.append(common.samples_to_images_tensor(self.current_latent, 0))

    return State


def registering(callbacks: list[Any]) -> Any:
    def on_event(callback, *, name=None):
        callbacks.append(callback)

    return on_event


class Model(nn.Module):
    """A checkpoint with nothing but a VAE."""

    def __init__(self, file: Path, seed: int, is_sdxl: bool = False) -> None:
        super().__init__()
        self.first_stage_model = randomised(AutoencoderKL(kl_config()), seed).requires_grad_(False)
        self.is_sdxl, self.is_sd3, self.lowvram = is_sdxl, False, False
        self.sd_checkpoint_info = types.SimpleNamespace(filename=str(file), name_for_extra=file.stem, title=file.name)

    def decode_first_stage(self, latent):
        return self.first_stage_model.decode(latent / 0.18215)

    def encode_first_stage(self, image):
        return self.first_stage_model.encode(image)


@dataclass
class Job:
    """A `StableDiffusionProcessing`."""

    override_settings: dict[str, object] = field(default_factory=dict)
    script_args: tuple[object, ...] = ()
    scripts: object = None
    fail: bool = False
    hires: bool = False
    n_iter: int = 1
    is_hr_pass: bool = False
    extra_generation_params: dict[str, object] = field(default_factory=dict)
    sd_vae_name: str | None = None
    sd_vae_hash: str | None = None
    pictures: list[torch.Tensor] = field(default_factory=list)
    init: Any = lambda: None  # img2img encodes here

    def sample(self, host):
        self.scripts.process_before_every_sampling(self)
        self.sampler.sample()
        if self.hires:
            self.is_hr_pass = True
            self.scripts.process_before_every_sampling(self)
            self.sampler.sample_img2img()
            self.is_hr_pass = False
        self.pictures.append(host.decode())


class Sampler:
    def sample(self):
        pass

    sample_img2img = sample


class Runner:
    """The always-on scripts of a tab; a hook that raises is only noted."""

    def __init__(self, scripts, errors):
        self.alwayson_scripts, self._errors = scripts, errors

    def __getattr__(self, hook):
        def run(p, *args, **kwargs):
            for script in self.alwayson_scripts:
                try:
                    getattr(script, hook)(p, *args, *p.script_args, **kwargs)
                except Exception as error:
                    self._errors.append(error)

        return run


@dataclass
class VaeResolution:
    """As in modules/sd_vae.py."""

    vae: str | None = None
    source: str | None = None
    resolved: bool = True

    def tuple(self):
        return self.vae, self.source


class FakeA1111:
    """The program: its modules, one or more models, the folders."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: list[str | None] = []  # what stood beside the progress bar
        self.registered: dict[str, list[Any]] = {name: [] for name in CALLBACKS}
        self.errors: list[Exception] = []
        self.loaded_models: list[object] = []
        self.latent = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
        self.modules: dict[str, types.ModuleType] = {}
        self._make_modules()
        for name, seed in (("plain", 1), ("other", 2), ("one/same", 3), ("two/same", 4), ("model2.vae", 5)):
            write(folder / "VAE" / f"{name}.safetensors", kl_state(seed=seed))
        write(folder / "VAE" / "wide.safetensors", kl_state(kl_config(ch=64), seed=6))
        (folder / "VAE" / "cut.safetensors").write_bytes((folder / "VAE" / "plain.safetensors").read_bytes()[:-9])

    def __getattr__(self, name: str) -> types.ModuleType:
        try:
            return self.__dict__["modules"][f"modules.{name}"]
        except KeyError:
            raise AttributeError(name) from None

    # -- what tests do ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """What a start does after the scripts were loaded, and before a model is."""
        self.sd_vae.refresh_vae_list()
        for event in ("before_ui", "ui_settings"):
            for callback in self.registered[event]:
                callback()

    def load_model(self, name: str = "model", seed: int = 100, **kinds: bool) -> Model:
        """As the host loads a checkpoint into a new model."""
        model = Model(self.folder / "Stable-diffusion" / f"{name}.safetensors", seed, **kinds)
        self._choose_vae(model)
        self.sd_models.model_data.sd_model = self.shared.sd_model = model
        self.sd_models.model_data.loaded_sd_models.insert(0, model)
        self.script_callbacks.model_loaded_callback(model)
        return model

    def reuse_model(self, name: str, seed: int) -> None:
        """As the host puts another checkpoint's weights into the model it has."""
        model = self.shared.sd_model
        other = Model(self.folder / "Stable-diffusion" / f"{name}.safetensors", seed)
        model.first_stage_model.load_state_dict(other.first_stage_model.state_dict())
        model.sd_checkpoint_info = other.sd_checkpoint_info
        self._choose_vae(model)
        self.script_callbacks.model_loaded_callback(model)

    def back_to(self, model: Model) -> None:
        """As the host goes back to a model that stayed loaded."""
        data, vae = self.sd_models.model_data, self.sd_vae
        data.sd_model = self.shared.sd_model = model
        vae.base_vae, vae.loaded_vae_file = model.base_vae, model.loaded_vae_file
        vae.checkpoint_info = model.sd_checkpoint_info
        vae.reload_vae_weights(model)

    def _choose_vae(self, model: Model) -> None:
        vae = self.sd_vae
        vae.delete_base_vae()
        vae.clear_loaded_vae()
        vae.load_vae(model, *vae.resolve_vae(model.sd_checkpoint_info.filename).tuple())

    def decode(self) -> torch.Tensor:
        with torch.no_grad():
            return self.shared.sd_model.decode_first_stage(self.latent)

    def generate(self, script: Any = None, *args: object, **job: Any) -> Job:
        """A request, as the host handles one."""
        p = Job(script_args=args, scripts=Runner([script] if script else [], self.errors), **job)
        self.processing.process_images(p)
        return p

    def reload_ui(self, load_script: Any) -> None:
        """Reload UI: callbacks are forgotten, scripts run again, models stay."""
        for callback in reversed(self.registered["script_unloaded"]):
            callback()
        for callbacks in self.registered.values():
            callbacks.clear()
        load_script()

    # -- modules ---------------------------------------------------------------------------------------------------

    def _module(self, name: str, **attributes: object) -> types.ModuleType:
        module = types.ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        vars(module).update(attributes)
        self.modules[name] = module
        return module

    def _make_modules(self) -> None:
        labels = {
            "sd_model_checkpoint": OptionInfo(None),
            "sd_vae": OptionInfo("Automatic", infotext="VAE"),
            "sd_vae_overrides_per_model_preferences": OptionInfo(True),
            "sd_vae_checkpoint_cache": OptionInfo(0),
            "sd_vae_decode_method": OptionInfo("Full"),
            "show_progress_type": OptionInfo("Full"),
            "quicksettings_list": OptionInfo(["sd_model_checkpoint"]),
            "CLIP_stop_at_last_layers": OptionInfo(1),
        }
        flags = dict.fromkeys(("vae_dir", "ckpt_dir", "vae_path", "api_auth", "vae_kit_dir"))
        switches = dict.fromkeys(("no_hashing", "vae_kit_disable", "vae_kit_offline", "nowebui"), False)
        models = types.SimpleNamespace(sd_model=None, loaded_sd_models=[])
        cpu = torch.device("cpu")
        (self.folder / "Stable-diffusion").mkdir(parents=True)
        self._module("modules").__path__ = []
        self._module("modules.paths", data_path=str(self.folder), models_path=str(self.folder))
        self._module("modules.devices", cpu=cpu, device=cpu, dtype_vae=torch.float32, torch_gc=lambda: None,
                     NansException=type("NansException", (Exception,), {}),
                     test_for_nans=self._test_for_nans)  # fmt: skip
        self._module("modules.call_queue", queue_lock=threading.Lock())
        self._module("modules.lowvram", is_enabled=lambda sd_model: sd_model is not None and sd_model.lowvram)
        self._module("modules.sd_hijack")
        self._module("modules.extra_networks", get_user_metadata=self._get_user_metadata)
        self.cards: dict[str, dict[str, str]] = {}
        self._module("modules.options", Options=Options, OptionInfo=OptionInfo)
        self._module("modules.shared", opts=Options(labels), OptionInfo=OptionInfo, sd_model=None,
                     state=state_class(self)(),
                     cmd_opts=types.SimpleNamespace(**flags, **switches, api=True))  # fmt: skip
        self._make_previews()
        self._module("modules.sd_models", model_data=models, model_path=str(self.folder / "Stable-diffusion"))
        self._module("modules.scripts", Script=type("Script", (), {}), AlwaysVisible=object(), scripts_data=[])
        callbacks = {f"on_{name}": registering(self.registered[name]) for name in CALLBACKS}
        self._module("modules.script_callbacks", **callbacks, model_loaded_callback=self._model_loaded)
        self._make_sd_vae()
        self._make_processing()
        labels["sd_vae"].onchange = lambda: self.sd_vae.reload_vae_weights()
        for name, module in list(self.modules.items()):
            if name != "modules":
                setattr(self.modules["modules"], name.split(".")[1], module)

    def _make_previews(self) -> None:
        def samples_to_images_tensor(sample, approximation=None, model=None):
            if approximation == 1:
                raise RuntimeError("the network of Approx NN is not here")
            if approximation == 2:
                return sample[:, :3].clamp(-1.0, 1.0)
            return (model or self.shared.sd_model).decode_first_stage(sample)

        def store_latent(decoded):
            self.previews.append(common.samples_to_images_tensor(decoded, 0))

        self.previews: list[torch.Tensor] = []
        indexes = {"Full": 0, "Approx NN": 1, "Approx cheap": 2, "TAESD": 3}
        common = self._module("modules.sd_samplers_common", approximation_indexes=indexes, store_latent=store_latent,
                              samples_to_images_tensor=samples_to_images_tensor)  # fmt: skip

    def without_autocast(self, disable=False):
        return contextlib.nullcontext()

    def _get_user_metadata(self, filename, lister=None):
        return self.cards.get(Path(filename).stem, {})

    def _model_loaded(self, sd_model):
        self.loaded_models.append(sd_model)
        for callback in list(self.registered["model_loaded"]):
            callback(sd_model)

    def _make_sd_vae(self) -> None:
        """Its list of files, then how it loads one; base_vae and the rest are the module's globals, as in the host."""
        vae = self._module("modules.sd_vae", VaeResolution=VaeResolution, vae_path=str(self.folder / "VAE"),
                           vae_dict={}, base_vae=None, loaded_vae_file=None, checkpoint_info=None,
                           unspecified=object())  # fmt: skip

        def refresh_vae_list():
            vae.vae_dict.clear()
            vae.vae_dict.update({path.name: str(path) for path in sorted(Path(vae.vae_path).rglob("*.safetensors"))})

        def find_vae_near_checkpoint(checkpoint_file):
            stem = Path(checkpoint_file).stem
            return next((path for path in vae.vae_dict.values() if Path(path).name.startswith(stem)), None)

        def resolve_vae(checkpoint_file):
            chosen = self.shared.opts.sd_vae
            if chosen == "Automatic":
                return VaeResolution(vae.find_vae_near_checkpoint(checkpoint_file))
            return VaeResolution(vae.vae_dict.get(chosen))

        vars(vae).update(
            refresh_vae_list=refresh_vae_list,
            find_vae_near_checkpoint=find_vae_near_checkpoint,
            resolve_vae=resolve_vae,
            load_vae_dict=lambda filename, map_location: {},
            get_loaded_vae_name=lambda: Path(vae.loaded_vae_file).name if vae.loaded_vae_file else None,
            get_loaded_vae_hash=lambda: WRONG_HASH if vae.loaded_vae_file else None,
        )
        self._make_vae_loading(vae)

    def _make_vae_loading(self, vae: types.ModuleType) -> None:
        def load_vae(model, vae_file=None, vae_source="from unknown source"):
            from safetensors.torch import load_file

            if vae_file:
                if vae.checkpoint_info != model.sd_checkpoint_info:
                    vae.base_vae = copy.deepcopy(model.first_stage_model.state_dict())
                    vae.checkpoint_info = model.sd_checkpoint_info
                model.first_stage_model.load_state_dict(load_file(vae_file))
            elif vae.loaded_vae_file:
                model.first_stage_model.load_state_dict(vae.base_vae)
                vae.delete_base_vae()
            vae.loaded_vae_file = vae_file
            model.base_vae, model.loaded_vae_file = vae.base_vae, vae_file

        def reload_vae_weights(sd_model=None, vae_file=vae.unspecified):
            model = sd_model or self.shared.sd_model
            if vae_file is vae.unspecified:
                vae_file = vae.resolve_vae(model.sd_checkpoint_info.filename).vae
            if vae.loaded_vae_file != vae_file:
                vae.load_vae(model, vae_file)
                self.script_callbacks.model_loaded_callback(model)

        def delete_base_vae():
            vae.base_vae = vae.checkpoint_info = None

        def clear_loaded_vae():
            vae.loaded_vae_file = None

        vars(vae).update(
            load_vae=load_vae,
            reload_vae_weights=reload_vae_weights,
            delete_base_vae=delete_base_vae,
            clear_loaded_vae=clear_loaded_vae,
        )

    def _make_processing(self) -> None:
        def process_images(p):
            p.scripts.before_process(p)
            opts = self.shared.opts
            stored = {key: opts.data[key] for key in p.override_settings if key in opts.data}
            try:
                for key, value in p.override_settings.items():
                    opts.set(key, value, is_api=True, run_callbacks=False)
                    if key == "sd_vae":
                        self.sd_vae.reload_vae_weights()
                return self.processing.process_images_inner(p)
            finally:
                for key, value in stored.items():
                    setattr(opts, key, value)
                    if key == "sd_vae":
                        self.sd_vae.reload_vae_weights()

        def process_images_inner(p):
            p.sd_vae_name, p.sd_vae_hash = self.sd_vae.get_loaded_vae_name(), self.sd_vae.get_loaded_vae_hash()
            p.scripts.process(p)
            p.init()
            for _ in range(p.n_iter):
                p.scripts.before_process_batch(p)
                p.sampler = Sampler()
                p.sample(self)
                if p.fail:
                    raise RuntimeError("the host failed")
            p.scripts.postprocess(p, None)

        self._module("modules.processing", process_images=process_images, process_images_inner=process_images_inner,
                     decode_latent_batch=self._decode_latent_batch)  # fmt: skip

    def _test_for_nans(self, x, where):
        """modules/devices.py:242: one value."""
        if torch.isnan(x[(0,) * len(x.shape)]):
            raise self.devices.NansException(f"A tensor with NaNs was produced in {where}.")

    def _decode_latent_batch(self, model, batch, target_device=None, check_for_nans=False):
        """modules/processing.py:625: for good in 32 bits after the first NaN."""
        devices, samples = self.devices, []
        if check_for_nans:
            devices.test_for_nans(batch, "unet")
        for i in range(batch.shape[0]):
            sample = model.decode_first_stage(batch[i : i + 1])[0]
            try:
                devices.test_for_nans(sample, "vae")
            except devices.NansException:
                wanted = torch.bfloat16 if self.shared.opts.data.get("auto_vae_precision_bfloat16") else torch.float32
                if devices.dtype_vae == wanted:
                    raise
                devices.dtype_vae = wanted
                model.first_stage_model.to(wanted)
                sample = model.decode_first_stage(batch[i : i + 1].to(wanted))[0]
            samples.append(sample)
        return samples


@contextlib.contextmanager
def installed(fake: FakeA1111, monkeypatch: Any) -> Iterator[FakeA1111]:
    """Put the modules into sys.modules, this package's host layers afresh beside them, and take both away again."""
    for name in list(sys.modules):
        if name.startswith(("sd_vae_kit.hosts", "sd_vae_kit.webui")):
            monkeypatch.delitem(sys.modules, name)
    for name, module in fake.modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    yield fake
    running = getattr(fake.shared, "vae_kit_running", None)
    if running is not None:
        running.host.remove()  # the classes of the fake's VAEs are those of this package
    for name in [n for n in sys.modules if n.startswith(("sd_vae_kit.hosts", "sd_vae_kit.webui"))]:
        del sys.modules[name]
