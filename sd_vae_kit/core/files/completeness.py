"""Whether a file holds every weight of the network that it describes.

The module is built without memory (meta device) and says which names and shapes a complete file has, so that an
incomplete one can be told exactly what it lacks.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from math import prod

import torch

from sd_vae_kit.core.files.detection import Detection, Shape
from sd_vae_kit.core.files.header import TensorInfo
from sd_vae_kit.core.files.layouts import Layout
from sd_vae_kit.core.files.listed import listed
from sd_vae_kit.core.networks.autoencoder import AutoencoderKL, KlConfig
from sd_vae_kit.core.networks.taesd import TinyAutoencoder, TinyConfig
from sd_vae_kit.errors import BrokenVaeError, UnsupportedVaeError


@lru_cache(maxsize=64)
def expected_shapes(config: KlConfig | TinyConfig) -> Mapping[str, Shape]:
    """Every weight of the module that `config` describes; built on the meta device, which allocates nothing."""
    with torch.device("meta"):
        module = AutoencoderKL(config) if isinstance(config, KlConfig) else TinyAutoencoder(config)
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def parameter_counts(detection: Detection) -> dict[str, int]:
    """Weights of the file by "encoder" and "decoder", quant_conv and post_quant_conv in the "total" only."""
    counts = {"encoder": 0, "decoder": 0, "total": 0}
    for name, shape in expected_shapes(detection.config).items():
        counts["total"] += prod(shape)
        half = name.split(".")[0]
        if half in counts:
            counts[half] += prod(shape)
    return counts


def complete_names(label: str, layout: Layout, shapes: Mapping[str, Shape], config: KlConfig | TinyConfig) -> list[str]:
    """The canonical names to keep, in the module's order, then FLUX.2's statistics.

    Raises:
        BrokenVaeError: Names are missing or shapes wrong.
        UnsupportedVaeError: A TAESD has more than its layers; without them it would give another picture.
    """
    expected = expected_shapes(config)
    more = [name for name in shapes if name not in expected]
    if isinstance(config, TinyConfig) and more:
        raise UnsupportedVaeError(
            f"{label} resembles {layout.label} but has layers this program does not know: {listed(more)}"
        )
    if problems := _problems(shapes, expected):
        raise BrokenVaeError(f"{label} is {layout.label}, but {' and '.join(problems)}; copy or download it again")
    return [*expected, *(name for name in shapes if name.startswith("bn."))]


def _problems(shapes: Mapping[str, Shape], expected: Mapping[str, Shape]) -> list[str]:
    """What is missing and what has another shape, as parts of a sentence."""
    problems = []
    if missing := [name for name in expected if name not in shapes]:
        problems.append(f"{len(missing)} of {len(expected)} weights are missing ({listed(missing)})")
    if wrong := [name for name in expected if name in shapes and shapes[name] != expected[name]]:
        described = [f"{name} is {shapes[name]} instead of {expected[name]}" for name in wrong]
        problems.append(f"{len(wrong)} have wrong shapes ({listed(described, 2)})")
    return problems


def refuse_quantised(label: str, tensors: Mapping[str, TensorInfo]) -> None:
    """Raise `UnsupportedVaeError` for weights that are integers."""
    odd = [name for name, info in tensors.items() if info.dtype is None or not info.dtype.is_floating_point]
    if odd:
        raise UnsupportedVaeError(
            f"{label} is quantised ({listed(odd, 2)} hold integers); choose a copy in fp16, bf16 or fp32"
        )
