"""Encodes and decodes as A1111 calls them, and the calls of it that make previews."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from modules import shared

from sd_vae_kit.hosts.a1111.environment import A1111Environment
from sd_vae_kit.hosts.a1111.sketch import PreviewSketch
from sd_vae_kit.hosts.call_context import CallContext
from sd_vae_kit.hosts.interceptor import VaeInterceptor
from sd_vae_kit.hosts.patch import Patches

VAE_CALLS = ("decode_first_stage", "encode_first_stage")


class A1111Calls:
    """What happens around a call of `decode_first_stage` or `encode_first_stage`.

    Args:
        environment: Brings models back that made room for the call.
        interceptor: Knows whether the user stopped a decode.
        sketch: Stands in for a decode that was stopped.
    """

    def __init__(self, environment: A1111Environment, interceptor: VaeInterceptor, sketch: PreviewSketch) -> None:
        self._environment = environment
        self._interceptor = interceptor
        self._sketch = sketch

    def __call__(self, name: str, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._interceptor.say_who_tiles_instead()
        with self._environment.one_call():
            if name != "decode_first_stage":
                return original(*args, **kwargs)
            return self._interceptor.decoding(partial(original, *args, **kwargs), lambda: self._sketch.picture(args[0]))


class PreviewMarks:
    """Says which of the web UI's calls are previews, where `HostPreviews` does not make them.

    Args:
        patches: What is replaced in the web UI.
        context: Told of previews.
    """

    def __init__(self, patches: Patches, context: CallContext) -> None:
        self._patches = patches
        self._context = context

    def install(self) -> None:
        """Put the patches in place; what is replaced already stays."""
        from modules import sd_samplers_common

        # the page's polling thread, and with --medvram the sampling thread itself (sd_samplers_common.py:115)
        state = type(getattr(shared, "state", None))
        for owner, name in ((state, "do_set_current_image"), (sd_samplers_common, "store_latent")):
            if hasattr(owner, name):
                self._patches.wrap(owner, name, self._preview)

    def _preview(self, original: Callable[..., object], *args: object, **kwargs: object) -> object:
        with self._context.preview():
            return original(*args, **kwargs)
