"""Lines for the user: on the console always, on the page where a page is waiting; errors as HTTP answers."""

from __future__ import annotations

import logging
import sys
import warnings

import gradio as gr
from fastapi import HTTPException

from sd_vae_kit.errors import VaeKitError
from sd_vae_kit.hosts.messages import Outlet
from sd_vae_kit.vaes.host_protocol import Level

LOGGER = logging.getLogger("vae_kit")


class Refusal(HTTPException):
    """A request that cannot be honoured: one line on the page, status 422 over HTTP, no traceback in the log."""

    def __init__(self, error: VaeKitError) -> None:
        super().__init__(status_code=422, detail=str(error))

    def __str__(self) -> str:
        return str(self.detail)


def outlet() -> Outlet:
    """Where a host's lines go."""
    _log_to_console()
    return Outlet(show, show_on_page, Refusal)


def show(message: str, level: Level) -> None:
    """One line on the console, and on the page if the current call came from one."""
    LOGGER.log({"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}[level], message)
    if level != "info":
        show_on_page(message)


def show_on_page(message: str) -> None:
    """A toast, if the current call came from a page."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # outside a page's call gradio only warns that there is no page
        gr.Warning(message)


def _log_to_console() -> None:
    if not LOGGER.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("VAE Kit: %(message)s"))
        LOGGER.addHandler(handler)
        LOGGER.setLevel(logging.INFO)
        LOGGER.propagate = False
