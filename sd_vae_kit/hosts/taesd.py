"""TAESD in A1111-style web UIs: `modules.sd_vae_taesd` hands out our networks, of the right family, from checked files.

The web UI's own functions take the file by the checkpoint's flags alone, download it unverified where it is missing,
raise where there is no network, and build four channels for some models that have sixteen.  Where a file is missing
here, the VAE itself does the work, and one line says so.  Written against A1111 1.10.1 and Forge f2.0.1.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from modules import devices, shared
from torch import Tensor
from torch.nn import functional as F

from sd_vae_kit.core.halves import Half
from sd_vae_kit.core.networks.latent_format import FORMATS, pack
from sd_vae_kit.core.preview import LINEAR_RGB, linear_rgb
from sd_vae_kit.core.run.report import RunReport
from sd_vae_kit.core.run.request import RunRequest
from sd_vae_kit.core.run.runner import Runner
from sd_vae_kit.core.vae import Vae
from sd_vae_kit.errors import SettingError, VaeNotFoundError
from sd_vae_kit.hosts.base import HostBase
from sd_vae_kit.hosts.parts import LoadedModels
from sd_vae_kit.hosts.wiring import CallParts
from sd_vae_kit.settings.sections import FULL, TAESD
from sd_vae_kit.vaes.family_finder import FamilyFinder
from sd_vae_kit.vaes.library import Library
from sd_vae_kit.vaes.tiny import TinyVaes

APPROXIMATION_SCALE = 2  # of the network for Approx NN: pixels per latent cell
# option, infotext key, half
METHODS: tuple[tuple[str, str, Half], ...] = (
    ("sd_vae_encode_method", "VAE Encoder", "encoder"),
    ("sd_vae_decode_method", "VAE Decoder", "decoder"),
)


class TinyCoder:
    """What `decoder_model()` and `encoder_model()` return: a function between latents and RGB in [0, 1].

    Attributes:
        report: What the last call did, None before it.
    """

    def __init__(self, vaes: TinyVaes, family: str, half: Half, request: RunRequest) -> None:
        self._vaes = vaes
        self._family = family
        self._half = half
        self._request = request
        self.report: RunReport | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """(B, z_channels, h, w) -> (B, 3, H, W) or the reverse, in x's dtype, on its device.

        FLUX.2's latents are packed on both ways.  A picture that does not fit into memory is streamed, exactly.

        Raises:
            NoMemoryError: Memory is short even so.
            NanError: The latent or the picture is not finite, or no allowed precision is enough.
        """
        vae = self._vaes.load(self._family, self._half, x.device, x.dtype)
        if self._half == "encoder":
            latent = self._run(vae, x)
            return pack(latent) if vae.latent_format.is_packed else latent
        return self._run(vae, vae.latent_format.unpacked(x))

    def _run(self, vae: Vae, x: Tensor) -> Tensor:
        result = vae.run(self._half, x, self._request)
        self.report = result.report
        return result.tensor


class HostTaesd:
    """The TAESD files of one web UI and the functions that use them.

    Args:
        base: What the host's parts share.
        loaded: The models.
        calls: The parts that run encoders and decoders.
        finder: Tells families apart.
        library: The files in models/VAE-taesd.
    """

    def __init__(
        self, base: HostBase, loaded: LoadedModels, calls: CallParts, finder: FamilyFinder, library: Library
    ) -> None:
        self.library = library
        self.request_now = calls.settings.request_now
        self._patches = base.patches
        self._options = base.options
        self._messages = base.messages
        self._loaded = loaded
        libraries, runner = [library, base.library], Runner(calls.runner.fixes)
        self.vaes = TinyVaes(libraries, finder, lambda: base.options.settings.guard, runner=runner)
        self._without: set[Half] = set()  # halves that the VAE itself did in the running job

    def install(self) -> None:
        """Put the patches in place."""
        features, wrap = self._options.features, self._patches.wrap
        if features.has("taesd"):
            from modules import sd_vae_taesd

            self.library.refresh()
            wrap(sd_vae_taesd, "decoder_model", self._decoder_model)
            wrap(sd_vae_taesd, "encoder_model", self._encoder_model)
            wrap(sd_vae_taesd, "download_model", self._download_taesd)
        if features.has("approximation"):
            from modules import sd_vae_approx

            wrap(sd_vae_approx, "model", self._approximation_model)
            wrap(sd_vae_approx, "download_model", self._download_approximation)

    # -- what the web UI asks for -----------------------------------------------------------------------------------

    def _decoder_model(self, original: Callable[[], Any]) -> Any:
        return self._network("decoder") if self._is_ours() else original()

    def _encoder_model(self, original: Callable[[], Any]) -> Any:
        return self._network("encoder") if self._is_ours() else original()

    def _is_ours(self) -> bool:
        """Whether our networks are handed out; of a latent space that we do not know the web UI may have its own."""
        return self._options.repairs.taesd and self.knows_family

    def _network(self, half: Half) -> Callable[[Tensor], Tensor]:
        family = self.family()
        if self.has(family, half):
            return TinyCoder(self.vaes, family, half, self.request_now())
        if half == "decoder" and shared.state.interrupted:
            return functools.partial(sketch, family)  # the user has no patience for a whole decode
        self._without.add(half)
        self._messages.notify_once(f"{self.vaes.missing(family, half)} The VAE itself is used.", "warning")
        return decode_fully if half == "decoder" else encode_fully

    def has(self, family: str, half: Half) -> bool:
        """Whether a file serves the half; one that was put into the folder just now is found."""
        if self.vaes.find(family, half) is None:
            self.library.refresh()
        return self.vaes.find(family, half) is not None

    def family(self) -> str:
        """Name of the latent space of the model in use; "" while there is none."""
        model = self._loaded.current
        checkpoint = self._loaded.checkpoint_of(model) if model is not None else None
        return checkpoint.latent_format.name if checkpoint else ""

    @property
    def knows_family(self) -> bool:
        """Whether the latents of the model in use are of a family that we know."""
        return self.family() in FORMATS

    def _download_taesd(self, original: Callable[..., Any], path: str, url: str) -> Any:
        """Others may call it; with downloads forbidden nothing is contacted, and they find the file missing."""
        return None if self._options.settings.download.offline else original(path, url)

    def _download_approximation(self, original: Callable[..., Any], path: str, url: str) -> Any:
        """Approx NN of SDXL and SD 3 is fetched while a job runs, and the job fails where there is no network."""
        if not self._options.repairs.previews or Path(path).exists():
            return original(path, url)
        raise VaeNotFoundError(f"{Path(path).name} for the preview Approx NN is not there; choose TAESD.")

    def _approximation_model(self, original: Callable[[], Any]) -> Any:
        """The network for Approx NN, which web UIs ask for before a job that shows it; a linear map in its place.

        A job must not fail for the sake of its preview (A1111 processing.py:929, Neo processing.py:1013).
        """
        try:
            return original()
        except VaeNotFoundError as error:
            self._messages.notify_once(f"{error} The linear preview is shown.", "warning")
            return LinearApproximation(self.family())

    # -- a job -------------------------------------------------------------------------------------------------------

    def begin_job(self, p: Any) -> None:
        """Refuse methods that do not exist, before a job, and let its infotext say which will be used.

        The web UI itself writes "VAE Decoder" after decoding, and not at all for hires fix (processing.py:1001).

        Raises:
            SettingError: A method that is neither Full nor TAESD, which the web UI would take for something else.
        """
        self._without.clear()
        self.library.refresh()
        if not self._options.repairs.taesd:
            return
        for option, _, _ in METHODS:
            method = getattr(shared.opts, option, FULL)
            if method not in (FULL, TAESD):
                raise SettingError(f"{option} cannot be {method!r}; choose {FULL} or {TAESD}.")
        if self.knows_family and shared.opts.sd_vae_decode_method == TAESD and self.has(self.family(), "decoder"):
            p.extra_generation_params["VAE Decoder"] = TAESD

    def correct_infotext(self, p: Any) -> None:
        """Take out a TAESD that was not there; called after decoding, before the infotext is written."""
        if not self._is_ours():
            return
        for option, key, half in METHODS:
            if half in self._without:
                p.extra_generation_params.pop(key, None)
            elif half == "decoder" and getattr(shared.opts, option, FULL) == TAESD:
                p.extra_generation_params[key] = TAESD

    def end_job(self) -> None:
        """Give the networks' memory back."""
        self.vaes.release()

    def has_approximation(self) -> bool:
        """Whether the web UI has its network for Approx NN; True where nothing can be said of it."""
        if not self._options.features.has("approximation"):
            return True
        from modules import sd_vae_approx

        network = sd_vae_approx.model()
        return network is not None and not isinstance(network, LinearApproximation)


@dataclass(frozen=True)
class LinearApproximation:
    """Stands for the web UI's network for Approx NN: a latent to RGB in [-1, 1], twice as large.

    Attributes:
        family: Of the latents.
    """

    family: str

    def __call__(self, latent: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 3, 2h, 2w), in the latent's dtype."""
        return sketch(self.family, latent, APPROXIMATION_SCALE) * 2 - 1


def sketch(family: str, latent: Tensor, scale: int | None = None) -> Tensor:
    """Colours in [0, 1] of a latent by the linear map; grey for a family without one.

    Args:
        family: Of the latents.
        latent: (B, C, h, w) as the sampler sees it.
        scale: Pixels per latent cell; None for as many as the picture has.
    """
    if family not in LINEAR_RGB:
        rgb = latent.new_full((len(latent), 3, *latent.shape[2:]), 0.5)
    else:
        rgb = linear_rgb(latent, torch.tensor(LINEAR_RGB[family]))
    if scale is None:
        scale = FORMATS[family].downscale if family in FORMATS else 8
    return F.interpolate(rgb.float(), scale_factor=scale, mode="bilinear", align_corners=False).to(latent)


def decode_fully(latent: Tensor) -> Tensor:
    """As the web UI decodes with Full, but to RGB in [0, 1]."""
    model = shared.sd_model
    dtype = getattr(getattr(model, "first_stage_model", None), "dtype", None)
    with torch.no_grad(), devices.without_autocast():
        image: Tensor = model.decode_first_stage(latent.to(dtype) if dtype else latent)
    return image * 0.5 + 0.5


def encode_fully(rgb: Tensor) -> Tensor:
    """As the web UI encodes with Full, from RGB in [0, 1]."""
    from modules import sd_samplers_common

    latent: Tensor = sd_samplers_common.images_tensor_to_samples(rgb, 0)
    return latent
