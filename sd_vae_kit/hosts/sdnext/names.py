"""What is used of SD.Next (058a7f0c), by feature."""

from __future__ import annotations

from sd_vae_kit.hosts.host_names import HostName, names_for

SDNEXT_NAMES: tuple[HostName, ...] = (
    *names_for("loading", "modules.sd_vae", "load_vae", "reload_vae_weights", "resolve_vae", "loaded_vae_file"),
    *names_for("loading", "modules.modeldata", "model_data.sd_model"),
    *names_for("listing", "modules.sd_vae", "refresh_vae_list"),
    *names_for("refusals", "modules.options_handler", "Options.set"),
    *names_for("refusals", "modules.api.options", "set_options"),
    *names_for("control", "modules.scripts_manager", "control_extensions"),
    *names_for("jobs", "modules.processing", "process_images_inner"),
)
