"""The S3 backend of `training.storage`, which says what each function does: the one module that knows boto3.

The environment alone selects server and credentials: `AWS_ENDPOINT_URL` and `AWS_REGION`; `AWS_ACCESS_KEY_ID`,
`AWS_SECRET_ACCESS_KEY` and `AWS_SESSION_TOKEN`, or where these are absent the other sources of boto3 (a pod's role by IRSA or Pod
Identity, an instance's role, a profile). The client is shared by the threads of a process and is never pickled: a pickled client
contains its secret.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import boto3
from boto3.exceptions import Boto3Error, RetriesExceededError
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
)
from tenacity import Retrying, retry_if_exception, retry_if_exception_type, stop_after_attempt, wait_random

from training.config.addresses import contains_password
from training.config.errors import in_one_line
from training.storage.errors import ObjectNotFoundError, StorageError, explain_disk_errors
from training.storage.listing import Stored

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import HeadObjectOutputTypeDef, ObjectTypeDef

logging.getLogger("botocore").setLevel(logging.WARNING)  # in every log of a step it would say where it found keys and addresses

_ATTEMPTS = 4
_WRITERS = 20
"""Attempts of an update: each time another writer may be faster."""
_DELETE_BATCH = 1000  # S3's limit for one request
_SMALL_BYTES = 8 * 2**20
"""boto3 fetches a larger object in parts, for which it asks for the size again; one request is enough for a smaller one."""
_NO_ANSWER = (HTTPClientError, ConnectionError, IncompleteReadError)
_REFUSED = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "InvalidToken", "ExpiredToken"}
_ROLE_PROVIDERS = {"container-role", "iam-role"}
"""Sources of credentials that a server hands out: a pod's (EKS Pod Identity, ECS) and an instance's. It may be away for a moment."""
_OTHER_REGION = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
_OTHER_REMEDIES = {
    "RequestTimeTooSkewed": "set the clock of this machine or of the server",
    "QuotaExceeded": "raise the quota of the bucket, or delete something in it",
    "InvalidObjectState": "restore the object from the archive first",
}
"""Remedies for refusals that are not the credentials' fault."""
_BUSY = {"SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "ThrottlingException"}
_LOST_RACES = {"ConditionalRequestConflict", "OperationAborted", "ConcurrentModification"}
"""Answers to one of several writers. SeaweedFS answers 409 too where a directory has the object's name, which does not pass."""


def read_bytes(uri: str) -> bytes:
    return _get(uri)


def open_seekable(uri: str) -> BinaryIO:
    return cast(BinaryIO, _ObjectFile(uri, size(uri)))


def write_bytes(uri: str, data: bytes, *, if_absent: bool) -> bool:
    bucket, key = split(uri)
    with _explain_errors(uri):
        if not if_absent:
            client().put_object(Bucket=bucket, Key=key, Body=data)
            return True
        # 409: another writer is writing the same key now, and may still fail.
        attempts = _attempts(_ATTEMPTS, lambda error: _status(error) == 409)
        try:
            attempts(client().put_object, Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
        except ClientError as error:
            if _status(error) == 412:
                return False
            raise
        return True


def update_bytes(uri: str, change: Callable[[bytes | None], bytes]) -> None:
    bucket, key = split(uri)

    def update_once() -> None:
        try:
            tag = _head(uri)["ETag"]
            stored = _get(uri)  # if another writer came between, the tag is refused below
        except ObjectNotFoundError:
            client().put_object(Bucket=bucket, Key=key, Body=change(None), IfNoneMatch="*")
        else:
            client().put_object(Bucket=bucket, Key=key, Body=change(stored), IfMatch=tag)

    # Another writer came between (412), is writing now (409), or deleted it.
    attempts = _attempts(_WRITERS, lambda error: _status(error) in (409, 412) or error.response.get("Error", {}).get("Code") == "NoSuchKey")
    with _explain_errors(uri):
        attempts(update_once)


def _attempts(count: int, again: Callable[[ClientError], bool]) -> Retrying:
    return Retrying(
        retry=retry_if_exception(lambda error: isinstance(error, ClientError) and again(error)),
        stop=stop_after_attempt(count),
        wait=wait_random(0.1, 0.3),
        reraise=True,
    )


def size(uri: str) -> int:
    return _head(uri)["ContentLength"]


def version(uri: str) -> str:
    head = _head(uri)
    return _version(head["ContentLength"], head["ETag"], head["LastModified"])


def list_objects(prefix_uri: str) -> list[Stored]:
    bucket, key = split(prefix_uri, root_allowed=True)
    with _explain_errors(prefix_uri):
        return [
            Stored(
                _uri_of(entry["Key"], key, prefix_uri),
                entry["Size"],
                _version(entry["Size"], entry["ETag"], entry["LastModified"]),
                entry["LastModified"].timestamp(),
            )
            for entry in _entries(bucket, key)
            if not entry["Key"].endswith("/")
        ]


def list_dirs(prefix_uri: str) -> list[str]:
    bucket, key = split(prefix_uri, root_allowed=True)

    def contains_something(prefix: str) -> bool:
        found = s3.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=2).get("Contents", ())
        return any(entry["Key"] != prefix for entry in found)

    with _explain_errors(prefix_uri):
        s3 = client()
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=_as_directory(key), Delimiter="/")
        prefixes = [entry["Prefix"] for page in pages for entry in page.get("CommonPrefixes", ())]
        # SeaweedFS continues to list a directory for a while after its last object is deleted.
        with ThreadPoolExecutor(max_workers=16) as pool:
            filled = list(pool.map(contains_something, prefixes))
        return [_uri_of(prefix.rstrip("/"), key, prefix_uri) for prefix, is_filled in zip(prefixes, filled, strict=True) if is_filled]


def delete(uri: str) -> None:
    bucket, key = split(uri)
    with _explain_errors(uri):
        client().delete_object(Bucket=bucket, Key=key)


def delete_prefix(uri: str) -> int:
    bucket, key = split(uri)
    with _explain_errors(uri):
        names = [entry["Key"] for entry in _entries(bucket, key)]
        for start in range(0, len(names), _DELETE_BATCH):
            batch = names[start : start + _DELETE_BATCH]
            answer = client().delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": name} for name in batch], "Quiet": True})
            for failure in answer.get("Errors", ()):
                raise StorageError(
                    f"s3://{bucket}/{failure.get('Key')}: was not deleted ({failure.get('Code')}: {failure.get('Message')}); "
                    f"check that these credentials may delete in bucket {bucket!r}"
                )
    return len(names)


def _entries(bucket: str, key: str) -> Iterator[ObjectTypeDef]:
    """Yield everything below a directory, with the empty objects by which consoles mark folders: their keys end in a slash."""
    for page in client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=_as_directory(key)):
        yield from page.get("Contents", ())


def copy_to(uri: str, path: Path, num_bytes: int) -> None:
    bucket, key = split(uri)
    with explain_disk_errors(str(path)), _explain_errors(uri):
        if num_bytes <= _SMALL_BYTES:
            path.write_bytes(_get(uri))
        else:
            client().download_file(bucket, key, str(path))


def upload(path: Path, uri: str) -> None:
    bucket, key = split(uri)
    with explain_disk_errors(str(path)), _explain_errors(uri):
        client().upload_file(str(path), bucket, key)


def split(uri: str, *, root_allowed: bool = False) -> tuple[str, str]:
    """Return bucket and key of an s3:// URI."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    key = key.strip("/")
    if ":" in bucket or "@" in bucket:
        raise StorageError(f"{uri}: contains a user or a password; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead")
    if not bucket or (not key and not root_allowed):
        raise StorageError(f"{uri}: names a whole bucket or none; write an address like s3://bucket/path")
    return bucket, key


def client() -> S3Client:
    """Return this process's client for the S3 server that the environment variables name at this moment."""
    settings = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))
    return _connect_once(os.getpid(), settings)  # a forked process must not share its parent's sockets


@functools.lru_cache(maxsize=4)
def _connect_once(process_id: int, settings: tuple[tuple[str, str], ...]) -> S3Client:
    environment = dict(settings)
    # A key that ends in a line break would look like a server that does not answer.
    if padded := [name for name, value in settings if value != value.strip()]:
        raise StorageError(
            f"{', '.join(padded)}: there is white space around the value, such as the line break at the end of a file; set it again without"
        )
    endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL") or None
    if endpoint and contains_password(endpoint):  # messages show it
        raise StorageError("AWS_ENDPOINT_URL must not contain a password; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead")
    if endpoint and not endpoint.startswith(("http://", "https://")):
        raise StorageError(f"AWS_ENDPOINT_URL is {endpoint!r}; write it with its scheme, like http://127.0.0.1:8333")
    try:
        return connect(endpoint, region=environment.get("AWS_REGION"))
    except BotoCoreError:  # some are ValueErrors too; the caller explains them
        raise
    except ValueError as error:
        raise StorageError(
            f"AWS_ENDPOINT_URL: {in_one_line(error)}; write it like http://127.0.0.1:8333, with a host's name of letters, digits, "
            "hyphens and dots"
        ) from error


def connect(
    endpoint: str | None,
    key_id: str | None = None,
    secret: str | None = None,
    *,
    region: str | None = None,
    attempts: int = _ATTEMPTS,
) -> S3Client:
    """Make a new client.

    Args:
        key_id: Access key; None leaves the search for credentials to boto3.
        region: None takes boto3's (`AWS_DEFAULT_REGION`, the profile's), or us-east-1; servers other than AWS accept any.
        attempts: Requests in all before a failure counts, with growing pauses.
    """
    config = Config(
        retries={"mode": "standard", "total_max_attempts": attempts},
        connect_timeout=5,
        read_timeout=60,
        max_pool_connections=32,
        user_agent_extra="iddpm",
    )
    session = boto3.session.Session(aws_access_key_id=key_id, aws_secret_access_key=secret)
    made = session.client("s3", endpoint_url=endpoint, region_name=region or session.region_name or "us-east-1", config=config)
    made.meta.events.register("response-received.s3", functools.partial(_require_s3, made.meta.endpoint_url))
    return made


class _NotS3Error(BotoCoreError):
    """An answer that is no answer of S3."""

    fmt = "what answers at {endpoint} is not S3, but perhaps a proxy with a page to log in (it sent {kind})"


def _require_s3(endpoint: str, response_dict: Mapping[str, Any] | None, **rest: Any) -> None:
    """Refuse an answer that is not S3's: an HTML page, or a listing without a listing in it.

    boto3 would take it for an object's content, an empty directory, or a failure that may pass. An object may be a page too, but AWS,
    MinIO, SeaweedFS and Ceph send `x-amz-request-id` with each answer, Google `x-guploader-uploadid`, and others at least a strong entity
    tag.
    """
    if response_dict is None or response_dict["status_code"] >= 300:
        return
    headers = response_dict["headers"]
    if "x-amz-request-id" in headers or "x-guploader-uploadid" in headers:
        return
    kind = headers.get("content-type", "")
    is_page = kind.startswith("text/html") and headers.get("content-length") != "0" and headers.get("etag", "W/").startswith("W/")
    if is_page or (response_dict["context"]["operation_name"] == "ListObjectsV2" and b"ListBucketResult" not in response_dict["body"]):
        raise _NotS3Error(endpoint=endpoint, kind=kind or "no Content-Type")


class _BrokenOffError(Exception):
    """The body of an answer broke off; the cause says how."""


class _ObjectFile(io.RawIOBase):
    """An object as a file for reading; its position is local, so that only reads are requests."""

    def __init__(self, uri: str, num_bytes: int) -> None:
        self._uri = uri
        self._size = num_bytes
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        end = self._size if size < 0 else min(self._position + size, self._size)
        if end <= self._position:
            return b""
        data = _get(self._uri, f"bytes={self._position}-{end - 1}")
        self._position += len(data)
        return data


def _get(uri: str, byte_range: str = "") -> bytes:
    bucket, key = split(uri)

    def request() -> bytes:
        s3 = client()
        answer = s3.get_object(Bucket=bucket, Key=key, Range=byte_range) if byte_range else s3.get_object(Bucket=bucket, Key=key)
        try:
            return answer["Body"].read()
        except _NO_ANSWER as error:
            raise _BrokenOffError from error

    # boto3 repeats a request that gets no answer, but not the reading of a body that breaks off.
    attempts = Retrying(retry=retry_if_exception_type(_BrokenOffError), stop=stop_after_attempt(_ATTEMPTS), reraise=True)
    with _explain_errors(uri):
        try:
            return attempts(request)
        except _BrokenOffError as error:
            raise error.__cause__ or error from None


def _head(uri: str) -> HeadObjectOutputTypeDef:
    bucket, key = split(uri)
    with _explain_errors(uri):
        try:
            return client().head_object(Bucket=bucket, Key=key)
        except ClientError as error:
            if _status(error) == 404:  # the answer to a HEAD does not distinguish a missing bucket from a missing object
                _require_bucket(bucket, client().meta.endpoint_url)
            raise


def _version(num_bytes: int, entity_tag: str, modified: datetime) -> str:
    return f"{num_bytes}-{entity_tag.strip(chr(34))}-{modified.timestamp():.0f}"


@contextlib.contextmanager
def _explain_errors(uri: str) -> Iterator[None]:
    """Turn boto3's errors into a `StorageError` about `uri`, without a secret in it."""
    try:
        yield
    except ClientError as error:
        raise _explain_answer(uri, error) from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise StorageError(
            f"{uri}: there are no S3 credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_ENDPOINT_URL where it "
            "isn't AWS), give the pod a role, or start the local server by 'iddpm up'"
        ) from error
    except (*_NO_ANSWER, RetriesExceededError) as error:  # the latter where the parts of a large object broke off
        reason = type(getattr(error, "last_exception", error)).__name__
        raise StorageError(
            f"{uri}: no answer from S3 at {client().meta.endpoint_url} ({reason}); check that it runs and that "
            "AWS_ENDPOINT_URL is right; 'iddpm up' starts the local one",
            transient=True,
        ) from error
    except CredentialRetrievalError as error:
        raise StorageError(
            f"{uri}: {in_one_line(error)}; check the role of this pod or machine",
            transient=error.kwargs.get("provider") in _ROLE_PROVIDERS,
        ) from error
    except (BotoCoreError, Boto3Error) as error:
        cause = error.__cause__ or error.__context__
        if isinstance(cause, ClientError):  # s3transfer wraps the answer to a part
            raise _explain_answer(uri, cause) from error
        raise StorageError(f"{uri}: {in_one_line(error)}; check the address and the AWS_* variables") from error


def _explain_answer(uri: str, error: ClientError) -> StorageError:
    code = error.response.get("Error", {}).get("Code", "")
    endpoint = client().meta.endpoint_url
    bucket, _ = split(uri, root_allowed=True)
    if code == "NoSuchBucket":
        return _missing_bucket(bucket, endpoint)
    if code in ("NoSuchKey", "404"):
        return ObjectNotFoundError(f"{uri}: there is no such object at {endpoint}", uri=uri)
    status = _status(error)
    message = in_one_line(error.response.get("Error", {}).get("Message", ""))
    answer = " ".join(dict.fromkeys(word for word in (str(status), code, message) if word))
    if code in _OTHER_REGION or status == 301:
        headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        region = headers.get("x-amz-bucket-region") or error.response.get("Error", {}).get("Region", "")
        return StorageError(
            f"{uri}: S3 at {endpoint} answered {answer}; set AWS_REGION to the bucket's region{f' ({region})' if region else ''}, and "
            "AWS_ENDPOINT_URL, if it is set, to the server of that region"
        )
    if code in _OTHER_REMEDIES:
        return StorageError(f"{uri}: S3 at {endpoint} refused ({code}); {_OTHER_REMEDIES[code]}")
    if code in _REFUSED or status in (401, 403):
        return StorageError(
            f"{uri}: S3 at {endpoint} refused the credentials ({code}); check AWS_ACCESS_KEY_ID and "
            f"AWS_SECRET_ACCESS_KEY or the pod's role, and that they may use bucket {bucket!r}"
        )
    if status == 501:
        return StorageError(f"{uri}: S3 at {endpoint} does not implement what was asked ({code}); update the server, or use another one")
    if code in _LOST_RACES or status == 412:
        return StorageError(f"{uri}: other programs write it at the same moment (S3 answered {answer}); try again", transient=True)
    transient = code in _BUSY or status >= 500 or status == 429
    if transient:
        remedy = "try again, and check the server's log and free disk space"
    elif code.isdecimal():  # without a body, so without the reason: a HEAD is answered so
        remedy = "check the address, AWS_REGION, and that the credentials have not expired"
    else:
        remedy = "check the address and AWS_ENDPOINT_URL"
    return StorageError(f"{uri}: S3 at {endpoint} answered {answer}; {remedy}", transient=transient)


def _missing_bucket(bucket: str, endpoint: str) -> StorageError:
    return StorageError(f"s3://{bucket}: there is no such bucket at {endpoint}; create it, or check the address and AWS_ENDPOINT_URL")


@functools.lru_cache(maxsize=64)
def _require_bucket(bucket: str, endpoint: str) -> None:
    try:
        client().head_bucket(Bucket=bucket)
    except ClientError as error:
        if _status(error) == 404:
            raise _missing_bucket(bucket, endpoint) from error
        raise


def _status(error: ClientError) -> int:
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


def _uri_of(key: str, directory: str, directory_uri: str) -> str:
    """Return an object's address, which equals the result of `storage.join` on the address of the directory, however that is written."""
    return f"{directory_uri.rstrip('/')}/{key.removeprefix(_as_directory(directory))}"


def _as_directory(key: str) -> str:
    return f"{key}/" if key else ""
