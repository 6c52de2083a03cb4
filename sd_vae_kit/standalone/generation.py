"""From a job to finished pictures: encode, noise, Euler steps, decode, and the text that goes into the file."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sd_vae_kit.errors import Interrupted
from sd_vae_kit.pictures import infotext
from sd_vae_kit.pictures import picture_file as pictures
from sd_vae_kit.pictures.picture_file import Pixels
from sd_vae_kit.settings.sections import FULL
from sd_vae_kit.standalone.demo_model import NAME, DemoModel, fitted
from sd_vae_kit.standalone.job import RESIZE_MODES, SEED_LIMIT, Img2Img, Txt2Img
from sd_vae_kit.standalone.job_previews import JobPreviews
from sd_vae_kit.standalone.pass_vaes import PassVaes, VaeInUse
from sd_vae_kit.standalone.sampling import Denoise, karras_sigmas, sample_euler, sigmas_for_denoising, starting_noise
from sd_vae_kit.standalone.vae_runs import VaeRuns
from sd_vae_kit.version import __version__


@dataclass(frozen=True)
class JobProgress:
    """How far a job is; `preview` is uint8 (H, W, 3) or None where there is no new one."""

    phase: str
    step: int
    steps: int
    preview: Pixels | None = None


OnProgress = Callable[[JobProgress], None]


@dataclass(frozen=True)
class Engine:
    """What a job works with.

    Attributes:
        model: The diffusion model.
        vaes: Give each pass its VAE.
        previews: Are made beside the sampling.
        runs: Run the VAE, and say what was done.
        interrupted: Set once the user wants the job to end.
    """

    model: DemoModel
    vaes: PassVaes
    previews: JobPreviews
    runs: VaeRuns
    interrupted: threading.Event

    @property
    def is_interrupted(self) -> bool:
        return self.interrupted.is_set()


@dataclass(frozen=True, eq=False)
class Made:
    """One finished picture: uint8 (H, W, 3), its parameters and its seed."""

    pixels: Pixels
    infotext: str
    seed: int


@dataclass(frozen=True)
class JobResult:
    """What came of a job; an interrupted one has the pictures it got to."""

    pictures: tuple[Made, ...]
    is_interrupted: bool
    seconds: float


def run(job: Txt2Img, engine: Engine, on_progress: OnProgress) -> JobResult:
    """Make the pictures.

    Raises:
        OptionError: A value outside its limits.
        VaeNotFoundError: TAESD is wanted for encode or decode, and none is installed that could.
        PictureError: The picture to start from cannot be read.
        NanError: The VAE gave no picture.
    """
    started = time.perf_counter()
    job.check()
    seeds = seeds_of(job)
    with engine.vaes.live("decoder", job.vae_decoder):
        pass  # what cannot be decoded later is refused now
    try:
        latents = _latents(job, seeds, engine, on_progress)
        made = _decode(job, seeds, latents, engine, on_progress)
    except Interrupted:
        made = []
    return JobResult(tuple(made), engine.is_interrupted, time.perf_counter() - started)


def seeds_of(job: Txt2Img) -> list[int]:
    """One seed per picture, counting up; -1 begins at a random one."""
    first = random.randrange(SEED_LIMIT) if job.seed < 0 else job.seed
    return [(first + i) % SEED_LIMIT for i in range(job.batch_size)]


def _latents(job: Txt2Img, seeds: Sequence[int], engine: Engine, on_progress: OnProgress) -> Tensor:
    """(B, 4, h, w) ready to decode."""
    encoded = _encode(job, engine, on_progress) if isinstance(job, Img2Img) else None
    if encoded is not None and isinstance(job, Img2Img) and job.denoising_strength == 0:
        return encoded.expand(len(seeds), -1, -1, -1)  # through the VAE and back, nothing else

    def preparing(done: int, total: int) -> None:
        _go_on(engine)
        on_progress(JobProgress("preparing photographs for this size", done, total))

    size = (job.height, job.width)
    prior = engine.model.prior(job.prompt, job.negative_prompt)
    denoiser = engine.model.denoiser(prior, size, preparing, encoded)
    sigmas = karras_sigmas(job.steps)
    if encoded is not None and isinstance(job, Img2Img):
        sigmas = sigmas_for_denoising(sigmas, job.denoising_strength)
        shape = (encoded.shape[1], encoded.shape[2], encoded.shape[3])
        x = encoded + float(sigmas[0]) * starting_noise(seeds, shape)
    else:
        x = engine.model.start(prior, size, seeds, float(sigmas[0]))
    return _sample(job, denoiser.denoise, x, sigmas, engine, on_progress)


def _sample(
    job: Txt2Img, denoise: Denoise, x: Tensor, sigmas: Tensor, engine: Engine, on_progress: OnProgress
) -> Tensor:
    """Sampling with previews of the denoised estimate, until the end or until the user has interrupted.

    The noisy latent would show noise until the last steps; the estimate shows the picture's layout from the first.
    """
    every, reached = engine.previews.settings.every_steps, [0, len(sigmas) - 1]

    def show(pixels: Pixels) -> None:
        on_progress(JobProgress("sampling", reached[0], reached[1], pixels))

    def on_step(step: int, steps: int, x: Tensor, denoised: Tensor) -> bool:
        reached[:] = step + 1, steps
        if (step + 1) % every == 0:
            previews.offer(denoised)
        on_progress(JobProgress("sampling", step + 1, steps))
        return not engine.is_interrupted

    with engine.previews.offered(job.preview, show) as previews:
        return sample_euler(denoise, x, sigmas, on_step)


def _encode(job: Img2Img, engine: Engine, on_progress: OnProgress) -> Tensor:
    """The picture to start from as a latent (1, 4, h, w)."""
    on_progress(JobProgress("encoding", 0, 1))
    assert job.picture is not None  # job.check() has seen to it
    stretch = job.resize_mode != RESIZE_MODES[0]
    pixels = fitted(pictures.open_picture(job.picture).pixels, (job.height, job.width), stretch=stretch)

    def on_band(share: float) -> bool:
        on_progress(JobProgress("encoding", int(100 * share), 100))
        return not engine.is_interrupted

    with engine.vaes.live("encoder", job.vae_encoder, "img2img encode") as live, torch.inference_mode():
        latent = engine.runs.encode(live.vae, pictures.to_image(pixels), job.job_tiling, on_band)
    _go_on(engine)
    return latent.float().cpu()


def _decode(job: Txt2Img, seeds: Sequence[int], latents: Tensor, engine: Engine, on_progress: OnProgress) -> list[Made]:
    """Pictures one after the other, all with the same VAE.

    An interrupt while sampling leaves the first, decoded to its end; one while decoding leaves that as the preview.
    """
    pixels: list[Pixels] = []
    was_interrupted = engine.is_interrupted

    def on_band(share: float) -> bool:
        on_progress(JobProgress("decoding", int(100 * (len(pixels) + share) / len(latents)), 100))
        return was_interrupted or not engine.is_interrupted

    on_progress(JobProgress("decoding", 0, 100))
    with engine.vaes.live("decoder", job.vae_decoder, "picture") as live, torch.inference_mode():
        for latent in latents:
            if pixels and engine.is_interrupted:
                break
            try:
                image = engine.runs.decode(live.vae, latent[None], job.job_tiling, on_band)
                pixels.append(pictures.to_pixels(image)[0])
            except Interrupted:
                pixels.append(engine.previews.sketch(latent[None], (job.height, job.width)))
    on_progress(JobProgress("decoding", 100, 100))
    fields = {**vae_fields(live), **type_fields(job, engine, live.method), **engine.runs.infotext(job.job_tiling)}
    return [Made(p, _infotext(job, seed, fields), seed) for p, seed in zip(pixels, seeds, strict=False)]


def vae_fields(live: VaeInUse) -> dict[str, str]:
    """A1111's two fields: the first ten digits of the file's hash, if it can be worked out, and its name."""
    digits = live.sha256()[:10]
    return {"VAE hash": digits, "VAE": live.name} if digits else {"VAE": live.name}


def type_fields(job: Txt2Img, engine: Engine, decoder: str) -> dict[str, str]:
    """A1111's two fields for a TAESD in the VAE's place."""
    fields = {}
    if isinstance(job, Img2Img):
        with engine.vaes.live("encoder", job.vae_encoder) as live:
            fields["VAE Encoder"] = live.method
    fields["VAE Decoder"] = decoder
    return {name: method for name, method in fields.items() if method != FULL}


def _infotext(job: Txt2Img, seed: int, vae: dict[str, str]) -> str:
    """Parameters in A1111's order.  There is no model hash: the demo model is no file."""
    fields: dict[str, str | int | float] = {
        "Steps": job.steps,
        "Sampler": "Euler",
        "Schedule type": "Karras",
        "CFG scale": f"{job.cfg_scale:g}",
        "Seed": seed,
        "Size": f"{job.width}x{job.height}",
        "Model": NAME,
        **vae,
    }
    if isinstance(job, Img2Img):
        fields["Denoising strength"] = f"{job.denoising_strength:g}"
    fields["Version"] = f"VAE Kit {__version__}"
    return infotext.build(job.prompt, job.negative_prompt, fields)


def _go_on(engine: Engine) -> None:
    if engine.is_interrupted:
        raise Interrupted("The job was interrupted before there was a picture.")
