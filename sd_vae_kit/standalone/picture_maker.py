"""Makes the stand-alone app's pictures: one job at a time, which the user may interrupt."""

from __future__ import annotations

import threading

import torch

from sd_vae_kit.core.run.forecast import forecast
from sd_vae_kit.settings.job import JobTiling
from sd_vae_kit.standalone import generation
from sd_vae_kit.standalone.demo_vaes import device
from sd_vae_kit.standalone.generation import Engine, JobResult, OnProgress
from sd_vae_kit.standalone.host import StandaloneHost
from sd_vae_kit.standalone.job import Img2Img, Txt2Img
from sd_vae_kit.wording import Sentence


class PictureMaker:
    """Runs jobs.

    Args:
        host: Its settings say how VAEs are run.
        engine: What a job works with.

    Attributes:
        engine: The same.
    """

    def __init__(self, host: StandaloneHost, engine: Engine) -> None:
        self._host = host
        self._working = threading.Lock()
        self.engine = engine

    def txt2img(self, job: Txt2Img, on_progress: OnProgress = lambda progress: None) -> JobResult:
        """Make pictures from a prompt; one job at a time, the next waits."""
        with self._working:
            self.engine.interrupted.clear()
            self.engine.runs.begin()
            try:
                return generation.run(job, self.engine, on_progress)
            finally:
                self.engine.vaes.end_job()

    def img2img(self, job: Img2Img, on_progress: OnProgress = lambda progress: None) -> JobResult:
        """Make pictures from a picture; denoising 0 only sends it through the VAE and back."""
        return self.txt2img(job, on_progress)

    def interrupt(self) -> None:
        """End the running job after its current step."""
        self.engine.interrupted.set()

    def forecast(self, size: tuple[int, int], tiling: JobTiling) -> Sentence:
        """What will happen when a picture of (height, width) is decoded."""
        network = self.engine.vaes.live_network()
        return forecast(network, size, torch.float32, device(), tiling.over(self._host.settings.tiling))
