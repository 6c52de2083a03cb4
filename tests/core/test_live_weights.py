"""Weights of a module that was made in inference mode, as Forge makes its models, are exchanged like any others."""

import threading

import pytest
import torch

from sd_vae_kit.core.live_weights import LiveWeights
from sd_vae_kit.core.networks.autoencoder import AutoencoderKL, KlConfig, NetConfig

NET = NetConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1)


def vae(seed):
    torch.manual_seed(seed)
    return AutoencoderKL(KlConfig(NET, NET, embed_dim=4)).eval().requires_grad_(False)


@pytest.fixture
def made_in_inference_mode():
    with torch.inference_mode():
        return vae(0)


def picture(module):
    with torch.inference_mode():
        return module.decode(torch.linspace(-1, 1, 4 * 8 * 8).reshape(1, 4, 8, 8)).clone()


def test_storage_is_exchanged_and_given_back_bit_for_bit(made_in_inference_mode):
    own, other = picture(made_in_inference_mode), vae(1)
    live = LiveWeights(made_in_inference_mode)
    previous = live.install(live.prepare(other.state_dict()))
    assert torch.equal(picture(made_in_inference_mode), picture(other))
    assert all(tensor.is_inference() for tensor in live.tensors.values())
    live.install(previous)
    assert torch.equal(picture(made_in_inference_mode), own)


@pytest.mark.parametrize("mode", [False, True])
def test_the_caller_may_be_in_either_mode(made_in_inference_mode, mode):
    with torch.inference_mode(mode):
        live = LiveWeights(made_in_inference_mode)
        live.install(live.prepare(vae(1).state_dict()))
    assert torch.equal(picture(made_in_inference_mode), picture(vae(1)))


def test_storage_is_filled_again_by_a_thread_in_normal_mode(made_in_inference_mode):
    live = LiveWeights(made_in_inference_mode)
    storage = live.install(live.prepare(vae(1).state_dict()))
    filled = {}
    thread = threading.Thread(target=lambda: filled.update(live.prepare(vae(2).state_dict(), out=storage)))
    thread.start()
    thread.join()
    assert all(filled[name] is storage[name] for name in storage)
    live.install(filled)
    assert torch.equal(picture(made_in_inference_mode), picture(vae(2)))


def test_storage_of_the_other_mode_is_not_reused(made_in_inference_mode):
    live = LiveWeights(made_in_inference_mode)
    normal = {name: tensor.clone() for name, tensor in vae(1).state_dict().items()}
    assert not live.fits(normal)
    assert live.fits(live.prepare(normal, out=normal))


def test_a_module_moved_by_the_host_takes_storage_of_its_new_dtype(made_in_inference_mode):
    with torch.inference_mode():
        made_in_inference_mode.to(torch.float64)
    live = LiveWeights(made_in_inference_mode)
    live.install(live.prepare(vae(1).state_dict()))
    with torch.inference_mode():
        z = torch.linspace(-1, 1, 4 * 8 * 8, dtype=torch.float64).reshape(1, 4, 8, 8)
        assert torch.equal(made_in_inference_mode.decode(z), vae(1).double().decode(z))
