"""A program like SD.Next as far as a VAE is concerned: a diffusers pipeline, a new module for every file."""

from __future__ import annotations

import threading
import types
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from fake_a1111 import CALLBACKS, FakeA1111, OptionInfo, Options
from vae_files import randomised

SHAPE = {"block_out_channels": (32, 64), "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 32}
BLOCKS = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}


class SdNextOptions(Options):
    """`modules.options_handler.Options`."""

    def set(self, key, value, force=False):
        return super().set(key, value)


def registering(callbacks):
    def on_event(callback):
        callbacks.append(callback)

    return on_event


class Pipeline:
    """A `DiffusionPipeline`: no nn.Module itself."""

    def __init__(self, file: Path, seed: int, vae: object = None) -> None:
        self.vae = vae or randomised(AutoencoderKL(**SHAPE, **BLOCKS), seed).requires_grad_(False)
        self.sd_checkpoint_info = types.SimpleNamespace(filename=str(file), path=str(file))

    def decode_first_stage(self, latent):
        return self.vae.decode(latent / 0.18215).sample


class FakeSdNext(FakeA1111):
    """The program."""

    def switch_pipeline(self) -> Pipeline:
        """What img2img after txt2img does: a new object around the same parts (sd_models.py:1111)."""
        before = self.modeldata.model_data.sd_model
        pipeline = Pipeline(Path(before.sd_checkpoint_info.filename), 0, before.vae)
        self.modeldata.model_data.sd_model = self.shared.sd_model = pipeline
        return pipeline

    def load_model(self, name: str = "model", seed: int = 100, vae: object = None) -> Pipeline:
        file = self.folder / "Stable-diffusion" / f"{name}.safetensors"
        chosen, source = self.sd_vae.resolve_vae(str(file))
        preloaded = self.sd_vae.load_vae(str(file), chosen, source)
        pipeline = Pipeline(file, seed, vae or preloaded)
        self.modeldata.model_data.sd_model = self.shared.sd_model = pipeline
        self.script_callbacks.model_loaded_callback(pipeline)
        return pipeline

    def _make_modules(self) -> None:
        labels = {key: OptionInfo(value) for key, value in {
            "sd_vae": "Automatic", "quicksettings_list": [],
            "vae_dir": str(self.folder / "VAE"), "ckpt_dir": str(self.folder / "Stable-diffusion"),
        }.items()}  # fmt: skip
        self.host_loaded: list[str] = []
        self.swallowed: list[Exception] = []
        (self.folder / "Stable-diffusion").mkdir(parents=True)
        self._module("modules").__path__ = []
        self._module("modules.paths", data_path=str(self.folder), models_path=str(self.folder))
        self._module("modules.devices", device=torch.device("cpu"))
        self._module("modules.call_queue", queue_lock=threading.Lock())
        self._module("modules.options_handler", Options=SdNextOptions)
        self._module("modules.scripts_manager", control_extensions=["NudeNet"])
        flags = types.SimpleNamespace(vae=None, vae_kit_disable=False, vae_kit_dir=None, api=True, api_auth=None)
        self._module("modules.shared", opts=SdNextOptions(labels), OptionInfo=OptionInfo, sd_model=None, cmd_opts=flags)
        self._module("modules.modeldata", model_data=types.SimpleNamespace(sd_model=None))
        self._module("modules.scripts", Script=type("Script", (), {}), AlwaysVisible=object(), scripts_data=[])
        callbacks = {f"on_{name}": registering(self.registered[name]) for name in CALLBACKS}
        self._module("modules.script_callbacks", **callbacks, model_loaded_callback=self._model_loaded)
        self._make_sd_vae()
        self._make_processing()
        labels["sd_vae"].onchange = lambda: self.sd_vae.reload_vae_weights()
        for name, module in list(self.modules.items()):
            if name != "modules":
                setattr(self.modules["modules"], name.split(".")[1], module)
        self.api_options = self._module("modules.api.options", set_options=self._set_options)
        self.modules["modules"].api = self._module("modules.api", options=self.api_options)

    def _set_options(self, req):
        """POST /sdapi/v1/options."""
        return {"updated": [{key: self.shared.opts.set(key, value)} for key, value in req.items()]}

    def _make_sd_vae(self) -> None:
        vae = self._module("modules.sd_vae", vae_dict={}, loaded_vae_file=None, unspecified=object())

        def refresh_vae_list():
            folder = Path(self.shared.opts.vae_dir)
            vae.vae_dict.update({path.name: str(path) for path in sorted(folder.rglob("*.safetensors"))})
            return vae.vae_dict

        def resolve_vae(checkpoint_file):
            chosen = self.shared.opts.sd_vae
            if chosen in ("Default", "TAESD") or chosen not in vae.vae_dict:
                return None, None
            return vae.vae_dict[chosen], "settings"

        def load_vae(model_file, vae_file=None, vae_source="unknown-source"):
            if vae_file is not None:
                self.host_loaded.append(vae_file)
            return

        def reload_vae_weights(sd_model=None, vae_file=vae.unspecified):
            """A folder of diffusers becomes a new module; the one before is kept to come back to."""
            self.host_loaded.append("reload")
            model = self.modeldata.model_data.sd_model
            chosen = resolve_vae("")[0] if vae_file is vae.unspecified else vae_file
            if chosen is None:
                model.vae = getattr(model, "original_vae", model.vae)
            elif Path(chosen).is_dir():
                model.original_vae = getattr(model, "original_vae", model.vae)
                model.vae = randomised(AutoencoderKL(**SHAPE, **BLOCKS), 7).requires_grad_(False)

        vars(vae).update(refresh_vae_list=refresh_vae_list, resolve_vae=resolve_vae, load_vae=load_vae,
                         reload_vae_weights=reload_vae_weights)  # fmt: skip

    def _make_processing(self) -> None:
        def process_images(p):
            p.scripts.before_process(p)
            opts = self.shared.opts
            stored = {key: getattr(opts, key, None) for key in p.override_settings}
            try:
                put(opts, p.override_settings)
                return self.processing.process_images_inner(p)
            finally:
                put(opts, stored)

        def put(opts, values):
            for key, value in values.items():
                setattr(opts, key, value)
                if key == "sd_vae":
                    self.sd_vae.reload_vae_weights()

        def process_images_inner(p):
            p.scripts.process(p)
            p.init()
            for _ in range(p.n_iter):
                p.scripts.before_process_batch(p)
                try:
                    p.pictures.append(self.decode())  # a pipeline's call: a job has no `sample` here
                except Exception as error:  # an empty list of pictures (processing_vae.py:152)
                    self.swallowed.append(error)
                if p.fail:
                    raise RuntimeError("the host failed")
            p.scripts.postprocess(p, None)

        self._module("modules.processing", process_images=process_images, process_images_inner=process_images_inner)
