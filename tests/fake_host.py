"""A host for tests of features: one live module, settings in memory, every call written down."""

import contextlib
import dataclasses

from sd_vae_kit.core.networks.latent_format import FORMATS
from sd_vae_kit.settings.sections import Settings, with_values
from sd_vae_kit.vaes.host_protocol import Checkpoint


class FakeHost:
    name = "Fake host"
    forced_vae = None

    def __init__(self, module, *, can_replace=False, family="sd1", checkpoint_path=None):
        self.first_stage = module
        self.can_replace_first_stage = can_replace
        self.checkpoint = Checkpoint("model", checkpoint_path, FORMATS[family])
        self.settings = Settings()
        self.events = []
        self.fail_on_replace = None

    def set(self, **values):
        self.settings = with_values(self.settings, values)

    def prefer(self, vae):
        self.checkpoint = dataclasses.replace(self.checkpoint, preferred_vae=vae)

    def replace_first_stage(self, module):
        if self.fail_on_replace:
            raise self.fail_on_replace
        self.first_stage = module
        self.events.append("replaced")

    @contextlib.contextmanager
    def vae_writing(self):
        self.events.append("writing")
        yield
        self.events.append("written")

    def on_vae_changed(self):
        self.events.append("changed")

    def notify(self, message, level="info"):
        self.events.append(f"{level}: {message}")
