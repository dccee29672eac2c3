"""Errors of KFP's API and of the connection to it, in one line each: a request raises `KfpError` if KFP refuses or does not answer."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import urllib3
from kfp_server_api import ApiException

NO_ANSWER = 0
"""Status of a request that got no answer."""


class KfpError(RuntimeError):
    """KFP refused (`status` is HTTP's), or could not be reached (`NO_ANSWER`)."""

    def __init__(self, message: str, status: int = NO_ANSWER) -> None:
        super().__init__(message)
        self.status = status

    @property
    def is_transient(self) -> bool:
        """True if the same request may succeed later."""
        return self.status in (NO_ANSWER, 408, 429) or 500 <= self.status < 600


def with_errors(call_api: Callable[..., Any], address: str, *, has_token: bool) -> Callable[..., Any]:
    """Wrap the client's function that sends every request: add a time limit, and raise `KfpError`."""

    def call(path: str, method: str, *args: Any, **options: Any) -> Any:
        # KFP's client has no time limit by default.
        options["_request_timeout"] = options.get("_request_timeout") or (10.0, 60.0)
        try:
            return call_api(path, method, *args, **options)
        except ApiException as error:
            raise _refusal(error, address, has_token=has_token) from error
        except UnicodeDecodeError as error:
            raise page_error(address) from error
        except AttributeError as error:  # KFP's client expects a body in every failed request
            if isinstance(error.__context__, ApiException):
                raise _no_answer(error.__context__.reason, address, method) from error
            raise
        except urllib3.exceptions.HTTPError as error:
            raise _no_answer(error, address, method) from error

    return call


def objects_only(deserialize: Callable[..., Any], address: str) -> Callable[..., Any]:
    """Wrap the client's function that reads responses. By itself it takes a web page for an empty response."""

    def read(response: Any, response_type: Any) -> Any:
        if not str(response.data).lstrip().startswith("{"):
            raise page_error(address)
        return deserialize(response, response_type)

    return read


def page_error(address: str) -> KfpError:
    """Return the error for an address that answers with a web page; a log-in page is a refusal."""
    return KfpError(
        f"{address} answers with a web page, not as KFP's API; is it a log-in page? Give a token by --token-file or KFP_TOKEN, "
        "or use --port-forward",
        401,
    )


def _refusal(error: ApiException, address: str, *, has_token: bool) -> KfpError:
    status, message = int(error.status or 0), _message(error.body)
    if status == 0:
        return _no_answer(error.reason, address, "")
    if status == 401 and has_token:
        return KfpError(f"{address} refuses the token (401): it has expired or belongs to another cluster; get a new one", status)
    if status == 401:
        return KfpError(f"{address} needs a token (401): give one by --token-file or KFP_TOKEN", status)
    if status == 403:
        remedy = "if it serves several users, give your namespace by --namespace, and check that your account has rights there"
        return KfpError(f"{address} does not allow it (403): {message}; {remedy}", status)
    if status >= 500:
        return KfpError(f"KFP failed at {address} ({status}): {message}; see the log of deploy/ml-pipeline in KFP's namespace", status)
    return KfpError(f"KFP refuses ({status}): {message}", status)


def _no_answer(error: Any, address: str, method: str) -> KfpError:
    cause = getattr(error, "reason", None) or error
    text = " ".join(str(cause).split())
    if isinstance(cause, urllib3.exceptions.ProxyError):
        reason = _strip_object(" ".join(str(cause.original_error).split()))
        problem = f"the environment's proxy (https_proxy, http_proxy) fails: {reason}; name addresses that need no proxy in no_proxy"
    elif "CERTIFICATE_VERIFY_FAILED" in text:
        problem = "its certificate is not trusted here; give the authority's by --ca-file"
    elif "WRONG_VERSION_NUMBER" in text or "record layer" in text.lower():
        problem = "it does not use TLS; is it http:// instead of https://?"
    elif isinstance(cause, urllib3.exceptions.SSLError) or "SSL" in text:
        problem = f"TLS fails: {_strip_object(text)}"
    elif isinstance(cause, urllib3.exceptions.NameResolutionError):
        problem = "the name is not known here; names that end in .svc or .cluster.local are known only in the cluster (--port-forward)"
    elif "refused" in text:
        problem = "nothing listens there; is the address right, and the port-forward still up?"
    elif isinstance(cause, urllib3.exceptions.TimeoutError):
        problem = "it does not answer in time; is the address right, and can it be reached from here?"
    elif isinstance(cause, urllib3.exceptions.ProtocolError):
        problem = f"the connection was lost: {_strip_object(str(cause.args[-1]))}"
    else:
        problem = _strip_object(text)
    # The server may have received a request before the connection was lost.
    was_sent = isinstance(cause, (urllib3.exceptions.ProtocolError, urllib3.exceptions.ReadTimeoutError))
    doubt = "; the request may have been carried out: check before you repeat it" if method == "POST" and was_sent else ""
    return KfpError(f"no answer from {address}: {problem}{doubt}")


def _message(body: Any) -> str:
    """Return the message in the body of an error, which has one of three forms."""
    text = body.decode(errors="replace") if isinstance(body, bytes) else str(body or "")
    try:
        found = json.loads(text)
        text = found.get("error_message") or found.get("message") or found.get("error") or text
    except (ValueError, AttributeError):
        text = re.sub(r"<[^>]*>", " ", text)
    return " ".join(str(text).split())[:400] or "no reason given"


def _strip_object(text: str) -> str:
    """Strip the object that failed, with which urllib3's messages begin."""
    return re.sub(r"^<?[\w.]+\(?.*?object at 0x[0-9a-f]+>?:\s*|^HTTPS?ConnectionPool\([^)]*\):\s*", "", text)[:300]
