"""A server on loopback that passes requests on to another one and counts them."""

from __future__ import annotations

import http.client
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


class Counted:
    """The requests that passed.

    Attributes:
        url: Address of the proxy.
        target: Address of the server behind it.
        kinds: Number of requests by method; a GET that lists objects of S3 counts as LIST.
        forbidden: Requests whose path and query have this get a 403, as from MLflow where an account has no right to a run.
    """

    def __init__(self, target: str) -> None:
        self.url, self.target, self.forbidden = "", target, ""
        self.kinds: Counter[str] = Counter()

    def take(self) -> Counter[str]:
        """Return the count since the last call."""
        kinds, self.kinds = self.kinds, Counter()
        return kinds


def words(kinds: Counter[str]) -> str:
    """Return a count for a person, like "4 LIST, 1 GET"."""
    return ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common()) or "none"


@contextmanager
def counting(target: str) -> Iterator[Counted]:
    """Serve in front of `target`, an http:// address."""
    counted, host = Counted(target), urlsplit(target).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # The head and the body are two writes: with Nagle, each answer would wait 40 ms for the client to confirm its head.
        disable_nagle_algorithm = True

        def _pass(self) -> None:
            is_list = self.command == "GET" and "list-type" in parse_qs(urlsplit(self.path).query)
            counted.kinds["LIST" if is_list else self.command] += 1
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Transfer-Encoding"):
                body = self._chunks()
            if counted.forbidden and counted.forbidden in self.path:
                self.send_response(403)
                self.send_header("Content-Length", "17")
                self.end_headers()
                self.wfile.write(b"Permission denied")
                return
            connection = http.client.HTTPConnection(host, timeout=60)
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():  # S3 checks a signature over the name of the host
                if name.lower() not in ("connection", "transfer-encoding", "content-length", "expect"):
                    connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            data = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("connection", "transfer-encoding", "content-length", "date", "server"):
                    self.send_header(name, value)
            length = answer.getheader("Content-Length", "0") if self.command == "HEAD" else str(len(data))
            self.send_header("Content-Length", length)
            self.end_headers()
            self.wfile.write(data)
            connection.close()

        def _chunks(self) -> bytes:
            """Read a body that comes in chunks."""
            body = b""
            while size := int(self.rfile.readline().partition(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _pass  # noqa: N815 - http.server's names

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    counted.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield counted
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
