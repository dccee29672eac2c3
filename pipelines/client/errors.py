"""What can go wrong between this machine and KFP's API, in one line each."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import urllib3
from kfp_server_api import ApiException

UNANSWERED = 0
"""Status of a request that got no answer."""


class KfpError(RuntimeError):
    """KFP refused, or could not be reached.

    Attributes:
        status: HTTP's, or `UNANSWERED`.
    """

    def __init__(self, message: str, status: int = UNANSWERED) -> None:
        super().__init__(message)
        self.status = status

    @property
    def may_pass(self) -> bool:
        """Whether the same request may succeed a little later."""
        return self.status in (UNANSWERED, 401, 408, 429) or 500 <= self.status < 600


def guarded(call_api: Callable[..., Any], address: str, *, has_token: bool) -> Callable[..., Any]:
    """The client's one function through which every request goes, with a time limit and errors in one line."""

    def call(path: str, method: str, *words: Any, **more: Any) -> Any:
        # KFP's client waits for ever by default.
        more["_request_timeout"] = more.get("_request_timeout") or (10.0, 60.0)
        try:
            return call_api(path, method, *words, **more)
        except ApiException as error:
            raise _refused(error, address, has_token=has_token) from error
        except UnicodeDecodeError as error:
            raise page_error(address) from error
        except AttributeError as error:  # KFP's client stumbles over a failed request that has no body
            if isinstance(error.__context__, ApiException):
                raise _unanswered(error.__context__.reason, address, method) from error
            raise
        except urllib3.exceptions.HTTPError as error:
            raise _unanswered(error, address, method) from error

    return call


def objects_only(deserialize: Callable[..., Any], address: str) -> Callable[..., Any]:
    """The client's one function that reads answers, which makes an empty answer of a page."""

    def read(response: Any, response_type: Any) -> Any:
        if not str(response.data).lstrip().startswith("{"):
            raise page_error(address)
        return deserialize(response, response_type)

    return read


def page_error(address: str) -> KfpError:
    """Of an address that answers with something else than KFP's API does. A log-in page is a refusal in other words."""
    return KfpError(
        f"{address} answers with a page, not as KFP's API does; is it a log-in page? Give a token by --token-file or KFP_TOKEN, "
        "or use --port-forward",
        401,
    )


def _refused(error: ApiException, address: str, *, has_token: bool) -> KfpError:
    status, said = int(error.status or 0), message_of(error.body)
    if status == 0:
        return _unanswered(error.reason, address, "")
    if status == 401:
        remedy = "it has expired, or is of another cluster; get a new one" if has_token else "give one by --token-file or KFP_TOKEN"
        return KfpError(f"{address} wants {'another' if has_token else 'a'} token (401): {remedy}", status)
    if status == 403:
        return KfpError(
            f"{address} does not allow it (403): {said}; with several users, say yours by --namespace, and whether your account may there",
            status,
        )
    if status >= 500:
        return KfpError(
            f"KFP failed at {address} ({status}): {said}; its log says more ('kubectl -n kubeflow logs deploy/ml-pipeline')", status
        )
    return KfpError(f"KFP refuses ({status}): {said}", status)


def _unanswered(error: Any, address: str, method: str) -> KfpError:
    cause = getattr(error, "reason", None) or error
    text = " ".join(str(cause).split())
    if isinstance(cause, urllib3.exceptions.ProxyError):
        why = " ".join(str(cause.original_error).split())
        told = f"the environment's proxy (https_proxy, http_proxy) does not let it through: {_core(why)}; no_proxy names what needs none"
    elif "CERTIFICATE_VERIFY_FAILED" in text:
        told = "its certificate is not trusted here; give the authority's by --ca-file"
    elif "WRONG_VERSION_NUMBER" in text or "record layer" in text.lower():
        told = "it does not speak TLS there; is it http:// instead of https://?"
    elif isinstance(cause, urllib3.exceptions.SSLError) or "SSL" in text:
        told = f"TLS fails: {_core(text)}"
    elif isinstance(cause, urllib3.exceptions.NameResolutionError):
        told = "the name is not known here; a name that ends in .svc or .cluster.local is known only inside the cluster (--port-forward)"
    elif "refused" in text:
        told = "nothing listens there; is the address right, and the port-forward still up?"
    elif isinstance(cause, urllib3.exceptions.TimeoutError):
        told = "it does not answer in time; is the address right, and is there a way to it from here?"
    elif isinstance(cause, urllib3.exceptions.ProtocolError):
        told = f"the connection broke off: {_core(str(cause.args[-1]))}"
    else:
        told = _core(text)
    # A request that changed something may have been heard before the connection broke.
    heard = isinstance(cause, (urllib3.exceptions.ProtocolError, urllib3.exceptions.ReadTimeoutError))
    doubt = "; it may have acted all the same: look before you repeat it" if method == "POST" and heard else ""
    return KfpError(f"no answer from {address}: {told}{doubt}")


def message_of(body: Any) -> str:
    """The sentence in an error's body, whichever of KFP's three forms it has."""
    text = body.decode(errors="replace") if isinstance(body, bytes) else str(body or "")
    try:
        found = json.loads(text)
        text = found.get("error_message") or found.get("message") or found.get("error") or text
    except (ValueError, AttributeError):
        text = re.sub(r"<[^>]*>", " ", text)
    return " ".join(str(text).split())[:400] or "no reason given"


def _core(text: str) -> str:
    """urllib3's messages begin with the object that failed."""
    return re.sub(r"^<?[\w.]+\(?.*?object at 0x[0-9a-f]+>?:\s*|^HTTPS?ConnectionPool\([^)]*\):\s*", "", text)[:300]
