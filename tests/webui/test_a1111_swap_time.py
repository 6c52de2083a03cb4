"""How long choosing another VAE takes in A1111, by our way and by the host's own, in one process.

The checkpoint with the largest VAE is loaded; a small extension of the test's own calls the host's function both ways
in turn.  The medians are printed (`pytest -s`), and ours must be well below.
"""

import logging

import pytest
from installation import start
from programs import A1111
from safetensors.torch import save_file
from vae_variants import changed

from sd_vae_kit.core.vae import read_vae

pytestmark = pytest.mark.webui

ROUNDS = 3
SWAPS = 15
PROBE = '''
import statistics, time
from modules import script_callbacks, sd_vae, shared

def measure(ours: bool, swaps: int):
    """Milliseconds of warm swaps: the whole call, and the exchange of weights alone."""
    shared.opts.set("vae_kit_repair_loading", ours)
    files = [sd_vae.vae_dict["first.safetensors"], sd_vae.vae_dict["second.safetensors"]]
    for file in files * 2:
        sd_vae.reload_vae_weights(vae_file=file)
    calls, exchanges = [], []
    for number in range(swaps):
        time.sleep(0.3)
        started = time.perf_counter()
        sd_vae.reload_vae_weights(vae_file=files[number % 2])
        calls.append(1000 * (time.perf_counter() - started))
        if ours:
            exchanges.append(1000 * shared.vae_kit_running.host.registry.active().seconds)
    sd_vae.reload_vae_weights(vae_file=None)
    return {"call": calls, "exchange": exchanges}

script_callbacks.on_app_started(lambda demo, app: app.add_api_route("/probe/swap", measure))
'''


def test_a_warm_swap_is_far_faster_than_the_hosts_own(tmp_path):
    checkpoints = (A1111.folder() / "models" / "Stable-diffusion").glob("*.safetensors")
    checkpoint = max(checkpoints, key=lambda path: path.stat().st_size)
    state = read_vae(checkpoint).state
    folder, data = tmp_path / "vaes", tmp_path / "data"
    for name, seed in (("first", 1), ("second", 2)):
        folder.mkdir(exist_ok=True)
        save_file(changed(state, seed), folder / f"{name}.safetensors")
    script = data / "extensions" / "probe" / "scripts" / "probe.py"
    script.parent.mkdir(parents=True)
    script.write_text(PROBE)
    webui = start(A1111, data, f"--vae-dir={folder}", f"--ckpt={checkpoint}")
    try:
        webui.txt2img()
        assert webui.set(sd_vae_checkpoint_cache=3).status == 200
        ours, theirs, exchange = [], [], []
        for _ in range(ROUNDS):  # in turn, so that a busy minute burdens both
            answer = webui.call(f"/probe/swap?ours=true&swaps={SWAPS}").body
            ours, exchange = ours + answer["call"], exchange + answer["exchange"]
            theirs += webui.call(f"/probe/swap?ours=false&swaps={SWAPS}").body["call"]
    finally:
        webui.stop()
    parameters = sum(tensor.numel() for tensor in state.values())
    logging.getLogger(__name__).warning(
        "VAE of %.1f M parameters, %d warm swaps: exchange %.1f ms, whole call %.1f ms (least %.1f); "
        "the host's own %.0f ms (least %.0f)",
        parameters / 1e6, len(ours), median(exchange), median(ours), min(ours), median(theirs), min(theirs),
    )  # fmt: skip
    assert median(ours) < median(theirs) / 3


def median(values):
    return sorted(values)[len(values) // 2]
