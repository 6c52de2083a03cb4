"""Live previews of A1111-style web UIs, made by `core.preview_worker` instead of the web UI's own code.

The web UI hands every step's latent to `sd_samplers_common.store_latent`, right after the callback cfg_denoised and
the guidance: that latent is the denoised prediction, with or without the negative prompt as its option "Live preview
subject" says.  It is what is shown: the noisy latent itself shows noise until the last steps.  A poll of the page or of
/sdapi/v1/progress reaches `State.set_current_image`, which decodes in the poll's thread, from the sampler's own tensor
and any number of polls at once.  Here the poll asks for a picture, one thread makes it from a copy, and the poll waits
a moment for it.  Written against A1111 1.10.1 and Forge f2.0.1.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from modules import devices, shared
from PIL import Image
from torch import Tensor

from sd_vae_kit.core.networks.latent_format import FORMATS
from sd_vae_kit.core.preview import FIRST_CELLS, LINEAR_RGB, Decode, Previewer
from sd_vae_kit.core.preview_worker import Previews, PreviewTiming
from sd_vae_kit.hosts.base import HostBase
from sd_vae_kit.hosts.call_context import CallContext
from sd_vae_kit.hosts.taesd import HostTaesd
from sd_vae_kit.settings.sections import TAESD, PreviewSettings

log = logging.getLogger(__name__)

PATIENCE = 1.5  # seconds that a poll waits for the picture it asked for
LEAST_SIDE = 64  # of one picture in a grid
LINEAR_INDEX = 2  # of the web UI's linear map among its ways; "Approx cheap", in Neo "RGB"


class HostPreviews:
    """The previews of one web UI.

    Args:
        base: What the host's parts share.
        context: Told which decodes are previews.
        taesd: Where the networks come from.
    """

    def __init__(self, base: HostBase, context: CallContext, taesd: HostTaesd) -> None:
        self._patches = base.patches
        self._options = base.options
        self._messages = base.messages
        self._context = context
        self._taesd = taesd
        self._running: Previews[Image.Image] | None = None
        self._makers: dict[tuple[str, str, int], Previewer] = {}
        self._cells: dict[tuple[str, str, int], int] = {}  # how large the last preview of the last job was
        self._settings = PreviewSettings()
        self._expected = 0.0
        self._failed = False

    def install(self) -> None:
        """Put the patches in place."""
        if not self._options.features.has("previews"):
            return
        from modules import sd_samplers_common, shared_state

        wrap = self._patches.wrap
        wrap(sd_samplers_common, "store_latent", self._store_latent)
        wrap(shared_state.State, "set_current_image", self._set_current_image)
        wrap(shared_state.State, "do_set_current_image", self._do_set_current_image)
        wrap(shared_state.State, "begin", self._begin)
        wrap(shared_state.State, "end", self._end)

    # -- what the web UI calls --------------------------------------------------------------------------------------

    def _store_latent(self, original: Callable[[Tensor], None], decoded: Tensor) -> None:
        """Called by the sampler at every step: nothing in here may fail, last, or write to the latent."""
        if not self._options.repairs.previews:
            with self._context.preview():
                return original(decoded)
        state, opts = shared.state, shared.opts
        state.current_latent = decoded
        try:
            every = opts.show_progress_every_n_steps
            is_due = shared.parallel_processing_allowed or (every > 0 and state.sampling_step % every == 0)
            if opts.live_previews_enable and is_due:
                self._previews().offer(decoded)
        except Exception:  # whatever it is, sampling must go on
            if not self._failed:
                log.exception("no preview")
            self._failed = True
        return None

    def _set_current_image(self, original: Callable[[Any], None], state: Any) -> None:
        """Called by every poll, in its own thread."""
        if not self._options.repairs.previews:
            return original(state)
        opts = shared.opts
        every = opts.show_progress_every_n_steps
        if not shared.parallel_processing_allowed or not opts.live_previews_enable or every == -1:
            return None
        if state.sampling_step < state.current_image_sampling_step:
            state.current_image_sampling_step = 0  # a second pass counts from the beginning; the web UI shows nothing
        previews, latent = self._running, state.current_latent
        if latent is None or state.sampling_step - state.current_image_sampling_step < every:
            return None
        if previews is None:  # stored by somebody who does not call `store_latent`
            previews = self._previews()
            previews.offer(latent)
        previews.ask(PATIENCE)
        return None

    def _do_set_current_image(self, original: Callable[[Any], None], state: Any) -> None:
        """Called at the end of a batch, in the job's own thread."""
        if not self._options.repairs.previews:
            with self._context.preview():
                return original(state)
        if state.current_latent is not None:
            with Previews(self._render, self._show, PreviewTiming(share=1.0, beside=False)) as previews:
                previews.offer(state.current_latent)
        return None

    def _begin(self, original: Callable[..., None], state: Any, *args: Any, **kwargs: Any) -> None:
        self._close()
        original(state, *args, **kwargs)

    def _end(self, original: Callable[[Any], None], state: Any) -> None:
        self._close()
        self._taesd.end_job()
        original(state)

    # -- a job's previews --------------------------------------------------------------------------------------------

    def _previews(self) -> Previews[Image.Image]:
        """The running job's, begun with its first step."""
        if self._running is None:
            self._settings, self._failed = self._options.settings.preview, False
            beside = bool(shared.parallel_processing_allowed)
            timing = PreviewTiming(self._settings.share / 100, beside, on_demand=beside, expected=self._expected)
            sketch = self._sketch if shared.opts.show_progress_type == TAESD else None
            self._running = Previews(self._render, self._show, timing, sketch)
        return self._running

    def _close(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.close()
            self._expected = running.budget.expected
        self._cells |= {key: maker.cells for key, maker in self._makers.items()}
        self._makers.clear()

    def _show(self, image: Image.Image) -> None:
        shared.state.assign_current_image(image)
        shared.state.current_image_sampling_step = shared.state.sampling_step

    def _sketch(self, latent: Tensor) -> Image.Image | None:
        return self._render(latent, linear_method())

    def _render(self, latent: Tensor, method: str | None = None) -> Image.Image | None:
        """One picture of the batch's first latent, or a grid of all, as the web UI's option says."""
        method = method or shared.opts.show_progress_type
        count = len(latent) if shared.opts.show_progress_grid else 1
        side = max(LEAST_SIDE, self._settings.max_side // math.ceil(math.sqrt(count)))
        pictures = [self._picture(latent[i : i + 1], side, method) for i in range(count)]
        if any(picture is None for picture in pictures):
            return None
        if count == 1:
            return pictures[0]
        from modules import images

        grid: Image.Image = images.image_grid(pictures)
        return grid

    def _picture(self, latent: Tensor, side: int, method: str) -> Image.Image | None:
        family = self._taesd.family()
        is_ours = method in (TAESD, linear_method()) or (method == "Approx NN" and not self._taesd.has_approximation())
        if not is_ours or not self._taesd.knows_family:
            from modules import sd_samplers_common

            # not in inference mode: what the web UI loads now would be of no use to other threads
            with torch.no_grad(), self._context.preview():
                theirs: Image.Image = sd_samplers_common.single_sample_to_image(latent[0])
            return theirs
        maker, running = self._maker(family, method, side, latent.device), self._running
        if running is not None:
            maker.slow = running.goal
        pixels = maker(latent)
        return None if pixels is None else Image.fromarray(pixels.numpy())

    def _maker(self, family: str, method: str, side: int, device: torch.device) -> Previewer:
        """The renderer of a family's latents; without TAESD the linear map, and one line says so."""
        key = (family, method, side)
        if key not in self._makers:
            decode: Decode | None = None
            if method == TAESD and self._taesd.has(family, "decoder"):
                decode = self._decoder(family, device)
            elif method == TAESD:
                instead = "The linear preview is shown." if family in LINEAR_RGB else "There is no preview."
                self._messages.notify_once(f"{self._taesd.vaes.missing(family, 'decoder')} {instead}", "warning")
            self._makers[key] = Previewer(FORMATS[family], "taesd" if decode else "linear", side, decode)
            self._makers[key].begin_with(self._cells.get(key, FIRST_CELLS))
        return self._makers[key]

    def _decoder(self, family: str, device: torch.device) -> Decode:
        dtype = getattr(devices, "dtype", torch.float32) if device.type != "cpu" else torch.float32

        def decode(latent: Tensor) -> Tensor:
            vae = self._taesd.vaes.load(family, "decoder", device, dtype)
            return vae.decode(latent, request=self._taesd.request_now().unguarded()) * 0.5 + 0.5

        return decode


def linear_method() -> str:
    """The web UI's name for a linear map from latents to colours."""
    from modules import sd_samplers_common

    ways = sd_samplers_common.approximation_indexes.items()
    return next((str(name) for name, index in ways if index == LINEAR_INDEX), "")
