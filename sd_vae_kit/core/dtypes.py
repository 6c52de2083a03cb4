"""Element types and what each is called: the project's word, torch's object, safetensors' code, a pickle's storage."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class NumberType:
    """One element type.

    Attributes:
        word: What this program says, "fp16".
        dtype: torch's object.
        safetensors: The code in a safetensors header, "F16".
        storage: The class that a torch pickle names, "HalfStorage".
    """

    word: str
    dtype: torch.dtype
    safetensors: str
    storage: str


NUMBER_TYPES = (
    NumberType("fp32", torch.float32, "F32", "FloatStorage"),
    NumberType("fp16", torch.float16, "F16", "HalfStorage"),
    NumberType("bf16", torch.bfloat16, "BF16", "BFloat16Storage"),
    NumberType("fp64", torch.float64, "F64", "DoubleStorage"),
    NumberType("fp8_e4m3fn", torch.float8_e4m3fn, "F8_E4M3", "Float8_e4m3fnStorage"),
    NumberType("fp8_e5m2", torch.float8_e5m2, "F8_E5M2", "Float8_e5m2Storage"),
    NumberType("int64", torch.int64, "I64", "LongStorage"),
    NumberType("int32", torch.int32, "I32", "IntStorage"),
    NumberType("int16", torch.int16, "I16", "ShortStorage"),
    NumberType("int8", torch.int8, "I8", "CharStorage"),
    NumberType("uint8", torch.uint8, "U8", "ByteStorage"),
    NumberType("bool", torch.bool, "BOOL", "BoolStorage"),
)

DTYPES = {number.word: number.dtype for number in NUMBER_TYPES}
BY_SAFETENSORS = {number.safetensors: number.dtype for number in NUMBER_TYPES}
BY_TORCH_NAME = {str(number.dtype).removeprefix("torch."): number.dtype for number in NUMBER_TYPES}
# A storage without a type holds bytes.
BY_STORAGE = {**{number.storage: number.dtype for number in NUMBER_TYPES}, "UntypedStorage": torch.uint8}
_WORDS = {number.dtype: number.word for number in NUMBER_TYPES}

COMPUTE_WORDS = ("fp16", "bf16", "fp32")  # what a user may ask a network to compute in


def dtype_word(dtype: torch.dtype | None) -> str:
    """The project's word for an element type, "fp16"; "unknown" for one that this program has no use for."""
    return _WORDS.get(dtype, "unknown") if dtype is not None else "unknown"


def wanted_dtype(word: str, device: torch.device) -> torch.dtype | None:
    """The type that "auto", "fp16", "bf16" or "fp32" asks for on a device; `None` is the file's own.

    "auto" is fp32 on a CPU, where half precision is slow and in older torch missing, else the file's own.
    """
    if word == "auto":
        return torch.float32 if device.type == "cpu" else None
    return DTYPES[word]


def stored_to_compute(dtype: torch.dtype) -> torch.dtype:
    """The type that weights stored in `dtype` compute in: fp8 is a storage format, fp64 gains nothing."""
    if dtype.itemsize == 1:
        return torch.float16  # which holds every fp8 number
    return torch.float32 if dtype == torch.float64 else dtype
