"""`encode` and `decode`: a picture to a latent file and back."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from sd_vae_kit.cli.measurement import measure
from sd_vae_kit.cli.outcome import Outcome
from sd_vae_kit.cli.targets import check_safetensors_target, check_target
from sd_vae_kit.cli.vae_choice import Chosen, best_device, choose, open_library, ready
from sd_vae_kit.core.checkpoint import dtype_name
from sd_vae_kit.core.detect import fitting_families
from sd_vae_kit.core.latent_format import FORMATS, family_label, split_family
from sd_vae_kit.core.vae import Vae
from sd_vae_kit.errors import LatentFileError, NanError, OptionError, VaeKitError
from sd_vae_kit.infotext import build
from sd_vae_kit.latent_file import LatentFile, read_latent, write_latent
from sd_vae_kit.pictures import crop, kind_by_name, open_picture, reflect_pad, save_picture, to_image, to_pixels


@dataclass(frozen=True)
class Report:
    """What was run, the `--json` object of both commands.

    Attributes:
        plan: "whole": the picture in one piece.
        bands: Pieces of the widest step, 1 for a whole picture.
        predicted_mb: Activations as planned, MiB; `None`: nothing is planned for "whole".
        peak_mb: As measured, MiB; `None` where it cannot be (see measurement.py).
        dtype: What was computed in.
        steps: Steps of the plan; `None` for "whole", which has none.
        steps_shifted, steps_fp32: Steps that were run with a range shift, or again in fp32; 0, as "whole" has neither.
        seconds: Of the network alone, without reading and writing files.
        vae_sha256: Of the VAE file.
        warnings: Sentences for the user.
    """

    plan: str
    bands: int
    predicted_mb: float | None
    peak_mb: float | None
    dtype: str
    steps: int | None
    steps_shifted: int
    steps_fp32: int
    seconds: float
    vae_sha256: str
    warnings: list[str]


def run_encode(options: argparse.Namespace) -> Outcome:
    """Picture -> latent file: the posterior's mean, or with --sample a draw from it."""
    _refuse_what_is_to_come(options)
    if options.sample != (options.seed is not None):
        raise OptionError("--sample and --seed N belong together: a draw that cannot be repeated is of no use.")
    target = check_safetensors_target(options.output, options.image, options.vae)
    picture = open_picture(options.image)
    chosen = choose(open_library(options), options.vae, quiet=options.json)
    if options.sample and chosen.weights.detection.kind == "tiny":
        raise OptionError(f"{chosen.entry.name} is a TAESD: it has no posterior to draw from; leave out --sample.")
    vae = ready(chosen, family=options.family, dtype=options.dtype, device=best_device())
    image, size = reflect_pad(to_image(picture), vae.latent_format.downscale)
    generator = torch.Generator().manual_seed(options.seed) if options.sample else None
    latent, report = run_whole(lambda: vae.encode(image, generator=generator), vae, chosen)
    write_latent(target, LatentFile.of(latent, vae.latent_format, size, chosen.sha256))
    done = f"{options.output}: latent {tuple(latent.shape)} of {vae.latent_format.label}"
    return _outcome(report, done)


def run_decode(options: argparse.Namespace) -> Outcome:
    """Latent file -> picture, cropped to its true size; what the file says about its scale counts."""
    _refuse_what_is_to_come(options)
    target = check_target(options.output, options.latent, options.vae)
    kind_by_name(target)
    file = read_latent(options.latent)
    if len(file.latent) != 1:
        raise LatentFileError(f"{options.latent} holds {len(file.latent)} latents; decode takes a file with one.")
    chosen = choose(open_library(options), options.vae, quiet=options.json)
    vae, warnings = _vae_for(file, chosen, options)
    image, report = run_whole(lambda: vae.decode(file.latent), vae, chosen)
    pixels = to_pixels(crop(image, _true_size(file, image, vae, options.latent)))[0]
    size = f"{pixels.shape[1]}x{pixels.shape[0]}"  # A1111 writes width first
    fields = {"Size": size, "VAE hash": chosen.sha256[:10], "VAE": chosen.entry.name}
    save_picture(target, pixels, build("", "", fields))
    return _outcome(replace(report, warnings=[*report.warnings, *warnings]), f"{options.output}: {size} pixels")


def run_whole(work: Callable[[], Tensor], vae: Vae, chosen: Chosen) -> tuple[Tensor, Report]:
    """Run the network over the whole picture; the place where a plan will choose between this and streaming.

    Raises:
        OptionError: The device cannot compute in the dtype.
        NanError: The result is not finite.
        VaeKitError: There is not enough memory.
    """
    parameter = next(vae.module.parameters())
    dtype = dtype_name(parameter.dtype)
    try:
        result, cost = measure(work, parameter.device)
    except RuntimeError as error:
        raise _explained(error, dtype) from error
    if not bool(torch.isfinite(result).all()):
        remedy = "use --dtype fp32" if dtype != "fp32" else "the VAE cannot process this input, or is damaged"
        raise NanError(f"{vae.label} in {dtype} gave values that are not finite; nothing was written: {remedy}.")
    report = Report(
        plan="whole",
        bands=1,
        predicted_mb=None,
        peak_mb=cost.peak_mb,
        dtype=dtype,
        steps=None,
        steps_shifted=0,
        steps_fp32=0,
        seconds=cost.seconds,
        vae_sha256=chosen.sha256,
        warnings=list(vae.warnings),
    )
    return result, report


def _explained(error: RuntimeError, dtype: str) -> Exception:
    text = str(error)
    if isinstance(error, torch.cuda.OutOfMemoryError) or "allocate memory" in text:
        return VaeKitError("There is not enough memory for a picture of this size; make it smaller.")
    if "not implemented for" in text:
        return OptionError(f"This torch cannot compute in {dtype} on this device; use --dtype fp32.")
    return error


def _refuse_what_is_to_come(options: argparse.Namespace) -> None:
    """Seam for streaming: the planner takes these two."""
    if options.tiling == "exact":
        raise OptionError("--tiling exact is not in this version; use auto or off, both run the picture whole.")
    if options.memory_mb is not None:
        raise OptionError("--memory-mb is not in this version: pictures run whole; leave it out.")


def _vae_for(file: LatentFile, chosen: Chosen, options: argparse.Namespace) -> tuple[Vae, list[str]]:
    """The VAE with the scale that the latent was made with, and warnings.

    Raises:
        OptionError: --family contradicts the file.
    """
    if options.family and file.family and options.family != file.family:
        raise OptionError(f"{options.latent} says it is of the family {file.family}; leave out --family.")
    own = split_family(chosen.family)
    detection = chosen.weights.detection
    fits = file.family in fitting_families(detection.z_channels, detection.downscale)
    vae = ready(
        chosen, family=options.family or (file.family if fits else None), dtype=options.dtype, device=best_device()
    )
    warnings = []
    if fits and own and file.family not in own:
        warnings.append(
            f"the latent is of {family_label(file.family)}, {chosen.entry.name} of {family_label(chosen.family)}; "
            "the colours will be wrong"
        )
    if file.scale_factor is not None:
        shift = file.shift_factor or 0.0
        vae.latent_format = replace(vae.latent_format, scale_factor=file.scale_factor, shift_factor=shift)
    elif not file.family and not options.family and len(own) == 1:
        warnings.append(f"the latent does not say its scale; taken as {FORMATS[own[0]].label}'s")
    return vae, warnings


def _true_size(file: LatentFile, image: Tensor, vae: Vae, name: str) -> tuple[int, int]:
    """(height, width) to crop to: within the last cell of what was decoded.

    Raises:
        LatentFileError: The file's metadata say another size.
    """
    whole = (image.shape[2], image.shape[3])
    if file.size is None:
        return whole
    cell = vae.latent_format.downscale
    if not all(0 <= full - true < cell for true, full in zip(file.size, whole, strict=True)):
        raise LatentFileError(
            f"{name}: its metadata say {file.size[0]} x {file.size[1]} (height x width), the latent decodes to "
            f"{whole[0]} x {whole[1]}; it belongs to another VAE or was edited."
        )
    return file.size


def _outcome(report: Report, done: str) -> Outcome:
    memory = "" if report.peak_mb is None else f", {report.peak_mb:.0f} MiB"
    line = f"{done}, {report.dtype}, {report.seconds:.2f} s{memory}"
    return Outcome(asdict(report), [line], report.warnings)
