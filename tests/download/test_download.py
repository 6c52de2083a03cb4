"""Every way in which a download goes wrong, against a local server that does it; docs/downloads.md shows the table."""

import dataclasses
import errno
import hashlib
import os
import random
import re
import shutil
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import fault_server as faults
import pytest
from conftest import ROOT
from fault_server import Behaviour, FaultServer

from sd_vae_kit.download import DownloadProgress, Source, download, fetch, part_file, transport
from sd_vae_kit.download.fetch import checked_name
from sd_vae_kit.download.part_file import PartFile
from sd_vae_kit.errors import (
    DownloadError,
    Interrupted,
    NoSpaceError,
    OfflineError,
    RefusedAddressError,
    TargetExistsError,
    TransferError,
    VaeKitError,
    WrongContentError,
)
from sd_vae_kit.settings.sections import DownloadSettings

CONTENT = random.Random(7).randbytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
GIT = hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest()
OTHER = bytes(reversed(CONTENT))
PAGE = b"<!DOCTYPE html><html><body>Please log in</body></html>" + b" " * 1000
FILE = "x.safetensors"
PATIENT = DownloadSettings(http="loopback", proxy="direct", attempts=2, stall_seconds=10.0)
HASTY = dataclasses.replace(PATIENT, stall_seconds=0.5)
SECONDS = 8.0  # no case may take longer


@pytest.fixture
def server():
    with FaultServer(CONTENT) as server:
        yield server


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(fetch, "WAIT", 0.02)


def source(*urls, **changes):
    known = {"sha256": SHA256, "git_blob_sha1": GIT, "size": len(CONTENT), "max_bytes": len(CONTENT)}
    return Source(FILE, urls, **{**known, **changes})


def left_in(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


# --- the table -------------------------------------------------------------------------------------------------------

GOES_ON = "the next try asks for the rest and installs"
ANEW = "the next try begins anew and installs"
FAILED, WRONG, GONE, REFUSED = (
    f"{name}; {ANEW}" for name in ("TransferError", "WrongContentError", "DownloadError", "RefusedAddressError")
)
HALF = f"TransferError, 131,072 bytes kept; {GOES_ON}"
UNKNOWN_SIZE = {"size": None, "max_bytes": 400_000}
CUT = faults.cut_after(98_304)


@dataclass(frozen=True)
class Fault:
    """One row: what the server does, request by request, and what the user gets."""

    what: str
    behaviours: Sequence[Behaviour]
    outcome: str
    settings: DownloadSettings = PATIENT
    source: dict[str, object] = dataclasses.field(default_factory=dict)
    before: bytes = b""  # content of the part file


FAULTS = [
    Fault("nothing is wrong", [faults.serve], "installed"),
    Fault("no length is announced", [faults.without_length], "installed"),
    Fault("the body comes in chunks", [faults.chunked], "installed"),
    Fault("reset in the middle, once", [CUT, faults.serve], "installed"),
    Fault("reset in the middle, every time", [faults.cut_after(65_536)], HALF),
    Fault("closed in the middle", [faults.cut_after(65_536, "close")], HALF),
    Fault("closed before an answer", [faults.closed_at_once], FAILED),
    Fault("silent in the middle", [faults.cut_after(65_536, "silence")], HALF, HASTY),
    Fault("silent from the start", [faults.silent], FAILED, HASTY),
    Fault("slow loris: a body byte now and then", [faults.dripping_body], FAILED, HASTY),
    Fault("slow loris: a header line now and then", [faults.dripping_headers], FAILED, HASTY),
    Fault("announces more than it has (size known)", [faults.announcing(300_100)], WRONG),
    Fault("announces more than it has (size unknown)", [faults.announcing(300_100)], "installed", source=UNKNOWN_SIZE),
    Fault("announces less than it has", [faults.announcing(200_000)], WRONG),
    Fault("announces less, size unknown", [faults.announcing(200_000)], WRONG, source=UNKNOWN_SIZE),
    Fault("announces more than is plausible", [faults.announcing(10**12)], WRONG, source=UNKNOWN_SIZE),
    Fault("announces a length that is no number", [faults.announcing("-1")], WRONG),
    Fault("sends more than announced", [faults.announcing(300_000, b"more")], "installed"),
    Fault("never ends", [faults.endless], WRONG),
    Fault("never ends, in chunks", [faults.endless_chunks], WRONG, source=UNKNOWN_SIZE),
    Fault("other content of the same length", [faults.body(OTHER)], WRONG),
    Fault("an empty body", [faults.body(b"")], WRONG, source=UNKNOWN_SIZE),
    Fault("an HTML page as text/html", [faults.body(PAGE, Content_Type="text/html")], WRONG),
    Fault("an HTML page as a binary file", [faults.body(PAGE)], WRONG, source=UNKNOWN_SIZE),
    Fault("an error message as JSON", [faults.body(b"{}", Content_Type="application/json")], WRONG),
    Fault("gzip although not asked for", [faults.gzipped], WRONG),
    Fault("asks for a login (403)", [faults.status(403)], GONE),
    Fault("has no such file (404)", [faults.not_found], GONE),
    Fault("out of order (500), once", [faults.status(500), faults.serve], "installed"),
    Fault("out of order (503), every time", [faults.status(503)], FAILED),
    Fault("too many requests (429), every time", [faults.status(429)], FAILED),
    Fault("redirects to http on another computer", [faults.redirect("http://192.0.2.1/x")], REFUSED),
    Fault("redirects to file:", [faults.redirect("file:///etc/hostname")], REFUSED),
    Fault("redirects to ftp:", [faults.redirect("ftp://127.0.0.1/x")], REFUSED),
    Fault("redirects to a broken address", [faults.redirect("https://[::1/x")], REFUSED),
    Fault("redirects to nowhere", [faults.redirect(None)], GONE),
    Fault("redirects to itself for ever", [faults.redirect("/fault")], GONE),
    Fault("redirects five times", [faults.redirect("/fault", 307)] * 5 + [faults.serve], "installed"),
    Fault("a redirection whose body never ends", [faults.endless_redirect("/fault"), faults.serve], "installed"),
    Fault("does not speak HTTP", [faults.not_http], FAILED),
    Fault("a header of 100 kB", [faults.huge_header], FAILED),
    Fault("ignores Range: whole file again", [CUT, faults.whole_despite_range], "installed"),
    Fault("416 for the rest, then sound", [CUT, faults.status(416), faults.serve], "installed"),
    Fault("416 for every rest", [faults.never_a_range], f"TransferError, 49,152 bytes kept; {GOES_ON}"),
    Fault("206 from another place", [CUT, faults.another_range], "installed"),
    Fault("206 of a longer file", [CUT, faults.another_total], f"WrongContentError, 98,304 bytes kept; {GOES_ON}"),
    Fault("the file changed on the server meanwhile", [CUT, lambda e: faults.serve(e, etag='"v2"')], "installed"),
    Fault("what an earlier try left is wrong", [faults.serve], "installed", before=OTHER[:49_152]),
    Fault("what an earlier try left is too long", [faults.serve], "installed", before=OTHER + b"!"),
    Fault("an earlier try ended just before the rename", [faults.not_found], "installed", before=CONTENT),
]  # fmt: skip


def run(fault: Fault, server: FaultServer, folder) -> str:
    """Outcome in the words of the table, with everything it promises checked."""
    folder.mkdir()
    if fault.before:
        (folder / f"{FILE}.part").write_bytes(fault.before)
    wanted = source(server.address("fault", *fault.behaviours), **fault.source)
    started = time.monotonic()
    try:
        assert download(wanted, folder, fault.settings).read_bytes() == CONTENT
    except VaeKitError as error:
        assert time.monotonic() - started < SECONDS
        check_message(str(error))
        return f"{type(error).__name__}{kept(folder)}; {next_try(server, folder)}"
    assert left_in(folder) == [FILE]
    return "installed"


def check_message(text):
    assert "\n" not in text
    assert text.endswith((".", ".)"))
    assert len(text) < 250, text
    assert "Traceback" not in text
    assert "HTTPConnection" not in text


def kept(folder) -> str:
    assert not (folder / FILE).exists()
    part = folder / f"{FILE}.part"
    assert set(left_in(folder)) <= {part.name, f"{part.name}.json"}
    if not part.exists():
        assert left_in(folder) == []
        return ""
    size = part.stat().st_size
    assert part.read_bytes() == CONTENT[:size]
    return f", {size:,} bytes kept"


def next_try(server, folder) -> str:
    """What a second click does, the server being sound by then."""
    size = (folder / f"{FILE}.part").stat().st_size if (folder / f"{FILE}.part").exists() else 0
    download(source(server.address("fault", faults.serve)), folder, PATIENT)
    assert (folder / FILE).read_bytes() == CONTENT
    assert left_in(folder) == [FILE]
    assert server.requests[-1].range == size
    return GOES_ON if size else ANEW


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.what)
def test_every_fault_has_its_outcome(fault, server, tmp_path):
    assert run(fault, server, tmp_path / "VAE") == fault.outcome


def table() -> str:
    rows = [f"| {fault.what} | {fault.outcome} |" for fault in FAULTS]
    return "\n".join(["| the server | outcome |", "|---|---|", *rows])


def test_the_documentation_shows_the_table():
    assert table() in (ROOT / "docs" / "downloads.md").read_text("utf-8")


# --- mirrors, continuing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [faults.not_found, faults.body(OTHER), faults.gzipped, faults.redirect("file:///x")])
def test_a_mirror_is_tried_when_the_first_address_fails(server, tmp_path, first):
    urls = server.address("first", first), server.address("second", faults.serve)
    assert download(source(*urls), tmp_path, PATIENT).read_bytes() == CONTENT


def test_a_mirror_goes_on_where_the_first_address_was_cut(server, tmp_path):
    urls = server.address("first", faults.cut_after(49_152)), server.address("second", faults.serve)
    download(source(*urls), tmp_path, PATIENT)
    assert [(r.path, r.range) for r in server.requests] == [("/first", 0), ("/first", 49_152), ("/second", 98_304)]
    assert "if-range" in server.requests[1].headers
    assert "if-range" not in server.requests[2].headers, "another server's version is of no meaning"


def test_a_page_from_a_mirror_does_not_cost_what_has_arrived(server, tmp_path):
    urls = (
        server.address("a", faults.cut_after(49_152)),
        server.address("b", faults.body(PAGE, Content_Type="text/html")),
    )
    with pytest.raises(TransferError, match=r"goes on from there\. \(1 other address failed, too\.\)"):
        download(source(*urls), tmp_path, PATIENT)
    assert (tmp_path / f"{FILE}.part").stat().st_size == 98_304


def test_a_long_download_may_be_cut_more_often_than_a_short_one(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "ENOUGH", 20_000)
    url = server.address("x", *[faults.cut_after(32_768)] * 6, faults.serve)
    download(source(url), tmp_path, PATIENT)
    assert len(server.requests) == 7


def test_without_a_hash_only_the_same_version_is_continued(server, tmp_path):
    unknown = {"sha256": None, "git_blob_sha1": None}
    url = server.address("x", faults.cut_after(40_960), faults.serve)
    download(source(url, **unknown), tmp_path / "a", PATIENT)
    assert [(r.range, r.headers.get("if-range")) for r in server.requests] == [(0, None), (40_960, '"v1"')]
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / f"{FILE}.part").write_bytes(OTHER[:40_960])
    download(source(url, **unknown), tmp_path / "b", PATIENT)
    assert server.requests[-1].range == 0
    assert (tmp_path / "b" / FILE).read_bytes() == CONTENT


def test_without_a_hash_a_body_of_unknown_length_is_refused(server, tmp_path):
    wanted = source(server.address("x", faults.without_length), sha256=None, git_blob_sha1=None)
    with pytest.raises(WrongContentError, match="does not say how long"):
        download(wanted, tmp_path, PATIENT)


def test_the_git_hash_alone_can_refuse(server, tmp_path):
    for content in (faults.serve, faults.chunked):  # length known before, and only afterwards
        wanted = source(server.address("x", content), git_blob_sha1="0" * 40, **UNKNOWN_SIZE)
        with pytest.raises(WrongContentError, match="git hash"):
            download(wanted, tmp_path, PATIENT)
    assert left_in(tmp_path) == []


# --- what is there already -------------------------------------------------------------------------------------------


def test_the_same_content_is_done_at_once_without_a_connection(server, tmp_path):
    (tmp_path / FILE).write_bytes(CONTENT)
    assert download(source(server.root), tmp_path, PATIENT) == tmp_path / FILE
    assert server.requests == []


@pytest.mark.parametrize("sha256", [SHA256, None])
def test_other_content_is_never_overwritten(server, tmp_path, sha256):
    (tmp_path / FILE).write_bytes(OTHER)
    with pytest.raises(TargetExistsError, match=r"left as it (is|was)"):
        download(source(server.root, sha256=sha256), tmp_path, PATIENT)
    assert (tmp_path / FILE).read_bytes() == OTHER
    assert server.requests == []


def test_a_folder_in_its_place_is_left_alone(server, tmp_path):
    (tmp_path / FILE).mkdir()
    with pytest.raises(TargetExistsError, match="not a file"):
        download(source(server.root), tmp_path, PATIENT)


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_appears_while_downloading_is_left_as_it_is(server, tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", lambda *args: (_ for _ in ()).throw(OSError(errno.EPERM, "no links here")))
    publish = PartFile.publish

    def late(part):
        (tmp_path / FILE).write_bytes(OTHER)
        return publish(part)

    monkeypatch.setattr(PartFile, "publish", late)
    with pytest.raises(TargetExistsError, match="meanwhile"):
        download(source(server.address("x", faults.serve)), tmp_path, PATIENT)
    assert (tmp_path / FILE).read_bytes() == OTHER


def test_a_disk_without_hard_links_is_no_obstacle(server, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *args: (_ for _ in ()).throw(OSError(errno.EPERM, "no links here")))
    download(source(server.address("x", faults.serve)), tmp_path, PATIENT)
    assert left_in(tmp_path) == [FILE]


def test_two_downloads_of_one_file_do_not_mix(server, tmp_path):
    url = server.address("x", faults.cut_after(49_152, "silence"), faults.serve)
    cancel, raised = threading.Event(), []

    def first():
        try:
            download(source(url), tmp_path, PATIENT, cancel=cancel)
        except Interrupted as error:
            raised.append(error)

    thread = threading.Thread(target=first)
    thread.start()
    wait_for(lambda: (tmp_path / f"{FILE}.part").exists() and (tmp_path / f"{FILE}.part").stat().st_size == 49_152)
    with pytest.raises(DownloadError, match="being downloaded already"):
        download(source(url), tmp_path, PATIENT)
    cancel.set()
    thread.join()
    assert raised
    assert download(source(url), tmp_path, PATIENT).read_bytes() == CONTENT


def test_a_file_system_without_locks_is_no_obstacle(server, tmp_path, monkeypatch):
    monkeypatch.setattr(part_file, "take", lambda descriptor: (_ for _ in ()).throw(OSError(errno.ENOLCK, "no locks")))
    download(source(server.address("x", faults.serve)), tmp_path, PATIENT)
    assert left_in(tmp_path) == [FILE]


# --- the user ends it ------------------------------------------------------------------------------------------------


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("behaviour", [faults.silent, faults.dripping_headers, faults.cut_after(49_152, "silence")])
def test_cancel_takes_effect_even_while_the_server_is_silent(server, tmp_path, behaviour):
    cancel = threading.Event()
    wanted = source(server.address("x", behaviour))
    timer = threading.Timer(0.3, cancel.set)
    timer.start()
    started = time.monotonic()
    with pytest.raises(Interrupted, match=r"cancelled; the next one goes on from there\."):
        download(wanted, tmp_path, PATIENT, cancel=cancel)
    assert time.monotonic() - started < PATIENT.stall_seconds / 2
    timer.join()
    assert not (tmp_path / FILE).exists()
    assert next_try(server, tmp_path)


def test_cancel_during_the_wait_before_the_next_try(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "WAIT", 30.0)
    cancel = threading.Event()
    threading.Timer(0.3, cancel.set).start()
    with pytest.raises(Interrupted):
        download(source(server.address("x", faults.status(503))), tmp_path, PATIENT, cancel=cancel)


def test_cancelled_before_it_began_contacts_nobody(server, tmp_path):
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(Interrupted):
        download(source(server.root), tmp_path, PATIENT, cancel=cancel)
    assert server.requests == []


def test_progress_grows_to_the_whole(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "PROGRESS_EVERY", 0.0)
    seen: list[DownloadProgress] = []
    download(source(server.address("x", CUT, faults.serve)), tmp_path, PATIENT, on_progress=seen.append)
    done = [progress.done for progress in seen]
    assert done == sorted(done)
    assert (done[-1], seen[-1].total, seen[-1].host) == (len(CONTENT), len(CONTENT), "127.0.0.1")
    assert seen[-1].bytes_per_second > 0


# --- disk ------------------------------------------------------------------------------------------------------------

Usage = namedtuple("Usage", "total used free")


def test_too_little_space_is_said_before_anything_is_contacted(server, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10**9, 10**9, 10**7))
    with pytest.raises(NoSpaceError, match=r"has only 10 MiB"):
        download(source(server.root, size=2 * 10**7, max_bytes=10**8), tmp_path, PATIENT)
    assert (server.requests, left_in(tmp_path)) == ([], [])


def test_too_little_space_for_the_announced_length_is_said_before_the_body_is_read(server, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10**9, 10**9, 10**7))
    with pytest.raises(NoSpaceError):
        download(source(server.address("x", faults.serve), **UNKNOWN_SIZE), tmp_path, PATIENT)
    assert left_in(tmp_path) == []


def test_a_disk_that_fills_up_ends_the_download_and_a_later_try_goes_on(server, tmp_path, monkeypatch):
    write = os.write

    def until_full(descriptor, data):
        if os.fstat(descriptor).st_size + len(data) > 100_000:
            written = write(descriptor, data[:1000])  # a full disk takes a part of the bytes
            assert written == 1000
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", until_full)
    with pytest.raises(NoSpaceError, match=r"full; free some space and try again, \d[\d,]+ bytes are kept") as caught:
        download(source(server.address("x", faults.serve), server.address("y", faults.serve)), tmp_path, PATIENT)
    check_message(str(caught.value))
    monkeypatch.undo()
    assert len(server.requests) == 1, "a mirror does not help against a full disk"
    size = (tmp_path / f"{FILE}.part").stat().st_size
    assert 90_000 < size <= 100_000
    assert (tmp_path / f"{FILE}.part").read_bytes() == CONTENT[:size]
    assert next_try(server, tmp_path) == GOES_ON


def test_a_folder_that_cannot_be_written_is_one_line(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DownloadError, match=r"cannot be written to .*check its permissions"):
        download(source(server.root), tmp_path / "file", PATIENT)


# --- addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "mode", "allowed"),
    [
        ("https://example.org/x", "never", True),
        ("HTTPS://example.org/x", "never", True),
        ("http://example.org/x", "never", False),
        ("http://127.0.0.1/x", "never", False),
        ("http://127.0.0.1/x", "loopback", True),
        ("http://[::1]:8/x", "loopback", True),
        ("http://localhost/x", "loopback", True),
        ("http://localhost.example.org/x", "loopback", False),
        ("http://127.0.0.1.example.org/x", "loopback", False),
        ("http://127.0.0.1@example.org/x", "loopback", False),
        ("http://example.org/x", "always", True),
        ("file:///etc/passwd", "always", False),
        ("ftp://example.org/x", "always", False),
        ("//example.org/x", "always", False),
        ("https:///x", "always", False),
        ("https://[::1/x", "always", False),
        ("", "always", False),
    ],
)
def test_which_addresses_may_be_contacted(url, mode, allowed):
    settings = dataclasses.replace(PATIENT, http=mode)
    if allowed:
        transport.check_address(url, settings)
    else:
        with pytest.raises(RefusedAddressError, match="was refused: only https"):
            transport.check_address(url, settings)


def test_http_on_this_computer_needs_the_setting(server, tmp_path):
    settings = dataclasses.replace(PATIENT, http="never")
    with pytest.raises(RefusedAddressError):
        download(source(server.address("x", faults.serve)), tmp_path, settings)
    assert server.requests == []


def test_a_server_that_cannot_prove_its_name_is_refused(server, tmp_path):
    url = server.address("x", faults.serve).replace("http:", "https:")
    with pytest.raises(RefusedAddressError, match="TLS certificate"):
        download(source(url), tmp_path, PATIENT)


def test_nobody_is_asked_while_offline(server, tmp_path):
    settings = dataclasses.replace(PATIENT, offline=True)
    with pytest.raises(OfflineError, match="switched off in the settings"):
        download(source(server.address("x", faults.serve)), tmp_path, settings)
    assert (server.requests, left_in(tmp_path)) == ([], [])


def test_without_an_address_the_message_says_where_to_put_the_file(tmp_path):
    with pytest.raises(DownloadError, match=r"No address is known for x\.safetensors; get it by hand"):
        download(source(), tmp_path, PATIENT)


def test_a_proxy_is_used_when_named(server, tmp_path):
    server.behaviours["http://files.example/x"] = [faults.serve]
    settings = dataclasses.replace(PATIENT, http="always", proxy=server.root)
    download(source("http://files.example/x"), tmp_path, settings)
    assert [request.path for request in server.requests] == ["http://files.example/x"]


def test_the_systems_proxy_is_used_unless_the_setting_says_direct(server, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", server.root)
    monkeypatch.setenv("no_proxy", "")
    server.behaviours["http://files.example/x"] = [faults.serve]
    settings = dataclasses.replace(PATIENT, http="always", proxy="")
    download(source("http://files.example/x"), tmp_path, settings)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    download(source(server.address("y", faults.serve)), tmp_path / "direct", PATIENT)


def test_a_dead_proxy_is_named_as_the_cause(tmp_path):
    settings = dataclasses.replace(PATIENT, http="always", proxy="http://127.0.0.1:9")
    with pytest.raises(TransferError, match=r"proxy could not be used to reach files\.example"):
        download(source("http://files.example/x"), tmp_path, settings)


def test_a_request_says_who_asks_and_wants_plain_bytes(server, tmp_path):
    download(source(server.address("x", faults.serve)), tmp_path, PATIENT)
    headers = server.requests[0].headers
    assert re.fullmatch(r"sd-webui-vae-kit/[\d.]+\S*", headers["user-agent"])
    assert headers["accept-encoding"] == "identity"
    assert "cookie" not in headers


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/b", "a\\b", "C:x", ".hidden", "x.", "x ", "con.safetensors", "a\0b", "a\nb", "x" * 300],
)
def test_a_name_that_is_not_a_plain_file_name_is_refused(name):
    with pytest.raises(DownloadError, match="not a plain file name"):
        checked_name(name)


@pytest.mark.parametrize("name", ["x.safetensors", "ae.safetensors", "Anything-V3.0.vae.pt", "ä b (1).ckpt"])
def test_a_plain_name_is_taken(name):
    assert checked_name(name) == name
