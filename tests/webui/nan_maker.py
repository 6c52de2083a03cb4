"""An extension for tests: puts NaN into a weight or a latent, and the live VAE into another type.

Linked beside ours; `POST /nan-maker` with `weight=NAME` (one number of it becomes NaN, "" puts it back), `latent=first`
or `latent=last` (one cell of every sampled latent, "" stops it), `dtype=bfloat16`.  `GET /nan-maker` says what the web
UI's globals are.
"""

NAME = "nan-maker"
SCRIPT = """
import torch
from modules import devices, script_callbacks, scripts, shared

STATE = {"latent": "", "weight": None}


def live():
    forge = getattr(shared.sd_model, "forge_objects", None)
    return forge.vae.first_stage_model if forge is not None else shared.sd_model.first_stage_model


class NanMaker(scripts.Script):
    def title(self):
        return "NaN maker"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def post_sample(self, p, ps, *args):
        if STATE["latent"]:
            ps.samples = ps.samples.clone()
            ps.samples.view(-1)[0 if STATE["latent"] == "first" else -1] = float("nan")


def put_back():
    if STATE["weight"] is not None:
        parameter, value = STATE["weight"]
        parameter.data.view(-1)[-1] = value
        STATE["weight"] = None


def add_route(demo, app):
    @torch.inference_mode()  # Forge's weights are inference tensors
    def change(weight: str = None, latent: str = None, dtype: str = None):
        if weight is not None:
            put_back()
        if weight:
            parameter = dict(live().named_parameters())[weight]
            STATE["weight"] = parameter, float(parameter.data.view(-1)[-1])
            parameter.data.view(-1)[-1] = float("nan")
        if latent is not None:
            STATE["latent"] = latent
        if dtype:
            wanted = getattr(torch, dtype)
            live().to(wanted)
            if hasattr(shared.sd_model, "forge_objects"):
                shared.sd_model.forge_objects.vae.vae_dtype = wanted
                shared.sd_model.forge_objects_original.vae.vae_dtype = wanted
                shared.sd_model.forge_objects_after_applying_lora.vae.vae_dtype = wanted
            else:
                devices.dtype_vae = wanted
        return facts()

    def facts():
        return {
            "dtype_vae": str(getattr(devices, "dtype_vae", None)),
            "module": sorted({str(parameter.dtype) for parameter in live().parameters()}),
        }

    app.add_api_route("/nan-maker", change, methods=["POST"])
    app.add_api_route("/nan-maker", facts, methods=["GET"])


script_callbacks.on_app_started(add_route)
"""
