"""From a network and the settings to a graph and its plan."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from sd_vae_kit.core.graph.from_module import LayerGraph, decoder_graph, encoder_graph
from sd_vae_kit.core.halves import Half
from sd_vae_kit.core.plan.plan import Plan
from sd_vae_kit.core.plan.planner import PlanChoice, PlanMode, choose_plan
from sd_vae_kit.core.plan.search_cache import SEARCHES
from sd_vae_kit.errors import PlanError, StepAsideError, UnsupportedVaeError
from sd_vae_kit.settings.sections import STREAM, TilingSettings

SMALLEST_BAND = 4096  # bytes


def graph_of(network: nn.Module, half: Half) -> LayerGraph:
    """The steps of a network.

    Args:
        network: A VAE, or its encoder or decoder alone.

    Raises:
        StepAsideError: Its structure is not known.
    """
    try:
        return encoder_graph(network) if half == "encoder" else decoder_graph(network)
    except UnsupportedVaeError as error:
        raise StepAsideError(str(error)) from error
    except (AttributeError, TypeError, IndexError) as error:  # a part of a known name that is something else
        raise StepAsideError(f"the {half} ({type(network).__name__}) is built in an unknown way: {error}") from error


def planned(
    graph: LayerGraph, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, tiling: TilingSettings
) -> PlanChoice:
    """How a network is run for an input of shape (B, C, h, w).

    Raises:
        StepAsideError: The input is too small for this network.
    """
    try:
        mode = plan_mode(tiling, graph.name)
        chosen = choose_plan(graph, shape, dtype, device, tiling.budget_bytes, mode)
        return chosen if chosen.plan.kind == "whole" else _in_bands(graph, shape, chosen)
    except (UnsupportedVaeError, PlanError) as error:
        raise StepAsideError(str(error)) from error


def plan_mode(tiling: TilingSettings, half: Half) -> PlanMode:
    """The settings in the planner's word."""
    if not tiling.enabled or not getattr(tiling, half):
        return "never"
    return "always" if tiling.mode == STREAM else "auto"


def most_bands(graph: LayerGraph, plan: Plan, shape: tuple[int, ...]) -> int:
    """Bands of the step that a plan cuts into most of them; 1: the picture runs whole."""
    with SEARCHES.opened(graph, shape, plan.dtype, plan.device) as search:
        return search.most_bands(plan)


def _in_bands(graph: LayerGraph, shape: tuple[int, ...], chosen: PlanChoice) -> PlanChoice:
    """A plan that streams has at least two bands: a small picture gets smaller ones, so that it takes less memory."""
    finer = chosen.plan
    with SEARCHES.opened(graph, shape, finer.dtype, finer.device) as search:
        while finer.band_bytes and finer.band_bytes > SMALLEST_BAND and search.most_bands(finer) == 1:
            finer = dataclasses.replace(finer, band_bytes=finer.band_bytes // 2)
        if finer == chosen.plan or search.most_bands(finer) == 1:
            return chosen
        return dataclasses.replace(chosen, plan=finer, cost=search.cost(finer))
