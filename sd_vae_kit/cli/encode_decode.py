"""`encode` and `decode`: a picture to a latent file and back."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from sd_vae_kit.cli.command_result import CommandResult
from sd_vae_kit.cli.network_run import json_of, request_of, run_network
from sd_vae_kit.cli.targets import check_safetensors_target, check_target
from sd_vae_kit.cli.vae_choice import Chosen, best_device, choose, open_fixes, open_inspector, ready
from sd_vae_kit.core.files.family_of_header import fitting_families
from sd_vae_kit.core.files.latent_file import LatentFile, read_latent, write_latent
from sd_vae_kit.core.networks.latent_format import FORMATS, family_label, split_family
from sd_vae_kit.core.run.report import RunReport
from sd_vae_kit.core.run.runner import Runner
from sd_vae_kit.core.vae import Vae
from sd_vae_kit.errors import LatentFileError, OptionError
from sd_vae_kit.pictures.infotext import build
from sd_vae_kit.pictures.picture_file import (
    crop,
    kind_by_name,
    open_picture,
    reflect_pad,
    save_picture,
    to_image,
    to_pixels,
)


def run_encode(options: argparse.Namespace) -> CommandResult:
    """Picture -> latent file: the posterior's mean, or with --sample a draw from it."""
    request = request_of(options)
    if options.sample != (options.seed is not None):
        raise OptionError("--sample and --seed N belong together: a draw that cannot be repeated is of no use.")
    target = check_safetensors_target(options.output, options.image, options.vae)
    picture = open_picture(options.image)
    chosen = choose(open_inspector(options), options.vae, quiet=options.json)
    if options.sample and chosen.weights.detection.kind == "tiny":
        raise OptionError(f"{chosen.entry.name} is a TAESD: it has no posterior to draw from; leave out --sample.")
    runner = Runner(open_fixes(options))
    vae = ready(chosen, family=options.family, dtype=options.dtype, device=best_device(), runner=runner)
    image, size = reflect_pad(to_image(picture), vae.latent_format.downscale)
    generator = torch.Generator().manual_seed(options.seed) if options.sample else None
    latent, report = run_network(
        lambda request: vae.encode(image, generator=generator, request=request),
        vae, "encoder", request, quiet=options.json,
    )  # fmt: skip
    write_latent(target, LatentFile.of(latent, vae.latent_format, size, chosen.sha256))
    done = f"{options.output}: latent {tuple(latent.shape)} of {vae.latent_format.label}"
    return _outcome(report, done, chosen, [*vae.warnings, *report.warnings])


def run_decode(options: argparse.Namespace) -> CommandResult:
    """Latent file -> picture, cropped to its true size; what the file says about its scale counts."""
    request = request_of(options)
    target = check_target(options.output, options.latent, options.vae)
    kind_by_name(target)
    file = read_latent(options.latent)
    if len(file.latent) != 1:
        raise LatentFileError(f"{options.latent} holds {len(file.latent)} latents; decode takes a file with one.")
    chosen = choose(open_inspector(options), options.vae, quiet=options.json)
    vae, warnings = _vae_for(file, chosen, options)
    image, report = run_network(
        lambda request: vae.decode(file.latent, request=request), vae, "decoder", request, quiet=options.json
    )
    pixels = to_pixels(crop(image, _true_size(file, image, vae, options.latent)))[0]
    size = f"{pixels.shape[1]}x{pixels.shape[0]}"  # A1111 writes width first
    fields = {"Size": size, "VAE hash": chosen.sha256[:10], "VAE": chosen.entry.name}
    save_picture(target, pixels, build("", "", fields))
    told = [*vae.warnings, *report.warnings, *warnings]
    return _outcome(report, f"{options.output}: {size} pixels", chosen, told)


def _vae_for(file: LatentFile, chosen: Chosen, options: argparse.Namespace) -> tuple[Vae, list[str]]:
    """The VAE with the scale that the latent was made with, and warnings.

    Raises:
        OptionError: --family contradicts the file.
    """
    if options.family and file.family and options.family != file.family:
        raise OptionError(f"{options.latent} says it is of the family {file.family}; leave out --family.")
    detection = chosen.weights.detection
    fits = file.family in fitting_families(detection.z_channels, detection.downscale)
    family = options.family or (file.family if fits else None)
    runner = Runner(open_fixes(options))
    vae = ready(chosen, family=family, dtype=options.dtype, device=best_device(), runner=runner)
    return _in_space_of(file, vae), [*_doubts(file, chosen, fits=fits, is_told=bool(options.family))]


def _in_space_of(file: LatentFile, vae: Vae) -> Vae:
    """The VAE with the numbers that the latent's metadata say, if they say any."""
    if file.scale_factor is None:
        return vae
    space = replace(vae.latent_format, scale_factor=file.scale_factor, shift_factor=file.shift_factor or 0.0)
    return Vae(vae.module, space, part=vae.part, label=vae.label, warnings=vae.warnings, runner=vae.runner)


def _doubts(file: LatentFile, chosen: Chosen, *, fits: bool, is_told: bool) -> Iterator[str]:
    """What makes the colours doubtful, one sentence each.

    Args:
        file: The latent.
        chosen: The VAE.
        fits: Whether a VAE of this shape can be of the latent's family.
        is_told: Whether the user named the family.
    """
    own = [name for name in split_family(chosen.finding.family) if name in FORMATS]
    if fits and own and file.family not in own:
        yield (
            f"the latent is of {family_label(file.family)}, {chosen.entry.name} of {chosen.finding.label}; "
            "the colours will be wrong"
        )
    if file.scale_factor is None and not file.family and not is_told and len(own) == 1:
        yield f"the latent does not say its scale; taken as {FORMATS[own[0]].label}'s"


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


def _outcome(report: RunReport, done: str, chosen: Chosen, warnings: list[str]) -> CommandResult:
    memory = "" if report.peak_mb is None else f", {report.peak_mb:.0f} MiB"
    how = "" if report.plan == "whole" else f", {report.plan} in {report.bands} bands"
    line = f"{done}, {report.dtype}, {report.seconds:.2f} s{memory}{how}"
    return CommandResult(json_of(report, chosen.sha256, warnings), [line], warnings)
