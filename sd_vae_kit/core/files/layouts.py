"""The spellings in which usable autoencoders circulate: how each is recognised, and how its names translate."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from sd_vae_kit.core.files import key_names
from sd_vae_kit.core.files.detection import Kind, LayoutName
from sd_vae_kit.core.files.header import TensorInfo
from sd_vae_kit.core.halves import HALVES, Half
from sd_vae_kit.core.networks.taesd import Variant, numbered_convs


@dataclass(frozen=True)
class KeyCondition:
    """A condition on the names of a file, as data.

    Attributes:
        any_of: Regular expressions, one of which must match at the beginning of a name.
        dimensions: If given, that or more dimensions in one of those tensors.
    """

    any_of: tuple[str, ...]
    dimensions: int = 0

    def match(self, tensors: Mapping[str, TensorInfo]) -> bool:
        """Whether one of `tensors`, by name, meets the condition."""
        pattern = re.compile("|".join(f"(?:{p})" for p in self.any_of))
        return any(pattern.match(name) and len(info.shape) >= self.dimensions for name, info in tensors.items())


@dataclass(frozen=True)
class Layout:
    """An architecture in one spelling.

    Attributes:
        name, kind: For `Detection`.
        label: What messages call it.
        condition: Names (behind the prefix) that only this layout has; one is enough, so that incomplete files are
            recognised too.
        landmarks: Names a complete file has, for telling how near an unknown file comes.
        translate: Names behind the prefix -> canonical names, `None` for what does not belong to it.
    """

    name: LayoutName
    kind: Kind
    label: str
    condition: KeyCondition
    landmarks: tuple[str, ...]
    translate: Callable[[Collection[str]], dict[str, str | None]]


def _from_ldm(names: Collection[str]) -> dict[str, str | None]:
    return {name: key_names.kl_from_ldm(name) for name in names}


def _from_diffusers(names: Collection[str]) -> dict[str, str | None]:
    levels = key_names.count_levels(names)
    return {name: key_names.kl_from_diffusers(name, levels) for name in names}


_TINY_VARIANTS: tuple[Variant, ...] = ("plain", "f32")  # "pooled" has the modules of "plain"


def nearest_tiny(numbers: Collection[int], halves: Iterable[Half]) -> tuple[Half, Variant]:
    """The half and variant whose convolutions have these numbers, or most of them: a file may be incomplete."""

    def likeness(candidate: tuple[Half, Variant]) -> int:
        expected = tiny_convs(*candidate)
        return len(expected & set(numbers)) - len(set(numbers) - expected)

    return max(((half, variant) for half in halves for variant in _TINY_VARIANTS), key=likeness)


tiny_convs = cache(numbered_convs)


def _from_taesd(names: Collection[str]) -> dict[str, str | None]:
    numbers = {int(m[1]) for n in names if (m := re.match(r"^(\d{1,2})\.weight$", n))}
    half, _ = nearest_tiny(numbers, HALVES)
    return {name: key_names.tiny_from_taesd(name, half) for name in names}


def _from_taesd_diffusers(names: Collection[str]) -> dict[str, str | None]:
    return {name: key_names.tiny_from_diffusers(name) for name in names}


LAYOUTS = (
    Layout(
        "ldm", "kl", "a KL autoencoder in ldm names",
        KeyCondition((r"encoder\.down\.\d+\.block\.\d+\.conv\d\.weight$",
                      r"decoder\.up\.\d+\.block\.\d+\.conv\d\.weight$")),
        (
            "encoder.conv_in.weight", "encoder.down.0.block.0.conv1.weight", "encoder.mid.attn_1.q.weight",
            "encoder.norm_out.weight", "encoder.conv_out.weight", "decoder.conv_in.weight",
            "decoder.mid.attn_1.q.weight", "decoder.up.0.block.0.conv1.weight", "decoder.norm_out.weight",
            "decoder.conv_out.weight",
        ),
        _from_ldm,
    ),
    Layout(
        "diffusers", "kl", "a KL autoencoder in diffusers names",
        KeyCondition((
            r"encoder\.down_blocks\.\d+\.resnets\.\d+\.conv\d\.weight$",
            r"decoder\.up_blocks\.\d+\.resnets\.\d+\.conv\d\.weight$",
        )),
        (
            "encoder.conv_in.weight", "encoder.down_blocks.0.resnets.0.conv1.weight",
            "encoder.mid_block.resnets.0.conv1.weight", "encoder.conv_norm_out.weight", "encoder.conv_out.weight",
            "decoder.conv_in.weight", "decoder.mid_block.resnets.0.conv1.weight",
            "decoder.up_blocks.0.resnets.0.conv1.weight", "decoder.conv_norm_out.weight", "decoder.conv_out.weight",
        ),
        _from_diffusers,
    ),
    Layout(
        "taesd", "tiny", "a TAESD",
        KeyCondition((r"(?:(?:tae[a-z0-9]*_)?(?:encoder|decoder)\.)?\d{1,2}\.conv\.[024]\.weight$",)),
        ("1.weight", "3.conv.0.weight", "19.weight"),
        _from_taesd,
    ),
    Layout(
        "taesd-diffusers", "tiny", "a TAESD in diffusers names",
        KeyCondition((r"(?:encoder|decoder)\.layers\.\d{1,2}\.conv\.[024]\.weight$",)),
        ("encoder.layers.0.weight", "encoder.layers.14.weight", "decoder.layers.0.weight", "decoder.layers.18.weight"),
        _from_taesd_diffusers,
    ),
)  # fmt: skip
