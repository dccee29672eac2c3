"""Connect to MLflow, and repeat requests that fail for a reason that may pass. MLflow is imported at the first use, as it is slow.

A request raises `TrackingError` if MLflow can't be reached or refuses it.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from training.config.addresses import contains_password
from training.config.errors import UserError, in_one_line
from training.console import format_duration, say
from training.storage.errors import StorageError
from training.storage.retry import OUTAGE_SECONDS, retry

if TYPE_CHECKING:
    from mlflow import MlflowClient

_REFUSALS = {
    "INVALID_PARAMETER_VALUE",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "BAD_REQUEST",
    "INVALID_STATE",
    "NOT_FOUND",
    "ENDPOINT_NOT_FOUND",
}
RETRY_SECONDS = 30.0
"""Seconds for which a request that needs an answer is repeated."""
_ERROR_STATUS = re.compile(r"too many (\d{3}) error responses")
_NO_MLFLOW = re.compile(r"not in a valid JSON format|Exceeded \d+ redirects|error code 404 != 200\. Response body: ''")
_SLOW_SECONDS = 5.0
"""A request without an answer for this long prints what it waits for."""

_Result = TypeVar("_Result")


_OWN = "IDDPM_"
"""The prefix of MLflow's variables in a pipeline's step, see `_export_step_settings`."""

PUBLIC_VARIABLE = "IDDPM_MLFLOW_PUBLIC_URL"
"""The address of MLflow that people use, if it differs from the one that programs use."""


class TrackingError(UserError):
    """MLflow can't be reached or refuses a request; a step whose work is done catches it and goes on."""


def tracking_uri() -> str:
    """Return MLflow's address, without a slash at the end.

    Raises:
        TrackingError: There is none, or it has a password in it.
    """
    uri = (os.environ.get(f"{_OWN}MLFLOW_TRACKING_URI") or os.environ.get("MLFLOW_TRACKING_URI", "")).rstrip("/")
    if contains_password(uri):  # links and messages show it
        raise TrackingError("MLFLOW_TRACKING_URI must not contain a password; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")
    if not uri:
        raise TrackingError("no MLflow server is known: 'iddpm up' starts one on this machine; for another, set MLFLOW_TRACKING_URI")
    return uri


def public_uri() -> str:
    """Return the address of MLflow that people use, for links: `IDDPM_MLFLOW_PUBLIC_URL`, else the one that programs use.

    Raises:
        TrackingError: As `tracking_uri`.
    """
    uri = os.environ.get(PUBLIC_VARIABLE, "").rstrip("/")
    if contains_password(uri):
        raise TrackingError(f"{PUBLIC_VARIABLE} must not contain a password, as links show it; remove it, and browsers ask for it")
    return uri or tracking_uri()


def _export_step_settings() -> None:
    """Set MLflow's variables from those that a pipeline's step has under other names.

    KFP's MLflow plugin injects MLFLOW_TRACKING_URI and its like by value. Kubernetes refuses a pod that has the same name from a
    ConfigMap or a Secret as well, so a step has `IDDPM_MLFLOW_TRACKING_URI` (`pipelines.pods`). It takes precedence: the plugin may
    record elsewhere. MLflow's client reads user and password from its own variables at each request.
    """
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        if value := os.environ.get(f"{_OWN}{name}"):
            os.environ[name] = value


def connect() -> MlflowClient:
    """Return a client of the MLflow that the environment names, or raise TrackingError."""
    _export_step_settings()
    uri = tracking_uri()
    public_uri()  # a bad one is refused now, not after a run was opened, when its link is shown
    # MLflow's own retries (seven in four minutes) would hide an outage; ours are in `request` and in the background sender.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        return MlflowClient(tracking_uri=uri)
    except MlflowException as error:
        raise TrackingError(f"MLFLOW_TRACKING_URI is {uri}, which is no MLflow's address; 'iddpm up' shows the local one's") from error


def is_transient(error: BaseException) -> bool:
    """Return True for a failure that may pass: no answer or a server's own error, not a refusal, and no error of this machine."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        # An empty 404 is never MLflow's: a gateway answers so while MLflow starts behind it.
        return error.error_code not in _REFUSALS or bool(_NO_MLFLOW.search(str(error)))
    if isinstance(error, StorageError):
        return error.transient
    status = getattr(getattr(error, "response", None), "status_code", None)
    return isinstance(error, OSError) and not is_local(error) and (status is None or status >= 500 or status == 429)


def is_local(error: BaseException) -> bool:
    """Return True for a failure of storage or of this machine, such as a full disk, which no answer of MLflow ends."""
    from requests import RequestException  # type: ignore[import-untyped]

    return isinstance(error, OSError) and not isinstance(error, RequestException | ConnectionError | TimeoutError)


def shortened(error: BaseException) -> str:
    """Return an error's text as one line of about 300 characters: its beginning, and its end, where a library puts the cause."""
    text = in_one_line(error)
    return text if len(text) <= 300 else f"{text[:120]} ... {text[-180:]}"


def wait_for_mlflow() -> None:
    """Wait for up to ten minutes until MLflow answers. Only in a cluster: on a laptop a person starts the command again."""
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        message = f"MLflow at {tracking_uri()} does not answer; this step needs it and waits for it for up to ten minutes"
        request(lambda: connect().search_experiments(max_results=1), seconds=OUTAGE_SECONDS, report=lambda error: say(message))


def answers() -> bool:
    """Return True if MLflow answers a request, be it with a refusal; it is asked once."""
    try:
        connect().search_experiments(max_results=1)
    except Exception as error:  # as in `request`, the client and what it stands on raise errors of many types
        return not is_transient(error) and not is_local(error)
    return True


def request(
    action: Callable[[], _Result], *, seconds: float | None = None, report: Callable[[BaseException], None] = lambda error: None
) -> _Result:
    """Do a request now and return its answer; repeat it while the server is away, and say so after some seconds.

    Args:
        seconds: Seconds for which it is repeated; None is `RETRY_SECONDS`.
        report: Gets the first failure.

    Raises:
        TrackingError: The server refuses or does not answer, or this machine fails.
        StorageError: Storage fails.
    """
    import mlflow.exceptions  # noqa: F401 - before the clock starts, as its seconds are not the server's

    budget = RETRY_SECONDS if seconds is None else seconds

    def tell() -> None:
        say(f"MLflow at {tracking_uri()} has not answered for {_SLOW_SECONDS:g} s; waiting, and trying again for {format_duration(budget)}")

    slow = threading.Timer(_SLOW_SECONDS, tell)
    slow.daemon = True
    slow.start()
    try:
        return retry(action, seconds=budget, pause_seconds=1.0, is_transient=is_transient, report=report)
    except (UserError, StorageError):
        raise
    except Exception as error:
        if is_local(error):
            raise TrackingError(f"a request to MLflow at {tracking_uri()} failed on this machine: {shortened(error)}") from error
        if not is_transient(error):
            is_unknown = getattr(error, "error_code", "") == "UNAUTHENTICATED"
            remedy = (
                "; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, on a cluster in Secret iddpm-mlflow, without a line break at "
                "the end of a value"
            )
            raise TrackingError(f"MLflow at {tracking_uri()} refused: {shortened(error)}{remedy if is_unknown else ''}") from error
        text = shortened(error)
        if found := _ERROR_STATUS.search(str(error)):
            raise TrackingError(
                f"MLflow at {tracking_uri()} answers with error {found[1]}; its log has the reason (the local one's is mlflow.log in the "
                f"folder that `iddpm status` names) ({text})"
            ) from error
        if _NO_MLFLOW.search(str(error)):
            raise TrackingError(
                f"what answers at {tracking_uri()} is no MLflow, perhaps a proxy or its login page; is MLFLOW_TRACKING_URI right? ({text})"
            ) from error
        raise TrackingError(
            f"MLflow at {tracking_uri()} does not answer; is it running, and is MLFLOW_TRACKING_URI right? "
            f"'iddpm up' starts the local one ({text})"
        ) from error
    finally:
        slow.cancel()


def none_if_missing(action: Callable[[], _Result]) -> _Result | None:
    """Return what an action returns; None where MLflow does not have what it asks for."""
    from mlflow.exceptions import MlflowException

    try:
        return action()
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
