"""The S3 half of `training.storage`: the one module that knows boto3.

The client comes from the environment alone (`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`,
`AWS_REGION`), is shared by the threads of a process and is never pickled: a pickled client carries its secret.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
)
from tenacity import Retrying, retry_if_exception, retry_if_exception_type, stop_after_attempt, wait_fixed

from training.config.addresses import holds_password
from training.storage.errors import ObjectNotFoundError, StorageError, explained_disk

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import HeadObjectOutputTypeDef

_ATTEMPTS = 4
_NO_ANSWER = (HTTPClientError, ConnectionError, IncompleteReadError)
_DELETE_BATCH = 1000  # S3's limit for one request
_REFUSED = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "InvalidToken", "ExpiredToken", "401", "403"}
_BUSY = {"SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "ThrottlingException", "OperationAborted"}


def read(uri: str) -> bytes:
    """The object's bytes."""
    bucket, key = split(uri)
    with _explained(uri):
        # boto3 repeats a request, but not the reading of a body that breaks off.
        attempts = Retrying(retry=retry_if_exception_type(_NO_ANSWER), stop=stop_after_attempt(_ATTEMPTS), reraise=True)
        return attempts(lambda: client().get_object(Bucket=bucket, Key=key)["Body"].read())


def write(uri: str, data: bytes, *, if_absent: bool) -> bool:
    """Puts the object in one request; False where `if_absent` found another."""
    bucket, key = split(uri)
    with _explained(uri):
        if not if_absent:
            client().put_object(Bucket=bucket, Key=key, Body=data)
            return True
        # 409: another writer is at work on the same key, and may still fail.
        attempts = Retrying(
            retry=retry_if_exception(lambda error: isinstance(error, ClientError) and _status(error) == 409),
            stop=stop_after_attempt(_ATTEMPTS),
            wait=wait_fixed(0.2),
            reraise=True,
        )
        try:
            attempts(client().put_object, Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
        except ClientError as error:
            if _status(error) == 412:
                return False
            raise
        return True


def size(uri: str) -> int:
    """The object's bytes, counted."""
    return _head(uri)["ContentLength"]


def version(uri: str) -> str:
    """Size, entity tag and time: one of them changes when the object is overwritten."""
    head = _head(uri)
    return _version(head["ContentLength"], head["ETag"], head["LastModified"])


def _version(num_bytes: int, entity_tag: str, modified: datetime) -> str:
    return f"{num_bytes}-{entity_tag.strip(chr(34))}-{modified.timestamp():.0f}"


def _head(uri: str) -> HeadObjectOutputTypeDef:
    bucket, key = split(uri)
    with _explained(uri):
        try:
            return client().head_object(Bucket=bucket, Key=key)
        except ClientError as error:
            if _status(error) == 404:  # a HEAD has no body that could tell a missing bucket from a missing object
                _require_bucket(bucket, client().meta.endpoint_url)
            raise


def objects(prefix_uri: str) -> list[tuple[str, int, str]]:
    """URI, bytes and version of all objects below the directory, in any order and number."""
    bucket, key = split(prefix_uri, root_allowed=True)
    with _explained(prefix_uri):
        pages = client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=_as_directory(key))
        return [
            (f"s3://{bucket}/{entry['Key']}", entry["Size"], _version(entry["Size"], entry["ETag"], entry["LastModified"]))
            for page in pages
            for entry in page.get("Contents", ())
        ]


def keys(prefix_uri: str) -> list[str]:
    """URIs of all objects below the directory, in any order and number."""
    return [uri for uri, _, _ in objects(prefix_uri)]


def directories(prefix_uri: str) -> list[str]:
    """URIs of the directories directly below the directory that hold something, without a slash at the end."""
    bucket, key = split(prefix_uri, root_allowed=True)
    s3 = client()

    def holds_something(prefix: str) -> bool:
        return bool(s3.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1).get("Contents"))

    with _explained(prefix_uri):
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=_as_directory(key), Delimiter="/")
        prefixes = [entry["Prefix"] for page in pages for entry in page.get("CommonPrefixes", ())]
        # SeaweedFS goes on listing a directory for a while after its last object is gone.
        with ThreadPoolExecutor(max_workers=16) as pool:
            kept = [prefix for prefix, holds in zip(prefixes, pool.map(holds_something, prefixes), strict=True) if holds]
        return [f"s3://{bucket}/{prefix.rstrip('/')}" for prefix in kept]


def delete(uri: str) -> None:
    """Removes the object, if there is one."""
    bucket, key = split(uri)
    with _explained(uri):
        client().delete_object(Bucket=bucket, Key=key)


def delete_below(uri: str) -> int:
    """Removes every object below the directory; returns how many there were."""
    bucket, _ = split(uri)
    names = [name.removeprefix(f"s3://{bucket}/") for name in keys(uri)]
    with _explained(uri):
        for start in range(0, len(names), _DELETE_BATCH):
            batch = names[start : start + _DELETE_BATCH]
            answer = client().delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": name} for name in batch], "Quiet": True})
            for failure in answer.get("Errors", ()):
                raise StorageError(f"s3://{bucket}/{failure.get('Key')}: was not deleted ({failure.get('Code')}: {failure.get('Message')})")
    return len(names)


def download(uri: str, path: Path) -> None:
    """Writes the object to `path`, in parallel ranges where it is large."""
    bucket, key = split(uri)
    with explained_disk(str(path)), _explained(uri):
        client().download_file(bucket, key, str(path))


def upload(path: Path, uri: str) -> None:
    """Puts the file as one object, in parallel parts where it is large."""
    bucket, key = split(uri)
    with explained_disk(str(path)), _explained(uri):
        client().upload_file(str(path), bucket, key)


def create_bucket(uri: str) -> None:
    """Makes the bucket of `uri`, unless this account has it already."""
    bucket, _ = split(uri, root_allowed=True)
    with _explained(uri):
        try:
            client().create_bucket(Bucket=bucket)
        except ClientError as error:
            if error.response["Error"]["Code"] not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                raise


def split(uri: str, *, root_allowed: bool = False) -> tuple[str, str]:
    """Bucket and key of an s3:// address."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    key = key.strip("/")
    if ":" in bucket or "@" in bucket:
        raise StorageError(f"{uri}: holds a user or a password; S3 is told AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead")
    if not bucket or (not key and not root_allowed):
        raise StorageError(f"{uri}: names a whole bucket or none; an address reads s3://bucket/path")
    return bucket, key


def client() -> S3Client:
    """Client of this process for the S3 that the environment names now."""
    environment = os.environ
    endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
    if endpoint and holds_password(endpoint):  # it is shown, in messages
        raise StorageError("AWS_ENDPOINT_URL must not hold a password; S3 is told AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    return _connect_once(
        os.getpid(),  # a fork must not share its parent's sockets
        endpoint,
        environment.get("AWS_ACCESS_KEY_ID"),
        environment.get("AWS_SECRET_ACCESS_KEY"),
        environment.get("AWS_SESSION_TOKEN"),
        environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or "us-east-1",
    )


@functools.lru_cache(maxsize=4)
def _connect_once(
    process_id: int, endpoint: str | None, key_id: str | None, secret: str | None, token: str | None, region: str
) -> S3Client:
    return connect(endpoint, key_id, secret, token=token, region=region)


def connect(
    endpoint: str | None,
    key_id: str | None,
    secret: str | None,
    *,
    token: str | None = None,
    region: str = "us-east-1",
    attempts: int = _ATTEMPTS,
) -> S3Client:
    """A new client.

    Args:
        endpoint: URL of the server; None is AWS.
        key_id: Access key; None leaves the search for credentials to boto3 (a pod's role, for instance).
        secret: Its secret.
        token: Session token of temporary credentials.
        region: Any name where the server isn't AWS.
        attempts: Requests in all before a failure counts, with growing pauses.
    """
    config = Config(
        retries={"mode": "standard", "total_max_attempts": attempts},
        connect_timeout=5,
        read_timeout=60,
        max_pool_connections=32,
        user_agent_extra="iddpm",
    )
    return boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=key_id,
        aws_secret_access_key=secret,
        aws_session_token=token,
        region_name=region,
        config=config,
    )


@contextlib.contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Turns boto3's errors into a `StorageError` about `uri`, without a secret in it."""
    try:
        yield
    except ClientError as error:
        raise _explain_answer(uri, error) from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise StorageError(
            f"{uri}: no S3 credentials in the environment; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY "
            "(and AWS_ENDPOINT_URL where it isn't AWS), or start the local one by 'iddpm up'"
        ) from error
    except _NO_ANSWER as error:
        raise StorageError(
            f"{uri}: no answer from S3 at {client().meta.endpoint_url} ({type(error).__name__}); is it running, and is "
            "AWS_ENDPOINT_URL right? 'iddpm up' starts the local one",
            transient=True,
        ) from error
    except (BotoCoreError, Boto3Error) as error:
        cause = error.__cause__ or error.__context__
        if isinstance(cause, ClientError):  # s3transfer wraps the answer to a part
            raise _explain_answer(uri, cause) from error
        raise StorageError(f"{uri}: {' '.join(str(error).split())}; check the address and the AWS_* variables") from error


def _explain_answer(uri: str, error: ClientError) -> StorageError:
    code = error.response.get("Error", {}).get("Code", "")
    endpoint = client().meta.endpoint_url
    bucket, _ = split(uri, root_allowed=True)
    if code == "NoSuchBucket":
        return _missing_bucket(bucket, endpoint)
    if code in ("NoSuchKey", "404"):
        return ObjectNotFoundError(f"{uri}: there is no such object at {endpoint}")
    if code in _REFUSED:
        return StorageError(
            f"{uri}: S3 at {endpoint} refused the credentials ({code}); check AWS_ACCESS_KEY_ID and "
            f"AWS_SECRET_ACCESS_KEY, and that they may use bucket {bucket!r}"
        )
    status = _status(error)
    transient = code in _BUSY or status >= 500 or status == 429
    remedy = "try again, and look at the server's log and free disk space" if transient else "check the address"
    message = " ".join(error.response.get("Error", {}).get("Message", "").split())
    return StorageError(f"{uri}: S3 at {endpoint} answered {status} {code} {message}; {remedy}", transient=transient)


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


def _as_directory(key: str) -> str:
    return f"{key}/" if key else ""
