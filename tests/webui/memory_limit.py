"""An extension for tests: convolutions whose result is larger than a limit raise what a full graphics card raises.

It also seeds what web UIs leave to chance: an encode draws from the posterior by the process's own random numbers.

Linked beside ours; `POST /memory-limit?mb=N` sets the limit, 0 takes it away.  It is a real limit for whoever computes:
the web UI's own forward meets it as ours does.
"""

NAME = "memory-limit"
SCRIPT = """
import torch
from modules import script_callbacks, scripts

LIMIT = {"mb": 0, "hits": 0}
REAL = torch.nn.functional.conv2d


def limited(input, weight, bias=None, *args, **kwargs):
    result = REAL(input, weight, bias, *args, **kwargs)
    if LIMIT["mb"] and result.numel() * result.element_size() > LIMIT["mb"] * 2**20:
        LIMIT["hits"] += 1
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate more than the test allows.")
    return result


torch.nn.functional.conv2d = limited


class SeededTest(scripts.Script):
    def title(self):
        return "Seeded test"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def process(self, p, *args):
        torch.manual_seed(0)


def add_route(demo, app):
    def limit(mb: float):
        hits, LIMIT["mb"], LIMIT["hits"] = LIMIT["hits"], mb, 0
        return {"hits": hits}

    app.add_api_route("/memory-limit", limit, methods=["POST"])


script_callbacks.on_app_started(add_route)
"""
