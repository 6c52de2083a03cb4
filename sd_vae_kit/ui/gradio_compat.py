"""Every difference between gradio 3.41 (A1111, reForge), 4.40 (Forge) and 6 (stand-alone), in one place.

Pages ask for components by what they are for and attach handlers with `listen`; nothing else in the package tests a
gradio version.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

MAJOR = int(gr.__version__.split(".")[0])
FONTS = ("system-ui", "Segoe UI", "Roboto", "Ubuntu", "DejaVu Sans", "sans-serif")
MONO = ("ui-monospace", "Consolas", "DejaVu Sans Mono", "monospace")

update = gr.update  # the same function in all three


def _known(target: Callable[..., object], options: Mapping[str, object]) -> dict[str, Any]:
    """The options that `target` has in this gradio; a look that an old release lacks is left out."""
    names = inspect.signature(target).parameters
    return {name: value for name, value in options.items() if name in names}


def theme() -> gr.themes.Base:
    """Small type, square corners, system fonts: nothing is fetched from a font server."""
    return gr.themes.Default(
        primary_hue="orange",
        neutral_hue="slate",
        spacing_size="sm",
        radius_size="sm",
        text_size="sm",
        font=list(FONTS),
        font_mono=list(MONO),
    )


def blocks(title: str, css: str, head: str = "") -> gr.Blocks:
    """A page; from gradio 6 on looks are handed to `launch` instead (see `launch_options`)."""
    look = {} if MAJOR >= 6 else {"theme": theme(), "css": css, "head": head}
    return gr.Blocks(title=title, analytics_enabled=False, **_known(gr.Blocks, look))


def launch_options(css: str, head: str = "") -> dict[str, object]:
    """What `Blocks.launch` needs to look as designed and to stay off the network."""
    wanted: dict[str, object] = {
        "share": False,
        "quiet": True,
        "show_error": True,
        "footer_links": [],
        "run_history": False,
        "show_api": False,
        "ssr_mode": False,
        "mcp_server": False,
        "enable_monitoring": False,
        "pwa": False,
    }
    if MAJOR >= 6:
        wanted |= {"theme": theme(), "css": css, "head": head}
    return _known(gr.Blocks.launch, wanted)


@dataclass(frozen=True)
class Turns:
    """When a handler's turn comes.

    Attributes:
        lane: Handlers in one lane wait for each other; None lets any number run at once.
        answers_latest: Whether an event that comes while the handler runs is answered afterwards; else it is ignored.
    """

    lane: str | None = None
    answers_latest: bool = False


AT_ONCE = Turns()
LATEST = Turns(answers_latest=True)
CHOOSE = Turns("choose")  # what changes the live VAE
CHOOSE_LATEST = Turns("choose", answers_latest=True)


def listen(
    component: object,
    event: str,
    handler: Callable[..., object],
    inputs: Sequence[object] = (),
    outputs: Sequence[object] = (),
    turns: Turns = AT_ONCE,
) -> None:
    """Attach a handler to a component's event, hidden from the HTTP API; no waiting animation covers the outputs.

    Args:
        component: What the user acts on; the page itself for "load".
        event: Name of its event, such as "click".
        handler: Takes the inputs' values; a generator may yield several times.
        inputs, outputs: Components.
        turns: Whether it waits for others.
    """
    options = {
        "trigger_mode": "always_last" if turns.answers_latest else None,
        "concurrency_limit": 1 if turns.lane else None,
        "concurrency_id": turns.lane,
    }
    _attach(component, event, handler, inputs, outputs, options)


def run_in_browser(
    component: object, event: str, script: str, inputs: Sequence[object], outputs: Sequence[object]
) -> None:
    """Let the page itself answer an event: `script` is a JavaScript function of the inputs' values."""
    _attach(component, event, None, inputs, outputs, {"js": script, "_js": script})


def _attach(
    component: object,
    event: str,
    handler: Callable[..., object] | None,
    inputs: Sequence[object],
    outputs: Sequence[object],
    options: Mapping[str, object],
) -> None:
    attach = getattr(component, event)
    hidden = {"show_progress": "hidden", "show_api": False, "api_visibility": "private"}
    attach(handler, list(inputs) or None, list(outputs) or None, **_known(attach, {**hidden, **options}))


def picture_input(label: str, elem_id: str, height: int) -> gr.Image:
    """An upload field that hands over the path of the file exactly as it was dropped.

    gradio 4 and later open a picture before the handler sees it and fail with Pillow's own words; opening is left to
    us, so that a broken file gives one clear line.  gradio 3 re-encodes pictures in the browser and stays as it is.
    """
    options: dict[str, object] = {
        "sources": ["upload", "clipboard"],
        "source": "upload",
        "tool": None,
        "buttons": ["fullscreen"],
        "show_download_button": False,
        "show_share_button": False,
        "image_mode": "RGB" if MAJOR < 4 else None,
    }
    kind = _unopened(gr.Image) if MAJOR >= 4 else gr.Image
    image: gr.Image = kind(
        label=label, elem_id=elem_id, type="filepath", height=height, **_known(gr.Image.__init__, options)
    )
    return image


@functools.cache
def _unopened(base: type[gr.Image]) -> type[gr.Image]:
    """`base` with a `preprocess` that passes the path on.

    A subclass, because updates make a new component of the same class; made by `type.__new__`, because gradio's
    metaclass writes a .pyi file beside the module that defines a component.
    """
    members = {"is_template": True, "preprocess": lambda self, payload: payload.path if payload else None}
    made: type[gr.Image] = type.__new__(type(base), f"Unopened{base.__name__}", (base,), members)
    return made


def picture_gallery(label: str, elem_id: str, height: int) -> gr.Gallery:
    """Finished pictures from files; what the browser downloads is the file itself, with its parameters."""
    options: dict[str, object] = {
        "buttons": ["download", "fullscreen"],
        "show_download_button": True,
        "show_share_button": False,
        "format": "png",
        "interactive": False,
        "preview": True,
        "object_fit": "contain",
    }
    return gr.Gallery(
        label=label,
        elem_id=elem_id,
        elem_classes=["vk-gallery"],
        height=height,
        columns=4,
        show_label=False,
        **_known(gr.Gallery.__init__, options),
    )


def download_button(label: str, elem_id: str) -> Component:
    """A button that saves a file; gradio 3 has none and shows the file's name to click on."""
    if hasattr(gr, "DownloadButton"):
        return gr.DownloadButton(label, elem_id=elem_id, size="sm", interactive=False)
    return gr.File(label=label, elem_id=elem_id, interactive=False)


def file_drop(label: str, elem_id: str, height: int) -> gr.File:
    """A field for one file of any kind."""
    kind = "filepath" if MAJOR >= 4 else "file"  # gradio 3 hands over an open temporary file
    return gr.File(label=label, elem_id=elem_id, **_known(gr.File.__init__, {"height": height, "type": kind}))


def text_with_copy(label: str, elem_id: str, lines: int, placeholder: str = "") -> gr.Textbox:
    """Read-only text with a copy button."""
    options = _known(gr.Textbox.__init__, {"buttons": ["copy"], "show_copy_button": True})
    return gr.Textbox(
        label=label, elem_id=elem_id, lines=lines, max_lines=12, interactive=False, placeholder=placeholder, **options
    )


def html(value: str, elem_id: str, *, often_empty: bool = False) -> gr.HTML:
    """Markup of our own, without the padding and container that newer releases add.

    Args:
        value: What it shows at first.
        elem_id: DOM id.
        often_empty: Whether it takes no room while it shows nothing.
    """
    classes = ["vk-plain", "vk-maybe"] if often_empty else ["vk-plain"]
    plain = {"padding": False, "container": False}
    return gr.HTML(value, elem_id=elem_id, elem_classes=classes, **_known(gr.HTML.__init__, plain))


def path_of(value: object) -> Path | None:
    """The path in what a file component hands over: a string, or gradio 3's temporary file."""
    if not value:
        return None
    return Path(value if isinstance(value, str) else str(getattr(value, "name", value)))


def selected_index(event: gr.SelectData) -> int:
    """Which picture of a gallery was chosen."""
    index = event.index
    return int(index[0] if isinstance(index, list | tuple) else index)
