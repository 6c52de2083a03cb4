"""Looking into gradio pages: components by id, what an update changes, a Python beside this one."""

import os

from conftest import ROOT


def components_of(blocks):
    return {c.elem_id: c for c in blocks.blocks.values() if getattr(c, "elem_id", None)}


def changed(update):
    """What an update changes, as a plain dict."""
    return {key: value for key, value in update.items() if key != "__type__"} if isinstance(update, dict) else update


def child_environment():
    return {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
