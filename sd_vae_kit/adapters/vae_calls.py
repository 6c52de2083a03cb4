"""The web UI's encoders and decoders, run by plans that fit into memory.

What is replaced is the forward of their classes: one replacement covers every model and clone, keeps no dropped model
in memory, and lies below whatever wraps `.encode` and `.decode` (`--medvram`) or is put on an instance (other tilers).
Only networks of models in memory are ours; a class may have other users.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sd_vae_kit.adapters.patch import Patches
from sd_vae_kit.core.plan import OnStep
from sd_vae_kit.errors import Interrupted, NoMemoryError, StepAsideError
from sd_vae_kit.features.old_tiled_vae import TileSizes
from sd_vae_kit.features.tiling import INFOTEXT_KEY, Part, RunReport, VaeRunner
from sd_vae_kit.features.tiling_job import JobTiling
from sd_vae_kit.host import Level
from sd_vae_kit.settings import Settings, TilingSettings

PARTS: tuple[Part, ...] = ("encoder", "decoder")
INFOTEXT_KEYS = {"encoder": f"{INFOTEXT_KEY} of encode", "decoder": INFOTEXT_KEY}


class Owner(Protocol):
    """What this needs of the web UI's adapter."""

    patches: Patches

    @property
    def settings(self) -> Settings: ...

    def models(self) -> list[nn.Module]: ...

    def first_stage_of(self, model: nn.Module) -> nn.Module | None: ...

    def notify(self, message: str, level: Level = "info") -> None: ...

    def notify_once(self, message: str, level: Level = "info") -> None: ...

    def compute_dtype(self, network: nn.Module, x: Tensor) -> torch.dtype: ...

    def make_room(self, needed: int) -> bool: ...

    def is_stopped(self) -> bool: ...

    def show_progress(self, text: str | None) -> None: ...

    def out_of_memory(self, error: NoMemoryError) -> Exception: ...


@dataclass
class RunningJob:
    """A job of this thread.

    Attributes:
        p: The web UI's object; its infotext says what was done.
        is_cut: The user stopped a decode of this job, and has not begun another since.
        reports: What the last encode and decode did.
    """

    p: Any
    is_cut: bool = False
    reports: dict[Part, RunReport] = field(default_factory=dict)


class VaeCalls:
    """Replaces the forwards and knows what the thread that calls one is doing.

    Attributes:
        job_tiling: What the running job chose for itself.
        tile_sizes: What a request to the old Tiled VAE extension asked for.
    """

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self.runner = VaeRunner()
        self.job_tiling = JobTiling()
        self.tile_sizes: TileSizes | None = None
        self._here = threading.local()

    # -- the web UI tells ------------------------------------------------------------------------------------------

    def install(self) -> None:
        """Replace the forwards of every loaded model's halves; what is replaced already stays."""
        for _, network in self._networks():
            kind = type(network)
            if not self.owner.patches.is_applied(kind, "forward"):
                self.owner.patches.replace(kind, "forward", lambda original: functools.partial(self._forward, original))

    @contextmanager
    def job(self, p: Any) -> Iterator[None]:
        """A job of this thread; one inside another has its own."""
        outer = self._job
        self._here.job = RunningJob(p)
        try:
            yield
        finally:
            self._here.job = outer

    @contextmanager
    def preview(self) -> Iterator[None]:
        """What is decoded by this thread is shown while a job runs: no progress, no interrupt, no infotext."""
        job, self._here.job = self._job, None
        try:
            yield
        finally:
            self._here.job = job

    def end_job(self) -> None:
        """What a job chose for itself ends with it."""
        self.job_tiling, self.tile_sizes = JobTiling(), None

    def decoding(self, decode: Callable[[], Any], sketch: Callable[[], Any]) -> Any:
        """Decode; if the user stops it, what `sketch` gives: quick, and of the same shape."""
        job = self._job
        if job is not None and job.is_cut:
            job.is_cut = self.owner.is_stopped()
            if job.is_cut:
                return sketch()
        try:
            return decode()
        except Interrupted:
            return sketch()

    # -- what the settings say --------------------------------------------------------------------------------------

    @property
    def _job(self) -> RunningJob | None:
        return getattr(self._here, "job", None)

    def tiling(self) -> TilingSettings:
        """The settings with the job's choices in their place."""
        return self.job_tiling.over(self.owner.settings.tiling)

    def status(self) -> dict[str, object]:
        """What the last encode and decode did, for the API."""
        last = self.runner.last
        return {f"last_{word}": last[part].as_dict() if part in last else None for word, part in WORDS.items()}

    # -- calls ------------------------------------------------------------------------------------------------------

    def _networks(self) -> Iterator[tuple[Part, nn.Module]]:
        for model in self.owner.models():
            vae = self.owner.first_stage_of(model)
            for part in PARTS:
                network = getattr(vae, part, None)
                if isinstance(network, nn.Module):
                    yield part, network

    def _part_of(self, network: object) -> Part | None:
        return next((part for part, known in self._networks() if known is network), None)

    def _forward(
        self, original: Callable[..., Tensor], network: nn.Module, x: Tensor, *args: object, **kwargs: object
    ) -> Tensor:
        """In place of `network.forward(x)`."""
        part = self._part_of(network)
        tiling = self.tiling()
        if part is None or not tiling.enabled or not getattr(tiling, part) or not self._is_ours(network, part, x, args):
            return original(network, x, *args, **kwargs)
        try:
            return self._run(network, part, x, tiling)
        except StepAsideError as error:
            self.owner.notify_once(f"The web UI runs this VAE's {part} itself, without VAE Kit: {error}", "warning")
            return original(network, x, *args, **kwargs)

    def _is_ours(self, network: nn.Module, part: Part, x: object, args: tuple[object, ...]) -> bool:
        """Whether this is a plain call that nobody else looks after."""
        other = vars(network).get("forward")
        if other is not None:
            self.say_who_tiles(other)
            return False
        trains = isinstance(x, Tensor) and torch.is_grad_enabled() and x.requires_grad
        return isinstance(x, Tensor) and x.dim() == 4 and not trains and not any(arg is not None for arg in args)

    def say_who_tiles(self, other: object) -> None:
        """Once: whose replacement of a forward is used instead of ours."""
        name = getattr(other, "__module__", "") or type(other).__module__
        self.owner.notify_once(
            f"Another extension ({name}) has taken over this model's VAE; VAE Kit's tiling steps aside.", "warning"
        )

    def look_for_others(self) -> None:
        """Say it if another extension's replacement lies over ours, which is then not called at all."""
        for _, network in self._networks():
            other = vars(network).get("forward")
            if other is not None:
                self.say_who_tiles(other)

    def _run(self, network: nn.Module, part: Part, x: Tensor, tiling: TilingSettings) -> Tensor:
        dtype = self.owner.compute_dtype(network, x)
        if self.tile_sizes is not None:
            tiling = self.tile_sizes.budget(tiling, network, part, dtype, x.device)
        try:
            with self._watched(part) as on_step:
                result = self.runner.run(
                    network, part, x, dtype=dtype, device=x.device, tiling=tiling, on_step=on_step,
                    make_room=self.owner.make_room,
                )  # fmt: skip
        except NoMemoryError as error:
            raise self.owner.out_of_memory(error) from None
        self._note(part)
        return result

    @contextmanager
    def _watched(self, part: Part) -> Iterator[OnStep | None]:
        """Progress for the page, and whether to go on: a job that was stopped before is decoded to its end."""
        job = self._job
        if job is None:
            yield None
            return
        if job.is_cut and self.owner.is_stopped():
            raise Interrupted("The user stopped this job.")
        was_stopped = self.owner.is_stopped()

        def on_step(done: int, total: int) -> bool:
            self.owner.show_progress(f"VAE {VERBS[part]} {100 * done // max(1, total)}%")
            # an encode is finished: nothing could be made of half a latent
            job.is_cut = part == "decoder" and not was_stopped and self.owner.is_stopped()
            return not job.is_cut

        try:
            yield on_step
        finally:
            self.owner.show_progress(None)

    def _note(self, part: Part) -> None:
        """Say what went wrong on the way, and write into the infotext how the picture was made."""
        report, job = self.runner.mine, self._job
        if report is None:
            return
        if report.failures:
            self.owner.notify(f"{report.failures[-1]}; {report.plan} was used, the picture is the same.", "warning")
        if job is None:
            return
        job.reports[part] = report
        parameters = getattr(job.p, "extra_generation_params", None)
        if parameters is not None:
            parameters.pop(INFOTEXT_KEYS[part], None)
            if report.is_streamed:
                parameters[INFOTEXT_KEYS[part]] = report.infotext


WORDS: dict[str, Part] = {"encode": "encoder", "decode": "decoder"}
VERBS: dict[Part, str] = {part: word for word, part in WORDS.items()}
