"""What is used of A1111 1.10.1 (82a973c0) and of reForge (3b56b268) and Forge Classic (1f95d717), by feature."""

from __future__ import annotations

from sd_vae_kit.hosts.host_names import HostName, names_for

PREVIEW_NAMES: tuple[HostName, ...] = (
    *names_for("taesd", "modules.sd_vae_taesd", "decoder_model", "encoder_model", "download_model"),
    *names_for("approximation", "modules.sd_vae_approx", "model", "download_model"),
    *names_for(
        "previews", "modules.sd_samplers_common", "store_latent", "single_sample_to_image", "approximation_indexes"
    ),
    *names_for("previews", "modules.shared_state", "State.set_current_image", "State.do_set_current_image"),
    *names_for("previews", "modules.shared_state", "State.begin", "State.end"),
    *names_for("previews", "modules.images", "image_grid"),
    *names_for("previews", "modules.shared", "parallel_processing_allowed"),
)
CALL_NAMES: tuple[HostName, ...] = (
    *names_for("progress", "modules.shared", "state.interrupted", "state.skipped", "state.textinfo"),
    *names_for("sketch", "modules.sd_samplers_common", "approximation_indexes", "samples_to_images_tensor"),
    *names_for("refusals", "modules.options", "Options.set"),
    *names_for("jobs", "modules.processing", "process_images_inner"),
)
LISTING_NAMES: tuple[HostName, ...] = (
    *names_for("override_leak", "modules.shared", "opts.data", "opts.data_labels"),
    *names_for("names", "modules.sd_vae", "refresh_vae_list", "vae_dict", "get_loaded_vae_name"),
    *names_for("hashes", "modules.sd_vae", "get_loaded_vae_hash"),
)
COMMON_NAMES: tuple[HostName, ...] = (
    *LISTING_NAMES,
    *names_for("loading", "modules.sd_models", "model_data.sd_model", "model_data.loaded_sd_models"),
    *names_for("loading", "modules.sd_vae", "VaeResolution", "resolve_vae", "load_vae", "clear_loaded_vae"),
    *names_for("loading", "modules.sd_vae", "reload_vae_weights"),
    *names_for("loading", "modules.script_callbacks", "model_loaded_callback"),
    *names_for("exact_stem", "modules.sd_vae", "find_vae_near_checkpoint"),
    *names_for("merger", "modules.sd_vae", "load_vae_dict"),
    *names_for("room", "modules.devices", "torch_gc", "cpu", "device"),
    *CALL_NAMES,
    *PREVIEW_NAMES,
)
A1111_NAMES: tuple[HostName, ...] = (
    *COMMON_NAMES,
    *names_for("nan_check", "modules.devices", "test_for_nans", "NansException"),
    *names_for("sticky_fp32", "modules.devices", "dtype_vae"),
    *names_for("sticky_fp32", "modules.processing", "decode_latent_batch"),
)
# they do not look for NaN at all; their VAEs are loaded by another thread
REFORGE_NAMES: tuple[HostName, ...] = (
    *COMMON_NAMES,
    *names_for("page", "modules_forge.main_thread", "run_and_wait_result"),
)
