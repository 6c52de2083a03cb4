"""The web UI's encoders and decoders, run by plans that fit into memory.

What is replaced is the forward of their classes: one replacement covers every model and clone, keeps no dropped model
in memory, and lies below whatever wraps `.encode` and `.decode` (`--medvram`) or is put on an instance (other tilers).
Only networks of models in memory are ours; a class may have other users.
"""

from __future__ import annotations

import functools
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from sd_vae_kit.core.engine.overflow import check_weights
from sd_vae_kit.core.halves import HALVES, Half
from sd_vae_kit.core.plan.plan import OnStep
from sd_vae_kit.core.run.forecast import forecast
from sd_vae_kit.core.run.planning import graph_of
from sd_vae_kit.core.run.precision_policy import PrecisionPolicy, policy_of
from sd_vae_kit.core.run.report import PRECISION_KEYS, TILING_KEYS, RunReport
from sd_vae_kit.core.run.request import RunRequest
from sd_vae_kit.core.run.runner import Runner
from sd_vae_kit.core.run.sentence import stepped_aside
from sd_vae_kit.errors import Interrupted, NoMemoryError, StepAsideError
from sd_vae_kit.hosts.multidiffusion_compat import TileSizes
from sd_vae_kit.hosts.patch import MARK, Patches
from sd_vae_kit.settings.job import JobTiling
from sd_vae_kit.settings.sections import Settings, TilingSettings
from sd_vae_kit.vaes.host_protocol import Level
from sd_vae_kit.wording import Sentence


class InterceptedHost(ABC):
    """What `VaeInterceptor` needs of a web UI's adapter; the defaults are of a program that shows and stops nothing."""

    patches: Patches

    @property
    @abstractmethod
    def settings(self) -> Settings:
        """The values now."""

    @abstractmethod
    def models(self) -> list[nn.Module]:
        """Every model in memory."""

    @abstractmethod
    def first_stage_of(self, model: nn.Module) -> nn.Module | None:
        """A model's live VAE module."""

    @abstractmethod
    def notify(self, message: str, level: Level = "info") -> None:
        """Show one line to the user."""

    @abstractmethod
    def notify_once(self, message: str, level: Level = "info") -> None:
        """The same sentence once per start."""

    def compute_dtype(self, network: nn.Module, x: Tensor) -> torch.dtype:
        """What a network computes in: its weights' type, whatever autocast would make of the input."""
        kept = next((parameter.dtype for parameter in network.parameters()), x.dtype)
        return kept if kept in (torch.float16, torch.bfloat16, torch.float32, torch.float64) else x.dtype

    def place(self, network: nn.Module) -> tuple[torch.device, torch.dtype]:
        """Where a network of the model in use will compute, and in what."""
        first = next(network.parameters())
        return first.device, self.compute_dtype(network, first)

    @abstractmethod
    def live_vae(self) -> nn.Module | None:
        """The VAE of the model in use; None while there is none."""

    def policy(self) -> PrecisionPolicy:
        """What is allowed where half precision overflows; programs add options of their own."""
        return policy_of(self.settings.precision)

    def label_of(self, vae: nn.Module) -> str:
        """What messages call a VAE."""
        return "this VAE"

    def make_room(self, needed: int) -> bool:
        """Free so many bytes on the VAE's device by moving other models away; whether anything was moved."""
        return False

    def is_stopped(self) -> bool:
        """Whether the user wants the running job to end."""
        return False

    def show_progress(self, text: str | None) -> None:  # noqa: B027 - some programs have no place for it
        """A few words beside the progress bar; None takes them away."""

    def out_of_memory(self, error: NoMemoryError) -> Exception:
        """The error in a form that the program knows what to do with."""
        return error

    def around_call(self, name: str, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """An encode or decode as the program calls it; `name` is the function's."""
        return original(*args, **kwargs)


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
    reports: dict[Half, RunReport] = field(default_factory=dict)


class VaeInterceptor:
    """Replaces the forwards and knows what the thread that calls one is doing.

    Attributes:
        job_tiling: What the running job chose for itself.
        tile_sizes: What a request to the old Tiled VAE extension asked for.
    """

    def __init__(self, owner: InterceptedHost) -> None:
        self.owner = owner
        self.runner = Runner()
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
        """What is decoded by this thread is shown while a job runs: no progress, no interrupt, no infotext.

        Nor is room made for it: the models that would be moved away are those that the job is computing with.
        """
        outer = self._job, self.is_preview
        self._here.job, self._here.is_preview = None, True
        try:
            yield
        finally:
            self._here.job, self._here.is_preview = outer

    @contextmanager
    def aside(self) -> Iterator[None]:
        """This thread's calls are left to the program while the block runs."""
        self._here.is_aside, before = True, getattr(self._here, "is_aside", False)
        try:
            yield
        finally:
            self._here.is_aside = before

    @contextmanager
    def choices_kept(self) -> Iterator[None]:
        """What a job chooses for itself while the block runs ends with it; an outer job's choice holds again."""
        outer = self.job_tiling, self.tile_sizes
        try:
            yield
        finally:
            self.job_tiling, self.tile_sizes = outer

    def end_job(self) -> None:
        """Forget a choice that a job left behind."""
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

    @property
    def is_preview(self) -> bool:
        """Whether what this thread decodes now is a preview."""
        return bool(getattr(self._here, "is_preview", False))

    @property
    def is_aside(self) -> bool:
        """Whether this thread's calls are left to the program."""
        return bool(getattr(self._here, "is_aside", False))

    def request(self, network: nn.Module, part: Half, dtype: torch.dtype, tiling: TilingSettings) -> RunRequest:
        """How one call is run: what it may do, and what messages call the VAE of this half."""
        vae = next((vae for vae in self._vaes() if getattr(vae, part, None) is network), network)
        before = getattr(vae, "post_quant_conv", None) if part == "decoder" else None
        layers = (before,) if isinstance(before, nn.Module) else ()
        make_room = None if self.is_preview else self.owner.make_room
        return RunRequest(
            tiling, self.owner.policy(), self.owner.label_of(vae), layers, dtype=dtype, make_room=make_room
        )

    def tiling(self) -> TilingSettings:
        """The settings with the job's choices in their place."""
        return self.job_tiling.over(self.owner.settings.tiling)

    def tiling_for(
        self, network: nn.Module, part: Half, dtype: torch.dtype, device: torch.device
    ) -> TilingSettings | None:
        """The settings for one call; None where it is left to the program.

        Raises:
            StepAsideError: The network is not understood.
        """
        if self.is_aside:
            return None
        tiling = self.tiling()
        if self.tile_sizes is not None:
            return self.tile_sizes.budget(tiling, network, part, dtype, device)
        return tiling if tiling.enabled and getattr(tiling, part) else None

    def forecast(self, size: tuple[int, int], job: JobTiling) -> Sentence:
        """What would happen to a picture of (height, width) pixels now."""
        vae = self.owner.live_vae()
        network = getattr(vae, "decoder", None)
        if not isinstance(network, nn.Module):
            return Sentence.of("No checkpoint is loaded yet.")
        if other_forward(network) is not None:
            return stepped_aside("another extension has taken it over.")
        device, dtype = self.owner.place(network)
        return forecast(network, size, dtype, device, job.over(self.owner.settings.tiling))

    # -- calls ------------------------------------------------------------------------------------------------------

    def _vaes(self) -> Iterator[nn.Module]:
        found = (self.owner.first_stage_of(model) for model in self.owner.models())
        return (vae for vae in found if vae is not None)

    def _networks(self) -> Iterator[tuple[Half, nn.Module]]:
        for vae in self._vaes():
            for part in HALVES:
                network = getattr(vae, part, None)
                if isinstance(network, nn.Module):
                    yield part, network

    def _part_of(self, network: object) -> Half | None:
        return next((part for part, known in self._networks() if known is network), None)

    def _forward(
        self, original: Callable[..., Tensor], network: nn.Module, x: Tensor, *args: object, **kwargs: object
    ) -> Tensor:
        """In place of `network.forward(x)`."""
        part = self._part_of(network)
        if part is None or not self._is_ours(network, x, [*args, *kwargs.values()]):
            return original(network, x, *args, **kwargs)
        try:
            dtype = self.owner.compute_dtype(network, x)
            tiling = self.tiling_for(network, part, dtype, x.device)
            if tiling is None and (self.is_aside or self.owner.policy().mode == "never"):
                return original(network, x)
            # whole, and watched: without tiling a picture can still be black
            return self._run(network, part, x, dtype, tiling or replace(self.tiling(), enabled=False))
        except StepAsideError as error:
            self.owner.notify_once(f"The web UI runs this VAE's {part} itself, without VAE Kit: {error}", "warning")
            return original(network, x, *args, **kwargs)

    def _is_ours(self, network: nn.Module, x: object, further: Sequence[object]) -> bool:
        """Whether this is a plain call that nobody else looks after."""
        other = other_forward(network)
        if other is not None:
            self.say_who_tiles(other)
            return False
        trains = isinstance(x, Tensor) and torch.is_grad_enabled() and x.requires_grad
        return isinstance(x, Tensor) and x.dim() == 4 and not trains and all(value is None for value in further)

    def say_who_tiles(self, other: object) -> None:
        """Once: whose replacement of a forward is used instead of ours."""
        name = getattr(other, "__module__", "") or type(other).__module__
        self.owner.notify_once(
            f"Another extension ({name}) has taken over this model's VAE; VAE Kit's tiling steps aside.", "warning"
        )

    def look_for_others(self) -> None:
        """Say it if another extension's replacement lies over ours, which is then not called at all."""
        for _, network in self._networks():
            other = other_forward(network)
            if other is not None:
                self.say_who_tiles(other)

    def _run(self, network: nn.Module, part: Half, x: Tensor, dtype: torch.dtype, tiling: TilingSettings) -> Tensor:
        request = self.request(network, part, dtype, tiling)
        try:
            with self._watched(part) as on_step:
                result = self.runner.run(network, part, x, replace(request, on_step=on_step))
        except NoMemoryError as error:
            raise self.owner.out_of_memory(error) from None
        self._note(result.report)
        if part == "encoder":
            self._check_quant_conv(network)
        return result.tensor

    def _check_quant_conv(self, encoder: nn.Module) -> None:
        """The layer after the encoder, which the program runs itself: its few numbers are looked at, too.

        Raises:
            NanError: One of them is not finite.
        """
        vae = next((vae for vae in self._vaes() if getattr(vae, "encoder", None) is encoder), None)
        layer = getattr(vae, "quant_conv", None)
        if vae is not None and isinstance(layer, nn.Module) and self.owner.policy().mode != "never":
            check_weights(graph_of(encoder, "encoder"), self.owner.label_of(vae), [layer])

    @contextmanager
    def _watched(self, part: Half) -> Iterator[OnStep | None]:
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

    def _note(self, report: RunReport) -> None:
        """Say what went wrong on the way, and write into the infotext how the picture was made."""
        job = self._job
        if report.rescue:
            self.owner.notify(report.rescue, "warning")
        if job is None:
            return
        job.reports[report.half] = report
        parameters = getattr(job.p, "extra_generation_params", None)
        if parameters is not None:
            for keys in (TILING_KEYS, PRECISION_KEYS):
                parameters.pop(keys[report.half], None)
            parameters.update(report.infotext())
        if report.precision and hasattr(job.p, "comment"):
            job.p.comment(f"VAE: {report.precision}")  # a line below the picture


def other_forward(network: nn.Module) -> object | None:
    """What somebody has put on this network in place of its class's forward; None where it is that itself.

    Extensions that hook and unhook leave the class's forward on the instance, bound, as they found it.  Found before
    our replacement was there, it would hide it for good, so it is taken away: it says nothing that the class does not.
    """
    own: object = vars(network).get("forward")
    function, current = getattr(own, "__func__", None), type(network).forward
    if own is None or function is current:
        return None
    patch = getattr(current, MARK, None)
    if patch is not None and function is patch.original and getattr(own, "__self__", None) is network:
        del network.forward
        return None
    return own


VERBS: dict[Half, str] = {"encoder": "encode", "decoder": "decode"}
