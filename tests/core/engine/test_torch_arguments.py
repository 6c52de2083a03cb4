"""Arguments of torch's functions lie in their documented ranges, which newer versions of torch enforce."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from vae_zoo import picture, small_vae

from sd_vae_kit.core.engine.group_norm import NO_EPSILON
from sd_vae_kit.core.engine.stream import Plan, run_streamed
from sd_vae_kit.core.graph.from_module import decoder_graph, encoder_graph

CPU = torch.device("cpu")
DOCUMENTED = {
    "eps": lambda number: number > 0,  # torch 2.10 and 2.11 refuse 0.0 for batch_norm
    "momentum": lambda number: 0 <= number <= 1,
    "dropout_p": lambda number: 0 <= number < 1,
}


class CheckedArguments(TorchDispatchMode):
    """Compares the arguments of every operator that runs with `DOCUMENTED`; counts those that it has looked at."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        names = [argument.name for argument in func._schema.arguments]
        given = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
        for name in DOCUMENTED.keys() & given.keys():
            self.seen.add((func._schema.name, name))
            assert DOCUMENTED[name](given[name]), f"{func._schema.name}: {name} is {given[name]}"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_a_run_gives_every_function_what_it_documents(part, dtype):
    vae = small_vae().to(dtype)
    graph, x = (
        (encoder_graph(vae), picture(3, 32, 24)) if part == "encoder" else (decoder_graph(vae), picture(4, 16, 12))
    )
    with CheckedArguments() as checked:
        run_streamed(graph, x.to(dtype), Plan("stream", CPU, dtype, band_bytes=8_000))
    assert any("batch_norm" in function for function, _ in checked.seen)
    assert dtype == torch.float16 or any(name == "eps" for _, name in checked.seen)


def test_a_zero_epsilon_is_found():
    x, ones = torch.randn(1, 2, 4, 4), torch.ones(2)
    with pytest.raises((AssertionError, RuntimeError, ValueError), match="eps"), CheckedArguments():
        torch.batch_norm(x, ones, ones, ones, ones, False, 0.0, 0.0, False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_smallest_epsilon_adds_nothing_to_one(dtype):
    assert NO_EPSILON > 0
    assert float(torch.ones(1, dtype=dtype) + torch.tensor([NO_EPSILON], dtype=dtype)) == 1.0
    assert float(torch.tensor([NO_EPSILON], dtype=dtype)) > 0  # not lost on its way into a kernel
