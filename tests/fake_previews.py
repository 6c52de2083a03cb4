"""The parts of A1111 that previews and TAESD go through, for the fake web UIs; wrong where the real ones are wrong."""

from __future__ import annotations

import types
from pathlib import Path

import numpy as np
import torch
from fake_a1111 import FakeA1111, OptionInfo
from PIL import Image

APPROXIMATIONS = {"Full": 0, "Approx NN": 1, "Approx cheap": 2, "TAESD": 3}
OPTIONS = {
    "sd_vae_encode_method": "Full",
    "sd_vae_decode_method": "Full",
    "show_progress_type": "Approx NN",
    "show_progress_every_n_steps": 1,
    "show_progress_grid": False,
    "live_previews_enable": True,
}


class Network(Exception):
    """A download was tried, and there is no network."""


def _state_class(host: FakeA1111) -> type:
    class State:
        sampling_step = current_image_sampling_step = id_live_preview = 0
        current_latent = current_image = None
        interrupted = skipped = False
        textinfo = None

        def begin(self, job="(unknown)"):
            self.sampling_step = self.current_image_sampling_step = self.id_live_preview = 0
            self.current_latent = self.current_image = None

        def end(self):
            pass

        def set_current_image(self):
            if not host.shared.parallel_processing_allowed:
                return
            if self.sampling_step - self.current_image_sampling_step >= host.shared.opts.show_progress_every_n_steps:
                self.do_set_current_image()

        def do_set_current_image(self):
            host.decoded_by_host.append(self.current_latent)
            self.assign_current_image(host.sd_samplers_common.single_sample_to_image(self.current_latent[0]))

        def assign_current_image(self, image):
            self.current_image = image
            self.id_live_preview += 1

    return State


def add_previews(host: FakeA1111) -> FakeA1111:
    """The modules, into a fake that has not been started yet."""
    host.decoded_by_host, host.downloads = [], []
    opts = host.shared.opts
    for key, default in OPTIONS.items():
        opts.data_labels[key] = OptionInfo(default)
    host.shared.parallel_processing_allowed = True
    host.devices.without_autocast = host.without_autocast
    host.devices.dtype = torch.float32
    state = host._module("modules.shared_state", State=_state_class(host))
    host.shared.state = state.State()
    host._module("modules.images", image_grid=_grid)
    _add_networks(host)
    _add_conversions(host)
    for name in ("shared_state", "sd_samplers_common", "sd_vae_taesd", "sd_vae_approx", "images"):
        setattr(host.modules["modules"], name, host.modules[f"modules.{name}"])
    return host


def _add_networks(host: FakeA1111) -> None:
    """Its small networks, fetched when they are wanted and never found."""

    def download_model(model_path, model_url):
        if not Path(model_path).exists():
            host.downloads.append(model_url)
            raise Network(model_url)

    def by_network(name):
        def model():
            path = host.folder / name
            taesd.download_model(str(path), f"https://example.invalid/{name}")
            raise AssertionError("the host's own network is never used")

        return model

    def approximate():
        approx.download_model(str(host.folder / "VAE-approx" / "model.pt"), "https://example.invalid/model.pt")
        return host.approximation

    taesd = host._module("modules.sd_vae_taesd", download_model=download_model)
    taesd.decoder_model, taesd.encoder_model = by_network("taesd_decoder.pth"), by_network("taesd_encoder.pth")
    approx = host._module("modules.sd_vae_approx", download_model=download_model, model=approximate)
    host.approximation = lambda sample: sample[:, :3] * 0.1


def _add_conversions(host: FakeA1111) -> None:
    """Between latents and pictures, in the way an option says, and what the sampler does with each latent."""
    opts = host.shared.opts

    def samples_to_images_tensor(sample, approximation=None, model=None):
        if approximation is None:
            approximation = APPROXIMATIONS.get(opts.show_progress_type, 0)
        if approximation == 3:
            return host.sd_vae_taesd.decoder_model()(sample) * 2 - 1
        if approximation == 1:
            return host.sd_vae_approx.model()(sample)
        return (model or host.shared.sd_model).decode_first_stage(sample)

    def single_sample_to_image(sample, approximation=None):
        rgb = samples_to_images_tensor(sample[None], approximation)[0] * 0.5 + 0.5
        return Image.fromarray((rgb.clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy())

    def images_tensor_to_samples(image, approximation=None, model=None):
        if approximation is None:
            approximation = APPROXIMATIONS.get(opts.sd_vae_encode_method, 0)
        if approximation == 3:
            return host.sd_vae_taesd.encoder_model()(image)
        return (model or host.shared.sd_model).encode_first_stage(image * 2 - 1)[:, :4]

    def store_latent(decoded):
        host.shared.state.current_latent = decoded
        if not host.shared.parallel_processing_allowed:
            host.shared.state.assign_current_image(single_sample_to_image(decoded[0]))

    def decode_first_stage(model, x):
        return samples_to_images_tensor(x, APPROXIMATIONS.get(opts.sd_vae_decode_method, 0), model)

    host._module(
        "modules.sd_samplers_common",
        approximation_indexes=APPROXIMATIONS,
        samples_to_images_tensor=samples_to_images_tensor,
        single_sample_to_image=single_sample_to_image,
        images_tensor_to_samples=images_tensor_to_samples,
        store_latent=store_latent,
        decode_first_stage=decode_first_stage,
    )


def _grid(imgs, batch_size=1, rows=None):
    return Image.fromarray(np.concatenate([np.asarray(picture) for picture in imgs], axis=1))


def job(**fields: object) -> types.SimpleNamespace:
    """A job as hooks see it."""
    return types.SimpleNamespace(extra_generation_params={}, **fields)
