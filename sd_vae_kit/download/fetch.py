"""From a list of addresses to a verified file: which are tried, what is believed, when a try goes on."""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import requests

from sd_vae_kit.download.part_file import PartFile
from sd_vae_kit.download.transport import Lifeline, host_of, opened, watched
from sd_vae_kit.errors import (
    DownloadError,
    Interrupted,
    NoSpaceError,
    OfflineError,
    RefusedAddressError,
    TargetExistsError,
    TransferError,
    WrongContentError,
)
from sd_vae_kit.settings.sections import DownloadSettings
from sd_vae_kit.state.file_hash import file_sha256
from sd_vae_kit.units import MIB

CHUNK = 8192  # bytes per read: small, because a read of a slow connection ends only when it is filled
PROGRESS_EVERY = 0.1  # seconds
WAIT = 0.5  # seconds before the second try of an address, doubled for each further one
ENOUGH = MIB  # bytes: a try that brought so much was worth another, however many there were
SPARE = 32 * MIB  # bytes that stay free on the disk
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
PAGES = ("text/html", "application/xhtml", "application/json", "text/xml", "application/xml")
PLAIN_NAME = re.compile(r'[^.\s<>:"/\\|?*\x00-\x1f][^<>:"/\\|?*\x00-\x1f]*(?<![. ])')
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """What to fetch.

    Attributes:
        file: Plain name it gets in the target folder.
        urls: Addresses of the same bytes, best first.
        max_bytes: No more is taken.
        sha256, git_blob_sha1, size: What is known of the right bytes; what is None is not checked.
    """

    file: str
    urls: tuple[str, ...]
    max_bytes: int
    sha256: str | None = None
    git_blob_sha1: str | None = None
    size: int | None = None


@dataclass(frozen=True)
class DownloadProgress:
    """How far a download is: bytes in the part file, bytes in all if known, speed of this try, and where from."""

    done: int
    total: int | None
    bytes_per_second: float
    host: str


@dataclass(frozen=True)
class _Task:
    """One download with all that its tries need."""

    source: Source
    part: PartFile
    settings: DownloadSettings
    on_progress: Callable[[DownloadProgress], None]
    cancel: threading.Event


@dataclass(frozen=True)
class _Body:
    """What an answer's headers say about its body: where it begins in the file, the file's length, its version."""

    start: int
    total: int | None
    etag: str


def download(
    source: Source,
    folder: Path,
    settings: DownloadSettings,
    *,
    on_progress: Callable[[DownloadProgress], None] = lambda progress: None,
    cancel: threading.Event | None = None,
) -> Path:
    """Fetch the file into `folder`, verified; what a failed try left in `NAME.part` is continued by the next.

    Args:
        source: What, from where, and how to know that it is the right one.
        folder: Made if missing.
        settings: Proxy, timeouts, whether http is allowed.
        on_progress: Called about ten times a second, in this thread.
        cancel: Set it from another thread to stop within a moment, even while the server is silent.

    Returns:
        The finished file.  If the same content was there already, nothing was contacted.

    Raises:
        Interrupted: Cancelled.
        DownloadError: One line for the user; nothing half-installed is left except the part file.
    """
    target = folder / checked_name(source.file)
    if target.exists():
        return _already_there(source, target)
    if settings.offline:
        raise OfflineError(f"{source.file} was not fetched: downloads are switched off in the settings.")
    if not source.urls:
        raise DownloadError(f"No address is known for {source.file}; get it by hand and put it into {folder}.")
    with PartFile(target) as part:
        task = _Task(source, part, settings, on_progress, cancel or threading.Event())
        if not (source.sha256 and _is_right(task)):  # else a finished file was not moved into place: power failure
            _fetch_from_any(task)
        if target.exists():
            return _already_there(source, target)
        return part.publish()


def checked_name(file: str) -> str:
    """The name itself if it is a plain file name on every system.

    Raises:
        DownloadError: It is not.
    """
    if not PLAIN_NAME.fullmatch(file) or RESERVED.fullmatch(file) or len(file) > 200:
        raise DownloadError(f"{file!r} is not a plain file name; nothing was fetched.")
    return file


def _already_there(source: Source, target: Path) -> Path:
    """The file in its place, if it is the right one; any other is left alone."""
    if source.sha256 is None:
        raise TargetExistsError(
            f"{target.name} is in {target.parent} already; without a known hash it is left as it is."
        )
    if not target.is_file() or (found := file_sha256(target)) != source.sha256:
        what = f"sha256 {found[:10]} instead of {source.sha256[:10]}" if target.is_file() else "not a file"
        raise TargetExistsError(
            f"{target.parent} has another {target.name} already ({what}); it was left as it is, rename it first."
        )
    return target


def _fetch_from_any(task: _Task) -> None:
    """Try the addresses in turn until the part file holds the right bytes.

    Raises:
        DownloadError: All failed; the most hopeful reason.
    """
    if task.part.size >= task.source.max_bytes:
        task.part.discard()
    _check_space(task, task.source.size)
    failures: list[DownloadError] = []
    for url in task.source.urls:
        try:
            _fetch_from(task, url)
            return
        except (NoSpaceError, TargetExistsError):
            raise
        except DownloadError as error:
            failures.append(error)
    hopeful = [error for error in failures if isinstance(error, TransferError)] or failures
    others = len(failures) - 1
    more = f" ({others} other address{'es' * (others > 1)} failed, too.)" if others else ""
    raise type(hopeful[0])(f"{hopeful[0]}{more}") from hopeful[0]


def _fetch_from(task: _Task, url: str) -> None:
    """Try one address: again after a cut connection, once from the beginning if a continued file came out wrong."""
    tries, started_over = 0, False
    while True:
        before = task.part.size
        try:
            _try(task, url)
            return
        except TransferError:
            if task.source.sha256 and _is_right(task):
                return  # the server promised more than there is
            tries = 1 if task.part.size - before >= ENOUGH else tries + 1
            if tries >= task.settings.attempts:
                raise
            if task.cancel.wait(WAIT * 2 ** (tries - 1)):
                raise _cancelled(task) from None
        except WrongContentError:
            # a continuation of bytes that were wrong, or that the server has replaced meanwhile, deserves a fresh start
            if started_over or not before or task.part.size:
                raise
            started_over = True


def _is_right(task: _Task) -> bool:
    """Whether the part file holds the right bytes, as far as is known."""
    source, part = task.source, task.part
    right = (
        (source.size is None or source.size == part.size)
        and (source.sha256 is None or source.sha256 == part.sha256())
        and (source.git_blob_sha1 is None or source.git_blob_sha1 == part.git_blob_sha1())
    )
    return right and part.size > 0


def _wrong_content(task: _Task, url: str) -> str:
    source, part = task.source, task.part
    if source.size is not None and source.size != part.size:
        what = f"{part.size:,} bytes instead of {source.size:,}"
    elif source.sha256 is not None and source.sha256 != part.sha256():
        what = f"sha256 {part.sha256()[:10]}... instead of {source.sha256[:10]}..."
    elif part.size:
        what = "its git hash is another"
    else:
        what = "it is empty"
    return f"{host_of(url)} sent another {source.file} ({what}); it was thrown away, nothing was installed."


def _try(task: _Task, url: str) -> None:
    """Open the address once and append what comes to the part file."""
    if task.cancel.is_set():
        raise _cancelled(task)
    with watched(task.settings, task.cancel) as line:
        try:
            with opened(url, _range_headers(task, url), task.settings, line) as response:
                body = _read_headers(task, url, response)
                _check_space(task, body.total)
                task.part.begin(body.start, body.total, url, body.etag)
                _read_body(task, url, response, body, line)
        except (requests.RequestException, OSError) as error:
            _explain(task, url, line, error)
        if line.reason:
            _explain(task, url, line, None)
    expected = body.total if body.total is not None else task.source.size
    if expected is not None and task.part.size < expected:
        raise TransferError(
            f"{host_of(url)} ended the connection after {task.part.size:,} of {expected:,} bytes; "
            "try again, it goes on from there."
        )
    if not _is_right(task):
        problem = _wrong_content(task, url)
        task.part.discard()
        raise WrongContentError(problem)


def _range_headers(task: _Task, url: str) -> dict[str, str]:
    """Ask for the rest if something has arrived; only if it is the same version, where we know which that was."""
    if not task.part.size:
        return {}
    came_from, etag = task.part.origin()
    if task.source.sha256 is None and not (came_from == url and etag):
        task.part.discard()  # nobody could tell whether the halves belong together
        return {}
    condition = {"If-Range": etag} if came_from == url and etag else {}
    return {"Range": f"bytes={task.part.size}-", **condition}


def _read_headers(task: _Task, url: str, response: requests.Response) -> _Body:
    """Believe an answer's headers, or refuse it before a byte of its body is read."""
    host, status = host_of(url), response.status_code
    if status == 416 and task.part.size:
        _refuse_continuation(task, host)
    if status not in (200, 206):
        _refuse_status(host, status, task.source.file)
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("identity", ""):
        raise WrongContentError(
            f"{host} sends {task.source.file} compressed ({encoding[:20]}), so its length cannot be checked; refused."
        )
    kind = response.headers.get("Content-Type", "").strip().lower()
    if kind.startswith(PAGES):
        _refuse_page(host, task.source.file)
    start, total = _span(task, response, host)
    if start not in (0, task.part.size):
        _refuse_continuation(task, host)
    _check_total(task, host, total)
    etag = response.headers.get("ETag", "")
    return _Body(start, total, "" if etag.startswith("W/") else etag)


def _span(task: _Task, response: requests.Response, host: str) -> tuple[int, int | None]:
    """Where the body begins in the file and how long the file is, by the headers."""
    if response.status_code == 200:
        length = response.headers.get("Content-Length", "").strip()
        if length and not length.isdecimal():
            raise WrongContentError(f"{host} announces a length of {length[:20]!r}; refused.")
        if not length and task.source.sha256 is None and "chunked" not in response.headers.get("Transfer-Encoding", ""):
            raise WrongContentError(
                f"{host} does not say how long {task.source.file} is, and no hash is known; refused."
            )
        return 0, int(length) if length else None
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", "").strip())
    if not match:
        _refuse_continuation(task, host)
    return int(match[1]), None if match[3] == "*" else int(match[3])


def _check_total(task: _Task, host: str, total: int | None) -> None:
    source = task.source
    if total is None:
        return
    if source.size is not None and total != source.size:
        raise WrongContentError(
            f"{host} announces {total:,} bytes for {source.file}, the catalogue knows {source.size:,}; refused."
        )
    if total > source.max_bytes:
        raise WrongContentError(
            f"{host} announces {total:,} bytes for {source.file}, at most {source.max_bytes:,} are plausible; refused."
        )


def _refuse_status(host: str, status: int, file: str) -> NoReturn:
    if status in TRANSIENT:
        raise TransferError(f"{host} is busy or out of order (HTTP {status}); try again later.")
    if status in (401, 403, 407):
        raise DownloadError(f"{host} asks for a login before it gives {file} (HTTP {status}); get it by hand.")
    if status in (404, 410):
        raise DownloadError(f"{host} no longer has {file} (HTTP {status}).")
    raise DownloadError(f"{host} does not give {file} (HTTP {status}).")


def _refuse_continuation(task: _Task, host: str) -> NoReturn:
    """The server cannot go on from where we are: what has arrived is of no use with it."""
    task.part.discard()
    raise WrongContentError(f"{host} contradicts itself about the length of {task.source.file}; refused.")


def _refuse_page(host: str, file: str) -> NoReturn:
    raise WrongContentError(
        f"{host} sent a web page or a message instead of {file}; perhaps it asks for a login, or the file is gone."
    )


def _read_body(task: _Task, url: str, response: requests.Response, body: _Body, line: Lifeline) -> None:
    part, source, host = task.part, task.source, host_of(url)
    limit = body.total if body.total is not None else source.max_bytes
    started = reported = time.monotonic()
    at_start = part.size == 0
    for chunk in response.iter_content(CHUNK):
        if line.reason:
            return
        line.received += len(chunk)
        if at_start and _looks_like_a_page(chunk):
            _refuse_page(host, source.file)
        at_start = False
        if part.size + len(chunk) > limit:
            part.discard()
            raise WrongContentError(f"{host} sends more than the {limit:,} bytes that {source.file} may have; stopped.")
        part.write(chunk)
        now = time.monotonic()
        if now - reported >= PROGRESS_EVERY:
            reported = now
            task.on_progress(DownloadProgress(part.size, body.total, line.received / (now - started), host))
    seconds = max(time.monotonic() - started, 1e-6)
    task.on_progress(DownloadProgress(part.size, body.total, line.received / seconds, host))


def _looks_like_a_page(data: bytes) -> bool:
    return data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head"))


def _check_space(task: _Task, total: int | None) -> None:
    """Raise `NoSpaceError` unless what is still to come fits on the disk."""
    folder = task.part.target.parent
    needed = (total or 0) - task.part.size
    free = shutil.disk_usage(folder).free
    if needed > 0 and needed + SPARE > free:
        raise NoSpaceError(
            f"{task.source.file} needs {needed / MIB:,.0f} MiB more, but the disk of {folder} has only "
            f"{free / MIB:,.0f} MiB; free some space and try again."
        )


def _cancelled(task: _Task) -> Interrupted:
    return Interrupted(f"The download of {task.source.file} was cancelled; the next one goes on from there.")


def _explain(task: _Task, url: str, line: Lifeline, error: Exception | None) -> NoReturn:
    """Say why a connection failed."""
    host, again = host_of(url), "try again, it goes on from there."
    if line.reason == "cancelled":
        raise _cancelled(task) from error
    if line.reason == "stalled" or isinstance(error, requests.Timeout):
        seconds = task.settings.stall_seconds
        raise TransferError(f"{host} sent nothing, or next to nothing, for {seconds:g} seconds; {again}") from error
    if isinstance(error, requests.exceptions.SSLError):
        raise RefusedAddressError(f"{host} could not prove that it is {host} (TLS certificate); refused.") from error
    if isinstance(error, requests.exceptions.ProxyError):
        raise TransferError(f"The proxy could not be used to reach {host}; check the proxy setting.") from error
    if isinstance(error, requests.exceptions.InvalidURL | requests.exceptions.InvalidSchema):
        raise RefusedAddressError(f"{host} is not a usable address; refused.") from error
    if task.part.size:
        raise TransferError(f"The connection to {host} was cut after {task.part.size:,} bytes; {again}") from error
    raise TransferError(f"{host} could not be reached, or closed the connection at once; check the network.") from error
