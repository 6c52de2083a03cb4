"""What people put into the folder by mistake, and autoencoders that resemble usable ones: recognised and named."""

from __future__ import annotations

import re
from collections.abc import Mapping

from sd_vae_kit.core.files.header import TensorInfo
from sd_vae_kit.core.files.layouts import LAYOUTS, KeyCondition, Layout
from sd_vae_kit.core.files.listed import listed
from sd_vae_kit.errors import UnsupportedVaeError

# Autoencoders beside those above, looked for among the names behind one prefix; the first that matches is named.
RELATIVES = (
    ("a VQ autoencoder (it has a codebook)", KeyCondition((r"quantize\.embedding", r"quantize\.embed"))),
    ("Stable Video Diffusion's temporal VAE", KeyCondition((
        r"decoder\..*(?:time_stack|time_mix|temporal_res|time_conv)",))),
    ("an asymmetric inpainting VAE", KeyCondition((r"decoder\.condition_encoder\.", r"decoder\.up_layers\."))),
    (
        "a 3-D video VAE (Wan, Qwen-Image, Hunyuan, CogVideoX, LTX ...)",
        KeyCondition((r"encoder\.", r"decoder\.", r"conv1\."), dimensions=5),
    ),
    ("a KL autoencoder with attention beside the middle", KeyCondition((r"(?:encoder\.down|decoder\.up)\.\d+\.attn\.",
        r"(?:encoder\.down|decoder\.up)_blocks\.\d+\.attentions\."))),
    ("a tiny video autoencoder (TAEHV)", KeyCondition((r"(?:encoder|decoder)\.\d+\.conv\.weight$",))),
    ("a deep-compression autoencoder (DC-AE, SANA)", KeyCondition((
        r"(?:encoder|decoder)\.(?:stages|down_blocks|up_blocks|"
        r"project_in|project_out)\.\d*\.?.*(?:context_module|local_module|conv_depth|to_qkv_multiscale)",))),
    ("Stable Cascade's stage A", KeyCondition((r"in_block\.1\.weight", r"vquantizer\."))),
)  # fmt: skip

OTHER_MODELS = (
    ("a LoRA", "models/Lora", KeyCondition((
        r".*\.?lora_(?:up|down|A|B)\b", r".*\.lora\.(?:up|down)", r"lora_(?:unet|te\d?|transformer)_",
        r".*\.(?:hada_w1_a|lokr_w1|oft_blocks|oft_diag|dora_scale)",
    ))),
    ("a ControlNet", "models/ControlNet", KeyCondition((
        r"control_model\.", r".*input_hint_block\.", r".*controlnet_(?:cond_embedding|down_blocks|blocks|mid_block)\b",
        r"adapter\.(?:body|conv_in)\.", r"lora_controlnet$",
    ))),
    ("an IP-Adapter", "models/ControlNet", KeyCondition((r"image_proj\.", r"ip_adapter\.", r".*to_k_ip\."))),
    ("a checkpoint without VAE weights", "models/Stable-diffusion", KeyCondition((
        r"model\.diffusion_model\.", r"diffusion_model\.", r"input_blocks\.0\.0\.weight", r"joint_blocks\.\d",
        r"double_blocks\.\d", r"(?:unet\.)?(?:down_blocks\.\d.*transformer_blocks|time_embedding\.linear_1)",
        r"transformer_blocks\.\d", r"single_transformer_blocks\.\d", r"cond_stage_model\.", r"conditioner\.embedders\.",
    ))),
    ("a text encoder", "models/text_encoder", KeyCondition((
        r".*text_model\.(?:encoder|embeddings)\.", r".*transformer\.resblocks\.", r".*encoder\.block\.\d+\.layer\.\d",
        r".*token_embedding\.weight", r".*model\.layers\.\d+\.self_attn", r"layers\.\d+\.self_attn", r"shared\.weight",
    ))),
    ("an image encoder", "models/clip_vision", KeyCondition((r".*vision_model\.", r"visual\."))),
    ("an embedding (textual inversion)", "embeddings", KeyCondition((
        r"emb_params$", r"string_to_param", r"clip_[lg]$", r"<.*>$", r"t5xxl$",
    ))),
    ("an upscaler", "models/ESRGAN", KeyCondition((
        r"(?:params_ema\.|params\.)?conv_first\.", r"(?:params_ema\.)?layers\.\d+\.residual_group\.",
        r".*\.(?:RDB|rdb)\d\.", r"model\.1\.sub\.", r"body\.\d+\.(?:weight|rdb)", r"1\.sub\.",
    ))),
    ("a hypernetwork", "models/hypernetworks", KeyCondition((r"(?:320|640|768|1280)\.",))),
)  # fmt: skip


def what_it_is(label: str, tensors: Mapping[str, TensorInfo], groups: Mapping[str, Mapping[str, TensorInfo]]) -> str:
    """The sentence for a file without a usable VAE."""
    if not tensors:
        return f"{label} holds no weights at all; choose a VAE file"
    for name, condition in RELATIVES:
        if any(condition.match(group) for group in groups.values()):
            return f"{label} is {name}, which this program does not run; choose a VAE of SD, SDXL, SD 3 or FLUX"
    for name, folder, condition in OTHER_MODELS:
        if condition.match(tensors):
            return f"{label} is {name}, not a VAE; it belongs into {folder}"
    nearest = max(LAYOUTS, key=lambda layout: _landmarks(layout, groups)[0])
    score, missing = _landmarks(nearest, groups)
    if score == 0:
        return (
            f"{label} is no VAE this program knows; its {len(tensors)} tensors are called {listed(sorted(tensors), 3)}"
        )
    near = f"nearest is {nearest.label} ({score} of {len(nearest.landmarks)} landmarks)"
    return f"{label} is no VAE this program knows; {near}, but {listed(missing)} are missing"


def _landmarks(layout: Layout, groups: Mapping[str, Mapping[str, TensorInfo]]) -> tuple[int, list[str]]:
    """How many landmarks of a layout the best group has, and which it lacks."""
    results = [[n for n in layout.landmarks if n not in group] for group in groups.values()]
    missing = min(results, key=len, default=list(layout.landmarks))
    return len(layout.landmarks) - len(missing), missing


def refuse_relatives(label: str, layout: Layout, group: Mapping[str, TensorInfo], names: Mapping[str, str]) -> None:
    """A layer that no table translates would be left out silently, and the pictures would be wrong."""
    for name, condition in RELATIVES:
        if condition.match(group):
            raise UnsupportedVaeError(
                f"{label} is {name}, which this program does not run; choose a VAE of SD, SDXL, SD 3 or FLUX"
            )
    known = set(names.values())
    foreign = [n for n in group if n not in known and re.match(r"(?:encoder|decoder|quant_conv|post_quant_conv)\.", n)]
    if foreign:
        raise UnsupportedVaeError(
            f"{label} resembles {layout.label} but has layers this program does not know: {listed(foreign)}"
        )
