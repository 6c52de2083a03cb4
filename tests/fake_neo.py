"""A web UI like Forge Neo 2.26: what a Forge has, less what Neo's recording does not name, and Neo's own ways.

Neo swaps VAEs for one request by itself, by path; its option sd_vae is a greyed dropdown without an infotext key.
"""

from __future__ import annotations

import contextlib
import types
from typing import Any

from fake_a1111 import OptionInfo
from fake_forge import FakeForge
from recorded_names import keep_recorded
from safetensors.torch import load_file

from tools.host_names import Recording, program


def task_class(fake: FakeNeo) -> type:
    class Task:
        def __init__(self, task_id, func, args, kwargs):
            self.task_id, self.func, self.args, self.kwargs, self.result = task_id, func, args, kwargs, None

        def work(self):
            main_thread = fake.modules["modules_forge.main_thread"]
            try:
                self.result = self.func(*self.args, **self.kwargs)
                main_thread.last_exception = None
            except Exception as error:
                fake.printed.append(error)  # a traceback
                main_thread.last_exception = f"{type(error).__name__}: {error}"

    return Task


class FakeNeo(FakeForge):
    """The program."""

    recording = Recording.load(program("neo").file)

    def _make_modules(self) -> None:
        super()._make_modules()
        labels = self.shared.opts.data_labels
        labels["sd_vae"] = OptionInfo("Automatic", "SD VAE", types.SimpleNamespace)
        labels["quicksettings_list"] = labels.pop("quick_setting_list")
        self.shared.cmd_opts.vae_dirs = []
        self.modules["modules_forge.main_thread"].Task = task_class(self)
        memory = self.modules["backend.memory_management"]
        memory.free_memory = lambda memory_required, device, keep_loaded=(): None
        keep_recorded(self, self.recording)

    def _make_sd_vae(self) -> None:
        super()._make_sd_vae()

        def reload_vae_weights(vae):
            if vae in (None, "None"):
                return False
            self.shared.sd_model.forge_objects.vae.first_stage_model.load_state_dict(load_file(vae))
            return True

        self.sd_vae.reload_vae_weights = reload_vae_weights
        self.sd_vae.restore_vae_weights = lambda: None

    def without_autocast(self, *args, **kwargs):
        return contextlib.nullcontext()

    def _test_for_nans(self, x, *args, **kwargs):
        """modules/devices.py:62: written over, whatever it was."""
        x.nan_to_num_(nan=0.0, posinf=1.0, neginf=0.0)

    def _make_processing(self) -> None:
        super()._make_processing()

        def process_images(p: Any) -> Any:
            p.scripts.before_process(p)
            opts, processing = self.shared.opts, self.processing
            stored = {key: opts.data[key] for key in p.override_settings if key in opts.data}
            override = p.override_settings.pop("sd_vae", None)
            try:
                processing.set_config(p.override_settings, is_api=True, run_callbacks=False, save_config=False)
                self.forge_model_reload()
                if override is not None:
                    self.sd_vae.reload_vae_weights(override)
                return processing.process_images_inner(p)
            finally:
                processing.set_config(stored, save_config=False)
                if override is not None:
                    self.sd_vae.restore_vae_weights()

        self.processing.process_images = process_images
