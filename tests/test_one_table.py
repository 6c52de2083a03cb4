"""What element types are called stands in core/dtypes.py alone, the size of a MiB in units.py alone."""

import ast

import pytest
from conftest import ROOT

PACKAGE = ROOT / "sd_vae_kit"
TYPES = {
    "float64", "double", "float32", "float", "float16", "half", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int64",
    "long", "int32", "int16", "int8", "uint8", "bool",
}  # fmt: skip


def is_dtype(node):
    return isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "torch" and node.attr in TYPES


def is_word(node):
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def tables(source):
    """Lines of dictionaries that give words to several element types, or types to words."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            named = [pair for pair in pairs if any(map(is_dtype, pair)) and any(map(is_word, pair))]
            if len(named) > 1:
                yield node.lineno


def mebibytes(source):
    """Lines of arithmetic that says what a MiB is: 2**20, 1 << 20, 64 << 20, 1024 * 1024."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.BinOp) and all(isinstance(side, ast.Constant) for side in (node.left, node.right)):
            written = node.left.value, type(node.op), node.right.value
            if written in ((2, ast.Pow, 20), (1024, ast.Mult, 1024), (1024, ast.Pow, 2)) or written[1:] == (
                ast.LShift,
                20,
            ):
                yield node.lineno


SOURCES = {path.relative_to(PACKAGE).as_posix(): path.read_text("utf-8") for path in sorted(PACKAGE.rglob("*.py"))}


def test_no_other_file_names_element_types():
    found = {name: lines for name, source in SOURCES.items() if (lines := [*tables(source)])}
    assert found == {}


def test_no_other_file_says_what_a_mebibyte_is():
    found = {name: lines for name, source in SOURCES.items() if (lines := [*mebibytes(source)])}
    assert found == {"units.py": [3]}


@pytest.mark.parametrize(
    "source",
    [
        'DTYPES = {"fp16": torch.float16, "fp32": torch.float32}',
        'WORDS = {torch.half: "fp16", torch.bfloat16: "bf16"}',
        'def f(x):\n    return {torch.float32: "fp32", torch.float16: "fp16"}.get(x)',
    ],
)
def test_a_second_table_is_found(source):
    assert [*tables(source)]


@pytest.mark.parametrize(
    "source", ["A = 2**20", "A = 256 * 2**20", "A = 64 << 20", "f(x / (1024 * 1024))", "A = 1 << 20"]
)
def test_a_second_mebibyte_is_found(source):
    assert [*mebibytes(source)]


@pytest.mark.parametrize(
    "source", ["{torch.float16: 1e-3, torch.float32: 1e-6}", '{"x": torch.float32}', "A = 2**10", "A = 1 << 30"]
)
def test_other_constants_are_not_complained_about(source):
    assert not [*mebibytes(source)]
    assert not [*tables(source)]
