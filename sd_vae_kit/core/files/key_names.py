"""Key names: one canonical name per weight, and how each layout in circulation spells it.

Canonical names are ldm's (`encoder.down.0.block.0.norm1.weight`) for KL autoencoders and `encoder.N...`, `decoder.N...`
with the published module numbers for TAESD.  The tables below are the whole knowledge; the functions only apply them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal

from torch import Tensor

from sd_vae_kit.core.halves import Part

# What programs put in front of a VAE's names, in any combination ("model.first_stage_model.encoder...").
PREFIX_PARTS = (
    "state_dict.", "model.", "module.", "_orig_mod.", "first_stage_model.", "first_stage.", "vae.", "vae_model.",
    "autoencoder.", "autoencoder_kl.", "ae.",
)  # fmt: skip
_PREFIX = re.compile("^(?:" + "|".join(re.escape(p) for p in PREFIX_PARTS) + ")+")

# Training leftovers: averaged copies, losses with their discriminator and LPIPS network, optimizers.
_LEFTOVER = re.compile(
    r"(?:^|\.)(?:model_ema|ema|ema_model|loss|losses|discriminator|perceptual_loss|lpips|optimizer_states|optimizer)\."
    r"|(?:^|\.)logvar$|\.num_batches_tracked$"
)


def split_prefix(name: str) -> tuple[str, str]:
    """A name in a file -> (prefix, rest): "model.vae.encoder.x" -> ("model.vae.", "encoder.x")."""
    match = _PREFIX.match(name)
    return (match.group(), name[match.end() :]) if match else ("", name)


def is_leftover(name: str) -> bool:
    """Whether a name belongs to training (EMA copy, loss, discriminator, optimizer) and not to the model."""
    return _LEFTOVER.search(name) is not None


def group_by_prefix(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Prefix -> {name without prefix: name in the file}, leftovers dropped.

    Where a checkpoint has its weights twice, in modules and in an averaged copy, the modules' stay.
    """
    groups: dict[str, dict[str, str]] = {}
    for name in names:
        if not is_leftover(name):
            prefix, rest = split_prefix(name)
            groups.setdefault(prefix, {})[rest] = name
    return groups


# --- KL autoencoders -------------------------------------------------------------------------------------------------

# (ldm, diffusers): {half} encoder or decoder, {i} level, {r} level counted from the other end, {j} block, {n} a layer.
_MODULES = (
    ("{half}.conv_in", "{half}.conv_in"),
    ("encoder.down.{i}.block.{j}.{n}", "encoder.down_blocks.{i}.resnets.{j}.{n}"),
    ("encoder.down.{i}.block.{j}.nin_shortcut", "encoder.down_blocks.{i}.resnets.{j}.conv_shortcut"),
    ("encoder.down.{i}.downsample.conv", "encoder.down_blocks.{i}.downsamplers.0.conv"),
    ("decoder.up.{r}.block.{j}.{n}", "decoder.up_blocks.{r}.resnets.{j}.{n}"),
    ("decoder.up.{r}.block.{j}.nin_shortcut", "decoder.up_blocks.{r}.resnets.{j}.conv_shortcut"),
    ("decoder.up.{r}.upsample.conv", "decoder.up_blocks.{r}.upsamplers.0.conv"),
    ("{half}.mid.block_1.{n}", "{half}.mid_block.resnets.0.{n}"),
    ("{half}.mid.block_2.{n}", "{half}.mid_block.resnets.1.{n}"),
    ("{half}.mid.attn_1.norm", "{half}.mid_block.attentions.0.group_norm"),
    ("{half}.mid.attn_1.q", "{half}.mid_block.attentions.0.to_q"),
    ("{half}.mid.attn_1.k", "{half}.mid_block.attentions.0.to_k"),
    ("{half}.mid.attn_1.v", "{half}.mid_block.attentions.0.to_v"),
    ("{half}.mid.attn_1.proj_out", "{half}.mid_block.attentions.0.to_out.0"),
    ("{half}.norm_out", "{half}.conv_norm_out"),
    ("{half}.conv_out", "{half}.conv_out"),
    ("quant_conv", "quant_conv"),
    ("post_quant_conv", "post_quant_conv"),
    ("bn", "bn"),  # FLUX.2's statistics of packed latents: beside the network, kept when converting
)
# Other words for the attention's layers: diffusers before 0.18, and converters that mixed the layouts.
_ATTENTION_WORDS = {
    "norm": ("norm", "group_norm"),
    "q": ("q", "query", "to_q"),
    "k": ("k", "key", "to_k"),
    "v": ("v", "value", "to_v"),
    "proj_out": ("proj_out", "proj_attn", "to_out.0"),
}
_FIELDS = {
    "half": "encoder|decoder",
    "i": r"\d{1,3}",
    "r": r"\d{1,3}",
    "j": r"\d{1,3}",
    "n": "norm1|conv1|norm2|conv2",
}
_LEAF = r"\.(?P<leaf>weight|bias|running_mean|running_var)$"


def _pattern(template: str) -> re.Pattern[str]:
    text = re.escape(template).replace(r"\{", "{").replace(r"\}", "}")
    for field, values in _FIELDS.items():
        text = text.replace(f"{{{field}}}", f"(?P<{field}>{values})")
    return re.compile(f"^{text}{_LEAF}")


def _attention_aliases() -> Iterable[tuple[re.Pattern[str], str]]:
    for canonical, words in _ATTENTION_WORDS.items():
        for word in words:
            for place in ("{half}.mid.attn_1", "{half}.mid_block.attentions.0"):
                yield _pattern(f"{place}.{word}"), f"{{half}}.mid.attn_1.{canonical}.{{leaf}}"


_FROM_LDM = [(_pattern(ldm), f"{other}.{{leaf}}") for ldm, other in _MODULES]
_FROM_DIFFUSERS = [(_pattern(other), f"{ldm}.{{leaf}}") for ldm, other in _MODULES]
_FROM_ANY_ATTENTION = list(_attention_aliases())


def _translate(name: str, rules: list[tuple[re.Pattern[str], str]], levels: int) -> str | None:
    for pattern, template in rules:
        if match := pattern.match(name):
            fields: dict[str, str | int] = dict(match.groupdict())
            if "r" in fields:
                fields["r"] = levels - 1 - int(fields["r"])
            return template.format(**fields)
    return None


def kl_from_ldm(name: str) -> str | None:
    """Canonical name of an ldm name: itself but for the attention's spelling; `None` if it is not part of a KL VAE."""
    if any(pattern.match(name) for pattern, _ in _FROM_LDM):
        return name
    return _translate(name, _FROM_ANY_ATTENTION, 0)


def kl_from_diffusers(name: str, decoder_levels: int) -> str | None:
    """Canonical name of a diffusers name; `up_blocks` are numbered from the other end, hence the number of levels."""
    found = _translate(name, _FROM_DIFFUSERS, decoder_levels)
    return _translate(name, _FROM_ANY_ATTENTION, 0) if found is None else found


def kl_to_diffusers(name: str, decoder_levels: int) -> str:
    """Spelling in diffusers (0.18 and later) of a canonical name.

    Raises:
        KeyError: The name is not canonical.
    """
    found = _translate(name, _FROM_LDM, decoder_levels)
    if found is None:
        raise KeyError(name)
    return found


def count_levels(names: Iterable[str]) -> int:
    """How many levels the decoder has whose `up_blocks` these diffusers names mention."""
    return max((int(m[1]) + 1 for n in names if (m := re.match(r"^decoder\.up_blocks\.(\d{1,3})\.", n))), default=0)


def is_attention_matrix(canonical: str) -> bool:
    """Whether a weight is a 1x1 convolution (C, C, 1, 1) in ldm and a matrix (C, C) in diffusers."""
    return re.search(r"\.attn_1\.(?:q|k|v|proj_out)\.weight$", canonical) is not None


def to_canonical_shape(canonical: str, tensor: Tensor) -> Tensor:
    """The tensor with the shape that ldm's module has; a view, nothing is copied."""
    if is_attention_matrix(canonical) and 2 <= tensor.dim() < 4:
        return tensor.reshape(*tensor.shape[:2], 1, 1)
    return tensor


def to_diffusers_shape(canonical: str, tensor: Tensor) -> Tensor:
    """The reverse of `to_canonical_shape`."""
    return tensor.reshape(tensor.shape[:2]) if is_attention_matrix(canonical) else tensor


# --- TAESD -----------------------------------------------------------------------------------------------------------

_TINY_LEAF = r"(?P<rest>(?:conv\.[024]\.|pool\.[013]\.)?(?:weight|bias))$"
_TINY_ALONE = re.compile(rf"^(?P<n>\d{{1,2}})\.{_TINY_LEAF}")
_TINY_PAIR = re.compile(rf"^(?:tae[a-z0-9]*_)?(?P<half>encoder|decoder)\.(?P<n>\d{{1,2}})\.{_TINY_LEAF}")
_TINY_DIFFUSERS = re.compile(rf"^(?P<half>encoder|decoder)\.layers\.(?P<n>\d{{1,2}})\.{_TINY_LEAF}")
# diffusers' decoder has no module for the clamp that is the published decoder's module 0
_DIFFUSERS_SHIFT = {"encoder": 0, "decoder": 1}


def tiny_from_taesd(name: str, part: Part) -> str | None:
    """Canonical name of a published name; `part` says which half a file without `encoder.`/`decoder.` is."""
    if match := _TINY_PAIR.match(name):
        return f"{match['half']}.{match['n']}.{match['rest']}"
    if part != "both" and (match := _TINY_ALONE.match(name)):
        return f"{part}.{match['n']}.{match['rest']}"
    return None


def tiny_from_diffusers(name: str) -> str | None:
    """Canonical name of a name in diffusers' AutoencoderTiny."""
    match = _TINY_DIFFUSERS.match(name)
    return match and f"{match['half']}.{int(match['n']) + _DIFFUSERS_SHIFT[match['half']]}.{match['rest']}"


def tiny_to_taesd(name: str, part: Part) -> str:
    """The published spelling of a canonical name: a file with one half has no prefix."""
    return name if part == "both" else name.split(".", 1)[1]


def tiny_to_diffusers(name: str) -> str:
    """The spelling of diffusers' AutoencoderTiny."""
    half, number, rest = name.split(".", 2)
    return f"{half}.layers.{int(number) - _DIFFUSERS_SHIFT[half]}.{rest}"


# --- both ------------------------------------------------------------------------------------------------------------


def to_diffusers(state: Mapping[str, Tensor], kind: Literal["kl", "tiny"], decoder_levels: int) -> dict[str, Tensor]:
    """Canonical weights -> names and shapes that diffusers' AutoencoderKL or AutoencoderTiny loads strictly."""
    if kind == "tiny":
        return {tiny_to_diffusers(name): tensor for name, tensor in state.items()}
    return {kl_to_diffusers(n, decoder_levels): to_diffusers_shape(n, tensor) for n, tensor in state.items()}


def to_original(state: Mapping[str, Tensor], kind: Literal["kl", "tiny"], part: Part) -> dict[str, Tensor]:
    """Canonical weights -> the layout the field publishes: ldm for KL autoencoders, numbered modules for TAESD."""
    if kind == "tiny":
        return {tiny_to_taesd(name, part): tensor for name, tensor in state.items()}
    return dict(state)
