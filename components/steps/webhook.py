"""Send messages to a webhook, once each: plain JSON, or as Slack, Mattermost or Teams show them; signed if a key is set.

The Secret `iddpm-webhook` says where and how, by the variables below. A message is first stored, then sent, then marked as delivered. So
the reaper can deliver what a webhook that was away, or a step that was killed, has left.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import http.client
import json
import os
import queue
import re
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from training import storage
from training.config.redaction import without_secrets
from training.console import say

URL_VARIABLE = "IDDPM_WEBHOOK_URL"
FORMAT_VARIABLE = "IDDPM_WEBHOOK_FORMAT"
"""One of `FORMATS`; "json" if it is not set."""
KEY_VARIABLE = "IDDPM_WEBHOOK_KEY"
"""Key of the signatures: text, or "whsec_" and base64."""
EVENTS_VARIABLE = "IDDPM_WEBHOOK_EVENTS"
"""Events to tell, separated by commas; if it is not set, all of `EVENTS` but "started"."""
SECRET_KEYS = {"url": URL_VARIABLE, "format": FORMAT_VARIABLE, "key": KEY_VARIABLE, "events": EVENTS_VARIABLE}
"""Keys of the Secret, and their variables in a pod."""
EVENTS = ("started", "finished", "failed", "cancelled", "hung", "regression", "improvement")
_ATTEMPTS = 3
_TIMEOUT_SECONDS = 10.0
_PAUSE_SECONDS = 1.0
_BUDGET_SECONDS = 40.0
"""Limit of all attempts together. A server that sends a byte now and then never exceeds a socket's own time-out."""
_RETRIED = (429, *range(500, 600))
_LONGEST_TEXT = 2000
"""A sweep's errors can be longer than a chat shows; programs get all of them."""


def is_wanted(event: str) -> bool:
    """Return True if there is a webhook and it is to be told of such an event; say once which of the wanted events do not exist."""
    if not os.environ.get(URL_VARIABLE, "").strip():
        return False
    words = tuple(os.environ.get(EVENTS_VARIABLE, "").lower().replace(",", " ").split())
    _say_unknown(words)
    return event in (words or EVENTS[1:])


@functools.cache
def _say_unknown(words: tuple[str, ...]) -> None:
    unknown = ", ".join(word for word in words if word not in EVENTS)
    if unknown:
        say(f"{EVENTS_VARIABLE} (events of the Secret): there is no event {unknown}; the events are {', '.join(EVENTS)}")


def send_once(message: Mapping[str, Any], record_uri: str, *, since: str = "", needs_record: bool = True) -> bool:
    """Send a message, unless it was delivered before; never raise, never log the address.

    The failure that the message reports matters more than its delivery, so a webhook that fails costs one log line.

    Args:
        message: JSON: `event`, `text` for people, `links`; the rest is for programs.
        record_uri: Where message and delivery are recorded. If a record is there, its message is the one that is sent.
        since: UTC, ISO 8601. An older record is of an earlier try of the run, and is replaced. If empty, a record of another event is.
        needs_record: False sends the message also where the record can't be read or written, as for a run whose bucket does not exist.
            While the storage is only away the message waits all the same, as it may have been delivered.

    Returns:
        True if nothing is left to do: the message has arrived, or nobody wants it.
    """
    if not is_wanted(message["event"]):
        return True
    record: dict[str, Any] = {"id": f"msg_{uuid.uuid4().hex}", "at": _now(), "delivered": False, "message": dict(message)}
    try:
        stored = _stored(record_uri)
        if stored and (stored["at"] >= since if since else stored["message"]["event"] == message["event"]):
            record = stored
        else:
            storage.write_json(record_uri, record)
    except storage.StorageError as error:
        say(f"the message to the webhook can't be recorded: {error}")
        if needs_record or error.transient:
            return False
    if record["delivered"]:
        return True
    problem = _post_in_time(record)
    if problem is None:
        try:
            storage.write_json(record_uri, {**record, "delivered": True})
        except storage.StorageError as error:
            say(f"the message may be sent again: {error}")
    say("sent the message to the webhook" if problem is None else f"the webhook did not get the message: {problem}")
    return problem is None


def sign(key: str, message_id: str, timestamp: int, body: bytes) -> str:
    """Return the signature of a message as "Standard Webhooks" 1.0 defines it: HMAC-SHA256 of id, time and body.

    Raises:
        ValueError: The key begins with "whsec_", and the rest is not base64, or nothing.
    """
    # Strictly: without a check letters that are not base64 are left out, and the receiver's library may read another key.
    secret = base64.b64decode(key.removeprefix("whsec_"), validate=True) if key.startswith("whsec_") else key.encode()
    if not secret:  # anybody could sign with an empty one
        raise ValueError("the key is empty")
    digest = hmac.new(secret, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(kw_only=True)
class _Message:
    event: str
    text: str
    links: dict[str, str] | None = None


@dataclass(kw_only=True)
class _Record:
    id: str
    at: str
    delivered: bool
    message: _Message


def _stored(record_uri: str) -> dict[str, Any] | None:
    try:
        return storage.read_json(record_uri, _Record)
    except storage.ObjectNotFoundError:
        return None


def _text(message: Mapping[str, Any]) -> str:
    text = without_secrets(str(message["text"]))
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]} ..."


def _links(message: Mapping[str, Any]) -> list[str]:
    """Return the links that a browser can open."""
    return [link for link in dict(message.get("links") or {}).values() if str(link).startswith(("https://", "http://"))]


def _json(message: Mapping[str, Any]) -> dict[str, Any]:
    return {**message, "text": " ".join([_text(message), *_links(message)[:1]])}


def _slack(message: Mapping[str, Any]) -> dict[str, Any]:
    text: str = _json(message)["text"]
    return {"text": text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")}  # the three that Slack reads as markup


def _mattermost(message: Mapping[str, Any]) -> dict[str, Any]:
    # A word of an error must not call everybody.
    return {"text": re.sub(r"@(?=(all|channel|here)\b)", "@\u200b", _json(message)["text"])}


def _teams(message: Mapping[str, Any]) -> dict[str, Any]:
    actions = [{"type": "Action.OpenUrl", "title": "Open", "url": link} for link in _links(message)[:1]]
    card = {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.4",
        "body": [{"type": "TextBlock", "text": _text(message), "wrap": True}],
        "actions": actions,
    }
    return {"type": "message", "attachments": [{"contentType": "application/vnd.microsoft.card.adaptive", "content": card}]}


FORMATS: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "json": _json,
    "slack": _slack,
    "mattermost": _mattermost,
    "teams": _teams,
}
"""The form of a message by kind of webhook: Slack's and Mattermost's incoming webhooks, and the one that a workflow of Teams offers."""


def _post_in_time(record: Mapping[str, Any]) -> str | None:
    """Call `_post`, and abandon it when it takes too long."""
    form = os.environ.get(FORMAT_VARIABLE, "").strip() or "json"
    if form not in FORMATS:
        return f"{FORMAT_VARIABLE} must be one of {', '.join(FORMATS)}; it is {form!r}"
    body = json.dumps(FORMATS[form](record["message"])).encode()
    headers = {"Content-Type": "application/json", "webhook-id": record["id"], "webhook-timestamp": str(int(time.time()))}
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if key:
        try:
            headers["webhook-signature"] = sign(key, record["id"], int(headers["webhook-timestamp"]), body)
        except ValueError:
            return f"{KEY_VARIABLE} is not whsec_ and base64, which has + and / and no - or _"
    found: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    url = os.environ[URL_VARIABLE].strip()
    threading.Thread(target=lambda: found.put(_post(url, body, headers)), daemon=True).start()
    try:
        return found.get(timeout=_BUDGET_SECONDS)
    except queue.Empty:
        return f"it had not answered after {_BUDGET_SECONDS:g} s"


def _post(url: str, body: bytes, headers: Mapping[str, str]) -> str | None:
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
            status = session.post(url, data=body, headers=dict(headers), timeout=_TIMEOUT_SECONDS, allow_redirects=False).status_code
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
    if status < 400:
        return f"it answered {status}, a redirect, which is not followed; {URL_VARIABLE} must be the address that takes the messages"
    return f"it answered {status}" + (f", {_ATTEMPTS} times" if status in _RETRIED else "")
