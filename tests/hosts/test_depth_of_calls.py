"""How deep a host's decode call goes until a convolution computes: a stack that a person can still read."""

import sys

import torch
from conftest import ROOT

MOST = 22  # frames of this package, the web UI's patched functions included


def own_frames():
    """Functions of this package on the stack, the innermost last."""
    frame, names = sys._getframe(1), []
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(str(ROOT / "sd_vae_kit")):
            names.append(f"{path.removeprefix(str(ROOT / 'sd_vae_kit'))}:{frame.f_code.co_name}")
        frame = frame.f_back
    return names[::-1]


def test_the_stack_from_a_decode_call_to_a_convolution_is_short(webui, monkeypatch):
    seen, real = [], torch.nn.functional.conv2d

    def conv2d(*args, **kwargs):
        seen.append(own_frames())
        return real(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "conv2d", conv2d)
    webui.decode()
    deepest = max(seen, key=len)
    assert any("interceptor" in name for name in deepest), "it was ours to run"
    assert len(deepest) <= MOST, "\n".join(deepest)
