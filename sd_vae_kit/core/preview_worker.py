"""Previews beside the sampling: a thread of their own renders copies of the latent, and the job never waits for it.

The sampler calls `offer` at every step.  That copies the latent (a sampler may write into its own afterwards) and
returns; one picture is rendered at a time, the newest copy wins, and a budget keeps rendering below a part of the job's
wall time.  Whatever goes wrong in here is one line in the log.  Where a host forbids work beside the sampling
(`--medvram`, `--lowvram`), the same object renders inside `offer`, under the same budget.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, TypeVar

import torch
from torch import Tensor

log = logging.getLogger(__name__)

STEPS_PER_PREVIEW = 8  # that many steps may pass until the next one
LEAST_GOAL, MOST_GOAL = 0.02, 1.0  # seconds
LAST_WAIT = 5.0  # seconds that `close` waits for a picture that is being rendered

Picture = TypeVar("Picture")


@dataclass
class Budget:
    """How much of the time may go into previews.

    Attributes:
        share: Part of the wall time, in (0, 1]; 1 is no limit.
        expected: Seconds the next preview will take, as far as is known: the last one's.
        spent: Seconds that all of them took.
    """

    share: float
    expected: float = 0.0
    spent: float = 0.0

    def wait(self, elapsed: float, expected: float | None = None) -> float:
        """Seconds until a preview may begin, `elapsed` seconds after the start of the job; 0 for now.

        Args:
            expected: Seconds it will take; None for the last one's.
        """
        if self.share >= 1:
            return 0.0
        expected = self.expected if expected is None else expected
        return max(0.0, (self.spent + expected) / self.share - elapsed)

    def took(self, seconds: float, *, is_sketch: bool = False) -> None:
        """Account for one preview."""
        if not is_sketch:
            self.expected = seconds
        self.spent += seconds


@dataclass(frozen=True)
class PreviewTiming:
    """When previews are made.

    Attributes:
        share: Part of the wall time that rendering may take.
        beside: Whether rendering happens in a thread of its own; else inside `offer`.
        on_demand: Render only what was asked for with `ask`; else whatever is offered.
        expected: Seconds the first preview will take, if it is known from an earlier job.
    """

    share: float = 0.2
    beside: bool = True
    on_demand: bool = False
    expected: float = 0.0


class Previews(Generic[Picture]):
    """The previews of one job.

    Args:
        render: From a latent (B, C, h, w) that it may keep and change to a picture, or None for none.
        show: What is done with the picture; called in the thread that rendered it, never after `close`.
        timing: When.
        sketch: A cheaper `render`, for the time until the budget allows the first real one.
    """

    def __init__(
        self,
        render: Callable[[Tensor], Picture | None],
        show: Callable[[Picture], object],
        timing: PreviewTiming = PreviewTiming(),
        sketch: Callable[[Tensor], Picture | None] | None = None,
    ) -> None:
        self.budget = Budget(timing.share, timing.expected)
        self.rendered = 0
        self.failure = ""
        self.lasted = 0.0  # seconds from the beginning to `close`
        self._render: Callable[[Tensor], Picture | None] | None = render
        self._sketch = sketch
        self._sketch_seconds = 0.0
        self._show: Callable[[Picture], object] | None = show
        self._beside = timing.beside
        self._on_demand = timing.on_demand
        self._changed = threading.Condition()
        self._started = time.perf_counter()
        self._offers = 0
        self._waiting: _Copy | None = None
        self._is_asked = False
        self._is_rendering = False
        self._closed = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Previews[Picture]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def offer(self, latent: Tensor) -> None:
        """Here is a newer latent; it is only read, and only during this call.  Never raises."""
        if self._closed:
            return
        try:
            copy = _Copy(latent)
        except Exception as error:  # no memory for a copy: sampling must go on
            self._failed(error)
            return
        with self._changed:
            if self._closed:
                return
            self._waiting = copy
            self._offers += 1
            if not self._beside:
                if self._wait_seconds() > 0 or not self._is_wanted():
                    return
                self._take()
            else:
                self._begin_thread()
                self._changed.notify_all()
                return
        self._make(copy)

    @property
    def goal(self) -> float:
        """Seconds that one picture may take, so that some are shown at this pace of steps; renderers shrink for it."""
        if self.budget.share >= 1:
            return math.inf
        pace = (time.perf_counter() - self._started) / max(1, self._offers)
        return min(MOST_GOAL, max(LEAST_GOAL, self.budget.share * pace * STEPS_PER_PREVIEW))

    def ask(self, patience: float) -> bool:
        """Have the newest latent rendered, and wait for it in the calling thread.

        Args:
            patience: Seconds to wait at most; what is rendered later is still shown.

        Returns:
            Whether a picture of the newest latent has been made; False where the budget says not yet.
        """
        end = time.perf_counter() + patience
        with self._changed:
            self._is_asked = True
            self._changed.notify_all()
            while not self._closed and (self._waiting is not None or self._is_rendering):
                left = end - time.perf_counter()
                if left <= 0 or (not self._is_rendering and self._wait_seconds() > left):
                    return False
                self._changed.wait(left)
            return not self._closed and self.rendered > 0

    def close(self) -> None:
        """The job has ended: forget latents and pictures; a picture still being rendered is not shown any more."""
        with self._changed:
            if not self._closed:
                self.lasted = time.perf_counter() - self._started
            self._closed = True
            self._waiting = self._render = self._sketch = self._show = None
            self._changed.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(LAST_WAIT)

    def _is_wanted(self) -> bool:
        return self._is_asked or not self._on_demand

    def _wait_seconds(self) -> float:
        """Until a picture may be made, by `render` or by `sketch`."""
        elapsed = time.perf_counter() - self._started
        seconds = self.budget.wait(elapsed)
        if seconds > 0 and self._sketch is not None:
            return min(seconds, self.budget.wait(elapsed, self._sketch_seconds))
        return seconds

    def _begin_thread(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="vae-kit-preview", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while True:
            copy = self._next()
            if copy is None:
                return
            self._make(copy)
            del copy  # not kept while waiting for the next one

    def _next(self) -> _Copy | None:
        """The newest latent as soon as one is wanted and allowed; None at the end."""
        with self._changed:
            while not self._closed:
                if self._waiting is None or not self._is_wanted():
                    self._changed.wait()
                elif (seconds := self._wait_seconds()) > 0:
                    self._changed.wait(seconds)
                else:
                    return self._take()
            return None

    def _take(self) -> _Copy | None:
        copy, self._waiting = self._waiting, None
        self._is_rendering, self._is_asked = True, False
        return copy

    def _make(self, copy: _Copy) -> None:
        """Render and show one picture; called without the lock, by one thread at a time."""
        started = time.perf_counter()
        is_sketch = self._sketch is not None and self.budget.wait(started - self._started) > 0
        render, show = (self._sketch if is_sketch else self._render), self._show
        try:
            picture = render(copy.latent()) if render is not None else None
            if picture is not None and show is not None and not self._closed:
                show(picture)
                self.rendered += 1
                if not is_sketch:
                    self._sketch = None  # no going back to a worse one
        except Exception as error:  # whatever it is, sampling must go on
            self._failed(error)
        finally:
            with self._changed:
                seconds = time.perf_counter() - started
                self.budget.took(seconds, is_sketch=is_sketch)
                if is_sketch:
                    self._sketch_seconds = seconds
                self._is_rendering = False
                self._changed.notify_all()

    def _failed(self, error: Exception) -> None:
        if not self.failure:
            log.warning("No preview: %s", error)
        self.failure = str(error) or type(error).__name__


class _Copy:
    """A copy of a latent, made on the stream of the thread that owns the latent."""

    def __init__(self, latent: Tensor) -> None:
        # a copy that any thread may write to, also of a tensor from a host that samples in inference mode
        with torch.inference_mode(False), torch.no_grad():
            self._latent = latent.detach().clone()
        self._ready: torch.cuda.Event | None = None
        if latent.is_cuda:
            self._ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._ready.record()

    def latent(self) -> Tensor:
        """The copy, usable on the stream of the calling thread."""
        if self._ready is not None:
            self._ready.wait()
            self._latent.record_stream(torch.cuda.current_stream(self._latent.device))
        return self._latent
