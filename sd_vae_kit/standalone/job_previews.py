"""Previews of the stand-alone app's jobs: made beside the sampling, with what the last job taught of their cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor

from sd_vae_kit.core.preview import FIRST_CELLS, Previewer
from sd_vae_kit.core.preview_worker import Previews, PreviewTiming
from sd_vae_kit.pictures.picture_file import Pixels
from sd_vae_kit.settings.sections import OFF, PreviewSettings
from sd_vae_kit.standalone.demo_model import FAMILY, fitted
from sd_vae_kit.standalone.host import StandaloneHost
from sd_vae_kit.standalone.job import AS_SET
from sd_vae_kit.standalone.pass_vaes import PassVaes
from sd_vae_kit.standalone.vae_runs import VaeRuns


class JobPreviews:
    """Makes previews.

    Args:
        host: Its settings say how.
        vaes: Decodes them.
        runs: Says how.
    """

    def __init__(self, host: StandaloneHost, vaes: PassVaes, runs: VaeRuns) -> None:
        self._host = host
        self._vaes = vaes
        self._runs = runs
        self._seconds = 0.0  # what the last preview of the last job took
        self._cells = FIRST_CELLS

    @property
    def settings(self) -> PreviewSettings:
        """The values now."""
        return self._host.settings.preview

    @contextmanager
    def offered(self, wanted: str, show: Callable[[Pixels], object]) -> Iterator[Previews[Pixels]]:
        """What a job offers its latents to; with the job everything of them goes.

        Args:
            wanted: The job's choice among `PREVIEWS`.
            show: Called with each picture, in another thread.
        """
        settings = self.settings
        method = settings.method if wanted == AS_SET else wanted
        previewer = self.previewer(method)
        previewer.begin_with(self._cells)

        def render(latent: Tensor) -> Pixels | None:
            previewer.slow = previews.goal
            pixels = previewer(latent)
            return None if pixels is None else pixels.numpy()

        def sketch(latent: Tensor) -> Pixels | None:
            pixels = linear(latent)
            return None if pixels is None else pixels.numpy()

        linear = self.previewer("linear")
        cheaper, share = (sketch if method == "taesd" else None), settings.share / 100
        previews = Previews(render, show, PreviewTiming(share, expected=self._seconds), cheaper)
        with previews:
            if method == OFF:
                previews.close()
            yield previews
        self._seconds, self._cells = previews.budget.expected, previewer.cells

    def previewer(self, method: str) -> Previewer:
        """Shows latents of the loaded model.

        Args:
            method: "taesd", "linear" or "off".
        """
        side = self.settings.max_side
        if method != "taesd":
            return Previewer(FAMILY, method, side)
        vae, request = self._vaes.for_previews(), self._runs.request().unguarded()
        return Previewer(FAMILY, method, side, lambda latent: vae.decode(latent, request=request) * 0.5 + 0.5)

    def sketch(self, latent: Tensor, size: tuple[int, int]) -> Pixels:
        """What an interrupted decode gives: the preview of a latent (1, C, h, w), as uint8 (height, width, 3)."""
        pixels = self.previewer("taesd")(latent)
        if pixels is None:  # that one failed, and has said why
            pixels = self.previewer("linear")(latent)
        assert pixels is not None
        return fitted(pixels.numpy(), size, stretch=True)
