"""An option whose VAE cannot be used goes back to what it was; an API request is told, a page gets one line."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sd_vae_kit.hosts.messages import DeferredErrors, HostMessages

REMIND_SECONDS = 5.0


@dataclass(frozen=True)
class Refused:
    """An option that just went back.

    Attributes:
        key: The option.
        value: What it went back to.
        message: What was said.
        until: When the page has surely put it back, too; on the clock of `time.monotonic`.
    """

    key: str
    value: object
    message: str
    until: float


class RefusedOptions:
    """Stands for `Options.set`.

    Left to itself the web UI prints a traceback, reverts the option and answers 200 (options.py:150).

    Args:
        messages: Tell the user.
        deferred: Collects what goes wrong while an option is set.
    """

    def __init__(self, messages: HostMessages, deferred: DeferredErrors) -> None:
        self._messages = messages
        self._deferred = deferred
        self._refused: Refused | None = None

    def set_option(
        self, original: Callable[..., bool], opts: Any, key: str, value: object, *args: Any, **kwargs: Any
    ) -> bool:
        """Set an option.

        Raises:
            VaeKitError: As `HostMessages.refused` shapes it: the VAE cannot be used, and the API asked for it.
        """
        before = opts.data.get(key, opts.get_default(key))
        with self._deferred.collected() as errors:
            changed = original(opts, key, value, *args, **kwargs)
        if not errors:
            self._remind(key, value, changed)
            return changed
        opts.data[key] = before
        message = f"{str(errors[0]).rstrip('.')}. The option stays at {before}."
        self._messages.notify(message, "error")
        self._refused = Refused(key, before, message, time.monotonic() + REMIND_SECONDS)
        if kwargs.get("is_api", bool(args and args[0])):
            raise self._messages.refused(type(errors[0])(message)) from errors[0]
        return False

    def _remind(self, key: str, value: object, changed: bool) -> None:
        """Say it again: the page puts a refused option back, which sends it again and clears the line that said why."""
        refused = self._refused
        if refused is None or changed or time.monotonic() > refused.until:
            self._refused = None
        elif (refused.key, refused.value) == (key, value):
            self._messages.notice(refused.message)
