"""The library: names, states, hashes, and a cache that may be old, wrong or gone."""

import hashlib
import json
import logging
import os
import re
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
from vae_files import kl_state, tiny_state, write

from sd_vae_kit.core.files import inspection
from sd_vae_kit.core.files.identity import weight_sketches_match
from sd_vae_kit.errors import BrokenVaeError, Interrupted, UnsafeFileError, UnsupportedVaeError, VaeNotFoundError
from sd_vae_kit.state import file_hash
from sd_vae_kit.vaes import library as library_module
from sd_vae_kit.vaes.library import Library
from sd_vae_kit.vaes.model_folders import Folder

KL, TINY = kl_state(), tiny_state()
LONG_AGO = 1_600_000_000


def aged(path, seconds=LONG_AGO):
    """Give a file a time that is past any clock's tick, as files have that were not written this moment."""
    os.utime(path, (seconds, seconds))
    return path


def put(path, state=None, metadata=None):
    return aged(write(path, TINY if state is None else state, metadata))


@pytest.fixture
def vaes(tmp_path):
    (tmp_path / "VAE").mkdir()
    return tmp_path / "VAE"


@pytest.fixture
def make(tmp_path, vaes):
    """A library over the VAE folder and any others, all on one cache file."""

    def make(*more):
        library = Library([Folder(vaes), *more], tmp_path / "cache" / "vaes.json")
        library.refresh()
        return library

    return make


def names(library):
    return [entry.name for entry in library.entries]


def sha256_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --- what is listed --------------------------------------------------------------------------------------------------


def test_files_are_found_in_all_folders_below_and_named_by_relative_path(vaes, make):
    for name in ("b.safetensors", "sub/a.safetensors", "sub/deeper/A.safetensors", "C.SAFETENSORS"):
        put(vaes / name)
    library = make()
    assert names(library) == ["b.safetensors", "C.SAFETENSORS", "sub/a.safetensors", "sub/deeper/A.safetensors"]
    assert [e.path for e in library.entries] == [vaes / name for name in names(library)]


def test_every_suffix_counts_and_others_do_not(vaes, make):
    for suffix in ("safetensors", "ckpt", "pt", "pth", "bin"):
        put(vaes / f"x.{suffix}")
    for name in ("x.txt", "x.safetensors.part", ".hidden.safetensors", "x.json", "safetensors"):
        (vaes / name).write_bytes(b"x")
    assert names(make()) == ["x.bin", "x.ckpt", "x.pt", "x.pth", "x.safetensors"]


def test_beside_checkpoints_only_vae_files_count(tmp_path, make):
    models = tmp_path / "Stable-diffusion"
    for name in ("m.safetensors", "m.vae.safetensors", "n.vae.pt", "sub/o.VAE.ckpt", "vae.ckpt", "m.vae.txt"):
        put(models / name)
    assert names(make(Folder(models, "checkpoint"))) == ["m.vae.safetensors", "n.vae.pt", "sub/o.VAE.ckpt"]


def test_an_entry_says_what_the_header_says(vaes, make):
    put(vaes / "kl.safetensors", {n: t.half() for n, t in KL.items()}, {"family": "sdxl"})
    put(vaes / "dec.safetensors", {n: t for n, t in TINY.items() if n.startswith("decoder")})
    decoder, kl = make().entries
    assert (kl.state, kl.kind, kl.part, kl.layout, kl.family, kl.z_channels, kl.dtype) == (
        "ok", "kl", "both", "ldm", "sdxl", 4, "fp16",
    )  # fmt: skip
    assert (decoder.kind, decoder.part, decoder.family, decoder.dtype) == ("tiny", "decoder", "sd1|sdxl", "fp32")
    assert (kl.size, kl.mtime_ns) == (kl.path.stat().st_size, kl.path.stat().st_mtime_ns)
    assert (kl.reason, kl.sha256, kl.fingerprint) == ("", None, None)


def test_equal_names_in_two_folders_are_told_apart_by_the_later_folders_label(tmp_path, vaes, make):
    other = tmp_path / "more"
    third = tmp_path / "x" / "more"
    for folder in (vaes, other, third):
        put(folder / "sub" / "a.safetensors")
    put(other / "b.safetensors")
    library = make(Folder(other), Folder(third))
    assert names(library) == [
        "sub/a.safetensors",
        "b.safetensors",
        "[more] sub/a.safetensors",
        "[x/more] sub/a.safetensors",
    ]
    assert library.get("[more] sub/a.safetensors").path == other / "sub" / "a.safetensors"
    assert library.get("sub/a.safetensors").path == vaes / "sub" / "a.safetensors"


def test_a_file_reached_through_two_folders_is_listed_once(vaes, make):
    put(vaes / "sub" / "a.safetensors")
    assert names(make(Folder(vaes / "sub"), Folder(vaes))) == ["sub/a.safetensors"]


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_loops_of_links_end_and_linked_folders_are_followed(tmp_path, vaes, make):
    put(tmp_path / "elsewhere" / "linked.safetensors")
    put(vaes / "sub" / "a.safetensors")
    (vaes / "aloop").symlink_to(vaes)
    (vaes / "sub" / "up").symlink_to(vaes / "sub")
    (vaes / "far").symlink_to(tmp_path / "elsewhere")
    (vaes / "alias.safetensors").symlink_to(vaes / "sub" / "a.safetensors")
    (vaes / "nowhere.safetensors").symlink_to(vaes / "missing")
    assert names(make()) == ["alias.safetensors", "far/linked.safetensors", "sub/a.safetensors"]


def test_folders_that_do_not_exist_are_empty(tmp_path):
    assert Library([Folder(tmp_path / "no")], tmp_path / "c.json").refresh() == []


@pytest.mark.parametrize(
    ("name", "content", "state", "words"),
    [
        ("empty.safetensors", b"", "broken", r"is empty \(0 bytes\)"),
        ("page.ckpt", b"<!doctype html>", "broken", "web page"),
        ("noise.pt", b"\x93\x12" * 500, "broken", "neither a safetensors file nor a readable torch checkpoint"),
        ("archive.bin", b"\x1f\x8b" * 100, "unsupported", "gzip"),
        ("evil.pt", b"cos\nsystem\n(S'touch ran'\ntR.", "unsafe", r"would run os\.system; nothing was executed"),
    ],
)
def test_a_bad_file_is_listed_with_the_reason_and_breaks_nothing(vaes, make, name, content, state, words):
    put(vaes / "good.safetensors")
    (vaes / name).write_bytes(content)
    library = make()
    bad, good = sorted(library.entries, key=lambda e: e.name == "good.safetensors")
    assert (good.state, bad.state) == ("ok", state)
    assert re.search(words, bad.reason)
    errors = {"broken": BrokenVaeError, "unsupported": UnsupportedVaeError, "unsafe": UnsafeFileError}
    with pytest.raises(errors[state], match=words):
        library.load(bad)


def test_a_lora_in_the_folder_is_listed_as_unsupported(vaes, make):
    put(vaes / "l.safetensors", {"lora_unet_x.lora_up.weight": torch.ones(2, 2)})
    (entry,) = make().entries
    assert (entry.state, entry.kind) == ("unsupported", None)
    assert entry.reason.startswith("l.safetensors is a LoRA")


def test_a_defect_of_ours_spoils_one_entry_and_not_the_list(vaes, make, monkeypatch, caplog):
    put(vaes / "a.safetensors")
    put(vaes / "b.safetensors")
    original = inspection.read_header

    def defective(path):
        if Path(path).name == "a.safetensors":
            raise ZeroDivisionError("oops")
        return original(path)

    monkeypatch.setattr(inspection, "read_header", defective)
    with caplog.at_level(logging.CRITICAL):
        a, b = make().entries
    assert (a.state, b.state) == ("broken", "ok")
    assert a.reason == "a.safetensors cannot be examined (ZeroDivisionError: oops)"
    monkeypatch.undo()
    assert [e.state for e in make().entries] == ["ok", "ok"], "such a result is not kept"


# --- the cache -------------------------------------------------------------------------------------------------------


@pytest.fixture
def header_reads(monkeypatch):
    """Names of the files whose header was read."""
    read = []
    original = inspection.read_header
    monkeypatch.setattr(inspection, "read_header", lambda path: read.append(Path(path).name) or original(path))
    return read


def test_headers_are_read_once_and_by_no_later_library(vaes, make, header_reads):
    put(vaes / "a.safetensors")
    (vaes / "bad.pt").write_bytes(b"junk")
    aged(vaes / "bad.pt")
    first = make()
    assert sorted(header_reads) == ["a.safetensors", "bad.pt"]
    first.refresh()
    assert make().entries == first.entries
    assert len(header_reads) == 2


def test_a_refresh_picks_up_new_changed_renamed_and_deleted_files(vaes, make, header_reads):
    put(vaes / "a.safetensors")
    put(vaes / "b.safetensors")
    library = make()
    put(vaes / "a.safetensors", KL)
    (vaes / "b.safetensors").rename(vaes / "c.safetensors")
    put(vaes / "d.safetensors")
    header_reads.clear()
    library.refresh()
    assert [(e.name, e.kind) for e in library.entries] == [
        ("a.safetensors", "kl"),
        ("c.safetensors", "tiny"),
        ("d.safetensors", "tiny"),
    ]
    assert sorted(header_reads) == ["a.safetensors", "c.safetensors", "d.safetensors"]
    (vaes / "c.safetensors").unlink()
    assert [e.name for e in library.refresh()] == ["a.safetensors", "d.safetensors"]


def test_a_file_replaced_by_an_older_one_of_equal_size_is_noticed(vaes, make):
    path = put(vaes / "a.safetensors", tiny_state(seed=1))
    library = make()
    first = library.sha256(library.get("a"))
    aged(write(path, tiny_state(seed=2)), LONG_AGO - 1000)
    library.refresh()
    entry = library.get("a")
    assert entry.sha256 is None
    assert library.sha256(entry) == sha256_of(path) != first


def test_what_was_learnt_within_the_clocks_tick_is_not_trusted_later(vaes, make, header_reads):
    """The file could have been replaced, unseen, in the same tick."""
    path = write(vaes / "a.safetensors", TINY)
    now = time.time_ns()
    os.utime(path, ns=(now + 10_000_000, now + 10_000_000))
    make()
    make()
    assert header_reads == ["a.safetensors"] * 2


def test_files_from_the_future_are_cached_too(vaes, make, header_reads):
    aged(write(vaes / "a.safetensors", TINY), int(time.time()) + 10_000_000)
    make()
    make()
    assert header_reads == ["a.safetensors"]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[]", b'{"format":1}', b'{"format":1,"files":{"x":{}}}', b'{"format":99,"files":{}}'],
)
def test_a_damaged_cache_costs_only_time(tmp_path, vaes, make, content):
    put(vaes / "a.safetensors")
    expected = make().entries
    (tmp_path / "cache" / "vaes.json").write_bytes(content)
    assert make().entries == expected
    (tmp_path / "cache" / "vaes.json").unlink()
    assert make().entries == expected
    assert json.loads((tmp_path / "cache" / "vaes.json").read_text())["files"]


def test_a_cache_with_a_damaged_hash_is_not_believed(tmp_path, vaes, make):
    path = put(vaes / "a.safetensors")
    library = make()
    digest = library.sha256(library.get("a"))
    cache = tmp_path / "cache" / "vaes.json"
    cache.write_text(cache.read_text().replace(digest, digest[:-1]))
    again = make()
    assert again.get("a").sha256 is None
    assert again.sha256(again.get("a")) == sha256_of(path)


def test_facts_from_another_version_of_this_program_are_read_anew(vaes, make, header_reads, monkeypatch):
    put(vaes / "a.safetensors")
    library = make()
    digest = library.sha256(library.get("a"))
    monkeypatch.setattr("sd_vae_kit.vaes.library_cache.__version__", "0.0.9")
    assert make().get("a").sha256 == digest, "a hash does not depend on the version"
    assert header_reads == ["a.safetensors"] * 2


def test_a_cache_that_cannot_be_written_is_logged_and_costs_only_time(tmp_path, vaes, caplog):
    put(vaes / "a.safetensors")
    (tmp_path / "cache").write_text("a file where the folder should be")
    library = Library([Folder(vaes)], tmp_path / "cache" / "vaes.json")
    assert len(library.refresh()) == 1
    assert "cannot be written" in caplog.text


def test_the_cache_is_written_in_one_step(tmp_path, vaes, make):
    put(vaes / "a.safetensors")
    make()
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["vaes.json"]


def test_records_of_deleted_files_go_and_those_of_an_absent_drive_stay(tmp_path, vaes, make):
    drive = tmp_path / "drive"
    put(vaes / "a.safetensors")
    put(vaes / "stays.safetensors")
    put(drive / "b.safetensors")
    library = make(Folder(drive))
    digest = library.sha256(library.get("b"))
    drive.rename(tmp_path / "unplugged")
    (vaes / "a.safetensors").unlink()
    assert names(make(Folder(drive))) == ["stays.safetensors"]
    known = json.loads((tmp_path / "cache" / "vaes.json").read_text())["files"]
    assert set(known) == {str(drive / "b.safetensors"), str(vaes / "stays.safetensors")}
    (tmp_path / "unplugged").rename(drive)
    assert make(Folder(drive)).get("b").sha256 == digest


def test_five_hundred_cached_files_list_in_under_a_second(vaes, make):
    """The best of three, for the sake of busy machines."""
    source = put(vaes / "0.safetensors")
    for i in range(1, 500):
        folder = vaes / str(i % 20)
        folder.mkdir(exist_ok=True)
        os.link(source, folder / f"{i}.safetensors")
    make()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        assert len(make().entries) == 500
        times.append(time.perf_counter() - start)
    assert min(times) < 1


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wanted",
    ["sub/kl-f8.vae.safetensors", "kl-f8.vae.safetensors", "kl-f8.vae", "kl-f8", "KL-F8", "sub\\kl-f8.vae.safetensors"],
)
def test_a_name_is_found_by_path_base_name_or_stem(vaes, make, wanted):
    put(vaes / "sub" / "kl-f8.vae.safetensors")
    put(vaes / "other.safetensors")
    assert make().get(wanted).name == "sub/kl-f8.vae.safetensors"


def test_an_ambiguous_base_name_lists_the_full_ones(vaes, make):
    put(vaes / "a" / "x.safetensors")
    put(vaes / "b" / "x.safetensors")
    with pytest.raises(
        VaeNotFoundError, match=r"several VAEs are called x: a/x\.safetensors, b/x\.safetensors; give the"
    ):
        make().get("x")


def test_a_full_name_beats_base_names(vaes, make):
    put(vaes / "x.safetensors")
    put(vaes / "b" / "x.safetensors")
    assert make().get("x.safetensors").path == vaes / "x.safetensors"


def test_an_unknown_name_lists_near_ones(vaes, make):
    put(vaes / "vae-ft-mse-840000.safetensors")
    put(vaes / "sdxl_vae.safetensors")
    library = make()
    with pytest.raises(
        VaeNotFoundError, match=r"no VAE 'vae-ft-mse-84000'; similar are vae-ft-mse-840000\.safetensors"
    ):
        library.get("vae-ft-mse-84000")
    with pytest.raises(VaeNotFoundError, match=r"no VAE 'qqq'; there are sdxl_vae\.safetensors, vae-ft"):
        library.get("qqq")


def test_an_empty_library_says_so(make):
    with pytest.raises(VaeNotFoundError, match="the folders that were searched hold none"):
        make().get("x")


def test_a_path_gives_its_entry_also_outside_the_folders(tmp_path, vaes, make):
    inside, outside = put(vaes / "sub" / "a.safetensors"), put(tmp_path / "away" / "b.safetensors", KL)
    library = make()
    assert library.entry_at(inside) == library.get("a")
    entry = library.entry_at(outside)
    assert (entry.name, entry.path, entry.kind) == ("b.safetensors", outside, "kl")
    assert library.sha256(entry) == sha256_of(outside)
    assert library.entry_at(outside).sha256 == sha256_of(outside)
    with pytest.raises(VaeNotFoundError, match=r"c\.safetensors is no longer in"):
        library.entry_at(vaes / "c.safetensors")


# --- hashes ----------------------------------------------------------------------------------------------------------


def test_a_hash_is_computed_once_and_shown_in_the_list(vaes, make, monkeypatch):
    path = put(vaes / "a.safetensors")
    library = make()
    digest = library.sha256(library.get("a"))
    assert digest == sha256_of(path) == library.get("a").sha256
    monkeypatch.setattr(library_module, "file_sha256", None)
    assert library.sha256(library.get("a")) == digest
    again = make()
    assert again.get("a").sha256 == again.sha256(again.get("a")) == digest


def test_hashing_reports_progress_and_can_be_stopped(vaes, make, monkeypatch):
    monkeypatch.setattr(file_hash, "BLOCK", 1000)
    path = put(vaes / "a.safetensors")
    library = make()
    seen = []
    library.sha256(library.get("a"), lambda done, total: seen.append((done, total)))
    size = path.stat().st_size
    assert seen[-1] == (size, size)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    put(path, KL)
    with pytest.raises(Interrupted, match=r"hashing a\.safetensors was stopped"):
        library.sha256(library.get("a"), lambda done, total: False)
    assert library.sha256(library.get("a")) == sha256_of(path), "nothing of the stopped one is kept"


def test_a_file_that_changes_while_it_is_hashed_gives_no_hash(vaes, make):
    path = put(vaes / "a.safetensors")
    library = make()

    def change(_done, _total):
        aged(path, LONG_AGO + 5)

    with pytest.raises(BrokenVaeError, match=r"a\.safetensors changed while it was read"):
        library.sha256(library.get("a"), change)
    assert library.sha256(library.get("a")) == sha256_of(path)


def test_a_file_is_found_by_the_beginning_of_its_hash(vaes, make):
    put(vaes / "a.safetensors")
    put(vaes / "b.safetensors", KL)
    library = make()
    assert library.find_by_hash(sha256_of(vaes / "b.safetensors")) is None, "no hash was computed yet"
    digests = {e.name: library.sha256(e) for e in library.entries}
    for name, digest in digests.items():
        assert library.find_by_hash(digest[:10]).name == name
        assert library.find_by_hash(f" {digest[:10].upper()} ").name == name
    for useless in ("", "abc", "not hex!", "0" * 10, "0" * 65):
        assert library.find_by_hash(useless) is None


# --- identity and loading --------------------------------------------------------------------------------------------


def test_identity_is_computed_once_and_recognises_copies(vaes, make, monkeypatch):
    put(vaes / "a.safetensors", KL)
    put(vaes / "half.safetensors", {n: t.half() for n, t in KL.items()})
    put(vaes / "eighth.safetensors", {n: t.to(torch.float8_e4m3fn) for n, t in KL.items()})
    put(vaes / "other.safetensors", kl_state(seed=9))
    library = make()
    found = {e.name: library.identify(e) for e in library.entries}
    a, half, eighth, other = (found[f"{n}.safetensors"] for n in ("a", "half", "eighth", "other"))
    assert a.fingerprint == half.fingerprint != eighth.fingerprint
    assert weight_sketches_match(a.weight_sketch, eighth.weight_sketch)
    assert not weight_sketches_match(a.weight_sketch, other.weight_sketch)
    assert library.get("a").fingerprint == a.fingerprint
    monkeypatch.setattr(library_module, "read_vae", None)
    again = make()
    assert again.identify(again.get("a")) == a, "also after the way through the cache file"
    assert again.get("half").fingerprint == half.fingerprint


def test_loading_gives_the_weights(vaes, make):
    put(vaes / "a.safetensors", KL)
    library = make()
    weights = library.load(library.get("a"))
    assert all(torch.equal(weights.state[n], t) for n, t in KL.items())


def test_a_file_that_vanished_since_the_scan_is_told(vaes, make):
    put(vaes / "a.safetensors")
    library = make()
    entry = library.get("a")
    (vaes / "a.safetensors").unlink()
    for call in (library.load, library.sha256, library.identify):
        with pytest.raises(VaeNotFoundError, match=r"a\.safetensors is no longer in .*; refresh the list"):
            call(entry)


def test_a_file_half_copied_since_the_scan_is_told(vaes, make):
    path = put(vaes / "a.safetensors")
    library = make()
    entry = library.get("a")
    size = path.stat().st_size
    os.truncate(path, size - 100)
    with pytest.raises(BrokenVaeError, match=f"has {size - 100:,} bytes, its header promises {size:,}"):
        library.load(entry)
    assert [e.state for e in library.refresh()] == ["broken"]


def test_a_file_exchanged_while_it_is_loaded_is_told(vaes, make, monkeypatch):
    path = put(vaes / "a.safetensors")
    library = make()
    original = library_module.read_vae

    def exchanging(which):
        weights = original(which)
        put(path, KL)
        return weights

    monkeypatch.setattr(library_module, "read_vae", exchanging)
    with pytest.raises(BrokenVaeError, match="changed while it was read"):
        library.load(library.get("a"))


def test_a_vae_with_nan_is_listed_and_refused_when_it_is_loaded(vaes, make):
    """Listing reads headers only."""
    state = {n: t.clone() for n, t in TINY.items()}
    state["decoder.1.bias"][0] = float("nan")
    put(vaes / "a.safetensors", state)
    library = make()
    assert library.get("a").state == "ok"
    for call in (library.load, library.identify):
        with pytest.raises(BrokenVaeError, match=r"NaN or infinity in decoder\.1\.bias"):
            call(library.get("a"))


# --- threads ---------------------------------------------------------------------------------------------------------


def test_many_threads_may_use_one_library(vaes, make):
    for i in range(12):
        put(vaes / f"{i}.safetensors", {n: t + i for n, t in TINY.items()})
    library = make()
    problems, results = [], []

    def work(number):
        try:
            for i in range(12):
                entry = library.get(f"{(i + number) % 12}.safetensors")
                results.append((entry.name, library.sha256(entry), library.identify(entry).fingerprint))
                library.refresh()
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert len(set(results)) == 12
    library.refresh()
    assert {(e.name, e.sha256, e.fingerprint) for e in library.entries} == set(results)


def test_two_libraries_on_one_cache_file_do_not_harm_each_other(tmp_path, vaes, make):
    put(vaes / "a.safetensors")
    one, two = make(), make()
    one.sha256(one.get("a"))
    two.identify(two.get("a"))
    shutil.copy(vaes / "a.safetensors", vaes / "b.safetensors")
    assert names(make()) == ["a.safetensors", "b.safetensors"]
