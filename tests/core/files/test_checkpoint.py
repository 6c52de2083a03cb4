"""Containers: what is read, what is refused, and that nothing in a pickle ever runs."""

import io
import json
import os
import pickle
import pickletools
import struct
import sys
import tempfile
import types
import zipfile
from collections import OrderedDict, defaultdict
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from vae_files import write

from sd_vae_kit.core.dtypes import DTYPES, dtype_word
from sd_vae_kit.core.files import pickle_machine, pickle_tensors, pickle_values
from sd_vae_kit.core.files.checkpoint import read_header, read_tensors
from sd_vae_kit.core.files.header import TensorInfo, main_dtype
from sd_vae_kit.errors import BrokenVaeError, UnsafeFileError, UnsupportedVaeError, VaeKitError, VaeNotFoundError

FLOATS = ("fp32", "fp16", "bf16", "fp64", "fp8_e4m3fn", "fp8_e5m2")
STATE = {
    "a.weight": torch.arange(24, dtype=torch.float32).reshape(2, 3, 4) / 8,
    "a.bias": torch.tensor([1.5, -2.0]),
    "scalar": torch.tensor(3.0),
    "none": torch.empty(0, 4),
}


def save_zip(path, value):
    torch.save(value, path)


def save_legacy(path, value):
    torch.save(value, path, _use_new_zipfile_serialization=False)


SAVERS = {"zip": save_zip, "legacy": save_legacy}


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype
        assert got[name].shape == tensor.shape
        assert torch.equal(got[name].to(torch.float64), tensor.to(torch.float64)), name


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FLOATS)
def test_safetensors_of_every_float_type_are_read_bit_for_bit(tmp_path, name):
    state = {n: t.to(DTYPES[name]) for n, t in STATE.items()}
    path = write(tmp_path / "x.safetensors", state, {"family": "sdxl"})
    header = read_header(path)
    assert header.container == "safetensors"
    assert header.metadata == {"family": "sdxl"}
    assert header.tensors == {n: TensorInfo(DTYPES[name], tuple(t.shape)) for n, t in state.items()}
    assert_same(read_tensors(path, header.tensors), state)


@pytest.mark.parametrize("container", SAVERS)
@pytest.mark.parametrize("name", FLOATS)
def test_pickles_of_every_float_type_are_read_bit_for_bit(tmp_path, container, name):
    state = {n: t.to(DTYPES[name]) for n, t in STATE.items()}
    try:
        SAVERS[container](tmp_path / "x.ckpt", state)
    except KeyError:
        pytest.skip(f"torch {torch.__version__} itself cannot save {name}")
    header = read_header(tmp_path / "x.ckpt")
    assert header.container == "pickle"
    assert header.tensors == {n: TensorInfo(DTYPES[name], tuple(t.shape)) for n, t in state.items()}
    assert_same(read_tensors(tmp_path / "x.ckpt", header.tensors), state)


def test_only_the_named_tensors_are_read(tmp_path):
    path = write(tmp_path / "x.safetensors", STATE)
    assert_same(read_tensors(path, ["a.bias"]), {"a.bias": STATE["a.bias"]})


def test_the_bytes_decide_and_not_the_suffix(tmp_path):
    save_zip(tmp_path / "really_a_pickle.safetensors", STATE)
    write(tmp_path / "really_safetensors.ckpt", STATE)
    assert read_header(tmp_path / "really_a_pickle.safetensors").container == "pickle"
    assert read_header(tmp_path / "really_safetensors.ckpt").container == "safetensors"


@pytest.mark.parametrize("length", [0x7B20, 0x7B])
def test_a_header_whose_length_reads_like_text_is_a_header(tmp_path, length):
    head = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(length)
    (tmp_path / "x.ckpt").write_bytes(struct.pack("<Q", length) + head + b"\0" * 4)
    assert read_header(tmp_path / "x.ckpt").tensors.keys() == {"w"}


def test_a_header_is_read_without_its_tensors(tmp_path):
    """Sixteen gibibytes that the disk does not have: reading any of them would show."""
    entry = {"w": {"dtype": "F32", "shape": [1 << 32], "data_offsets": [0, 1 << 34]}}
    head = json.dumps(entry).encode()
    with (tmp_path / "big.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        file.truncate(8 + len(head) + (1 << 34))
    assert read_header(tmp_path / "big.safetensors").tensors["w"].shape == (1 << 32,)


def test_a_zip_header_reads_only_the_index(tmp_path, monkeypatch):
    save_zip(tmp_path / "x.pt", STATE)
    read = []
    original = zipfile.ZipFile.read
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda self, e, *a: read.append(e.filename) or original(self, e, *a))
    read_header(tmp_path / "x.pt")
    assert read
    assert not [name for name in read if "/data/" in name]


def test_tensors_stay_what_they_were_when_the_file_is_overwritten(tmp_path):
    path = write(tmp_path / "x.safetensors", STATE)
    tensors = read_tensors(path, STATE)
    path.write_bytes(b"\xff" * path.stat().st_size)
    assert_same(tensors, STATE)


@pytest.mark.parametrize("container", SAVERS)
def test_views_parameters_and_shared_storages_have_the_right_values(tmp_path, container):
    base = torch.arange(60, dtype=torch.float32).reshape(6, 10)
    state = {
        "base": base,
        "transposed": base.t(),
        "slice": base[2:4, 3:9:2],
        "expanded": torch.ones(1, 3).expand(4, 3),
        "parameter": torch.nn.Parameter(torch.randn(3)),
    }
    SAVERS[container](tmp_path / "x.pt", state)
    got = read_tensors(tmp_path / "x.pt", state)
    assert_same(got, {n: t.detach() for n, t in state.items()})
    got["base"].zero_()
    assert torch.equal(got["slice"], base[2:4, 3:9:2]), "tensors must not share memory"


@pytest.mark.parametrize("container", SAVERS)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": s, "epoch": 3, "global_step": 10},
        lambda s: {"model": {"state_dict": s}},
        lambda s: OrderedDict(state_dict=OrderedDict(s)),
        lambda s: {"state_dict": s, "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(5)}}}], "lr": 1e-4},
        lambda s: defaultdict(dict, {"module": s}),
    ],
    ids=["state_dict", "nested", "ordered", "optimizer", "defaultdict"],
)
def test_wrappers_are_taken_off(tmp_path, container, wrap):
    SAVERS[container](tmp_path / "x.ckpt", wrap(STATE))
    assert_same(read_tensors(tmp_path / "x.ckpt", read_header(tmp_path / "x.ckpt").tensors), STATE)


def test_nested_dictionaries_give_dotted_names(tmp_path):
    save_zip(tmp_path / "x.pt", {"encoder": {"0.weight": torch.ones(2)}, "decoder": {"1.weight": torch.ones(3)}})
    assert read_header(tmp_path / "x.pt").tensors.keys() == {"encoder.0.weight", "decoder.1.weight"}


def test_the_state_dict_of_a_module_is_read(tmp_path):
    """It carries an attribute (`_metadata`) that a plain dictionary does not."""
    module = torch.nn.Linear(3, 2)
    save_zip(tmp_path / "x.pt", module.state_dict())
    assert_same(
        read_tensors(tmp_path / "x.pt", ["weight", "bias"]), {n: p.detach() for n, p in module.state_dict().items()}
    )


def test_storage_views_of_torch_0_4_begin_where_they_say():
    """Such files name a part of another storage; no torch of today writes them."""

    class Token:
        pass

    class Writer(pickle.Pickler):
        def persistent_id(self, obj):
            return ("storage", torch.FloatStorage, "7", "cpu", 10, ("8", 4, 6)) if isinstance(obj, Token) else None

    class Tensor:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (Token(), 1, (2,), (1,), False, OrderedDict())

    stream = io.BytesIO()
    Writer(stream, protocol=2).dump({"w": Tensor()})
    ref = pickle_tensors.collect_tensors(pickle_machine.interpret_bytes(stream.getvalue()))["w"]
    assert (ref.storage.key, ref.offset, ref.end) == ("7", 5, 7)


def test_the_main_type_is_that_of_most_weights():
    infos = [TensorInfo(torch.float16, (8, 8)), TensorInfo(torch.float32, (8,))]
    assert main_dtype(infos) == "fp16"
    assert main_dtype([]) == ""
    assert dtype_word(None) == "unknown"


def test_a_tensor_of_foreign_type_is_listed_and_refused_when_asked_for(tmp_path):
    head = json.dumps({"w": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + b"\0\0")
    assert read_header(tmp_path / "x.safetensors").tensors == {"w": TensorInfo(None, (4,))}
    with pytest.raises(UnsupportedVaeError, match=r"the numbers of w .* use fp32, fp16 or bf16"):
        read_tensors(tmp_path / "x.safetensors", ["w"])


def test_a_name_that_is_gone_is_an_error_with_a_remedy(tmp_path):
    path = write(tmp_path / "x.safetensors", STATE)
    with pytest.raises(BrokenVaeError, match=r"x\.safetensors has no b; .* refresh the list"):
        read_tensors(path, ["a.bias", "b"])


# --- files that are no models ----------------------------------------------------------------------------------------

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:735e4c3a\nsize 334641190\n"


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt", "pt", "pth", "bin"])
@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (b"", BrokenVaeError, r"is empty \(0 bytes\); copy or download it again"),
        (b"<!DOCTYPE html><html>Not found</html>", BrokenVaeError, r"is a web page.* download it again"),
        (b"\n  <html>\n<head></head></html>", BrokenVaeError, r"is a web page"),
        (b'{"error": "Repository not found"}', BrokenVaeError, r"JSON text.* download it again"),
        (LFS, BrokenVaeError, r"git-lfs pointer.*git lfs pull"),
        (b"\0" * 5000, BrokenVaeError, r"begins with zeros.*copy or download it again"),
        (b"GGUF\x03\0\0\0" + b"\0" * 100, UnsupportedVaeError, r"GGUF.*get the VAE as \.safetensors"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 100, UnsupportedVaeError, r"PNG picture"),
        (b"\x93\x1f\xc2\x00\x55" * 40, BrokenVaeError, r"copy or download it again"),
        (b"abc", BrokenVaeError, r"copy or download it again"),
    ],
    ids=["empty", "html", "html2", "json", "lfs", "zeros", "gguf", "png", "random", "short"],
)
def test_what_is_no_model_says_what_it_is(tmp_path, suffix, content, error, words):
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(content)
    with pytest.raises(error, match=words) as raised:
        read_header(path)
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith(path.name)


def test_a_folder_is_named_as_one(tmp_path):
    (tmp_path / "x.safetensors").mkdir()
    with pytest.raises(UnsupportedVaeError, match=r"is a folder; choose the \.safetensors file inside"):
        read_header(tmp_path / "x.safetensors")


def test_a_vanished_file_is_not_found(tmp_path):
    with pytest.raises(VaeNotFoundError, match=r"x\.pt is no longer in .*; refresh the list"):
        read_header(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("error", "words"), [(PermissionError(13, "Permission denied"), "locked"), (OSError(5, "I/O error"), "I/O error")]
)
def test_a_locked_file_and_a_bad_disk_are_told(tmp_path, monkeypatch, error, words):
    path = write(tmp_path / "x.safetensors", STATE)

    def refuse(*_args, **_options):
        raise error

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(BrokenVaeError, match=words):
        read_header(path)


def test_zip_archives_of_other_kinds_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.ckpt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(UnsupportedVaeError, match="zip archive without torch weights; unpack it"):
        read_header(tmp_path / "x.ckpt")
    with zipfile.ZipFile(tmp_path / "y.pt", "w") as archive:
        archive.writestr("decoder/data.pkl", b"")
        archive.writestr("decoder/constants.pkl", b"")
    with pytest.raises(UnsupportedVaeError, match="TorchScript program"):
        read_header(tmp_path / "y.pt")


# --- truncated and damaged -------------------------------------------------------------------------------------------


def test_a_half_copied_file_tells_both_sizes(tmp_path):
    path = write(tmp_path / "x.safetensors", STATE)
    whole = path.stat().st_size
    os.truncate(path, whole - 7)
    with pytest.raises(
        BrokenVaeError, match=rf"has {whole - 7} bytes, its header promises {whole}; copy or download it again"
    ):
        read_header(path)


def test_a_half_copied_legacy_pickle_tells_both_sizes(tmp_path):
    save_legacy(tmp_path / "x.pt", STATE)
    whole = (tmp_path / "x.pt").stat().st_size
    os.truncate(tmp_path / "x.pt", whole - 7)
    with pytest.raises(BrokenVaeError, match=rf"has {whole - 7:,} bytes, its header promises {whole:,}"):
        read_header(tmp_path / "x.pt")


def test_a_half_copied_zip_pickle_is_incomplete(tmp_path):
    save_zip(tmp_path / "x.ckpt", STATE)
    os.truncate(tmp_path / "x.ckpt", (tmp_path / "x.ckpt").stat().st_size // 2)
    with pytest.raises(BrokenVaeError, match=r"is incomplete: .*; copy or download it again"):
        read_header(tmp_path / "x.ckpt")


def make_file(kind):
    stream = io.BytesIO()
    if kind == "safetensors":
        with tempfile.TemporaryDirectory() as folder:
            save_file(STATE, Path(folder, "x"), metadata={"family": "sd1"})
            return Path(folder, "x").read_bytes()
    torch.save({"state_dict": STATE, "epoch": 1}, stream, _use_new_zipfile_serialization=kind == "zip")
    return stream.getvalue()


WHOLE = {kind: make_file(kind) for kind in ("safetensors", "zip", "legacy")}


def read_everything(data: bytes, suffix: str) -> None:
    """Only deliberate errors may come out."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"x.{suffix}")
        path.write_bytes(data)
        with suppress(VaeKitError):
            read_tensors(path, read_header(path).tensors)


@pytest.mark.parametrize("kind", WHOLE)
@given(data=st.data())
def test_a_file_cut_anywhere_raises_only_our_errors(kind, data):
    cut = data.draw(st.integers(0, len(WHOLE[kind]) - 1))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.safetensors" if kind == "safetensors" else "x.ckpt")
        path.write_bytes(WHOLE[kind][:cut])
        with pytest.raises(VaeKitError) as raised:
            read_tensors(path, read_header(path).tensors)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", WHOLE)
@given(data=st.data())
def test_a_file_with_changed_bytes_raises_only_our_errors(kind, data):
    content = bytearray(WHOLE[kind])
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    read_everything(bytes(content), "safetensors" if kind == "safetensors" else "ckpt")


@given(st.binary(max_size=300), st.sampled_from(["safetensors", "ckpt"]))
def test_random_bytes_raise_only_our_errors(content, suffix):
    read_everything(content, suffix)


@given(st.binary(max_size=120), st.sampled_from([b"", b"\x80\x02", b"\x80\x04"]))
def test_random_pickles_raise_only_the_machines_own_errors(content, start):
    with suppress(pickle_values.NotAPickleError, pickle_values.UnsafeGlobalError):
        pickle_machine.interpret_bytes(start + content)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, "does not fill"),
        ({"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, "overlap or leave gaps"),
        ({"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 8]}}, "incomplete"),
        ({"w": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, "incomplete"),
        ({"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, "incomplete"),
        ({"w": {"dtype": "F32", "shape": [1]}}, "incomplete"),
        ({"w": 3}, "incomplete"),
        ([1, 2], "does not begin with a header"),
        ({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, "has 77 bytes, its header promises 73"),
    ],
    ids=["size", "gap", "negative", "bool", "reversed", "no offsets", "number", "list", "longer than promised"],
)
def test_a_contradictory_safetensors_header_is_refused(tmp_path, entries, words):
    head = json.dumps(entries).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + b"\0" * 8)
    with pytest.raises(BrokenVaeError, match=words):
        read_header(tmp_path / "x.safetensors")


def test_a_deeply_nested_header_is_refused(tmp_path):
    head = b'{"w":' + b"[" * 100_000
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(head)) + head)
    with pytest.raises(BrokenVaeError, match="damaged header"):
        read_header(tmp_path / "x.safetensors")


def test_a_zip_whose_storage_is_too_short_is_damaged(tmp_path):
    save_zip(tmp_path / "x.pt", {"w": torch.ones(100)})
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        parts = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(tmp_path / "y.pt", "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content[:10] if "/data/" in name else content)
    with pytest.raises(BrokenVaeError, match="storage 0 has 10 of 400 bytes"):
        read_header(tmp_path / "y.pt")
    with zipfile.ZipFile(tmp_path / "z.pt", "w") as archive:
        for name, content in parts.items():
            if "/data/" not in name:
                archive.writestr(name, content)
    with pytest.raises(BrokenVaeError, match="lacks the data of storage 0"):
        read_header(tmp_path / "z.pt")


# --- pickles that would run code -------------------------------------------------------------------------------------


class Evil:
    """Creates a file when unpickled the ordinary way."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


class EvilEval(Evil):
    def __reduce__(self):
        return eval, (f"open({str(self.marker)!r}, 'w')",)


class EvilLater(Evil):
    """As above, with weights in front of it."""

    def __reduce__(self):
        return exec, (f"open({str(self.marker)!r}, 'w').close()",)


def zip_of(pickled: bytes, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
    return path


def raw(module: str, name: str, arg: str) -> dict[str, bytes]:
    """The ways to name and call a global, written by hand."""
    text = pickle.dumps(arg, protocol=2)[2:-1]
    return {
        "GLOBAL+REDUCE": f"c{module}\n{name}\n".encode() + b"(" + text + b"tR.",
        "STACK_GLOBAL": b"\x80\x04"
        + pickle.dumps(module, 4)[2:-1].split(b"\x94")[0][9:]
        + b"\x8c"
        + bytes([len(name)])
        + name.encode()
        + b"\x93("
        + text
        + b"tR.",
        "INST": b"(" + text + f"i{module}\n{name}\n".encode() + b".",
        "OBJ": b"(" + f"c{module}\n{name}\n".encode() + text + b"o.",
        "NEWOBJ": b"\x80\x02" + f"c{module}\n{name}\n".encode() + b"(" + text + b"t\x81.",
    }


@pytest.mark.parametrize("evil", [Evil, EvilEval, EvilLater])
@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("container", ["plain", "zip"])
def test_a_pickle_that_would_run_code_is_refused_by_name_and_does_not_run(tmp_path, evil, protocol, container):
    marker = tmp_path / "ran"
    pickled = pickle.dumps({"state_dict": {"w": [1, 2]}, "x": evil(marker)}, protocol)
    path = tmp_path / "evil.ckpt"
    path.write_bytes(pickled) if container == "plain" else zip_of(pickled, path)
    named = {
        Evil: r"(posix|nt)\.system",
        EvilEval: r"(builtins|__builtin__)\.eval",
        EvilLater: r"(builtins|__builtin__)\.exec",
    }
    with pytest.raises(UnsafeFileError, match=rf"evil\.ckpt was refused: opening it would run {named[evil]}"):
        read_header(path)
    with pytest.raises(UnsafeFileError):
        read_tensors(path, [])
    assert not marker.exists()


def test_the_marker_would_appear_if_the_pickle_ran(tmp_path):
    pickle.loads(pickle.dumps(EvilLater(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("way", raw("os", "system", "x"))
def test_every_way_to_call_a_global_is_refused(tmp_path, way):
    marker = tmp_path / "ran"
    pickled = raw("os", "system", f"touch {marker}")[way]
    pickletools.dis(pickled, out=io.StringIO())  # it is a valid pickle
    with pytest.raises(UnsafeFileError, match=r"os\.system; nothing was executed"):
        read_header(zip_of(pickled, tmp_path / "x.pt"))
    assert not marker.exists()


@pytest.mark.parametrize("container", SAVERS)
def test_code_inside_a_torch_file_is_refused_and_does_not_run(tmp_path, container):
    marker = tmp_path / "ran"
    SAVERS[container](tmp_path / "x.ckpt", {"state_dict": dict(STATE), "callbacks": [Evil(marker)]})
    with pytest.raises(UnsafeFileError, match="system"):
        read_header(tmp_path / "x.ckpt")
    assert not marker.exists()


@pytest.mark.parametrize("position", range(3))
def test_code_in_any_of_a_legacy_files_pickles_is_refused(tmp_path, position):
    marker = tmp_path / "ran"
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    head[position] = Evil(marker)
    (tmp_path / "x.pt").write_bytes(b"".join(pickle.dumps(value, 2) for value in head))
    with pytest.raises(UnsafeFileError, match="system"):
        read_header(tmp_path / "x.pt")
    assert not marker.exists()


@pytest.mark.parametrize(
    "name",
    [
        "builtins.getattr", "builtins.__import__", "builtins.print", "torch.load", "torch.storage._load_from_bytes",
        "torch.hub.load", "subprocess.Popen", "functools.partial", "operator.attrgetter", "numpy.load",
        "torch._utils._rebuild_qtensor", "torchvision.x", "pytorch_lightningx.y",
        "sd_vae_kit.core.files.checkpoint.Header",
    ],
)  # fmt: skip
def test_globals_outside_the_tables_are_refused(name):
    module, _, attribute = name.rpartition(".")
    with pytest.raises(pickle_values.UnsafeGlobalError, match=f"^{name}$"):
        pickle_values.resolve(module, attribute)


def test_no_global_is_ever_imported(tmp_path):
    """Importing alone would run a module's code; even an allowed name must not do it."""
    pickled = b"\x80\x02}X\x01\x00\x00\x00acomegaconf.dictconfig\nDictConfig\n)Rs."
    before = set(sys.modules)
    assert read_header(zip_of(pickled, tmp_path / "x.pt")).tensors == {}
    assert not {name for name in set(sys.modules) - before if name.startswith("omegaconf")}


def test_the_extension_registry_is_refused(tmp_path):
    """copyreg's codes reach globals without naming them."""
    with pytest.raises(BrokenVaeError, match="EXT1"):
        read_header(zip_of(b"\x80\x02\x82\x01.", tmp_path / "x.pt"))


def test_leftovers_of_training_are_inert(tmp_path, monkeypatch):
    """What pytorch_lightning and omegaconf put into published checkpoints, made with stand-ins for both."""
    ran = []

    class ModelCheckpoint:
        def __setstate__(self, state):
            ran.append(state)

        def __getstate__(self):
            return {"best": np.float64(0.5), "path": Path("x"), "any": [np.arange(3)]}

    class ListConfig(list):
        def __reduce__(self):
            return ListConfig, ([1, 2],), {"a": 1}, iter([3, 4]), iter([("k", "v")])

    for cls, module in ((ModelCheckpoint, "pytorch_lightning.callbacks"), (ListConfig, "omegaconf.listconfig")):
        cls.__module__, cls.__qualname__ = module, cls.__name__
        fake = types.ModuleType(module)
        setattr(fake, cls.__name__, cls)
        monkeypatch.setitem(sys.modules, module.split(".")[0], types.ModuleType(module.split(".")[0]))
        monkeypatch.setitem(sys.modules, module, fake)
    value = {"callbacks": {"c": ModelCheckpoint()}, "hyper_parameters": ListConfig(), "state_dict": STATE, "s": {1, 2}}
    for name, save in SAVERS.items():
        save(tmp_path / f"{name}.ckpt", value)
        assert_same(read_tensors(tmp_path / f"{name}.ckpt", STATE), STATE)
    assert ran == []


def test_dictionaries_within_themselves_end(tmp_path):
    loop = {"w": 1}
    loop["again"] = loop
    wide = {}
    for _ in range(60):  # 2 ** 60 paths, 60 dictionaries
        wide = {"a": wide, "b": wide}
    save_zip(tmp_path / "x.pt", {"loop": loop, "wide": wide, "weights": {"w": torch.ones(2)}})
    assert read_header(tmp_path / "x.pt").tensors.keys() == {"w"}


def test_a_claimed_size_of_terabytes_allocates_nothing():
    for opcode in (b"\x8e", b"\x8d", b"\x96"):  # BINBYTES8, BINUNICODE8, BYTEARRAY8
        with pytest.raises(pickle_values.NotAPickleError):
            pickle_machine.interpret_bytes(b"\x80\x05" + opcode + struct.pack("<Q", 1 << 42) + b"x.")
