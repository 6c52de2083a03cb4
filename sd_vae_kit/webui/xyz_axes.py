"""Axes of the X/Y/Z plot: a VAE per cell, without touching the SD VAE setting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from modules import scripts

from sd_vae_kit.adapters.webui_host import WebuiHost
from sd_vae_kit.errors import VaeKitError
from sd_vae_kit.settings import AUTOMATIC, NONE
from sd_vae_kit.webui.job_settings import job_specs
from sd_vae_kit.webui.script import XYZ_VALUES

PREFIX = "[VAE Kit] "


def add(host: WebuiHost) -> None:
    """Add one axis per choice of the job; the plot's module is made anew on Reload UI, so this repeats nothing."""
    plots = [data.module for data in scripts.scripts_data if data.script_class.__module__ == "xyz_grid.py"]
    for plot in plots:
        present = {option.label for option in plot.axis_options}
        for spec in job_specs():
            if PREFIX + spec.label not in present:
                plot.axis_options.append(
                    plot.AxisOption(
                        PREFIX + spec.label,
                        str,
                        _writer(host, spec.name),
                        confirm=_checker(host),
                        choices=host.choices,
                        cost=0.1,
                    )
                )


def _writer(host: WebuiHost, name: str) -> Callable[[Any, str, Sequence[str]], None]:
    def apply(p: Any, value: str, values: Sequence[str]) -> None:
        setattr(p, XYZ_VALUES, {**getattr(p, XYZ_VALUES, {}), name: full_name(host, value)})

    return apply


def _checker(host: WebuiHost) -> Callable[[Any, Sequence[str]], None]:
    def confirm(p: Any, values: Sequence[str]) -> None:
        for value in values:
            full_name(host, value)

    return confirm


def full_name(host: WebuiHost, value: str) -> str:
    """The library's name for what was typed.

    Raises:
        RuntimeError: No such VAE; the plot shows the line and does not start.
    """
    for special in (AUTOMATIC, NONE):
        if value.strip().lower() == special.lower():
            return special
    try:
        return host.library.get(value.strip()).name
    except VaeKitError as error:
        raise RuntimeError(str(error)) from error
