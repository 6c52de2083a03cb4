"""Identity: the same VAE is recognised through copies, another one is not, however near."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from vae_files import kl_config, kl_state, tiny_state, write

from sd_vae_kit.core.convert import convert
from sd_vae_kit.core.dtypes import DTYPES
from sd_vae_kit.core.files.identity import fingerprint, non_finite, weight_sketch, weight_sketches_match
from sd_vae_kit.core.files.safetensors_file import save
from sd_vae_kit.core.vae import read_vae

HALVES = ("fp16", "bf16")
EIGHTHS = ("fp8_e4m3fn", "fp8_e5m2")
ALL = ("fp32", *HALVES, *EIGHTHS)
STATE = kl_state(kl_config(ch_mult=(1, 2, 2)), seed=3)


def cast(state, *names):
    """Through each precision in turn, as copies of copies are made."""
    for name in names:
        state = {n: t.to(torch.float32).to(DTYPES[name]) for n, t in state.items()}
    return state


def changed(state, share, seed=1, only=""):
    """A fine-tune: every weight (of names with `only` in them) moved by about `share` of its size."""
    generator = torch.Generator().manual_seed(seed)
    return {
        n: t * (1 + share * torch.randn(t.shape, generator=generator)) if only in n else t for n, t in state.items()
    }


# --- fingerprint -----------------------------------------------------------------------------------------------------


def test_a_half_precision_copy_has_the_same_fingerprint():
    assert fingerprint(STATE) == fingerprint(cast(STATE, "fp16"))
    assert fingerprint(STATE) == fingerprint(cast(STATE, "fp16", "fp32"))
    assert fingerprint(STATE) == fingerprint({n: t.double() for n, t in STATE.items()})


def test_a_fingerprint_is_64_hex_digits_and_does_not_depend_on_order_or_memory_layout():
    other = {n: t.to(memory_format=torch.channels_last) if t.dim() == 4 else t for n, t in reversed(STATE.items())}
    assert fingerprint(other) == fingerprint(STATE)
    assert len(fingerprint(STATE)) == 64
    int(fingerprint(STATE), 16)


@pytest.mark.parametrize("layout", ["ldm", "diffusers"])
@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
def test_a_fingerprint_survives_another_layout_container_and_leftovers(tmp_path, layout, suffix):
    original = read_vae(write(tmp_path / "a.safetensors", STATE))
    state, metadata = convert(original, layout, "fp16")
    path = tmp_path / f"b.{suffix}"
    if suffix == "ckpt":
        leftovers = {"loss.logvar": torch.zeros(()), "model_ema.decay": torch.ones(())}
        torch.save({"state_dict": {f"first_stage_model.{n}": t for n, t in state.items()} | leftovers}, path)
    else:
        save(path, state, metadata)
    assert fingerprint(read_vae(path).state) == fingerprint(original.state)
    assert weight_sketch(read_vae(path).state) == pytest.approx(weight_sketch(original.state), rel=1e-3, abs=1e-6)


def test_one_changed_weight_changes_the_fingerprint():
    other = {n: t.clone() for n, t in STATE.items()}
    other["decoder.conv_out.bias"][0] += 0.01
    assert fingerprint(other) != fingerprint(STATE)
    del other["decoder.conv_out.bias"]
    assert fingerprint(other) != fingerprint(STATE)


def test_a_fingerprint_depends_on_which_tensor_holds_what():
    one, two = "encoder.mid.attn_1.q.weight", "encoder.mid.attn_1.k.weight"
    swapped = {**STATE, one: STATE[two], two: STATE[one]}
    assert fingerprint(swapped) != fingerprint(STATE)


def test_numbers_beyond_half_precision_give_one_fingerprint_in_every_copy():
    state = {"w": torch.tensor([1e5, -1e5, 65504.0, 65519.0, 65521.0, 1e-9, -1e-9])}
    half = cast(state, "fp16")
    assert torch.isinf(half["w"]).any()
    assert fingerprint(state) == fingerprint(half) == fingerprint(cast(half, "fp32"))


def test_nan_has_a_fingerprint_too():
    nan = torch.tensor([float("nan"), 1.0])
    assert fingerprint({"w": nan}) == fingerprint({"w": nan.clone().half()})


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=40))
def test_the_fingerprint_of_any_numbers_survives_the_cast_to_half(values):
    state = {"w": torch.tensor(values, dtype=torch.float32)}
    assert fingerprint(state) == fingerprint(cast(state, "fp16"))


def test_flux2_statistics_do_not_count():
    assert fingerprint({**STATE, "bn.running_mean": torch.ones(4)}) == fingerprint(STATE)
    assert weight_sketch({**STATE, "bn.running_mean": torch.ones(4)}) == weight_sketch(STATE)


# --- sketch ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("one", ALL)
@pytest.mark.parametrize("other", ALL)
@pytest.mark.parametrize("state", [STATE, tiny_state()], ids=["kl", "tiny"])
def test_copies_in_any_two_precisions_match(state, one, other):
    assert weight_sketches_match(weight_sketch(cast(state, one)), weight_sketch(cast(state, other)))


@pytest.mark.parametrize("between", HALVES)
@pytest.mark.parametrize("last", EIGHTHS)
def test_a_copy_of_a_copy_still_matches(between, last):
    assert weight_sketches_match(weight_sketch(cast(STATE, between, last)), weight_sketch(STATE))
    assert weight_sketches_match(weight_sketch(cast(STATE, between, last, "fp16")), weight_sketch(cast(STATE, "bf16")))


@pytest.mark.parametrize("precision", ALL)
def test_another_vae_does_not_match(precision):
    other = kl_state(kl_config(ch_mult=(1, 2, 2)), seed=4)
    assert not weight_sketches_match(weight_sketch(cast(other, precision)), weight_sketch(STATE))


@pytest.mark.parametrize(
    ("share", "precision"), [(0.002, "fp32"), (0.002, "fp16"), (0.01, "bf16"), (0.03, "fp8_e4m3fn"), (0.03, "fp8_e5m2")]
)
@pytest.mark.parametrize("only", ["", "decoder."])
def test_a_fine_tune_does_not_match(share, precision, only):
    tuned = changed(STATE, share, only=only)
    assert not weight_sketches_match(weight_sketch(cast(tuned, precision)), weight_sketch(STATE))
    assert not weight_sketches_match(weight_sketch(tuned), weight_sketch(cast(STATE, precision)))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_file_whose_contrast_alone_was_changed_does_not_match(precision):
    """Tools for that scale the last layer and leave everything else."""
    other = {n: t * 1.02 if n.startswith("decoder.conv_out") else t for n, t in STATE.items()}
    assert not weight_sketches_match(weight_sketch(cast(other, precision)), weight_sketch(STATE))


def test_one_half_does_not_match_the_whole():
    half = {n: t for n, t in STATE.items() if n.startswith("decoder.")}
    assert not weight_sketches_match(weight_sketch(half), weight_sketch(STATE))


def test_norms_kept_wider_than_the_rest_match_too():
    mixed = {n: t if "norm" in n else t.to(torch.float8_e4m3fn) for n, t in STATE.items()}
    assert weight_sketches_match(weight_sketch(mixed), weight_sketch(STATE))


@given(st.lists(st.floats(-400, 400, width=32), min_size=1, max_size=60), st.sampled_from(ALL), st.sampled_from(ALL))
def test_any_numbers_match_their_copies(values, one, other):
    """Whatever the numbers, rounding stays within the tolerance."""
    state = {"decoder.conv_out.weight": torch.tensor(values, dtype=torch.float32)}
    assert weight_sketches_match(weight_sketch(cast(state, one)), weight_sketch(cast(state, other)))


@given(
    st.lists(st.floats(-400, 400, width=32), min_size=1, max_size=60), st.sampled_from(HALVES), st.sampled_from(EIGHTHS)
)
def test_any_numbers_match_a_copy_of_a_copy(values, between, last):
    state = {"decoder.conv_out.weight": torch.tensor(values, dtype=torch.float32)}
    assert weight_sketches_match(weight_sketch(cast(state, between, last)), weight_sketch(state))


def test_a_sketch_is_small_and_made_of_the_weights_themselves():
    values = weight_sketch(STATE)
    assert len(values) < 1000
    everything = torch.cat([t.flatten() for t in STATE.values()])
    assert bool(torch.isin(torch.tensor(values), everything).all())


def test_real_vaes_of_one_shape_are_told_apart_in_every_precision(weights_dir):
    states = {
        n: read_vae(weights_dir / f"{n}_decoder.safetensors").state for n in ("taesd", "taesdxl", "taesd3", "taef1")
    }
    for name, state in states.items():
        for precision in ALL:
            copy = weight_sketch(cast(state, precision))
            assert [n for n, s in states.items() if weight_sketches_match(copy, weight_sketch(s))] == [name]


# --- non-finite ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ALL)
def test_non_finite_weights_are_named(precision):
    state = {n: torch.ones(3) for n in ("good", "nan", "infinite")}
    state["nan"][1] = float("nan")
    state["infinite"][0] = float("-inf")
    # e4m3 has no infinity; torch rounds to its largest number or to NaN, depending on the version
    expected = ["nan"] if precision == "fp8_e4m3fn" else ["nan", "infinite"]
    assert non_finite(cast(state, precision))[: len(expected)] == expected
    assert non_finite({"good": state["good"]}) == []
