"""Send one JSON message to a webhook, whose address is a secret in the environment.

Slack, Mattermost, Google Chat and the like show the key `text`; the other keys are for programs.
"""

from __future__ import annotations

import http.client
import json
import os
import queue
import threading
from collections.abc import Mapping
from typing import Any

from training import storage
from training.console import say

URL_VARIABLE = "IDDPM_WEBHOOK_URL"
_ATTEMPTS = 3
_TIMEOUT_SECONDS = 10.0
_PAUSE_SECONDS = 1.0
_BUDGET_SECONDS = 40.0
"""Limit of all attempts together. A server that sends a byte now and then never exceeds a socket's own time-out."""
_RETRIED = (429, *range(500, 600))


def send_once(message: Mapping[str, Any], receipt_uri: str) -> bool:
    """Send a message, unless an earlier attempt of the same step did; never raise, never log the address.

    The failure that the message reports matters more than its delivery, so a webhook that fails costs one log line.

    Args:
        message: JSON; people see `text`.
        receipt_uri: Written once the webhook accepted the message.

    Returns:
        True if the message is known to have arrived, now or before; False also where no webhook is set.
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
        say(f"the webhook may not have got the message: {error}")
        return False
    say("sent the message to the webhook" if problem is None else f"the webhook did not get the message: {problem}")
    return problem is None


def _post_in_time(url: str, body: bytes) -> str | None:
    """Call `_post`, and abandon it when it takes too long."""
    found: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=lambda: found.put(_post(url, body)), daemon=True).start()
    try:
        return found.get(timeout=_BUDGET_SECONDS)
    except queue.Empty:
        return f"it had not answered after {_BUDGET_SECONDS:g} s"


def _post(url: str, body: bytes) -> str | None:
    """Return why the message was not accepted; None if it was."""
    import requests  # type: ignore[import-untyped]
    from requests.adapters import HTTPAdapter  # type: ignore[import-untyped]
    from urllib3 import Retry
    from urllib3.exceptions import MaxRetryError, ProtocolError

    if not url.startswith(("https://", "http://")):
        return f"{URL_VARIABLE} is not an http:// or https:// address"
    retries = Retry(
        _ATTEMPTS - 1,
        allowed_methods=None,  # POST too: a message that is shown twice is better than none
        status_forcelist=_RETRIED,
        backoff_factor=_PAUSE_SECONDS,
        raise_on_status=False,
        respect_retry_after_header=False,
    )
    try:
        with requests.Session() as session:
            session.mount("http://", HTTPAdapter(max_retries=retries))
            session.mount("https://", HTTPAdapter(max_retries=retries))
            # A redirected POST becomes a GET without its message: nothing would arrive, and it would look delivered.
            headers = {"Content-Type": "application/json"}
            status = session.post(url, data=body, headers=headers, timeout=_TIMEOUT_SECONDS, allow_redirects=False).status_code
    except ValueError:  # its text contains the address
        return f"{URL_VARIABLE} is not an address"
    except requests.RequestException as error:
        cause: BaseException = error.args[0] if error.args and isinstance(error.args[0], Exception) else error
        cause = cause.reason if isinstance(cause, MaxRetryError) and cause.reason is not None else cause
        details = [detail for detail in cause.args if isinstance(detail, http.client.HTTPException)]
        if isinstance(cause, ProtocolError) and details:
            return f"it does not answer as a web server does ({type(details[0]).__name__}), {_ATTEMPTS} times"
        return f"it can't be reached ({type(cause).__name__}), {_ATTEMPTS} times"
    if status < 300:
        return None
    return f"it answered {status}" + (f", {_ATTEMPTS} times" if status in _RETRIED else "")
