"""`compare`: one picture through several VAEs, as a sheet to look at and as numbers."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from sd_vae_kit.cli.command_result import CommandResult
from sd_vae_kit.cli.contact_sheet import RoundTrip, draw_sheet
from sd_vae_kit.cli.network_run import request_of, run_network
from sd_vae_kit.cli.targets import check_target
from sd_vae_kit.cli.vae_choice import Chosen, best_device, choose, open_fixes, open_inspector, ready
from sd_vae_kit.core.run.runner import Runner
from sd_vae_kit.core.vae import Vae
from sd_vae_kit.errors import OptionError
from sd_vae_kit.pictures.picture_file import (
    Picture,
    Pixels,
    crop,
    kind_by_name,
    open_picture,
    reflect_pad,
    save_picture,
    to_image,
    to_pixels,
)
from sd_vae_kit.vaes.inspection import Inspector


def run(options: argparse.Namespace) -> CommandResult:
    """Encode and decode the picture with each VAE, write the sheet, report how close each came."""
    target = check_target(options.output, options.image, *options.vae)
    if kind_by_name(target) != "PNG":
        raise OptionError(f"{options.output}: the sheet is a .png, so that the differences in it are true.")
    picture = open_picture(options.image)
    inspector = open_inspector(options)
    trips, results, warnings = [], [], []
    for name in options.vae:
        pixels, facts = _round_trip(picture, inspector, name, options)
        results.append({"vae": name, **facts, **_distance(picture.pixels, pixels)})
        trips.append(RoundTrip(Path(name).name, _note(results[-1]), pixels))
        warnings += [f"{name}: {warning}" for warning in facts["warnings"]]  # type: ignore[attr-defined]
    save_picture(target, draw_sheet(picture.pixels, trips))
    lines = [f"{result['vae']}: {_note(result)}" for result in results]
    data: dict[str, object] = {"path": str(target), "results": results, "warnings": warnings}
    return CommandResult(data, [*lines, str(target)], warnings)


def _round_trip(
    picture: Picture, inspector: Inspector, name: str, options: argparse.Namespace
) -> tuple[Pixels, dict[str, object]]:
    request, chosen = request_of(options), choose(inspector, name, quiet=options.json)
    encoder, decoder = _halves(chosen, inspector, options)
    image, size = reflect_pad(to_image(picture), encoder.latent_format.downscale)
    latent, encoding = run_network(
        lambda request: encoder.encode(image, request=request), encoder, "encoder", request, quiet=options.json
    )
    restored, decoding = run_network(
        lambda request: decoder.decode(latent, request=request), decoder, "decoder", request, quiet=options.json
    )
    facts: dict[str, object] = {
        "family": chosen.finding.family,
        "dtype": encoding.dtype,
        "seconds_encode": encoding.seconds,
        "seconds_decode": decoding.seconds,
        "vae_sha256": chosen.sha256,
        "warnings": [*encoder.warnings, *dict.fromkeys((*encoding.warnings, *decoding.warnings))],
    }
    return to_pixels(crop(restored, size))[0], facts


def _halves(chosen: Chosen, inspector: Inspector, options: argparse.Namespace) -> tuple[Vae, Vae]:
    """Encoder and decoder: of one file, or of a TAESD's two, `..._encoder...` and `..._decoder...` side by side."""
    device, runner = best_device(), Runner(open_fixes(options))
    vae = ready(chosen, family=None, dtype=options.dtype, device=device, runner=runner)
    if vae.part == "both":
        return vae, vae
    missing = "decoder" if vae.part == "encoder" else "encoder"
    other = chosen.entry.path.with_name(chosen.entry.path.name.replace(vae.part, missing))
    if other == chosen.entry.path or not other.is_file():
        raise OptionError(
            f"{chosen.entry.name} holds only a {vae.part}; put the {missing} beside it "
            f"(the same name with {missing!r} instead of {vae.part!r}), or choose a VAE with both."
        )
    beside = choose(inspector, str(other), quiet=options.json)
    second = ready(beside, family=None, dtype=options.dtype, device=device, runner=runner)
    return (vae, second) if vae.part == "encoder" else (second, vae)


def _distance(original: Pixels, restored: Pixels) -> dict[str, object]:
    """How far two pictures are apart, in levels of 255; the PSNR of equal ones is infinite, written as `None`."""
    distance = np.abs(original.astype(np.float64) - restored.astype(np.float64))
    square = float((distance**2).mean())
    psnr = None if square == 0 else round(10 * float(np.log10(255**2 / square)), 2)
    return {"psnr_db": psnr, "mean_difference": round(float(distance.mean()), 3), "max_difference": int(distance.max())}


def _note(result: dict[str, object]) -> str:
    psnr = "equal" if result["psnr_db"] is None else f"{result['psnr_db']} dB"
    return f"{psnr}, mean {result['mean_difference']}, max {result['max_difference']} of 255"
