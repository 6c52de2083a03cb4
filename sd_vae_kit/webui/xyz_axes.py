"""Axes of the X/Y/Z plot: a VAE or a way of tiling per cell, without touching any setting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from modules import scripts

from sd_vae_kit.errors import VaeKitError
from sd_vae_kit.hosts.protocol import WebuiHost
from sd_vae_kit.settings.job import JOB_SPECS
from sd_vae_kit.settings.spec import Spec
from sd_vae_kit.webui.script import XYZ_VALUES

PREFIX = "[VAE Kit] "


def add(host: WebuiHost) -> None:
    """Add one axis per choice of the job; the plot's module is made anew on Reload UI, so this repeats nothing."""
    plots = [data.module for data in scripts.scripts_data if data.script_class.__module__ == "xyz_grid.py"]
    for plot in plots:
        present = {option.label for option in plot.axis_options}
        for spec in JOB_SPECS:
            if PREFIX + spec.label not in present:
                plot.axis_options.append(
                    plot.AxisOption(
                        PREFIX + spec.label,
                        int if isinstance(spec.default, int) else str,
                        _writer(spec.name),
                        confirm=_checker(host, spec),
                        choices=_choices(host, spec),
                        cost=0.1 if spec.control == "vae" else 0.0,
                    )
                )


def _choices(host: WebuiHost, spec: Spec) -> Callable[[], list[str]] | None:
    if spec.control == "vae":
        return host.names.choices
    return (lambda: list(spec.identifiers)) if spec.choices else None


def _writer(name: str) -> Callable[[Any, str, Sequence[str]], None]:
    def apply(p: Any, value: str, values: Sequence[str]) -> None:
        setattr(p, XYZ_VALUES, {**getattr(p, XYZ_VALUES, {}), name: value})

    return apply


def _checker(host: WebuiHost, spec: Spec) -> Callable[[Any, Sequence[str]], None]:
    def confirm(p: Any, values: Sequence[str]) -> None:
        """Before the first cell; the plot shows the line and does not start."""
        for value in values:
            try:
                if spec.control == "vae":
                    host.names.full_name(value)
                else:
                    spec.check_text(value)
            except VaeKitError as error:
                raise RuntimeError(str(error)) from error

    return confirm
