"""One table says what each element type is called."""

import io

import pytest
import torch
from safetensors.torch import save

from sd_vae_kit.core.dtypes import (
    BY_SAFETENSORS,
    BY_STORAGE,
    BY_TORCH_NAME,
    COMPUTE_WORDS,
    DTYPES,
    NUMBER_TYPES,
    dtype_word,
    stored_to_compute,
    wanted_dtype,
)

CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.mark.parametrize("number", NUMBER_TYPES, ids=lambda number: number.word)
def test_every_name_is_the_one_that_torch_and_safetensors_use(number):
    tensor = torch.zeros(2).to(number.dtype)
    assert f'"dtype":"{number.safetensors}"'.encode() in save({"w": tensor})
    assert BY_SAFETENSORS[number.safetensors] == number.dtype
    assert getattr(torch, str(number.dtype).removeprefix("torch.")) == number.dtype
    assert dtype_word(number.dtype) == number.word
    assert DTYPES[number.word] == number.dtype
    file = io.BytesIO()
    torch.save({"w": tensor}, file)
    # fp8 has no storage class of its own: torch writes it as untyped bytes
    names = ("UntypedStorage",) if number.word.startswith("fp8") else (number.storage,)
    assert any(name.encode() in file.getvalue() for name in names)


def test_no_name_stands_for_two_types():
    for table in (DTYPES, BY_SAFETENSORS, BY_TORCH_NAME):
        assert len(table) == len(NUMBER_TYPES) == len(set(table.values()))
    assert set(BY_STORAGE) - {number.storage for number in NUMBER_TYPES} == {"UntypedStorage"}


def test_what_a_user_asks_for_depends_on_the_device_only_where_it_is_auto():
    assert wanted_dtype("auto", CPU) == torch.float32
    assert wanted_dtype("auto", META) is None
    for word in COMPUTE_WORDS:
        assert wanted_dtype(word, CPU) == wanted_dtype(word, META) == DTYPES[word]
    with pytest.raises(KeyError):
        wanted_dtype("fp12", CPU)


def test_storage_formats_compute_in_the_type_that_holds_all_their_numbers():
    assert stored_to_compute(torch.float8_e4m3fn) == stored_to_compute(torch.float8_e5m2) == torch.float16
    assert stored_to_compute(torch.float64) == torch.float32
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert stored_to_compute(dtype) == dtype
    assert dtype_word(None) == dtype_word(torch.complex64) == "unknown"
