"""A webhook's server on loopback: it takes messages, or fails as it is told."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

NONSENSE = 0
"""A code of `Receiver.codes` that stands for an answer that is not HTTP."""
SILENCE = 1
"""A code of `Receiver.codes` that stands for no answer for `Receiver.silence_seconds`, longer than anybody waits."""


@dataclass
class Receiver:
    """A server of webhook messages, and the requests it got.

    Attributes:
        url: Its address, which has a secret in it.
        codes: Answers to the next requests; after them it answers 200.
        messages: The accepted messages.
        signed: Headers and body of each accepted message.
        num_requests: Number of all requests.
        silence_seconds: How long `SILENCE` lasts.
    """

    url: str = ""
    codes: list[int] = field(default_factory=list)
    messages: list[dict[str, Any]] = field(default_factory=list)
    signed: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    num_requests: int = 0
    silence_seconds: float = 1.0


@contextlib.contextmanager
def receive() -> Iterator[Receiver]:
    """Serve a webhook for the duration of the block."""
    receiver = Receiver()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.num_requests += 1
            code = receiver.codes.pop(0) if receiver.codes else 200
            if code == SILENCE:
                time.sleep(receiver.silence_seconds)
                self.close_connection = True
                return
            if code == NONSENSE:
                self.wfile.write(b"nonsense\r\n\r\n")
                return
            if code == 200:
                assert self.headers["Content-Type"] == "application/json"
                receiver.messages.append(json.loads(body))
                receiver.signed.append(({key.lower(): value for key, value in self.headers.items()}, body))
            self.send_response(code)
            if code == 302:
                self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *words: object) -> None:
            """Print nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        receiver.url = f"http://127.0.0.1:{server.server_port}/services/s3cr3t"
        yield receiver
        server.shutdown()
        thread.join()
