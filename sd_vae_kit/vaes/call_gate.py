"""Many encodes and decodes at once, or one exchange of weights: it waits for running calls and keeps new ones out."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class CallGate:
    """A lock for one VAE that any number of callers share and one writer holds alone.

    A thread inside may enter again, also as a writer: a host's encode may call its decode, and a script running between
    the two may choose another VAE.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._callers: dict[int, int] = {}  # thread -> how deep inside
        self._writer: int | None = None
        self._depth = 0
        self._writers_waiting = 0

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Hold while the VAE computes."""
        me = threading.get_ident()
        with self._changed:
            self._changed.wait_for(lambda: me in (self._writer, *self._callers) or self._is_open())
            self._callers[me] = self._callers.get(me, 0) + 1
        try:
            yield
        finally:
            with self._changed:
                self._callers[me] -= 1
                if not self._callers[me]:
                    del self._callers[me]
                    self._changed.notify_all()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold while its weights change."""
        me = threading.get_ident()
        with self._changed:
            self._writers_waiting += 1
            try:
                self._changed.wait_for(lambda: self._writer in (None, me) and not (self._callers.keys() - {me}))
            finally:
                self._writers_waiting -= 1
            self._writer = me
            self._depth += 1
        try:
            yield
        finally:
            with self._changed:
                self._depth -= 1
                if not self._depth:
                    self._writer = None
                    self._changed.notify_all()

    def _is_open(self) -> bool:
        """Nobody writes, and nobody has waited for that already: previews must not keep a swap out for ever."""
        return self._writer is None and not self._writers_waiting
