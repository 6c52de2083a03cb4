"""The web UI's encoders and decoders, run by plans that fit into memory.

What is replaced is the forward of their classes: one replacement covers every model and clone, keeps no dropped model
in memory, and lies below whatever wraps `.encode` and `.decode` (`--medvram`) or is put on an instance (other tilers).
Only networks of models in memory are ours; a class may have other users.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sd_vae_kit.core.engine.overflow import check_weights
from sd_vae_kit.core.halves import Half
from sd_vae_kit.core.plan.plan import OnStep
from sd_vae_kit.core.run.planning import graph_of
from sd_vae_kit.core.run.report import PRECISION_KEYS, TILING_KEYS, RunReport
from sd_vae_kit.core.run.runner import Runner
from sd_vae_kit.errors import Interrupted, NoMemoryError, StepAsideError, VaeKitError
from sd_vae_kit.hosts.base import HostBase
from sd_vae_kit.hosts.call_context import CallContext, RunningJob
from sd_vae_kit.hosts.parts import CallEnvironment
from sd_vae_kit.hosts.patch import MARK
from sd_vae_kit.hosts.run_settings import LoadedNetworks, RunSettings
from sd_vae_kit.settings.sections import TilingSettings

VERBS: dict[Half, str] = {"encoder": "encode", "decoder": "decode"}


class VaeInterceptor:
    """Replaces the forwards.

    Args:
        base: What the host's parts share.
        environment: Where calls run.
        context: What the calling thread is doing.
        networks: The networks that are ours.
        settings: What holds for one run.
        runner: Runs them.
    """

    def __init__(
        self,
        base: HostBase,
        environment: CallEnvironment,
        context: CallContext,
        networks: LoadedNetworks,
        settings: RunSettings,
        runner: Runner,
    ) -> None:
        self.context = context
        self.settings = settings
        self.runner = runner
        self._patches = base.patches
        self._messages = base.messages
        self._environment = environment
        self._networks = networks

    def install(self) -> None:
        """Replace the forwards of every loaded model's halves; what is replaced already stays."""
        for _, network in self._networks:
            self._patches.wrap(type(network), "forward", self._forward)

    def decoding(self, decode: Callable[[], Any], sketch: Callable[[], Any]) -> Any:
        """Decode; if the user stops it, what `sketch` gives: quick, and of the same shape."""
        job = self.context.running_job
        if job is not None and job.is_cut:
            job.is_cut = self._environment.is_stopped()
            if job.is_cut:
                return sketch()
        try:
            return decode()
        except Interrupted:
            return sketch()

    def say_who_tiles_instead(self) -> None:
        """Say it if another extension's replacement lies over ours, which is then not called at all."""
        for _, network in self._networks:
            other = other_forward(network)
            if other is not None:
                self._say_who_tiles(other)

    # -- one call ----------------------------------------------------------------------------------------------------

    def _forward(
        self, original: Callable[..., Tensor], network: nn.Module, x: Tensor, *args: object, **kwargs: object
    ) -> Tensor:
        """In place of `network.forward(x)`."""
        half = self._networks.half_of(network)
        if half is None or not self._is_ours(network, x, [*args, *kwargs.values()]) or self.context.is_left_to_host:
            return original(network, x, *args, **kwargs)
        try:
            dtype = self._environment.compute_dtype(network, x)
            tiling = self.settings.tiling_for(network, half, dtype, x.device)
            if tiling is None and self.settings.policy().mode == "never":
                return original(network, x)
            # whole, and watched: without tiling a picture can still be black
            return self._run(network, half, x, dtype, tiling or replace(self.settings.tiling(), enabled=False))
        except StepAsideError as error:
            line = f"The web UI runs this VAE's {half} itself, without VAE Kit: {error}"
            self._messages.notify_once(line, "warning")
            return original(network, x, *args, **kwargs)
        except VaeKitError as error:
            if self.context.running_job is not None:
                self.context.running_job.failure = error
            raise

    def _is_ours(self, network: nn.Module, x: object, further: Sequence[object]) -> bool:
        """Whether this is a plain call that nobody else looks after."""
        other = other_forward(network)
        if other is not None:
            self._say_who_tiles(other)
            return False
        trains = isinstance(x, Tensor) and torch.is_grad_enabled() and x.requires_grad
        return isinstance(x, Tensor) and x.dim() == 4 and not trains and all(value is None for value in further)

    def _say_who_tiles(self, other: object) -> None:
        """Say once whose replacement of a forward is used instead of ours."""
        name = getattr(other, "__module__", "") or type(other).__module__
        self._messages.notify_once(
            f"Another extension ({name}) has taken over this model's VAE; VAE Kit's tiling steps aside.", "warning"
        )

    def _run(self, network: nn.Module, half: Half, x: Tensor, dtype: torch.dtype, tiling: TilingSettings) -> Tensor:
        make_room = None if self.context.is_preview else self._environment.make_room
        request = self.settings.request(network, half, dtype, tiling, make_room)
        try:
            with self._watched(half) as on_step:
                result = self.runner.run(network, half, x, replace(request, on_step=on_step))
        except NoMemoryError as error:
            raise self._environment.out_of_memory(error) from None
        self._note(result.report)
        if half == "encoder":
            self._check_quant_conv(network)
        return result.tensor

    def _check_quant_conv(self, encoder: nn.Module) -> None:
        """Look at the few numbers of the layer after the encoder, too, which the web UI runs itself.

        Raises:
            NanError: One of them is not finite.
        """
        vae = self._networks.vae_of(encoder, "encoder")
        layer = getattr(vae, "quant_conv", None)
        if vae is not None and isinstance(layer, nn.Module) and self.settings.policy().mode != "never":
            check_weights(graph_of(encoder, "encoder"), self.settings.label_of(vae), [layer])

    @contextmanager
    def _watched(self, half: Half) -> Iterator[OnStep | None]:
        """Show progress, and say whether to go on: a job that was stopped before is decoded to its end."""
        job, environment = self.context.running_job, self._environment
        if job is None:
            yield None
            return
        if job.is_cut and environment.is_stopped():
            raise Interrupted("The user stopped this job.")
        was_stopped = environment.is_stopped()

        def on_step(done: int, total: int) -> bool:
            environment.show_progress(f"VAE {VERBS[half]} {100 * done // max(1, total)}%")
            # an encode is finished: nothing could be made of half a latent
            job.is_cut = half == "decoder" and not was_stopped and environment.is_stopped()
            return not job.is_cut

        try:
            yield on_step
        finally:
            environment.show_progress(None)

    def _note(self, report: RunReport) -> None:
        """Say what went wrong on the way, and write into the infotext how the picture was made."""
        job = self.context.running_job
        if report.rescue:
            self._messages.notify(report.rescue, "warning")
        if job is not None:
            job.reports[report.half] = report
            write_infotext(job, report)


def write_infotext(job: RunningJob, report: RunReport) -> None:
    """Write into a job's picture how its VAE was run; what an earlier picture said is taken away."""
    parameters = getattr(job.p, "extra_generation_params", None)
    if parameters is not None:
        for keys in (TILING_KEYS, PRECISION_KEYS):
            parameters.pop(keys[report.half], None)
        parameters.update(report.infotext())
    comment = getattr(job.p, "comment", None)
    if report.precision and comment is not None:
        comment(f"VAE: {report.precision}")  # a line below the picture


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
