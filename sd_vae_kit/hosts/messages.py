"""Lines for the user of a web UI, and errors in the form that the web UI's callers understand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sd_vae_kit.errors import VaeKitError
from sd_vae_kit.vaes.host_protocol import Level

Listener = Callable[[str, Level], None]


@dataclass(frozen=True)
class Outlet:
    """Where a host's lines go; the layer that knows the page makes it.

    Attributes:
        show: Shows one line wherever the user looks.
        notice: Shows one line on the page that is being served.
        refusal: The exception that a caller over HTTP or from the page understands; made from one of ours.
    """

    show: Listener
    notice: Callable[[str], None]
    refusal: type[Exception]


class HostMessages:
    """What one web UI's user is told.

    Args:
        outlet: Where lines go.
    """

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet
        self._listeners: list[Listener] = [outlet.show]
        self._said: set[str] = set()

    def listen(self, listener: Listener) -> None:
        """Let `listener` hear every later line, too."""
        self._listeners.append(listener)

    def notify(self, message: str, level: Level = "info") -> None:
        """Show one line to the user."""
        for listener in self._listeners:
            listener(message, level)

    def notify_once(self, message: str, level: Level = "info") -> None:
        """Show a line that was not shown since the start."""
        if message not in self._said:
            self._said.add(message)
            self.notify(message, level)

    def notice(self, message: str) -> None:
        """Show one line on the page that is being served, and nowhere else."""
        self._outlet.notice(message)

    def refused(self, error: VaeKitError) -> Exception:
        """The error as the web UI's callers understand it."""
        return self._outlet.refusal(error)

    def is_refusal(self, error: Exception) -> bool:
        """Whether an exception came from `refused`."""
        return isinstance(error, self._outlet.refusal)


class DeferredErrors:
    """Errors of one thread's swaps, collected while its caller waits who makes one line of them.

    Args:
        messages: Shape an error that nobody collects.
    """

    def __init__(self, messages: HostMessages) -> None:
        self._messages = messages
        self._thread = threading.local()

    @contextmanager
    def collected(self) -> Iterator[list[VaeKitError]]:
        """Collect this thread's errors while the block runs."""
        outer, self._thread.errors = self._collected_now, []
        try:
            yield self._thread.errors
        finally:
            self._thread.errors = outer

    @property
    def is_collecting(self) -> bool:
        """Whether this thread's errors are collected now."""
        return self._collected_now is not None

    def add(self, error: VaeKitError) -> None:
        """Collect an error, or raise it, as `HostMessages.refused` shapes it, where this thread collects none."""
        collected = self._collected_now
        if collected is None:
            raise self._messages.refused(error) from error
        collected.append(error)

    @property
    def _collected_now(self) -> list[VaeKitError] | None:
        return getattr(self._thread, "errors", None)
