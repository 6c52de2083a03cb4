"""A web UI like Forge f2 as far as a VAE is concerned, on top of the fake A1111: same page, another engine below.

What differs is done as the real one does it: models are loaded lazily, into a new engine, in inference mode; the option
sd_vae is a placeholder and `modules.sd_vae` a stub; `override_settings` go in and out through `set_config`; "VAE" in an
infotext is taken for a module.
"""

from __future__ import annotations

import re
import types
from pathlib import Path
from typing import Any

import torch
from fake_a1111 import FakeA1111, Job, OptionInfo, Sampler
from safetensors.torch import load_file
from torch import nn
from vae_files import kl_config, randomised

from sd_vae_kit.core.networks.autoencoder import AutoencoderKL


class FakeInitialModel:
    """Stands where the engine will be until the first job."""


def vae_class(program: FakeForge) -> type:
    class VAE:
        """backend.patcher.vae.VAE: shared by clones, holds the module; pictures are BHWC in [0, 1]."""

        def __init__(self, model: nn.Module | None = None) -> None:
            self.first_stage_model = model
            self.memory_used_encode = lambda shape, dtype: 1767 * shape[2] * shape[3] * 4
            self.memory_used_decode = lambda shape, dtype: 2178 * shape[2] * shape[3] * 64 * 4
            self.device = self.output_device = torch.device("cpu")
            self.vae_dtype = torch.float32

        def clone(self):
            return type(self)(self.first_stage_model)

        def decode_tiled(self, samples, tile_x=64, tile_y=64, overlap=16):
            """Three passes, averaged, not exact; here the picture's corner stands for them."""
            program.tiled.append(tuple(samples.shape))
            return (self.first_stage_model.decode(samples[:, :, :2, :2]) * 0.5 + 0.5).movedim(1, -1)

        def decode(self, samples_in):
            memory = program.modules["backend.memory_management"]
            if memory.VAE_ALWAYS_TILED:
                return self.decode_tiled(samples_in)
            try:
                program.asked.append(self.memory_used_decode(samples_in.shape, self.vae_dtype))
                return (self.first_stage_model.decode(samples_in) * 0.5 + 0.5).movedim(1, -1)
            except memory.OOM_EXCEPTION:
                return self.decode_tiled(samples_in)

        def encode(self, pixel_samples):
            image = pixel_samples.movedim(-1, 1)
            program.asked.append(self.memory_used_encode(image.shape, self.vae_dtype))
            return self.first_stage_model.encode(image * 2 - 1)

    return VAE


class Engine:
    """A `ForgeDiffusionEngine`: no nn.Module, its `first_stage_model` is None."""

    first_stage_model = None

    def __init__(self, file: Path, vae: Any) -> None:
        self.sd_checkpoint_info = types.SimpleNamespace(filename=str(file), name_for_extra=file.stem, title=file.name)
        self.forge_objects = types.SimpleNamespace(vae=vae)

    @torch.inference_mode()
    def decode_first_stage(self, latent):
        vae = self.forge_objects.vae
        image = vae.decode(vae.first_stage_model.process_out(latent))
        return (image.movedim(-1, 1) * 2 - 1).clone()


def _task_class(program: FakeForge) -> type:
    class Task:
        def __init__(self, task_id, func, args, kwargs):
            self.task_id, self.func, self.args, self.kwargs = task_id, func, args, kwargs
            self.result = self.exception = None

        def work(self):
            main_thread = program.modules["modules_forge.main_thread"]
            try:
                self.result = self.func(*self.args, **self.kwargs)
                main_thread.last_exception = None
            except Exception as error:
                program.printed.append(error)  # a traceback
                self.exception = main_thread.last_exception = error

    return Task


class VideoVae(nn.Module):
    """A VAE of a kind nobody here knows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 16, 3)


class FakeForge(FakeA1111):
    """The program."""

    def __init__(self, folder: Path) -> None:
        self.printed: list[Exception] = []
        self.asked: list[float] = []  # bytes of room for the VAE
        self.tiled: list[tuple[int, ...]] = []  # shapes that the program decoded in its own tiles
        super().__init__(folder)

    # -- what tests do ---------------------------------------------------------------------------------------------

    def select(self, name: str = "model", modules: tuple[str, ...] = ()) -> None:
        """What the next job is to load; `modules` as under VAE / Text Encoder."""
        self.shared.opts.data["forge_additional_modules"] = list(modules)
        paths = [str(self.folder / "VAE" / module) for module in modules]
        self.sd_models.model_data.forge_loading_parameters = {"checkpoint_info": name, "additional_modules": paths}

    def forge_model_reload(self) -> None:
        data = self.sd_models.model_data
        if data.forge_hash == str(data.forge_loading_parameters):
            return
        data.sd_model = None
        with torch.inference_mode():
            engine = self._engine(**data.forge_loading_parameters)
            data.sd_model = self.shared.sd_model = engine
            self.script_callbacks.model_loaded_callback(engine)
        data.forge_hash = str(data.forge_loading_parameters)

    def _engine(self, checkpoint_info: str, additional_modules: list[str]) -> Engine:
        file = self.folder / "Stable-diffusion" / f"{checkpoint_info}.safetensors"
        if checkpoint_info == "video":
            return Engine(file, self.modules["backend.patcher.vae"].VAE(VideoVae()))
        module = randomised(AutoencoderKL(kl_config()), 100 + len(checkpoint_info)).requires_grad_(False)
        scale, shift = self.factors
        module.process_out = lambda latent: latent / scale + shift
        module.process_in = lambda z: (z - shift) * scale
        for path in additional_modules:
            module.load_state_dict(load_file(path))
        return Engine(file, self.modules["backend.patcher.vae"].VAE(module))

    factors = (0.18215, 0.0)

    # -- modules ---------------------------------------------------------------------------------------------------

    def _make_modules(self) -> None:
        super()._make_modules()
        self.modules["modules.sd_models"].model_data = types.SimpleNamespace(
            sd_model=FakeInitialModel(), forge_loading_parameters={}, forge_hash=""
        )
        labels = self.shared.opts.data_labels
        labels["sd_vae"] = OptionInfo("Automatic", "(Managed by Forge)", types.SimpleNamespace, infotext="VAE")
        labels["quick_setting_list"] = OptionInfo([])
        labels["forge_additional_modules"] = OptionInfo([])
        labels["add_vae_name_to_info"] = labels["add_vae_hash_to_info"] = OptionInfo(True)
        labels["infotext_skip_pasting"] = OptionInfo([])
        del labels["quicksettings_list"]
        self._module("modules.sysinfo", set_config=self._set_config)
        self._module("modules.ui_settings", UiSettings=self._page_class())
        self._module("modules.infotext_utils", parse_generation_parameters=self._parse)
        for name in ("sysinfo", "ui_settings", "infotext_utils"):
            setattr(self.modules["modules"], name, self.modules[f"modules.{name}"])
        self.processing.set_config = self._set_config
        forge = self._module("modules_forge")
        forge.main_thread = self._module("modules_forge.main_thread", Task=_task_class(self), last_exception=None)
        backend = self._module("backend")
        backend.memory_management = self._module(
            "backend.memory_management",
            vae_device=lambda: torch.device("cpu"),
            current_loaded_models=[],
            free_memory=lambda memory_required, device, keep_loaded=(), free_all=False: None,
            VAE_ALWAYS_TILED=False,
            OOM_EXCEPTION=torch.cuda.OutOfMemoryError,
        )
        self._module("backend.patcher").__path__ = backend.__path__ = []
        self._module("backend.patcher.vae", VAE=vae_class(self))
        self.select()

    def _make_sd_vae(self) -> None:
        super()._make_sd_vae()
        vae = self.sd_vae
        vae.load_vae = lambda model, vae_file=None, vae_source="from unknown source": None
        vae.load_vae_dict = lambda filename, map_location: None
        vae.reload_vae_weights = lambda sd_model=None, vae_file=None: None
        vae.clear_loaded_vae = lambda: None
        vae.load_torch_file = lambda ckpt, safe_load=False, device=None: load_file(ckpt)

    def _page_class(self) -> type:
        opts = self.shared.opts

        class UiSettings:
            dummy_component = "dummy"

            def run_settings(self, *args):
                for key, value, component in zip(opts.data_labels, args, self.components, strict=False):
                    if component != self.dummy_component and key not in ("sd_model_checkpoint", "sd_vae"):
                        opts.set(key, value)
                return "saved"

        return UiSettings

    def _set_config(self, req, is_api=False, run_callbacks=True, save_config=True):
        for key, value in req.items():
            if value == self.shared.opts.data.get(key):
                continue
            self.shared.opts.set(key, value, is_api=is_api, run_callbacks=run_callbacks)

    def _parse(self, x, skip_fields=None):
        fields = dict(re.findall(r"([\w ]+): ([^,]+)(?:,|$)", x.split("\n")[-1]))
        fields = {key.strip(): value for key, value in fields.items()}
        if named := fields.pop("VAE", None):
            fields["VAE/TE"] = [named]
        return fields

    def _make_processing(self) -> None:
        def process_images(p):
            p.scripts.before_process(p)
            opts, processing = self.shared.opts, self.processing
            stored = {key: opts.data[key] for key in p.override_settings if key in opts.data}
            try:
                processing.set_config(p.override_settings, is_api=True, run_callbacks=False, save_config=False)
                self.forge_model_reload()
                return processing.process_images_inner(p)
            finally:
                processing.set_config(stored, save_config=False)

        def process_images_inner(p):
            p.sd_vae_name, p.sd_vae_hash = self.sd_vae.get_loaded_vae_name(), self.sd_vae.get_loaded_vae_hash()
            p.scripts.process(p)
            with torch.inference_mode():
                p.init()
            for _ in range(p.n_iter):
                p.scripts.before_process_batch(p)
                p.sampler = Sampler()
                p.sample(self)
                if p.fail:
                    raise RuntimeError("the host failed")
            p.infotext = dict(p.extra_generation_params)
            p.scripts.postprocess(p, None)

        self._module("modules.processing", process_images=process_images, process_images_inner=process_images_inner)


class HiresJob(Job):
    """A job whose second pass is made with another checkpoint: a new engine, in the middle."""

    def sample(self, host: Any) -> None:
        self.scripts.process_before_every_sampling(self)
        self.pictures.append(host.decode())
        host.select("another")
        host.forge_model_reload()
        self.pictures.append(host.decode())  # a pixel upscaler's way, before the pass's first hook
        self.is_hr_pass = True
        self.scripts.process_before_every_sampling(self)
        self.pictures.append(host.decode())
        host.select()
