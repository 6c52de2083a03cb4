"""A VAE file as a thing that encodes and decodes, whichever of the two architectures it has."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor, nn

from sd_vae_kit.core.dtypes import stored_to_compute
from sd_vae_kit.core.files import key_names as layouts
from sd_vae_kit.core.files.checkpoint import open_checkpoint
from sd_vae_kit.core.files.completeness import expected_shapes
from sd_vae_kit.core.files.detect import detect
from sd_vae_kit.core.files.detection import Detection, Kind
from sd_vae_kit.core.files.family_of_header import fitting_families
from sd_vae_kit.core.files.header import TensorInfo, main_dtype
from sd_vae_kit.core.files.identity import blank, non_finite
from sd_vae_kit.core.halves import Half, Part
from sd_vae_kit.core.networks.autoencoder import AutoencoderKL, KlConfig, split_moments
from sd_vae_kit.core.networks.latent_format import FORMATS, LatentFormat, family_label
from sd_vae_kit.core.networks.taesd import TinyAutoencoder
from sd_vae_kit.core.run.report import RunReport, RunResult
from sd_vae_kit.core.run.request import DEFAULT, RunRequest
from sd_vae_kit.core.run.runner import Runner
from sd_vae_kit.errors import BrokenVaeError, OptionError, PictureError, VaeMismatchError


@dataclass(frozen=True)
class VaeWeights:
    """A VAE as it lies in its file.

    Attributes:
        detection: What it is.
        state: Canonical name -> tensor on the CPU, in the file's dtype and ldm's shapes.
        metadata: The file's own.
    """

    detection: Detection
    state: dict[str, Tensor]
    metadata: dict[str, str]

    @property
    def dtype(self) -> str:
        """The word for the type of most weights, "fp16"."""
        return main_dtype(TensorInfo(tensor.dtype, tuple(tensor.shape)) for tensor in self.state.values())


def read_vae(path: str | os.PathLike[str]) -> VaeWeights:
    """Read the VAE of a file, or the one inside a full checkpoint; nothing but its tensors is read.

    Raises:
        VaeNotFoundError, UnsafeFileError, UnsupportedVaeError: As `open_checkpoint` and `detect` say.
        BrokenVaeError: As they say, or weights are NaN, infinite or blank.
    """
    label = Path(path).name
    with open_checkpoint(path) as checkpoint:
        header = checkpoint.header
        detection = detect(header.tensors, header.metadata, label=label)
        tensors = checkpoint.read(detection.names.values())
    state = {
        canonical: layouts.to_canonical_shape(canonical, tensors[name]) for canonical, name in detection.names.items()
    }
    if bad := non_finite(state):
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise BrokenVaeError(f"{label} holds NaN or infinity in {bad[0]}{more}; download it again")
    if len(empty := blank(state)) > 1:
        raise BrokenVaeError(
            f"{label} has only zeros in {empty[0]} and {len(empty) - 1} more, as if its download had not ended; "
            "download it again"
        )
    return VaeWeights(detection, state, header.metadata)


def compute_dtype(state: Mapping[str, Tensor]) -> torch.dtype:
    """The dtype to run weights in if the user names none: the file's; the wider one where a file mixes them.

    fp8 becomes fp16: every fp8 number is an fp16 number, and no layer computes in fp8.
    """
    dtypes = {stored_to_compute(t.dtype) for t in state.values()}
    return reduce(torch.promote_types, dtypes)


def build(weights: VaeWeights, *, dtype: torch.dtype | None = None) -> AutoencoderKL | TinyAutoencoder:
    """The module with these weights, in eval mode, without gradients, on the CPU.

    Weights that already have the dtype are not copied: module and `weights.state` share their memory.

    Args:
        weights: From `read_vae`.
        dtype: What it computes in; `None` for the file's own (`compute_dtype`).
    """
    config = weights.detection.config
    names = expected_shapes(config)
    state = {name: weights.state[name] for name in names}
    target = dtype or compute_dtype(state)
    with torch.device("meta"):
        module = AutoencoderKL(config) if isinstance(config, KlConfig) else TinyAutoencoder(config)
    for name, tensor in state.items():
        # not load_state_dict(assign=True): while a web UI loads a checkpoint, a function of its own takes that one's
        # place for all modules and knows no `assign` (A1111 1.10.1, sd_disable_initialization.py:207)
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, nn.Parameter(tensor.to(target), requires_grad=False))
    return module.eval().requires_grad_(False)


class Vae:
    """Encoder and decoder of either kind between images in [-1, 1] and latents as the sampler sees them.

    What it computes is exact, finite in half precision, and runs in bands where memory is short.  A network that the
    engine does not understand is run by its own forward, and the report says so.

    Attributes:
        module: The network itself.
        latent_format: The latent space; its numbers are applied for "kl", a TAESD has them built in.
        kind: "kl" or "tiny".
        part: Which halves there are.
        warnings: Sentences for the user, such as a family that was guessed.
        runner: Runs the halves; several VAEs may share one, and what they needed is then remembered in one place.
    """

    def __init__(
        self,
        module: AutoencoderKL | TinyAutoencoder,
        latent_format: LatentFormat,
        *,
        part: Part = "both",
        label: str = "this VAE",
        warnings: tuple[str, ...] = (),
        runner: Runner | None = None,
    ) -> None:
        self.module = module
        self.latent_format = latent_format
        self.part = part
        self.label = label
        self.warnings = warnings
        self.runner = Runner() if runner is None else runner
        self._last = _LastReports()

    @property
    def kind(self) -> Kind:
        return "tiny" if isinstance(self.module, TinyAutoencoder) else "kl"

    @property
    def reports(self) -> Mapping[Half, RunReport]:
        """What the last encode and decode of the calling thread did."""
        return self._last.reports

    @torch.no_grad()
    def encode(
        self, image: Tensor, *, generator: torch.Generator | None = None, request: RunRequest = DEFAULT
    ) -> Tensor:
        """Image -> latent.

        Args:
            image: (B, 3, H, W) in [-1, 1], sides multiples of `latent_format.downscale`; any device and float dtype.
            generator: Draws from the posterior with it; without, its mean.  A TAESD's posterior is a point.
            request: How the encoder is run.

        Returns:
            (B, z_channels, H / downscale, W / downscale) in the image's dtype, on its device.

        Raises:
            VaeMismatchError: The file has no encoder, or the image not three channels.
            PictureError: A side is not a multiple.
            NoMemoryError, NanError, Interrupted: As `Runner.run`.
        """
        self._require("encoder")
        self._check_image(image)
        device, dtype = self._place()
        if isinstance(self.module, TinyAutoencoder):
            return self.run("encoder", (image * 0.5 + 0.5).to(device, dtype), request).tensor.to(image)
        mean, std = split_moments(self.run("encoder", image.to(device, dtype), request).tensor.to(image))
        if generator is not None:
            noise = torch.randn(mean.shape, generator=generator, device=generator.device, dtype=torch.float32)
            mean = mean + std * noise.to(mean)
        return self.latent_format.to_latent(mean)

    @torch.no_grad()
    def decode(self, latent: Tensor, *, request: RunRequest = DEFAULT) -> Tensor:
        """Latent -> image.

        Args:
            latent: (B, z_channels, h, w) as the sampler sees it; any device and float dtype.  A TAEF2 takes FLUX.2's
                packed latents, (B, 4 * z_channels, h/2, w/2), too.
            request: How the decoder is run.

        Returns:
            (B, 3, h * downscale, w * downscale) in about [-1, 1], not clamped, in the latent's dtype, on its device.

        Raises:
            VaeMismatchError: The file has no decoder, or the latent another number of channels.
            NoMemoryError, NanError, Interrupted: As `Runner.run`.
        """
        self._require("decoder")
        if isinstance(self.module, TinyAutoencoder):
            latent = self.latent_format.unpacked(latent)
        self._check_latent(latent)
        device, dtype = self._place()
        if isinstance(self.module, TinyAutoencoder):
            return self.run("decoder", latent.to(device, dtype), request).tensor.to(latent) * 2 - 1
        return self.run("decoder", self.latent_format.to_z(latent).to(device, dtype), request).tensor.to(latent)

    def run(self, half: Half, x: Tensor, request: RunRequest = DEFAULT) -> RunResult:
        """One half between the network's own spaces: image and moments, z and image, or a TAESD's.

        Args:
            half: Which.
            x: (B, C, h, w) with the module's device and dtype.
            request: How; messages call the VAE by its own label.

        Raises:
            NoMemoryError, NanError, Interrupted: As `Runner.run`.
        """
        result = self.runner.run_or_step_aside(self.module, half, x, replace(request, label=self.label))
        self._last.reports[half] = result.report
        return result

    def _place(self) -> tuple[torch.device, torch.dtype]:
        parameter = next(self.module.parameters())
        return parameter.device, parameter.dtype

    def _require(self, half: str) -> None:
        if self.part not in ("both", half):
            use = {"encoder": "encode", "decoder": "decode"}[half]
            raise VaeMismatchError(
                f"{self.label} holds only a {self.part} and cannot {use}; choose a VAE with both, or the {half} file"
            )

    def _check_image(self, image: Tensor) -> None:
        if image.dim() != 4 or image.shape[1] != 3:
            raise VaeMismatchError(f"the image has the shape {tuple(image.shape)}, the VAE needs (B, 3, H, W)")
        unit = self.latent_format.downscale
        height, width = image.shape[2:]
        if height % unit or width % unit or not height or not width:
            raise PictureError(
                f"the picture is {width} x {height}; {self.label} needs sides that are multiples of {unit}"
            )

    def _check_latent(self, latent: Tensor) -> None:
        own = self.latent_format.z_channels
        if latent.dim() != 4:
            raise VaeMismatchError(f"the latent has the shape {tuple(latent.shape)}, the VAE needs (B, {own}, h, w)")
        if (channels := latent.shape[1]) != own:
            fitting = "|".join(f.name for f in FORMATS.values() if f.z_channels == channels)
            remedy = f"choose a VAE of {family_label(fitting)}" if fitting else f"choose a VAE with {channels}"
            raise VaeMismatchError(
                f"the latent has {channels} channels, {self.label} ({self.latent_format.label}) has {own}; {remedy}"
            )


class _LastReports(threading.local):
    """Each thread's own, since several may use one VAE."""

    def __init__(self) -> None:
        self.reports: dict[Half, RunReport] = {}


def choose_format(
    detection: Detection, family: str | None = None, *, label: str = "this VAE"
) -> tuple[LatentFormat, str]:
    """The latent space to use, and a warning ("" if it is certain).

    Args:
        detection: What the file is.
        family: The user's word; it wins over what the file says.
        label: What messages call the file.

    Raises:
        OptionError: No such family, or one with other latent channels.
    """
    z_channels, downscale = detection.z_channels, detection.downscale
    if family is not None:
        if family not in FORMATS:
            raise OptionError(f"there is no family {family!r}; use one of {', '.join(FORMATS)}")
        chosen = FORMATS[family]
        if family not in (fitting := fitting_families(z_channels, downscale)):
            needs = f"{chosen.label} needs {chosen.z_channels} and cells of {chosen.downscale} pixels"
            raise OptionError(
                f"{label} has {z_channels} latent channels and cells of {downscale} pixels, {needs}; "
                f"use {' or '.join(fitting) or 'no family'}"
            )
        return replace(chosen, downscale=downscale), ""
    if not detection.families:
        return LatentFormat("unknown", "unknown", z_channels, 1.0, downscale=downscale), ""
    chosen = FORMATS[detection.families[0]]
    warning = ""
    if len(detection.families) > 1:
        warning = (
            f"{label} may be of {family_label(detection.family)}; taken as {chosen.label}, say which if colours are off"
        )
    return replace(chosen, downscale=downscale), warning


def make_vae(
    weights: VaeWeights,
    *,
    family: str | None = None,
    dtype: torch.dtype | None = None,
    label: str = "this VAE",
    runner: Runner | None = None,
) -> Vae:
    """Weights that were read -> a VAE that is ready to use; arguments and errors as for `load_vae`."""
    latent_format, warning = choose_format(weights.detection, family, label=label)
    warnings = (*weights.detection.warnings, *([warning] if warning else []))
    module = build(weights, dtype=dtype)
    return Vae(module, latent_format, part=weights.detection.part, label=label, warnings=warnings, runner=runner)


def load_vae(
    path: str | os.PathLike[str],
    *,
    family: str | None = None,
    dtype: torch.dtype | None = None,
    runner: Runner | None = None,
) -> Vae:
    """Read a file and make it ready to use.

    Args:
        path: Any file `read_vae` reads.
        family: Latent space, such as "sdxl", where the file does not tell; an undecided one is taken as the first
            that fits, with a warning in the result.
        dtype: What it computes in; `None` for the file's own.
        runner: Runs it; `None` for one of its own.

    Raises:
        OptionError: The family is unknown or does not fit.
        VaeKitError: As in `read_vae`.
    """
    return make_vae(read_vae(path), family=family, dtype=dtype, label=Path(path).name, runner=runner)
