"""Encodes and decodes as a web UI calls them: an exchange of weights waits for those that run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from sd_vae_kit.hosts.patch import Patches
from sd_vae_kit.vaes.call_gate import CallGate


class AroundCall(Protocol):
    """What happens around one call."""

    def __call__(self, name: str, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Make the call; `name` is the function's."""


def plain_call(name: str, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The call alone."""
    return original(*args, **kwargs)


class GuardedCalls:
    """Holds the gate while a replaced function runs.

    Args:
        patches: What is replaced in the web UI.
        gate: Held by calls, and by whoever exchanges weights.
        around: Makes each call.
    """

    def __init__(self, patches: Patches, gate: CallGate, around: AroundCall = plain_call) -> None:
        self._patches = patches
        self._gate = gate
        self._around = around

    def guard(self, owner: object, names: Iterable[str]) -> None:
        """Let a swap wait for the running calls of an object's or a class' functions."""
        for name in names:
            if hasattr(owner, name) and not self._patches.is_applied(owner, name):
                self._patches.replace(owner, name, functools.partial(self._guarded, name))

    def _guarded(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with self._gate.calling():
                return self._around(name, original, *args, **kwargs)

        return call
