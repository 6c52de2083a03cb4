"""Freed memory goes back to the system where, and only where, the process would outgrow what was promised."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from sd_vae_kit.core.engine import malloc_trim as heap
from sd_vae_kit.core.plan.candidates import stream_plan

PLAN = stream_plan(torch.device("cpu"), torch.float32)
LEAST = heap.churn_limit(PLAN) // 4


@pytest.fixture
def process(monkeypatch):
    """A process whose size is what the test says, and the times that freed memory was returned."""
    state = {"resident": 1000, "returned": 0}

    def trim(_pad):
        state["returned"] += 1
        return 1

    monkeypatch.setattr(heap, "_TRIM", trim)
    monkeypatch.setattr(heap, "resident_bytes", lambda: state["resident"])
    return state


def test_nothing_is_returned_while_the_process_is_as_small_as_promised(process):
    watched = heap.MallocTrimmer(PLAN, allowed=500)
    process["resident"] = 1400
    for _ in range(10):
        watched.freed(LEAST, coming=100)
    assert process["returned"] == 0


def test_what_is_freed_is_returned_before_the_process_outgrows_the_promise(process):
    watched = heap.MallocTrimmer(PLAN, allowed=500)
    process["resident"] = 1400
    watched.freed(LEAST, coming=101)
    assert process["returned"] == 1


def test_between_two_returns_some_work_is_done(process):
    """Where the live activations alone are too large, returning again and again would only cost time."""
    watched = heap.MallocTrimmer(PLAN, allowed=0)
    for _ in range(8):
        watched.freed(LEAST // 4, coming=1)
    assert process["returned"] == 2


def test_without_glibc_nothing_is_asked_for(monkeypatch):
    monkeypatch.setattr(heap, "_TRIM", None)
    monkeypatch.setattr(heap, "resident_bytes", lambda: pytest.fail("this system has no /proc"))
    heap.MallocTrimmer(PLAN, allowed=0).freed(1 << 40, coming=1 << 40)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resident memory is read from Linux's /proc")
@pytest.mark.parametrize("plan", ["stream", "stream-lean"])
def test_a_process_grows_by_what_was_predicted(plan):
    """The full-size decoder in a process of its own: the system's count of its memory, not ours of tensors."""
    command = [sys.executable, "-m", "bench", "--child", plan, "decode", "320", "fp32"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "2"})
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert 0.8 * answer["predicted_mb"] < answer["peak_mb"] < 1.15 * answer["predicted_mb"], answer
