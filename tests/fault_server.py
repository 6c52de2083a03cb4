"""A web server on 127.0.0.1 that misbehaves on request; threads and waiting times are bounded."""

import contextlib
import gzip
import socket
import socketserver
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

LONGEST_WAIT = 20.0  # seconds a handler may sit still
PIECE = 16384


@dataclass
class Request:
    path: str
    headers: dict[str, str]

    @property
    def range(self) -> int:
        """Where the client wants to go on; 0 without a Range header."""
        return int(self.headers.get("range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))


@dataclass
class Exchange:
    """One request being answered: what a behaviour works with."""

    handler: BaseHTTPRequestHandler
    request: Request
    content: bytes
    stopping: threading.Event

    def headers(self, status: int = 200, **headers: object) -> None:
        self.handler.send_response(status)
        for name, value in headers.items():
            if value is not None:
                self.handler.send_header(name.replace("_", "-"), str(value))
        self.handler.end_headers()

    def send(self, data: bytes) -> None:
        for start in range(0, len(data), PIECE):
            self.handler.wfile.write(data[start : start + PIECE])

    def wait(self, seconds: float = LONGEST_WAIT) -> bool:
        """Sit still; True when the test is over."""
        return self.stopping.wait(min(seconds, LONGEST_WAIT))

    def reset(self) -> None:
        """Cut the connection with a TCP reset."""
        connection = self.handler.connection
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()


Behaviour = Callable[[Exchange], None]


@dataclass
class FaultServer:
    """Answers `/name` with the behaviours given for that name, one per request, and the last one ever after."""

    content: bytes
    requests: list[Request] = field(default_factory=list)
    behaviours: dict[str, list[Behaviour]] = field(default_factory=dict)
    stopping: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "FaultServer":
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.faults = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def address(self, name: str, *behaviours: Behaviour) -> str:
        """Address of `/name`, which behaves like this from now on."""
        self.behaviours[f"/{name}"] = list(behaviours)
        return f"{self.root}/{name}"


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    faults: FaultServer

    def handle_error(self, request, client_address):
        """A client that goes away is what most of the tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        faults = self.server.faults
        path = self.path.removeprefix(faults.root)  # a proxy is asked for the whole address
        request = Request(path, {name.lower(): value for name, value in self.headers.items()})
        faults.requests.append(request)
        queue = faults.behaviours.get(path, [not_found])
        behaviour = queue.pop(0) if len(queue) > 1 else queue[0]
        self.close_connection = True
        with contextlib.suppress(OSError):
            behaviour(Exchange(self, request, faults.content, faults.stopping))

    def log_message(self, *args):
        pass


# --- behaviours ------------------------------------------------------------------------------------------------------


def serve(exchange: Exchange, *, etag: str | None = '"v1"') -> None:
    """What a sound server does, Range and If-Range included."""
    content, start = exchange.content, exchange.request.range
    if exchange.request.headers.get("if-range", etag) != etag:
        start = 0
    if start >= len(content):
        exchange.headers(416, Content_Range=f"bytes */{len(content)}", Content_Length=0)
    elif start:
        span = f"bytes {start}-{len(content) - 1}/{len(content)}"
        exchange.headers(206, Content_Range=span, Content_Length=len(content) - start, ETag=etag)
        exchange.send(content[start:])
    else:
        exchange.headers(200, Content_Length=len(content), ETag=etag)
        exchange.send(content)


def not_found(exchange: Exchange) -> None:
    status(404)(exchange)


def status(code: int) -> Behaviour:
    return lambda exchange: exchange.headers(code, Content_Length=0)


def redirect(location: str | None, code: int = 302) -> Behaviour:
    return lambda exchange: exchange.headers(code, Location=location, Content_Length=0)


def endless_redirect(location: str) -> Behaviour:
    """A redirection whose body never ends."""

    def behave(exchange: Exchange) -> None:
        exchange.headers(302, Location=location)
        while not exchange.stopping.is_set():
            exchange.send(bytes(PIECE))

    return behave


def cut_after(count: int, how: str = "reset") -> Behaviour:
    """Send `count` bytes from where the client wants to go on, then reset, close or fall silent."""

    def behave(exchange: Exchange) -> None:
        start, total = exchange.request.range, len(exchange.content)
        if start:
            exchange.headers(206, Content_Range=f"bytes {start}-{total - 1}/{total}", Content_Length=total - start)
        else:
            exchange.headers(200, Content_Length=total, ETag='"v1"')
        exchange.send(exchange.content[start : start + count])
        exchange.handler.wfile.flush()
        if how == "reset":
            exchange.wait(0.2)  # a reset also throws away what the client has not read yet
            exchange.reset()
        elif how == "silence":
            exchange.wait()

    return behave


def closed_at_once(exchange: Exchange) -> None:
    exchange.handler.connection.shutdown(socket.SHUT_RDWR)


def silent(exchange: Exchange) -> None:
    exchange.wait()


def dripping_body(exchange: Exchange) -> None:
    """A byte now and then, for ever."""
    exchange.headers(200, Content_Length=len(exchange.content))
    for byte in exchange.content:
        exchange.send(bytes([byte]))
        if exchange.wait(0.05):
            return


def dripping_headers(exchange: Exchange) -> None:
    exchange.send(b"HTTP/1.1 200 OK\r\n")
    for number in range(400):
        exchange.send(b"X-%d: y\r\n" % number)
        if exchange.wait(0.05):
            return


def announcing(length: object, extra: bytes = b"") -> Behaviour:
    """A wrong Content-Length before the right bytes."""

    def behave(exchange: Exchange) -> None:
        exchange.headers(200, Content_Length=length)
        exchange.send(exchange.content + extra)

    return behave


def without_length(exchange: Exchange) -> None:
    exchange.headers(200)
    exchange.send(exchange.content)


def chunked(exchange: Exchange) -> None:
    exchange.headers(200, Transfer_Encoding="chunked")
    for start in range(0, len(exchange.content), 5000):
        _chunk(exchange, exchange.content[start : start + 5000])
    exchange.send(b"0\r\n\r\n")


def _chunk(exchange: Exchange, data: bytes) -> None:
    exchange.send(b"%x\r\n" % len(data) + data + b"\r\n")


def endless(exchange: Exchange) -> None:
    exchange.headers(200)
    while not exchange.stopping.is_set():
        exchange.send(bytes(PIECE))


def endless_chunks(exchange: Exchange) -> None:
    exchange.headers(200, Transfer_Encoding="chunked")
    while not exchange.stopping.is_set():
        _chunk(exchange, bytes(PIECE))


def body(data: bytes, **headers: object) -> Behaviour:
    """Any answer with a true length."""

    def behave(exchange: Exchange) -> None:
        exchange.headers(200, Content_Length=len(data), **headers)
        exchange.send(data)

    return behave


def gzipped(exchange: Exchange) -> None:
    packed = gzip.compress(exchange.content)
    exchange.headers(200, Content_Length=len(packed), Content_Encoding="gzip")
    exchange.send(packed)


def whole_despite_range(exchange: Exchange) -> None:
    exchange.headers(200, Content_Length=len(exchange.content))
    exchange.send(exchange.content)


def never_a_range(exchange: Exchange) -> None:
    """416 for any continuation."""
    if exchange.request.range:
        exchange.headers(416, Content_Range=f"bytes */{len(exchange.content)}", Content_Length=0)
    else:
        cut_after(49_152)(exchange)


def another_range(exchange: Exchange) -> None:
    """206, but from another place than asked for."""
    content = exchange.content
    if not exchange.request.range:
        serve(exchange)
        return
    exchange.headers(206, Content_Range=f"bytes 7-{len(content) - 1}/{len(content)}", Content_Length=len(content) - 7)
    exchange.send(content[7:])


def another_total(exchange: Exchange) -> None:
    start, total = exchange.request.range, len(exchange.content)
    exchange.headers(206, Content_Range=f"bytes {start}-{total}/{total + 1}", Content_Length=total + 1 - start)
    exchange.send(exchange.content[start:] + b"!")


def not_http(exchange: Exchange) -> None:
    exchange.send(b"220 mail.example ready\r\n" * 3)


def huge_header(exchange: Exchange) -> None:
    exchange.send(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n")
