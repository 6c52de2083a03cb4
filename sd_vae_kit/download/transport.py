"""Connections that can be ended from outside at any moment, and addresses that are checked at every redirection."""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
from requests.adapters import HTTPAdapter

from sd_vae_kit.errors import DownloadError, RefusedAddressError
from sd_vae_kit.settings.sections import DownloadSettings
from sd_vae_kit.version import __version__

AGENT = f"sd-webui-vae-kit/{__version__}"
# Connection: a server may close a kept connection at the moment it is used again
HEADERS = {"User-Agent": AGENT, "Accept": "*/*", "Accept-Encoding": "identity", "Connection": "close"}
TICK = 0.05  # seconds between two looks of the watchdog
REDIRECTS = {301, 302, 303, 307, 308}
DIRECT = "direct"


class Lifeline:
    """Ends a connection that another thread is blocked on.

    Attributes:
        received: Bytes that arrived; the reader counts them up.
        reason: Why it was cut: "cancelled" or "stalled"; empty while it was not.
    """

    def __init__(self) -> None:
        self.received = 0
        self.reason = ""
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None

    def attach(self, connection: socket.socket) -> None:
        """Watch this socket from now on."""
        with self._lock:
            self._socket = connection
            if self.reason:
                self._shut()

    def cut(self, reason: str) -> None:
        """Wake whoever waits for the socket, with an end of file."""
        with self._lock:
            self.reason = self.reason or reason
            self._shut()

    def _shut(self) -> None:
        if self._socket is not None:
            # the plain socket's method also for TLS: SSLSocket's own would pull the state from under the reader
            with suppress(OSError):
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


@contextmanager
def watched(settings: DownloadSettings, cancel: threading.Event) -> Iterator[Lifeline]:
    """A lifeline that is cut when the user cancels or when too few bytes came for too long.

    Read timeouts begin anew with every byte, so a server that sends one now and then would hold us for ever; this
    counts bytes per `stall_seconds`, from the first moment of the connection on.
    """
    line, done = Lifeline(), threading.Event()
    watchman = threading.Thread(
        target=_watch, args=(line, done, settings, cancel), name="vae-kit-download", daemon=True
    )
    watchman.start()
    try:
        yield line
    finally:
        done.set()
        watchman.join()


def _watch(line: Lifeline, done: threading.Event, settings: DownloadSettings, cancel: threading.Event) -> None:
    needed = max(1.0, settings.min_kb_per_second * 1024 * settings.stall_seconds)
    since, before = time.monotonic(), 0
    while not done.wait(TICK):
        if cancel.is_set():
            line.cut("cancelled")
            return
        if time.monotonic() - since >= settings.stall_seconds:
            if line.received - before < needed:
                line.cut("stalled")
                return
            since, before = time.monotonic(), line.received


class _WatchedAdapter(HTTPAdapter):
    """requests' adapter whose sockets are attached to a lifeline as soon as they exist."""

    def __init__(self, line: Lifeline) -> None:
        self._line = line
        super().__init__(max_retries=0)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **options: Any) -> None:
        super().init_poolmanager(connections, maxsize, block, **options)
        self._attach(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **options: Any) -> object:
        manager = super().proxy_manager_for(proxy, **options)
        self._attach(manager)
        return manager

    def _attach(self, manager: object) -> None:
        pools: dict[str, type] = manager.pool_classes_by_scheme  # type: ignore[attr-defined]
        watched_pools = {scheme: self._watched_pool(pool) for scheme, pool in pools.items()}
        manager.pool_classes_by_scheme = watched_pools  # type: ignore[attr-defined]

    def _watched_pool(self, pool: type) -> type:
        if hasattr(pool, "is_watched"):
            return pool
        base, line = pool.ConnectionCls, self._line  # type: ignore[attr-defined]

        def connect(connection: object) -> None:
            base.connect(connection)
            line.attach(connection.sock)  # type: ignore[attr-defined]

        connection_class = type(f"Watched{base.__name__}", (base,), {"connect": connect})
        return type(f"Watched{pool.__name__}", (pool,), {"ConnectionCls": connection_class, "is_watched": True})


class _Session(requests.Session):
    """A session that leaves redirections to us; requests' own would also read a redirection's body, however long."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        """None: there is nothing for requests to follow."""


@contextmanager
def opened(
    url: str, headers: dict[str, str], settings: DownloadSettings, line: Lifeline
) -> Iterator[requests.Response]:
    """The answer to a GET with its body unread, after at most `max_redirects` redirections.

    Raises:
        RefusedAddressError: The address, or one it redirects to, is not allowed.
        DownloadError: Too many redirections.
        requests.RequestException: The connection failed.
    """
    with _Session() as session:
        session.trust_env = settings.proxy != DIRECT
        proxies = {"http": settings.proxy, "https": settings.proxy} if settings.proxy not in ("", DIRECT) else {}
        for scheme in ("http://", "https://"):
            session.mount(scheme, _WatchedAdapter(line))
        for _ in range(settings.max_redirects + 1):
            check_address(url, settings)
            response = session.get(
                url,
                headers={**HEADERS, **headers},
                stream=True,
                allow_redirects=False,
                proxies=proxies,
                timeout=(settings.connect_seconds, settings.stall_seconds),
            )
            with response:
                if response.status_code not in REDIRECTS:
                    # else urllib3 keeps the last bytes of a body that is shorter than announced
                    response.raw.enforce_content_length = False
                    yield response
                    return
                url = _redirected(url, response)
        raise DownloadError(
            f"{host_of(url)} redirects more than {settings.max_redirects} times; the address is probably wrong."
        )


def _redirected(url: str, response: requests.Response) -> str:
    location = response.headers.get("Location", "")
    if not location:
        raise DownloadError(f"{host_of(url)} redirects to nowhere; the address is probably wrong.")
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise RefusedAddressError(f"{host_of(url)} redirects to something that is no address; refused.") from error


def check_address(url: str, settings: DownloadSettings) -> None:
    """Raise `RefusedAddressError` unless `url` may be contacted: https, or http where a setting allows it."""
    try:
        parts = urlsplit(url)
        scheme, host = parts.scheme.lower(), parts.hostname or ""
    except ValueError:
        scheme, host = "", ""
    allowed = scheme == "https" or (
        scheme == "http" and (settings.http == "always" or (settings.http == "loopback" and is_loopback(host)))
    )
    if not allowed or not host:
        shown = f"{scheme or '?'}://{host}"
        raise RefusedAddressError(
            f"{shown} was refused: only https addresses are contacted (the setting about unencrypted http is "
            f'"{settings.http}").'
        )


def is_loopback(host: str) -> bool:
    """Whether the name or address means this computer."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def host_of(url: str) -> str:
    """The part of an address that a user wants to see in a message."""
    try:
        return urlsplit(url).hostname or "The server"
    except ValueError:
        return "The server"
