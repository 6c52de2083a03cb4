"""How options and jobs reach Forge: SD VAE is set by the page, by the API, or by one request for itself."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from modules import options, processing, shared

from sd_vae_kit.errors import VaeKitError
from sd_vae_kit.hosts.a1111.refused_options import RefusedOptions
from sd_vae_kit.hosts.base import HostBase
from sd_vae_kit.hosts.call_context import CallContext
from sd_vae_kit.hosts.forge.options import VaeInForce
from sd_vae_kit.hosts.forge.switch import ForgeSwitch
from sd_vae_kit.hosts.jobs import HostJobs
from sd_vae_kit.hosts.messages import DeferredErrors
from sd_vae_kit.hosts.parts import InfotextNames


class OptionCalls:
    """Functions that set options.

    Args:
        base: What the host's parts share.
        switch: Makes VAEs live.
        refused: Stands for `Options.set`.
        deferred: Where `Options.set` looks for errors.
    """

    def __init__(self, base: HostBase, switch: ForgeSwitch, refused: RefusedOptions, deferred: DeferredErrors) -> None:
        self._base = base
        self._switch = switch
        self._refused = refused
        self._deferred = deferred
        self._thread = threading.local()  # what this thread is in the middle of

    def install(self) -> None:
        """Put the patches in place."""
        features, wrap = self._base.options.features, self._base.patches.wrap
        if features.has("refusals"):
            from modules import sysinfo

            wrap(options.Options, "set", self._set_option)
            wrap(sysinfo, "set_config", self._set_config_by_api)
        if features.has("requests"):
            wrap(processing, "set_config", self._set_config)

    def on_sd_vae_changed(self) -> None:
        """Make the VAE live that the dropdown or the API named; a running job keeps what it began with.

        Raises:
            VaeKitError: As `HostMessages.refused` shapes it; nothing has changed.
        """
        if getattr(self._thread, "is_setting_request", False):
            return
        try:
            self._switch.apply()
        except VaeKitError as error:
            self._deferred.add(error)

    def _set_config_by_api(self, original: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        """POST /options, which does not say that it is the API (api.py:688)."""
        self._thread.is_answering = True
        try:
            original(*args, **kwargs)
        finally:
            self._thread.is_answering = False

    def _set_option(
        self, original: Callable[..., bool], opts: Any, key: str, value: object, *args: Any, **kwargs: Any
    ) -> bool:
        if key == "sd_vae" and getattr(self._thread, "is_answering", False):
            kwargs["is_api"] = True
        return self._refused.set_option(original, opts, key, value, *args, **kwargs)

    def _set_config(self, original: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        """A request's options on their way in and out; going out must not fail for the sake of a VAE gone meanwhile."""
        self._thread.is_setting_request = True
        try:
            original(*args, **kwargs)
        finally:
            self._thread.is_setting_request = False
            if kwargs.get("run_callbacks", True):
                self._switch.apply_or_say()


class ForgeJobHook:
    """`processing.process_images_inner`: options are set and the model is loaded.

    Args:
        base: What the host's parts share.
        jobs: What the running job chose.
        context: Told of the thread's job.
        in_force: Where SD VAE is held while the job runs.
        switch: Makes VAEs live.
        infotext: Names the live VAE in pictures.
    """

    def __init__(
        self,
        base: HostBase,
        jobs: HostJobs,
        context: CallContext,
        in_force: VaeInForce,
        switch: ForgeSwitch,
        infotext: InfotextNames,
    ) -> None:
        self._base = base
        self._jobs = jobs
        self._context = context
        self._in_force = in_force
        self._switch = switch
        self._infotext = infotext

    def install(self) -> None:
        """Put the patch in place."""
        if self._base.options.features.has("jobs"):
            self._base.patches.wrap(processing, "process_images_inner", self._process_images_inner)

    def _process_images_inner(self, original: Callable[..., object], p: Any, *args: Any, **kwargs: Any) -> object:
        """What a job changed ends with it, also when it fails."""
        with self._setting_held(), self._jobs.job(), self._context.job(p):
            self._begin(p)
            return original(p, *args, **kwargs)

    @contextmanager
    def _setting_held(self) -> Iterator[None]:
        """Hold SD VAE as it is now; changed meanwhile, it is applied at the outermost end."""
        outer, self._in_force.job = self._in_force.job, str(shared.opts.sd_vae)
        try:
            yield
        finally:
            self._in_force.job = outer

    def _begin(self, p: Any) -> None:
        """Make the job's VAE live.

        Raises:
            VaeKitError: As `HostMessages.refused` shapes it, if the request itself named the VAE; else the job goes on
                with the live one, and a line says so.
        """
        try:
            self._switch.apply()
        except VaeKitError as error:
            if self._in_force.request is not None or "sd_vae" in (p.override_settings or {}):
                raise self._base.messages.refused(error) from error
            self._switch.say_it_stays(error)
        self._infotext.write(p)


class PageTasks:
    """Jobs from the page, which a thread of the web UI's own runs.

    Args:
        base: What the host's parts share.
    """

    def __init__(self, base: HostBase) -> None:
        self._base = base

    def install(self) -> None:
        """Put the patch in place."""
        if self._base.options.features.has("errors"):
            from modules_forge import main_thread

            self._base.patches.wrap(main_thread.Task, "work", self._work)

    def _work(self, original: Callable[[Any], None], task: Any) -> None:
        """Let a refused job be a line on the page, without the traceback that the web UI prints."""
        from modules_forge import main_thread

        function, refusals = task.func, list[Exception]()

        def quietly(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            except Exception as error:
                if not self._base.messages.is_refusal(error):
                    raise
                refusals.append(error)

        task.func = quietly
        original(task)
        for error in refusals:  # the web UI shows what it finds there; Neo keeps the text only
            in_words = f"{type(error).__name__}: {error}"
            main_thread.last_exception = error if hasattr(task, "exception") else in_words
