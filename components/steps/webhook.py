"""A word to whoever should know: one JSON message to a webhook, whose address is a secret of the environment's.

`text` is what Slack, Mattermost, Google Chat and the like show; the other keys are for programs.
"""

from __future__ import annotations

import http.client
import json
import os
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import IO, Any

from training import storage
from training.console import say

URL_VARIABLE = "IDDPM_WEBHOOK_URL"
_ATTEMPTS = 3
_TIMEOUT_SECONDS = 10.0
_PAUSE_SECONDS = 1.0
_PATIENCE_SECONDS = 40.0
"""Of all attempts together. A server that sends a byte now and then never lets a socket's own time-out pass."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST becomes a GET without its message: nothing would arrive, and it would look delivered."""

    def redirect_request(self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str) -> None:
        return None


def tell_once(message: Mapping[str, Any], receipt_uri: str) -> bool:
    """Sends a message, unless an earlier attempt of the same step has; never raises, never shows the address.

    What the message is about matters more than its delivery: a webhook that fails is said in one line.

    Args:
        message: JSON; `text` is what people see.
        receipt_uri: Is written once the message was taken.

    Returns:
        Whether it is known to have arrived, now or before; False also where no webhook is set.
    """
    url = os.environ.get(URL_VARIABLE, "").strip()
    if not url:
        return False
    try:
        if storage.exists(receipt_uri):
            return True
        problem = _post_in_time(url, json.dumps(message).encode())
        if problem is None:
            storage.write_json(receipt_uri, message)
    except storage.StorageError as error:
        say(f"webhook: whether it was told is not known ({error})")
        return False
    say("told the webhook" if problem is None else f"the webhook was not told: {problem}")
    return problem is None


def _post_in_time(url: str, body: bytes) -> str | None:
    """`_post`, which is left to itself when it takes too long."""
    found: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=lambda: found.put(_post(url, body)), daemon=True).start()
    try:
        return found.get(timeout=_PATIENCE_SECONDS)
    except queue.Empty:
        return f"it had not answered after {_PATIENCE_SECONDS:g} s"


def _post(url: str, body: bytes) -> str | None:
    """Why the message was not taken; None if it was. What may pass is tried again, twice."""
    if not url.startswith(("https://", "http://")):
        return f"{URL_VARIABLE} is not an http:// or https:// address"
    opener = urllib.request.build_opener(_NoRedirect)
    problem = ""
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE_SECONDS * 2 ** (attempt - 1))
        try:
            request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"}, method="POST")
            with opener.open(request, timeout=_TIMEOUT_SECONDS):
                return None
        except urllib.error.HTTPError as error:
            problem = f"it answered {error.code}"
            error.close()
            if error.code < 500 and error.code != 429:
                return problem
        except (ValueError, http.client.InvalidURL):  # its text holds the address
            return f"{URL_VARIABLE} is not an address"
        except http.client.HTTPException as error:
            problem = f"it does not answer as a web server does ({type(error).__name__})"
        except OSError as error:
            problem = f"it can't be reached ({type(getattr(error, 'reason', error)).__name__})"
    return f"{problem}, {_ATTEMPTS} times"
