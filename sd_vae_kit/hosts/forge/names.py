"""What is used of Forge f2.0.1 (dfdcbab6) and of Forge Neo 2.26 (5692d2d1), by feature."""

from __future__ import annotations

from sd_vae_kit.hosts.a1111.names import CALL_NAMES, LISTING_NAMES, PREVIEW_NAMES
from sd_vae_kit.hosts.host_names import HostName, names_for

COMMON_NAMES: tuple[HostName, ...] = (
    *LISTING_NAMES,
    *names_for("loading", "modules.sd_models", "model_data.sd_model", "model_data.forge_loading_parameters"),
    *names_for("loading", "modules.sd_vae", "loaded_vae_file"),
    *names_for("loading", "backend.patcher.vae", "VAE.decode", "VAE.encode"),
    *names_for("loading", "backend.memory_management", "VAE_ALWAYS_TILED", "OOM_EXCEPTION"),
    *names_for("room", "backend.memory_management", "vae_device", "current_loaded_models", "free_memory"),
    *names_for("requests", "modules.sd_vae", "reload_vae_weights"),
    *names_for("requests", "modules.processing", "set_config"),
    *names_for("refusals", "modules.sysinfo", "set_config"),
    *names_for("errors", "modules_forge.main_thread", "Task.work", "last_exception"),
    *names_for("page", "modules.ui_settings", "UiSettings.run_settings"),
    *names_for("infotext", "modules.infotext_utils", "parse_generation_parameters"),
    *CALL_NAMES,
    *PREVIEW_NAMES,
)
FORGE_NAMES: tuple[HostName, ...] = (*COMMON_NAMES, *names_for("merger", "modules.sd_vae", "load_torch_file"))
NEO_NAMES: tuple[HostName, ...] = (*COMMON_NAMES, *names_for("requests", "modules.sd_vae", "restore_vae_weights"))
