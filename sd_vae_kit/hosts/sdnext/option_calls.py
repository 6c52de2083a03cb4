"""How options reach SD.Next: from the page and over the API, by one function."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from modules import options_handler

from sd_vae_kit.hosts.base import HostBase
from sd_vae_kit.hosts.messages import DeferredErrors


class SetOption:
    """`Options.set`: a VAE that cannot be used leaves the option where it was, and one line says so.

    Args:
        base: What the host's parts share.
        deferred: Collects what goes wrong while an option is set.
    """

    def __init__(self, base: HostBase, deferred: DeferredErrors) -> None:
        self._base = base
        self._deferred = deferred
        self._thread = threading.local()

    def install(self) -> None:
        """Put the patches in place."""
        if self._base.options.features.has("refusals"):
            from modules.api import options

            self._base.patches.wrap(options_handler.Options, "set", self._set_option)
            self._base.patches.wrap(options, "set_options", self._set_options_by_api)

    def _set_options_by_api(self, original: Callable[..., object], *args: Any, **kwargs: Any) -> object:
        """POST /options, which is told what a page reads as one line."""
        self._thread.is_answering = True
        try:
            return original(*args, **kwargs)
        finally:
            self._thread.is_answering = False

    def _set_option(
        self, original: Callable[..., bool], opts: Any, key: str, value: object, *args: Any, **kwargs: Any
    ) -> bool:
        before = opts.data.get(key, opts.get_default(key))
        with self._deferred.collected() as errors:
            changed = original(opts, key, value, *args, **kwargs)
        if not errors:
            return changed
        opts.data[key] = before
        line = f"{str(errors[0]).rstrip('.')}. The option stays at {before}."
        self._base.messages.notify(line, "error")
        if getattr(self._thread, "is_answering", False):
            raise self._base.messages.refused(type(errors[0])(line)) from errors[0]
        return False
